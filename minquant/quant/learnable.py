"""LSQ, learned step size quantization: the scale and the zero point of a fake quantizer are trained with the weights.

With ``q̃ = rint(x/s + z)``, the gradient of ``x̂ = (clip(q̃) - z) · s`` takes the rounding as the identity, so that

====================  =======================  =====================  ======
where                 ``∂x̂/∂s``                ``∂x̂/∂z``              ``∂x̂/∂x``
====================  =======================  =====================  ======
q̃ inside the grid     ``(x̂ - x) / s``          0                      1
q̃ below or above it   ``qmin - z, qmax - z``   ``-s``                 0
====================  =======================  =====================  ======

Under the loss ``(x̂ - x)²/2`` values inside pull the scale down, clipped ones push it up, and training finds
the balance.

Source: Esser et al. 2020 (arXiv:1902.08153), equations 2 and 3; Jain et al. 2020 (arXiv:1903.08066) for the zero point.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant.kernels.choice import compiled
from minquant.kernels.fma import fma
from minquant.nn import Parameter
from minquant.tensor import Function, Tensor

from .cascade import cascade_sum, channel_sum
from .fake_quant import FakeQuantize
from .grid import EPS, check_finite, float_array, kernel_grid, rounded
from .spec import PerTensor, QParams, QSpec, is_integer

__all__ = ["LearnableFakeQuantize"]

F32 = np.float32
ZERO = F32(0)


class LearnableFakeQuantize(FakeQuantize):
    """A fake quantizer whose scale and zero point are Parameters.

    It begins in the *static* phase, in which an observer sets both while training; `enable_param_learning` hands them
    to the optimizer. An optimizer made before `prepare_qat` does not know them: make it afterwards.

    Args:
        observer: class or factory of the observer of the static phase.
        quant_min: smallest integer.
        quant_max: largest integer.
        scale: where the scale starts if it learns before anything was observed.
        zero_point: likewise.
        channel_len: number of channels, if known; -1 lets the first observation tell.
        use_grad_scaling: multiply the gradients of scale and zero point by ``1/sqrt(x.size · quant_max)``, as the paper
            does.
        observer_kwargs: everything else goes to the observer (dtype, qscheme …).

    Attributes:
        scale: float32 Parameter of shape (1,), or (C,) per channel; in use never below 2⁻²³.
        zero_point: likewise; in use rounded and clipped to the grid. A symmetric grid's stays 0 and does not learn.
        learning_enabled: whether they require a gradient.
        observer_enabled: whether the observer sets them while training (torch: static_enabled).

    Raises:
        ValueError: a channel_len that is no positive integer; symmetric "quint8", whose middle is 128 and not 0;
            use_grad_scaling with quant_max = 0; and as the observer.

    Values and gradients equal torch's to the last bit, for contiguous x with ``|x/scale| < 2⁶³``, beyond which torch
    takes a large value for a small one. Four habits of torch's are left out, since with them a trained model and the
    converted one disagree: to observe in eval; to let an optimizer move what the next forward pass overwrites (torch's
    parameters require a gradient in the static phase too); to keep a symmetric zero point that training moved; and the
    gradient of an empty x, which is 0 here and the parameter's own value there.
    Source: torch.ao.quantization._learnable_fake_quantize._LearnableFakeQuantize, torch 2.13.
    """

    resizable = ("scale", "zero_point")

    def __init__(
        self,
        observer: Any,
        quant_min: int = 0,
        quant_max: int = 255,
        scale: float = 1.0,
        zero_point: float = 0.0,
        channel_len: int = -1,
        use_grad_scaling: bool = False,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__(observer, quant_min, quant_max, **observer_kwargs)
        if channel_len != -1 and not (is_integer(channel_len) and channel_len > 0):
            raise ValueError(
                f"LearnableFakeQuantize: channel_len must be a positive integer, or -1; got {channel_len!r}"
            )
        if self.spec.symmetric and not self.spec.signed:
            raise ValueError("LearnableFakeQuantize: a symmetric grid is learned around 0; use dtype='qint8'")
        if use_grad_scaling and quant_max < 1:
            raise ValueError(f"LearnableFakeQuantize: use_grad_scaling divides by quant_max, got {quant_max}")
        self.use_grad_scaling = use_grad_scaling
        self.register_buffer("learning_enabled", False)
        channels = 1 if channel_len == -1 else channel_len
        self.scale = Parameter(np.full(channels, scale, F32), requires_grad=False)
        self.zero_point = Parameter(np.full(channels, zero_point, F32), requires_grad=False)

    @property
    def spec(self) -> QSpec:
        """The kind of grid."""
        return self.activation_post_process.spec

    # ---- forward -----------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """The values of x on the grid that was estimated or learned; the result's `qparams` tell which."""
        self._let_learn(bool(self.learning_enabled))  # which a checkpoint may have changed
        if self.observer_enabled:
            self.observe(x)
        if not self.fake_quant_enabled:
            return x
        qparams = self.qparams()
        self.scale.data = np.maximum(self.scale.data, EPS)
        options = {"qparams": qparams, "grad_factor": self._grad_factor(x)}
        out = RoundToLearnedGrid.apply(x, self.scale, self.zero_point, **options)
        out.qparams = qparams
        return out

    def observe(self, x: Tensor) -> None:
        """While training, lets the observer see x and takes its scale and zero point.

        Raises:
            ValueError: another number of channels than the scale has.
        """
        if not self.training:
            return
        self.activation_post_process(x)
        estimate = [np.atleast_1d(values).astype(F32) for values in self.activation_post_process.calculate_qparams()]
        if self.scale.shape not in ((1,), estimate[0].shape):
            raise ValueError(
                f"LearnableFakeQuantize: the scale has {self.scale.shape[0]} channels, x has {estimate[0].size}; leave "
                "channel_len out, and the first observation tells"
            )
        self.scale.data, self.zero_point.data = estimate

    def _grad_factor(self, x: Tensor) -> float:
        return 1.0 / (max(x.data.size, 1) * self.spec.qmax) ** 0.5 if self.use_grad_scaling else 1.0

    # ---- the grid ----------------------------------------------------------------------------------------------------

    @property
    def saw_data(self) -> bool:
        """Whether there is a grid: one was estimated, or nobody waits for an estimate."""
        return super().saw_data or not self.observer_enabled

    def qparams(self) -> QParams:
        """The grid in use.

        Raises:
            ValueError: nothing has been observed, and the observer is to say; a scale or zero point that is not finite.
        """
        if not self.saw_data:
            return super().qparams()
        return QParams(*self.calculate_qparams(), self.spec)

    def calculate_qparams(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale ``max(scale, 2⁻²³)`` and zero point ``clip(rint(zero_point))``, shaped as `QParams` has them."""
        for name, parameter in (("scale", self.scale), ("zero_point", self.zero_point)):
            check_finite(parameter.data, f"LearnableFakeQuantize.{name}", "Did training diverge?")
        scale = np.maximum(self.scale.data, EPS)
        on_grid = np.clip(np.rint(self.zero_point.data), self.spec.qmin, self.spec.qmax).astype(np.int32)
        zero_point = np.zeros_like(on_grid) if self.spec.symmetric else on_grid
        return (scale[0], zero_point[0]) if isinstance(self.spec.granularity, PerTensor) else (scale, zero_point)

    # ---- phases ------------------------------------------------------------------------------------------------------

    def enable_param_learning(self) -> LearnableFakeQuantize:
        """From now on scale and zero point are trained, and nothing is observed."""
        return self.toggle_qparam_learning(True).toggle_fake_quant(True).toggle_observer_update(False)

    def enable_static_estimate(self) -> LearnableFakeQuantize:
        """From now on the observer sets scale and zero point while training (the first phase)."""
        return self.toggle_qparam_learning(False).toggle_fake_quant(True).toggle_observer_update(True)

    def enable_static_observation(self) -> LearnableFakeQuantize:
        """As `enable_static_estimate`, but values pass unchanged."""
        return self.toggle_qparam_learning(False).toggle_fake_quant(False).toggle_observer_update(True)

    def toggle_observer_update(self, enabled: bool = True) -> LearnableFakeQuantize:
        """Whether the observer sets scale and zero point while training."""
        self.observer_enabled = enabled
        return self

    def toggle_qparam_learning(self, enabled: bool = True) -> LearnableFakeQuantize:
        """Whether scale and zero point require a gradient."""
        self.learning_enabled = enabled
        self._let_learn(enabled)
        if not enabled:
            self.scale.grad = self.zero_point.grad = None  # so that no optimizer applies what is left of it
        return self

    def _let_learn(self, enabled: bool) -> None:
        self.scale.requires_grad = enabled
        self.zero_point.requires_grad = enabled and not self.spec.symmetric

    def toggle_fake_quant(self, enabled: bool = True) -> LearnableFakeQuantize:
        """Whether values are rounded to the grid."""
        self.fake_quant_enabled = enabled
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, learning_enabled={bool(self.learning_enabled)}"


class RoundToLearnedGrid(Function):
    """``x̂ = f((clip(rint(f(x·f(1/s))) + z) - z)·s)``; the gradients are the table at the top, in torch's order.

    Source: torch._fake_quantize_learnable_per_tensor_affine and _per_channel_affine, torch 2.13.
    """

    def forward(
        self, x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, qparams: QParams, grad_factor: float
    ) -> np.ndarray:
        self.save(x)
        self.grid = qparams
        self.grad_factor = F32(grad_factor)
        # one scale: torch's backward truncates z + 1/2 where its forward rounds, which is one off below zero
        truncated = np.trunc(np.clip(zero_point + F32(0.5), qparams.spec.qmin, qparams.spec.qmax))
        self.zero_point = truncated[0] if self._per_tensor else qparams.zero_point.astype(F32)
        return rounded(float_array(x, "fake_quantize"), qparams).astype(x.dtype, copy=False)

    @property
    def _per_tensor(self) -> bool:
        return isinstance(self.grid.spec.granularity, PerTensor)

    def backward(self, grad: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        spec, (x,) = self.grid.spec, self.saved
        kernels = compiled("learned_step", x.size)
        if kernels and x.dtype == F32 == grad.dtype:
            length, *flat = kernel_grid(x, self.grid)
            flat[2] = np.atleast_1d(self.zero_point)
            arrays = np.asarray(x, order="C"), np.asarray(grad, order="C")
            by = kernels.gradients(*arrays, (length, *flat), self.grad_factor, gradients)
        else:
            scale, z = (spec.granularity.expand(v, x.shape) for v in (self.grid.scale, np.asarray(self.zero_point)))
            ends = F32(spec.qmin), F32(spec.qmax)
            inside, *by_scale, outside = gradients(x, grad, F32(1) / scale, scale, z, *ends, self.grad_factor)
            by = tuple(np.where(inside, *pair) for pair in ((grad, ZERO), by_scale, (ZERO, outside)))
        by_x, by_scale, by_zero_point = by
        return by_x, self._sum(by_scale), self._sum(by_zero_point)

    def _sum(self, terms: np.ndarray) -> np.ndarray:
        terms = terms.astype(F32, copy=False)
        if self._per_tensor:
            return np.atleast_1d(cascade_sum(terms.reshape(-1)))
        return channel_sum(terms, self.grid.spec.granularity.axis)  # type: ignore[union-attr]


def gradients(
    x: Any, grad: Any, inverse: Any, scale: Any, zero_point: Any, qmin: Any, qmax: Any, factor: Any
) -> tuple[Any, Any, Any, Any]:
    """The table above, of arrays, and of numbers inside kernels.

    Whether q̃ lies inside the grid; the gradient by scale where it does, and where it does not; that by zero point where
    it does not.
    """
    codes = np.rint(fma(x, inverse, zero_point))
    clipped = np.minimum(np.maximum(codes, qmin), qmax)
    rounding_error = fma(clipped - zero_point, scale, -x)
    by_scale = grad * rounding_error * inverse * factor, grad * (clipped - zero_point) * factor
    return codes == clipped, by_scale[0], by_scale[1], -grad * scale * factor
