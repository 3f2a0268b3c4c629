"""Mixed precision: computing in float16, with float32 parameters to update and scaled losses.

=====================  ============  ==========================================================================
what                   kept in       why
=====================  ============  ==========================================================================
weights on disk        int8          `minquant.train.int8_storage`: a quarter of float32
weights to compute     float16       decompressed: half of float32, and fast on hardware that has it
gradients              float16       multiplied by the loss scale, since below 2⁻²⁵ float16 knows only 0
weights to update      float32       the masters: float16 rounds 1 + 0.0004 to 1, however often it is added
=====================  ============  ==========================================================================

On a processor float16 is *emulated*: values stay in float32 arrays and are rounded to the float16 grid (`float16`),
which costs time and saves no memory. What is rounded: every parameter when it is read, every result of a module, and
the gradient of each. What a module computes inside (the sums of a matrix product, a softmax) is float32, as on GPUs.

::

    half, optimizer, scaler = HalfPrecision(model), optim.Adam(model.parameters()), GradScaler()
    for x, y in batches:
        optimizer.zero_grad()
        scaler.scale(criterion(half(x), y)).backward()  # the loss itself is float32
        scaler.step(optimizer)  # unscales; skips the step where a gradient overflowed
        scaler.update()

Source: Micikevicius et al. 2018 (arXiv:1710.03740), section 3; torch.autocast and torch.amp.GradScaler, torch 2.13.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minquant.nn import Module
from minquant.optim import Optimizer
from minquant.tensor import Function, Tensor, as_tensor, is_float

__all__ = ["GradScaler", "HalfPrecision", "float16"]


# ---- float16 -----------------------------------------------------------------------------------------------


class RoundToFloat16(Function):
    """x rounded to the nearest float16, in the dtype that x has; the gradient is rounded in the same way."""

    floats_only = True

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x.astype(np.float16).astype(x.dtype)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return grad.astype(np.float16).astype(grad.dtype)


def float16(x: Any) -> Tensor:
    """The nearest values that float16 has, halves to even, and the gradient rounded likewise on its way back.

    Eleven significant bits: steps of 2⁻¹⁰ from 1 to 2. The largest value is 65,504, and from 65,520 on all is ±inf; the
    smallest is 2⁻²⁴, and up to 2⁻²⁵ all is 0.

    Args:
        x: Tensor or array, float32 or float64, of any shape.

    Returns:
        Tensor of the same shape and dtype.

    Raises:
        TypeError: x is not floating point.

    Source: IEEE 754 binary16; ``x.half().float()``, torch 2.13, to the bit.
    """
    return RoundToFloat16.apply(x)


class HalfPrecision(Module):
    """Runs a model in emulated float16 and leaves its parameters, the masters, in float32.

    Parameters, inputs, the results of all modules, and the gradients of all these are rounded to float16; see the
    module's text. The model's own `parameters()` collect the gradients, so that an optimizer needs no change.

    Args:
        model: a float model whose modules return Tensors.

    Raises (in forward):
        TypeError: a module that returns something other than a Tensor.

    Source: what torch.autocast(dtype=torch.float16) does, torch 2.13, which however picks from a list of operations.
    """

    def __init__(self, model: Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Tensor:
        with _in_float16(self.model):
            return self.model(*[_rounded(as_tensor(x)) for x in inputs])


@contextmanager
def _in_float16(model: Module) -> Iterator[None]:
    """Meanwhile every module reads float16 parameters and rounds its result."""
    modules = list(model.modules())
    masters = [dict(module._parameters) for module in modules]
    halves = {id(p): float16(p) for own in masters for p in own.values() if p is not None}  # a tied one once
    hooks = [module.register_forward_hook(_round_result) for module in modules]
    try:
        for module, own in zip(modules, masters, strict=True):
            module._parameters.update({name: halves.get(id(p)) for name, p in own.items()})
        yield
    finally:
        for module, own, hook in zip(modules, masters, hooks, strict=True):
            module._parameters.update(own)
            hook.remove()


def _round_result(module: Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"HalfPrecision: expected modules that return a Tensor, got {type(output).__name__} from a "
            f"{type(module).__name__}; it runs float models, before they are quantized"
        )
    return _rounded(output)


def _rounded(x: Tensor) -> Tensor:
    """Integers, such as tokens, are left alone."""
    return float16(x) if is_float(x.dtype) else x


# ---- the loss scale ----------------------------------------------------------------------------------------


class GradScaler:
    """Multiplies the loss, so that small gradients survive float16, and divides the gradients before they are used.

    The scale looks for its own size: an optimizer's step in which a gradient is infinite or NaN is skipped, and the
    scale is multiplied by `backoff_factor`; after `growth_interval` good steps in a row, by `growth_factor`.

    Args:
        init_scale: the first scale.
        growth_factor: above 1.
        backoff_factor: between 0 and 1.
        growth_interval: 1 or more.

    Raises:
        ValueError: an argument outside these.

    Source: torch.amp.GradScaler, torch 2.13: scale, skipped steps and gradients equal torch's to the bit.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        for name, value, right, expected in (
            ("init_scale", init_scale, 0 < init_scale < math.inf, "positive and finite"),
            ("growth_factor", growth_factor, growth_factor > 1, "above 1"),
            ("backoff_factor", backoff_factor, 0 < backoff_factor < 1, "between 0 and 1"),
            ("growth_interval", growth_interval, growth_interval >= 1, "1 or more"),
        ):
            if not right:
                raise ValueError(f"GradScaler: {name} must be {expected}, got {value!r}")
        self._scale = np.float32(init_scale)
        self._factors = growth_factor, backoff_factor
        self._growth_interval = growth_interval
        self._good_steps = 0
        self._overflowed: dict[Optimizer, bool] = {}  # by optimizers whose gradients are unscaled
        self._stepped: set[Optimizer] = set()

    def get_scale(self) -> float:
        """The scale of now."""
        return float(self._scale)

    def scale(self, outputs: Tensor) -> Tensor:
        """The loss times the scale: call `backward()` on it."""
        return outputs * Tensor(self._scale)

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divides the gradients by the scale, in place; `step` does it, unless it was done, to clip them for instance.

        Raises:
            RuntimeError: they are unscaled already; there are no gradients.
        """
        if optimizer in self._overflowed:
            raise RuntimeError("unscale_: these gradients are unscaled already; call update() after each step")
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not grads:
            raise RuntimeError("unscale_: the optimizer's parameters have no gradients: scale(loss).backward() first")
        self._overflowed[optimizer] = not all(bool(np.isfinite(grad.data).all()) for grad in grads)
        inverse = np.float32(1 / float(self._scale))
        with np.errstate(invalid="ignore", over="ignore"):
            for grad in grads:
                grad.data *= inverse
                grad.mark_changed()

    def step(self, optimizer: Optimizer) -> None:
        """Unscales the gradients if nobody has, and lets the optimizer step, unless one is infinite or NaN.

        Raises:
            RuntimeError: a second step before `update`; there are no gradients.
        """
        if optimizer in self._stepped:
            raise RuntimeError("step: this optimizer has stepped since the last update(); call update() first")
        if optimizer not in self._overflowed:
            self.unscale_(optimizer)
        self._stepped.add(optimizer)
        if not self._overflowed[optimizer]:
            optimizer.step()

    def update(self) -> None:
        """Chooses the next scale, once after the steps of all optimizers.

        Raises:
            RuntimeError: no gradient was looked at since the last time.
        """
        if not self._overflowed:
            raise RuntimeError("update: no step() since the last update(), so nothing to learn about the scale")
        growth_factor, backoff_factor = self._factors
        overflowed = any(self._overflowed.values())
        self._overflowed, self._stepped = {}, set()
        if overflowed:
            self._scale, self._good_steps = np.float32(float(self._scale) * backoff_factor), 0
            return
        self._good_steps += 1
        if self._good_steps == self._growth_interval:
            self._good_steps = 0
            with np.errstate(over="ignore"):
                larger = np.float32(float(self._scale) * growth_factor)
            self._scale = larger if np.isfinite(larger) else self._scale
