"""How `compare` finds the first layer that differs: both sides' layers in one form, pairs, probes, causes.

One form for all: values are a `QTensor` (integers on a grid) or a float32 array, whichever library they come from, and
what a layer knows of itself is a `Facts`.
"""
