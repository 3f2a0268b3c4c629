"""torchao 0.18: how it chooses a grid, the gradient of its fake quantizer, and its dynamic Linears.

Its ``quantize_affine`` and ``dequantize_affine`` are the plain rule of `minquant.quant.grid`, for every granularity.
What differs:

- A symmetric grid has two rules (torchao calls the choice MappingType). ``"symmetric"`` stretches ``±max|x|`` over all
  steps, so that the largest positive value is clipped; ``"symmetric_no_clipping_error"`` clips nothing.
- The smallest scale, eps, depends on who asks:

  =============================================================================  ===================================
  ``choose_qparams_affine``, Int8DynamicActivationIntxWeightConfig, QAT           2⁻¹²⁶, the smallest normal number
  Int8DynamicActivationInt8WeightConfig                                          2⁻²³
  ``get_groupwise_affine_qparams`` (`minquant.quant.dialects.tinygemm`)          10⁻⁶
  =============================================================================  ===================================

- The gradient of its fake quantizer is autograd's, through every factor: ``f(f(dy·s)·mask·f(1/s))``, not ``dy·mask``.
- Its Linears take real values and give real values; there is no static one.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from minquant.kernels.epilogue import ToReal
from minquant.tensor import Function, Tensor

from .. import grid
from ..observers import Observer
from ..qtensor import QTensor
from ..spec import SMALLEST_NORMAL, PerChannel, PerGroup, PerToken, QParams, QSpec
from .base import Dialect, Factory
from .onednn import real
from .reference import integer_linear

__all__ = ["IntxWeightObserver", "Torchao", "choose_qparams", "choose_qparams_with_min_max", "fake_quantize"]

F32 = np.float32
TINY = F32(SMALLEST_NORMAL)
MAPPINGS = ("symmetric", "symmetric_no_clipping_error", "asymmetric")


# ---- the grid --------------------------------------------------------------------------------------------------------


def choose_qparams(x: np.ndarray, spec: QSpec, mapping: str | None = None, eps: float | np.floating = TINY) -> QParams:
    """The grid for x's own range: `choose_qparams_with_min_max` of the smallest and largest value of each part of x.

    Source: torchao.quantization.quant_primitives.choose_qparams_affine, torchao 0.18.
    """
    return choose_qparams_with_min_max(*spec.granularity.min_max(x), spec, mapping, eps)


def choose_qparams_with_min_max(
    x_min: Any, x_max: Any, spec: QSpec, mapping: str | None = None, eps: float | np.floating = TINY
) -> QParams:
    """The grid for a range, with ``lo = min(x_min, 0)`` and ``hi = max(x_max, 0)``.

    ===============================  ============================================  ================================
    mapping                          scale                                         zero point
    ===============================  ============================================  ================================
    ``symmetric``                    ``f(max(-lo, hi) / ((qmax-qmin)/2))``         ``int((qmin+qmax+1)/2)``
    ``symmetric_no_clipping_error``  ``max(f(lo/qmin), f(hi/qmax))``               the same
    ``asymmetric``                   ``f(f(hi-lo) / (qmax-qmin))``                 ``clip(qmin - rint(f(lo/s)))``
    ===============================  ============================================  ================================

    Args:
        x_min: smallest value of each tensor, channel, group or token, float32.
        x_max: largest value, same shape.
        spec: the kind of grid; must be symmetric exactly if the mapping is.
        mapping: "symmetric", "symmetric_no_clipping_error" or "asymmetric"; left out, "symmetric" or "asymmetric" as
            `spec` says.
        eps: smallest scale.

    Raises:
        ValueError: an unknown mapping, or one that contradicts `spec`; "symmetric_no_clipping_error" of unsigned
            integers, for which torchao divides by 0; a range that is not finite.

    Source: torchao.quantization.quant_primitives.choose_qparams_affine_with_min_max, torchao 0.18.
    """
    mapping = _checked_mapping(mapping, spec)
    grid.check_finite(np.stack([x_min, x_max]), "choose_qparams: the range", "Mend the data")
    lo, hi, eps = np.minimum(x_min, F32(0)), np.maximum(x_max, F32(0)), F32(eps)
    with np.errstate(over="ignore"):  # a range wider than float32 gives an infinite scale, which QParams refuses
        if mapping == "asymmetric":
            return QParams(*grid.affine_grid(lo, hi, spec.qmin, spec.qmax, eps), spec)
        if mapping == "symmetric":
            scale = grid.symmetric_scale(lo, hi, spec.qmin, spec.qmax, eps)
        else:
            scale = np.maximum(np.maximum(lo / F32(spec.qmin), hi / F32(spec.qmax)), eps)
    middle = int((spec.qmin + spec.qmax + 1) / 2)
    return QParams(scale, np.full(scale.shape, middle, np.int32), spec)


def _checked_mapping(mapping: str | None, spec: QSpec) -> str:
    if mapping is None:
        return "symmetric" if spec.symmetric else "asymmetric"
    if mapping not in MAPPINGS:
        raise ValueError(f"choose_qparams: mapping must be one of {', '.join(MAPPINGS)}; got {mapping!r}")
    if spec.symmetric != (mapping != "asymmetric"):
        raise ValueError(f"choose_qparams: mapping {mapping!r} contradicts the spec, {spec}; give QSpec(symmetric=…)")
    if mapping == "symmetric_no_clipping_error" and not spec.qmin < 0 < spec.qmax:
        raise ValueError(f"choose_qparams: {mapping!r} needs integers of both signs, got {spec}")
    return mapping


# ---- fake quantization -----------------------------------------------------------------------------------------------


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """The nearest values of the grid, with the gradient that autograd gives torchao: ``f(f(dy·s)·mask·f(1/s))``.

    The mask is 1 where ``rint(f(x·f(1/s))) + z`` lies on the grid, ends included. The gradient inside is not dy to the
    last bit, since dy is multiplied by the scale and by its reciprocal.

    Source: torchao.quantization.quant_primitives._fake_quantize_affine, as used by
    torchao.quantization.qat.IntxFakeQuantizer, torchao 0.18.
    """
    out = RoundLikeTorchao.apply(x, qparams=qparams)
    out.qparams = qparams
    return out


class RoundLikeTorchao(Function):
    """See `fake_quantize`."""

    def forward(self, x: np.ndarray, qparams: QParams) -> np.ndarray:
        values = grid.float_array(x, "fake_quantize")
        scale, zero_point = qparams.expand(x.shape)
        codes = grid.to_codes(values, scale, zero_point)
        self.save((qparams.spec.qmin <= codes) & (codes <= qparams.spec.qmax), scale)
        return grid.to_real(grid.to_integers(values, qparams), qparams).astype(x.dtype, copy=False)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        inside, scale = self.saved
        return np.where(inside, grad * scale, F32(0)) * (F32(1) / scale)


# ---- Linear ----------------------------------------------------------------------------------------------------------


class IntxWeightObserver(Observer):
    """Chooses a weight's grid as torchao does: per group or per channel, 2 to 8 bits, by one of the mappings.

    Args:
        weight_bits: 2 to 8.
        granularity: PerGroup(size), where size divides in_features, or PerChannel().
        mapping: see `choose_qparams_with_min_max`.

    Raises:
        ValueError: an unknown mapping, bits or granularity.

    Source: torchao.quantization.IntxUnpackedToInt8Tensor.from_hp, torchao 0.18.
    """

    def __init__(
        self,
        weight_bits: int = 8,
        granularity: PerGroup | PerChannel = PerGroup(32),  # noqa: B008 (a frozen value)
        mapping: str = "symmetric",
    ) -> None:
        spec = QSpec(weight_bits, symmetric=mapping != "asymmetric", granularity=granularity)
        mapping = _checked_mapping(mapping, spec)
        scheme = f"per_channel_{'symmetric' if spec.symmetric else 'affine'}"
        super().__init__(granularity, "qint8", scheme, False, spec.qmin, spec.qmax, float(TINY))
        self.mapping = mapping

    def calculate_qparams(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point for the range seen."""
        qparams = choose_qparams_with_min_max(*self.range(), self.spec, self.mapping)
        return qparams.scale, qparams.zero_point


def quantize_at_run_time(x: np.ndarray, spec: QSpec, eps: np.floating) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers, scale and zero point on the grid for x's own range, whose scale is eps at least."""
    if isinstance(spec.granularity, PerToken) and not spec.symmetric:
        in_one_pass = grid.to_own_grids(x, spec, eps)
        if in_one_pass:
            return in_one_pass
    nothing = np.zeros(spec.granularity.qparams_shape(x.shape), F32)
    x_min, x_max = grid.range_of(x, spec.granularity) if x.size else (nothing, nothing)
    qparams = choose_qparams_with_min_max(x_min, x_max, spec, eps=eps)
    return grid.to_integers(x, qparams), *qparams.expand(x.shape)


class Torchao(Dialect):
    """Dynamic Linears only, of two kinds. The kind of grid for the input decides:

    - affine, per token (the preset): Int8DynamicActivationIntxWeightConfig. The integers are taken back to real values,
      which are multiplied in float32: ``y = x̂ ŵᵀ + bias``. x̂ and ŵ are torchao's to the last bit; a sum of products in
      any order differs from the exact one by at most ``(K+1)·2⁻²⁴`` of ``Σ|x̂||ŵ| + |bias|``.
    - symmetric, per token or per tensor: Int8DynamicActivationInt8WeightConfig, whose weight observer is
      PerChannelMinMaxObserver(dtype="qint8", qscheme="per_channel_symmetric"). The integers are multiplied:
      ``y = f(f(f(f(acc)·sx)·sw) + bias)``, torchao's to the last bit.
    """

    name = "torchao"

    def dynamic(self, weight_bits: int) -> tuple[QSpec, Factory]:
        """int8 affine per token for the input; symmetric in groups of 32 for weights.

        Source: the defaults of torchao.quantization.Int8DynamicActivationIntxWeightConfig, torchao 0.18.
        """
        return QSpec(granularity=PerToken()), IntxWeightObserver.with_args(weight_bits=weight_bits)

    def run_time_eps(self, spec: QSpec) -> np.float32:
        """The smallest scale of an input: 2⁻²³ if the grid is symmetric, else 2⁻¹²⁶."""
        return grid.EPS if spec.symmetric else TINY

    def quantize_at_run_time(self, x: np.ndarray, spec: QSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The grid of this x's own range."""
        return quantize_at_run_time(x, spec, self.run_time_eps(spec))

    def dynamic_linear(self, x: np.ndarray, weight: QTensor, bias: np.ndarray, relu: bool, spec: QSpec) -> np.ndarray:
        """Integers times integers if `spec` is symmetric, else real values times real values.

        Raises:
            ValueError: a symmetric grid for the input with a weight that is affine or has groups.
        """
        if spec.symmetric:
            of = weight.qparams.spec
            if not of.symmetric or isinstance(of.granularity, PerGroup):
                raise ValueError(
                    "torchao: with symmetric integers for the input, the weight must be symmetric per channel or per "
                    f"tensor, got {of}; give the input QSpec(granularity=PerToken())"
                )
            return super().dynamic_linear(x, weight, bias, relu, spec)
        q, scale, zero_point = self.quantize_at_run_time(x, spec)
        real = (q.astype(np.int32) - zero_point).astype(F32) * scale
        y = real @ weight.dequantize().T + bias  # (…, K) @ (K, N) -> (…, N)
        return np.maximum(y, F32(0)) if relu else y

    def to_real(self, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray, relu: bool = False) -> ToReal:
        """``y = f(f(f(f(acc) · sx) · sw) + bias)``."""
        return ToReal(real, x_scale, w_scale, bias, relu)

    def qat_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Forward what `dynamic_linear` computes, integers times integers or real values; the float gradient."""
        x_grid, w_grid = x.qparams, weight.qparams
        if x_grid is None or w_grid is None or not x_grid.spec.symmetric:
            return super().qat_linear(x, weight, bias)
        return integer_linear(x, weight, bias, self)

    def check_weight(self, spec: QSpec) -> None:
        """Every weight grid of up to 8 bits has its arithmetic here."""

    def _dynamic_linear_only(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(
            "torchao has dynamic Linears only: give this QConfig to quantize_dynamic, for Linear layers; for anything "
            'else take backend="reference" or one of torch\'s engines'
        )

    quantize = converted_grid = full_spec = to_codes = _dynamic_linear_only
    observers = fake_quantizers = dynamic_conv = _dynamic_linear_only
