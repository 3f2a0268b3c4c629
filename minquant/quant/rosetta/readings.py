"""How each dialect reads one tensor: the grid that it chooses for it, and the integers on that grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..dialects import get_dialect, torchao
from ..dialects.fbgemm_grid import fbgemm_qparams
from ..dialects.modelopt import modelopt_integers
from ..dialects.onnx_grid import dynamic_quantize_linear
from ..dialects.tflite import tflite_activation, tflite_weight
from ..dialects.torch_rules import quantize_codes
from ..grid import choose_qparams, to_codes, to_integers
from ..observers import MinMaxObserver
from ..spec import QSpec

__all__ = ["AFFINE", "SYMMETRIC", "Reading", "base_readings", "other_readings"]

AFFINE, SYMMETRIC = "reference affine", "reference symmetric"


@dataclass(frozen=True, eq=False)
class Reading:
    """One tensor in one dialect.

    Args:
        dialect: its name.
        base: the reading of the reference dialect that it is compared with.
        scale: of the grid.
        zero_point: of the grid.
        qmin: smallest integer that the grid was chosen for.
        qmax: largest one.
        clip: the ends at which the operator clips; they are wider where reduce_range binds the grid alone.
        integers: of the tensor's shape, int64.
    """

    dialect: str
    base: str
    scale: np.float32
    zero_point: int
    qmin: int
    qmax: int
    clip: tuple[int, int]
    integers: np.ndarray

    @property
    def signed(self) -> bool:
        """Whether the integers are int8 or narrower, not uint8."""
        return self.qmin < 0


def reading(
    dialect: str, base: str, grid: tuple[Any, Any], ends: tuple[int, int], codes: np.ndarray, clip: Any = None
) -> Reading:
    """A `Reading` of codes that may still want clipping at `clip`, or else at the grid's ends."""
    clip = clip or ends
    integers = np.clip(codes, *clip).astype(np.int64)
    return Reading(dialect, base, np.float32(grid[0]), int(grid[1]), *ends, clip, integers)


def base_readings(x: np.ndarray, bits: int) -> list[Reading]:
    """The reference dialect's own two grids, affine in unsigned and symmetric in signed integers."""
    found = []
    for name, spec in ((AFFINE, QSpec(bits, signed=False)), (SYMMETRIC, QSpec(bits, symmetric=True))):
        qparams = choose_qparams(x.min(), x.max(), spec)
        grid, ends = (qparams.scale, qparams.zero_point), (spec.qmin, spec.qmax)
        found.append(reading(name, name, grid, ends, to_integers(x, qparams)))
    return found


# ---- torch -----------------------------------------------------------------------------------------------------------


def observed(base: str, name: str, x: np.ndarray, **arguments: Any) -> Reading:
    """MinMaxObserver, then quantize_per_tensor, which clips at the ends of the type, reduce_range or not."""
    observer = MinMaxObserver(**arguments)
    observer(x)
    scale, zero_point = observer.calculate_qparams()
    clip = (-128, 127) if observer.dtype == "qint8" else (0, 255)
    ends = observer.quant_min, observer.quant_max
    return reading(name, base, (scale, zero_point), ends, quantize_codes(x, scale, zero_point), clip)


def fused(base: str, name: str, x: np.ndarray, bits: int) -> Reading:
    """fused_moving_avg_obs_fake_quant, first batch."""
    spec = QSpec(bits, signed=base == SYMMETRIC, symmetric=base == SYMMETRIC)
    grid = fbgemm_qparams(x.min(), x.max(), spec.qmin, spec.qmax, spec.symmetric, scale_dtype=np.float32)
    codes = to_codes(x, np.asarray(grid[0], np.float32), np.asarray(grid[1]))
    return reading(name, base, grid, (spec.qmin, spec.qmax), codes)


def at_run_time(engine: str, name: str, x: np.ndarray) -> Reading:
    """The input of a dynamic Linear."""
    dialect = get_dialect(engine)
    spec, _ = dialect.dynamic(8)
    integers, *grid = dialect.quantize_at_run_time(x, spec)
    return reading(name, AFFINE, (grid[0], grid[1]), (spec.qmin, spec.qmax), integers, (0, 255))


# ---- torchao ---------------------------------------------------------------------------------------------------------


def torchao_affine(base: str, mapping: str, name: str, x: np.ndarray, bits: int) -> Reading:
    """choose_qparams_affine and quantize_affine, in signed integers."""
    spec = QSpec(bits, symmetric=base == SYMMETRIC)
    qparams = torchao.choose_qparams(x, spec, mapping)
    return reading(name, base, (qparams.scale, qparams.zero_point), (spec.qmin, spec.qmax), to_integers(x, qparams))


# ---- others ----------------------------------------------------------------------------------------------------------


def onnx(name: str, x: np.ndarray) -> Reading:
    """DynamicQuantizeLinear."""
    integers, scale, zero_point = dynamic_quantize_linear(x)
    return reading(name, AFFINE, (scale, zero_point), (0, 255), integers)


def modelopt(name: str, x: np.ndarray, bits: int) -> Reading:
    """Symmetric, narrow range."""
    integers, scale = modelopt_integers(x, bits)
    qmax = 2 ** (bits - 1) - 1
    return reading(name, SYMMETRIC, (scale, 0), (-qmax, qmax), integers)


def tflite_affine(name: str, x: np.ndarray) -> Reading:
    """An activation."""
    integers, scale, zero_point = tflite_activation(x)
    return reading(name, AFFINE, (scale, zero_point), (-128, 127), integers)


def tflite_symmetric(name: str, x: np.ndarray) -> Reading:
    """A weight."""
    integers, scale = tflite_weight(x)
    return reading(name, SYMMETRIC, (scale, 0), (-127, 127), integers)


# ---- all of them -----------------------------------------------------------------------------------------------------

EIGHT_BITS: dict[str, Callable[[str, np.ndarray], Reading]] = {
    "torch observer quint8": partial(observed, AFFINE),
    "torch observer quint8, reduce_range": partial(observed, AFFINE, reduce_range=True),
    "torch observer qint8": partial(observed, SYMMETRIC, dtype="qint8", qscheme="per_tensor_symmetric"),
    "fbgemm and x86 at run time": partial(at_run_time, "x86"),
    "qnnpack at run time": partial(at_run_time, "qnnpack"),
    "onednn at run time": partial(at_run_time, "onednn"),
    "onnx DynamicQuantizeLinear": onnx,
    "TFLite activation": tflite_affine,
    "TFLite weight": tflite_symmetric,
}
"""What exists in 8 bits alone."""

EVERY_WIDTH: dict[str, Callable[[str, np.ndarray, int], Reading]] = {
    "torch fused fake-quantizer, affine": partial(fused, AFFINE),
    "torch fused fake-quantizer, symmetric": partial(fused, SYMMETRIC),
    "torchao ASYMMETRIC": partial(torchao_affine, AFFINE, "asymmetric"),
    "torchao SYMMETRIC": partial(torchao_affine, SYMMETRIC, "symmetric"),
    "torchao SYMMETRIC_NO_CLIPPING_ERR": partial(torchao_affine, SYMMETRIC, "symmetric_no_clipping_error"),
    "ModelOpt": modelopt,
}


def other_readings(x: np.ndarray, bits: int) -> Iterator[tuple[str, Callable[[], Reading]]]:
    """Name and reading of every other dialect that knows so many bits; a reading, when called, may refuse x."""
    if bits == 8:
        for name, read in EIGHT_BITS.items():
            yield name, partial(read, name, x)
    for name, read_bits in EVERY_WIDTH.items():
        yield name, partial(read_bits, name, x, bits)
