"""Values of torch's parameters and buffers as NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["array_of", "tensor_problem"]

DTYPES = ("torch.float32", "torch.int64", "torch.int32", "torch.bool")


def tensor_problem(tensor: Any) -> str:
    """What keeps a parameter or buffer from being brought over; "" if nothing does."""
    kind = type(tensor)
    if (kind.__module__, kind.__name__) not in (("torch", "Tensor"), ("torch.nn.parameter", "Parameter")):
        return f"is a {kind.__name__}; plain float tensors can be brought over"
    if str(tensor.dtype) not in DTYPES:
        return f"is {tensor.dtype}, minquant computes in float32; convert the model first, model.float()"
    if tensor.is_meta or str(tensor.layout) != "torch.strided":
        return f"has no dense values (device {tensor.device}, layout {tensor.layout})"
    return ""


def array_of(tensor: Any) -> np.ndarray:
    """A copy of the values."""
    return np.array(tensor.detach().cpu().numpy())
