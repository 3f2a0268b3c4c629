"""Real values to integers on tensors: on grids that are given, and on grids chosen from the values themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minquant.kernels import tensors
from minquant.quant import PerToken, QParams, QSpec
from minquant.quant.dialects import Dialect
from minquant.quant.dialects.fbgemm_grid import fbgemm_qparams
from minquant.quant.dialects.intx import Intx
from minquant.quant.dialects.onednn import ONEDNN
from minquant.quant.dialects.onednn import code as code_of_onednn
from minquant.quant.dialects.onnx import ONNX
from minquant.quant.dialects.reference import Reference
from minquant.quant.dialects.torch_rules import TorchDialect, run_time_range
from minquant.quant.dialects.torch_rules import to_code as code_of_torch
from minquant.quant.dialects.torchao import Torchao
from minquant.quant.grid import EPS, to_code

from .rules import on_device

__all__ = [
    "finite_range",
    "quantize",
    "quantize_at_run_time",
    "quantize_plainly",
    "refuse_not_finite",
    "torchs_range",
    "uncovered_quantize",
    "uncovered_run_time",
]


def fused_code(x: Any, inverse: Any, scale: Any, zero_point: Any) -> Any:
    """``rint(fma(x, f(1/s), z))``, as all of torch's engines quantize."""
    return code_of_torch(x, inverse, zero_point)


def plain_code(x: Any, inverse: Any, scale: Any, zero_point: Any) -> Any:
    """``rint(f(x · f(1/s))) + z``."""
    return to_code(x, inverse, zero_point)


def onednn_code(x: Any, inverse: Any, scale: Any, zero_point: Any) -> Any:
    """``rint(f(f(x · f(1/s)) + z))``."""
    return code_of_onednn(x, inverse, zero_point)


def divided_code(x: Any, inverse: Any, scale: Any, zero_point: Any) -> Any:
    """``rint(f(x / s)) + z``."""
    return np.rint(x / scale) + zero_point


LONGEST_ROW = 16_384
"""Values that `minquant.kernels.triton_tokens` keeps in registers."""
NOT_FINITE = "the input of {} holds NaN or infinity: no range, so no grid. Mend the data or the layers before it"
QUANTIZE: dict[Any, Callable[..., Any]] = {
    Reference.quantize: plain_code,
    TorchDialect.quantize: fused_code,
    ONNX.quantize: divided_code,
}
AT_RUN_TIME: dict[Any, tuple[Callable[..., Any], bool]] = {
    Reference.quantize_at_run_time: (plain_code, False),
    Torchao.quantize_at_run_time: (plain_code, False),
    Intx.quantize_at_run_time: (plain_code, False),
    TorchDialect.quantize_at_run_time: (fused_code, True),
    ONEDNN.quantize_at_run_time: (onednn_code, True),
    ONNX.quantize_at_run_time: (divided_code, True),
}
"""By the dialect's method: the arithmetic, and whether all of 0…255 is used whatever the spec says."""


def uncovered_quantize(dialect: Dialect) -> str:
    """Why the dialect's `quantize` is not to be had on tensors; "" if it is."""
    return "" if type(dialect).quantize in QUANTIZE else f"the way in which {dialect.name} quantizes is not covered"


def uncovered_run_time(dialect: Dialect) -> str:
    """Likewise of grids that are chosen at run time."""
    known = type(dialect).quantize_at_run_time in AT_RUN_TIME
    return "" if known else f"the way in which {dialect.name} chooses a grid at run time is not covered"


def quantize(dialect: Dialect, x: Tensor, qparams: QParams) -> Tensor:
    """``dialect.quantize``: float32 of any shape -> integers on a grid of one scale; NaN is the caller's affair."""
    return _on_grid(QUANTIZE[type(dialect).quantize], x, qparams)


def quantize_plainly(x: Tensor, qparams: QParams) -> Tensor:
    """`minquant.quant.grid.to_integers`, likewise."""
    return _on_grid(plain_code, x, qparams)


def quantize_at_run_time(
    dialect: Dialect, x: Tensor, spec: QSpec, where: str
) -> tuple[Tensor, np.ndarray | Tensor, np.ndarray]:
    """``dialect.quantize_at_run_time``: float32 (R, K) -> integers, scale and zero point.

    The ranges travel to the host, where the dialect itself chooses the grid, as if they were all that there is of x.
    Where a kernel can do all of it at once, the scale stays on the device, and NaN in it is to be refused by
    `refuse_not_finite` when everything else is under way.

    Raises:
        ValueError: NaN or infinity; the message says where.
    """
    if x.is_cuda and tensors.has_triton() and is_in_triton(dialect, x, spec):
        return in_triton(x, spec)
    function, all_of_uint8 = AT_RUN_TIME[type(dialect).quantize_at_run_time]
    ends = finite_range(x, spec, where)
    _, scale, zero_point = dialect.quantize_at_run_time(ends, spec)
    low, high = (0, 255) if all_of_uint8 else (spec.qmin, spec.qmax)
    return _codes(function, x, scale, zero_point, low, high, spec.dtype), scale, zero_point


def is_in_triton(dialect: Dialect, x: Tensor, spec: QSpec) -> bool:
    """Whether there is a kernel for this grid: symmetric int8 for each row, by the plain rule."""
    plain = AT_RUN_TIME[type(dialect).quantize_at_run_time] == (plain_code, False)
    return (
        plain
        and dialect.run_time_eps(spec) == EPS
        and spec.symmetric
        and spec.signed
        and isinstance(spec.granularity, PerToken)
        and x.shape[-1] <= LONGEST_ROW
    )


def in_triton(x: Tensor, spec: QSpec) -> tuple[Tensor, Tensor, np.ndarray]:
    """Rows on symmetric grids, in one kernel."""
    from minquant.kernels.triton_tokens import symmetric_rows

    q, scale = symmetric_rows(x, spec.qmin, spec.qmax)
    return q, scale, np.zeros((len(x), 1), np.int32)


def refuse_not_finite(scale: np.ndarray | Tensor, where: str) -> None:
    """What `quantize_at_run_time` has put off, because it waits for the device.

    Raises:
        ValueError: NaN or infinity in the input.
    """
    if isinstance(scale, Tensor) and not scale.isfinite().all():
        raise ValueError(NOT_FINITE.format(where))


def finite_range(x: Tensor, spec: QSpec, where: str) -> np.ndarray:
    """Smallest and largest value of what shares a scale, (1, 2) or (R, 2); nothing of an empty x.

    Raises:
        ValueError: NaN or infinity.
    """
    per_token = spec.granularity.qparams_shape((2, 2)) != ()
    if not x.numel():
        return np.zeros((len(x), 0), np.float32)
    low, high = torch.aminmax(x, dim=1) if per_token else torch.aminmax(x)
    ends = torch.stack([low, high], -1).reshape(-1, 2).cpu().numpy()
    if not np.isfinite(ends).all():
        raise ValueError(NOT_FINITE.format(where))
    return ends


def torchs_range(x: Tensor, spec: QSpec, where: str) -> tuple[np.float64, int]:
    """Scale, before it is rounded to float32, and zero point that torch's engines choose for x.

    Raises:
        ValueError: NaN or infinity.
    """
    return fbgemm_qparams(*run_time_range(finite_range(x, spec, where)), spec.qmin, spec.qmax)


def _on_grid(function: Callable[..., Any], x: Tensor, qparams: QParams) -> Tensor:
    spec = qparams.spec
    return _codes(function, x, qparams.scale, qparams.zero_point, spec.qmin, spec.qmax, spec.dtype)


def _codes(
    function: Callable[..., Any], x: Tensor, scale: np.ndarray, zero_point: np.ndarray, low: int, high: int, dtype: Any
) -> Tensor:
    terms = on_device((np.float32(1) / scale, scale, zero_point.astype(np.float32)), x.device)
    rows = x.reshape(-1, x.shape[-1]) if x.ndim and x.numel() else x.reshape(1, -1)
    q = tensors.apply(function, rows, terms, getattr(torch, np.dtype(dtype).name), low, high)
    return q.reshape(x.shape)
