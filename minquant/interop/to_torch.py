"""`to_torch`: a minquant model as a torch model, on the CPU or a GPU: float, in training, or integer for integer."""

from __future__ import annotations

from typing import Any

from minquant.nn import Module

__all__ = ["to_torch"]


def to_torch(model: Module, device: str = "cpu") -> Any:
    """A minquant model as a torch.nn.Module that computes the same, on any device.

    Quantized layers become modules of minquant's own, on the same integers; float layers become torch's. Of a module
    class of your own the `forward` is run by torch, if it only calls submodules and uses operators, methods and
    functions of `minquant.functional` that torch has too. Names are the same: ``fc1.weight.integers``,
    ``fc1.weight.scale``, ``fc1.output.scale`` … in `state_dict`; weights of 2 to 4 bits stay packed. Inputs and outputs
    are torch tensors. A Llama runs without its cache.

    A model in quantization-aware training, prepared by `quantize_` or, in the reference dialect, by `prepare_qat`,
    becomes one that trains in any torch loop: its fake quantizers round, straight through, and observe. `from_torch`
    brings it back, with what it has learned.

    Args:
        model: a converted, dynamically quantized, prepared or float model; it is not changed, no memory is shared.
        device: "cpu", "cuda" or "cuda:N"; the result can be moved with `.to(device)`. On a GPU integers are multiplied
            by tensor cores (`minquant.kernels.cuda`), and what follows is one kernel where Triton is installed, and
            torch's operations where not.

    Returns:
        A torch.nn.Module. Integers equal minquant's bit for bit, whatever the dialect, and so do the real values of
        quantized layers. Norms and softmax between two grids add in float64, where another order changes an integer by
        one at most, and hardly ever (`torch_modules/statistics.py`). Float layers, and Linears whose weight alone is
        integers, differ in the order in which sums are added: one of K products by at most
        ``2·(K + 2)·2⁻²⁴·(Σ|x·w| + |b|)``, so that integers which are made of their results may differ, too.
        So do layers in training. Their operands are minquant's to the last bit; torch multiplies them as real values.
        From the same rounded input a Linear with G groups differs by at most ``γ·(Σ|x̂·ŵ| + |b|)`` with
        ``γ = n·2⁻²⁴ / (1 - n·2⁻²⁴)``: K + 1 roundings in torch, G + 4 in minquant, and 3 in the operands that minquant
        does not round and the product of their scales, n = K + G + 9 with one to spare. Gradients are those of the
        float layer on both sides.

    Raises:
        ImportError: torch is not installed.
        RuntimeError: a CUDA device is asked for, and there is none.
        TypeError: `model` is no minquant module.
        ValueError: something that is not covered; the message lists everything, by path, and what is covered.
    """
    if not isinstance(model, Module):
        raise TypeError(f"to_torch: expected a minquant Module, got {type(model).__name__}")
    try:
        import torch
    except ImportError as error:
        raise ImportError("to_torch needs torch: pip install 'minquant[torch]'") from error
    if torch.device(device).type == "cuda":
        from minquant.kernels.cuda import cuda_torch

        cuda_torch("to_torch", "device='cpu'")
    from .torch_modules.build import build

    return build(model).to(device)
