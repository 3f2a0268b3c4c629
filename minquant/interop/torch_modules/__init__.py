"""minquant's quantized layers as torch modules, on any device; `minquant.interop.to_torch` makes them.

Importing this imports torch.
"""
