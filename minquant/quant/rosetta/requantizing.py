"""The second half of the table: int32 accumulators become 8-bit integers, in every dialect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..dialects import get_dialect
from ..dialects.fixed_point import requantize as fixed_point
from ..grid import to_codes
from ..spec import QParams

__all__ = ["requantizations"]

F32 = np.float32
ENGINES = {
    "fbgemm and x86": "x86",
    "qnnpack": "qnnpack",
    "onednn": "onednn",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
}


def requantizations(
    acc: np.ndarray, x_scale: Any, w_scale: Any, output: QParams, bias: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """What every dialect makes of the accumulators of a Linear.

    Args:
        acc: int32 (M, N), or (N,) for one row.
        x_scale: of the input.
        w_scale: of the weight, one or one a channel (N,).
        output: grid of the result, uint8 per tensor.
        bias: float32 (N,); zeros, if left out.

    Returns:
        A dict a dialect: "dialect"; "integers", of the shape of `acc`; "differing", how many are not the reference's;
        "rule", which departure from the reference's rule ``rint(f(y · f(1/so))) + zo`` gives all of them.
    """
    bias = np.zeros(acc.shape[-1], F32) if bias is None else np.asarray(bias, F32)
    parts = Parts(acc, np.asarray(x_scale, F32), np.asarray(w_scale, F32), output, bias)
    expected = parts.reference(bias)
    return [
        {
            "dialect": name,
            "integers": integers,
            "differing": int((integers != expected).sum()),
            "rule": "" if np.array_equal(integers, expected) else parts.departure(integers),
        }
        for name, integers in (("reference", expected), *parts.dialects())
    ]


class Parts:
    """One Linear's accumulators and scales, and the ways to requantize them."""

    def __init__(
        self, acc: np.ndarray, x_scale: np.ndarray, w_scale: np.ndarray, output: QParams, bias: np.ndarray
    ) -> None:
        self.acc, self.x_scale, self.w_scale, self.output, self.bias = acc, x_scale, w_scale, output, bias
        self.step = x_scale.astype(np.float64) * w_scale
        self.integer_bias = np.rint(bias / self.step).astype(np.int64)

    def dialects(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every dialect's own integers."""
        grids = self.x_scale, self.w_scale, self.bias, self.output
        for name, engine in ENGINES.items():
            q = get_dialect(engine).requantize(np.atleast_2d(self.acc), *grids, relu=False)
            yield name, q.reshape(self.acc.shape)
        yield "gemmlowp, TFLite", self.twice_rounded()

    def twice_rounded(self) -> np.ndarray:
        """An int32 bias, a multiplier of 31 bits, and a shift."""
        with_bias = (self.acc + self.integer_bias).astype(np.int32)
        return fixed_point(with_bias, self.step / np.float64(self.output.scale), self.output)

    # ---- from the reference to a dialect, one departure at a time ----------------------------------------------------

    def departure(self, integers: np.ndarray) -> str:
        """The first departure that gives all these integers."""
        whole = "bias rounded to whole steps of sx·sw"
        before = "zero point added before the rounding"
        known: dict[str, Callable[[], np.ndarray]] = {
            before: lambda: self.added_before(self.bias),
            whole: lambda: self.reference(self.integer_bias * self.step),
            f"{whole}; {before}": lambda: self.added_before(self.integer_bias * self.step),
            "rounded twice, halves upwards and then away from zero": self.twice_rounded,
        }
        for words, compute in known.items():
            if np.array_equal(compute(), integers):
                return words
        return "float products rounded in another order"

    def real(self, bias: np.ndarray) -> np.ndarray:
        """``f(f(f(acc) · f(sx·sw)) + bias)``."""
        return self.acc.astype(F32) * (self.x_scale * self.w_scale) + bias.astype(F32)

    def reference(self, bias: np.ndarray) -> np.ndarray:
        """The reference dialect's integers."""
        return self._clipped(to_codes(self.real(bias), self.output.scale, self.output.zero_point))

    def added_before(self, bias: np.ndarray) -> np.ndarray:
        """``rint(f(f(y · f(1/so)) + zo))``."""
        return self._clipped(np.rint(self.real(bias) * (F32(1) / self.output.scale) + F32(self.output.zero_point)))

    def _clipped(self, codes: np.ndarray) -> np.ndarray:
        spec = self.output.spec
        return np.clip(codes, spec.qmin, spec.qmax).astype(spec.dtype)
