"""Fake quantizers: modules that watch a range, choose a grid, and round to it with a straight-through gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant.nn import Module
from minquant.tensor import Tensor

from .grid import fake_quantize
from .observers import MovingAverageMinMaxObserver, Observer, ObserverFactory
from .qtensor import QTensor, quantize
from .spec import QParams

__all__ = [
    "FakeQuantize",
    "WeightFakeQuantize",
    "disable_fake_quant",
    "disable_observer",
    "enable_fake_quant",
    "enable_observer",
]


class FakeQuantize(Module):
    """An observer and the rounding to the grid it chooses: ``x → f((clip(rint(f(x·f(1/s))) + z) - z) · s)``.

    While training, each call first widens the observed range; in `eval` the range stands still. The gradient passes
    where x lies in the observed range (symmetric: where ``|x| ≤ amax``).

    Args:
        observer: class or factory of the observer.
        quant_min: smallest integer, if not the dtype's.
        quant_max: largest integer.
        observer_kwargs: everything else goes to the observer (dtype, qscheme, reduce_range …).

    Attributes:
        activation_post_process: the observer (torch's name).
        observer_enabled: whether ranges are watched while training.
        fake_quant_enabled: whether values are rounded; without it they pass unchanged.

    Source: torch.ao.quantization.FakeQuantize, torch 2.13, which differs in its gradient (it is zero where the integer
    would be clipped, even by half a step) and goes on observing in eval; Jacob et al. 2018, section 3.
    """

    def __init__(
        self,
        observer: Any = MovingAverageMinMaxObserver,
        quant_min: int | None = None,
        quant_max: int | None = None,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__()
        self.activation_post_process: Observer = observer(quant_min=quant_min, quant_max=quant_max, **observer_kwargs)
        self.register_buffer("observer_enabled", True)  # buffers, so that a checkpoint holds them
        self.register_buffer("fake_quant_enabled", True)

    @classmethod
    def with_args(cls, **arguments: Any) -> ObserverFactory:
        """A factory for fake quantizers with these arguments."""
        return ObserverFactory(cls, **arguments)

    def forward(self, x: Tensor) -> Tensor:
        """The values of x on the grid; the result's `qparams` tell which grid."""
        if self.observer_enabled:
            self.observe(x)
        if not self.fake_quant_enabled:
            return x
        return fake_quantize(x, self.qparams(), *self.activation_post_process.range())

    def observe(self, x: Tensor) -> None:
        """Lets the observer see x, while training only."""
        if self.training:
            self.activation_post_process(x)

    @property
    def saw_data(self) -> bool:
        """Whether there is a range to choose a grid for."""
        return self.activation_post_process.saw_data

    def qparams(self) -> QParams:
        """The grid of the range seen so far.

        Raises:
            ValueError: nothing has been seen.
        """
        return self.activation_post_process.qparams()

    def calculate_qparams(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point of the range seen so far (torch's name)."""
        return self.activation_post_process.calculate_qparams()

    def weight_qparams(self, weight: Tensor) -> QParams:
        """The grid that `convert` gives to this weight."""
        if self.observer_enabled:
            self.observe(weight)
        return self.qparams()

    def quantized(self, weight: Tensor) -> QTensor:
        """The integers that `convert` makes of this weight."""
        return quantize(weight, self.weight_qparams(weight))

    def enable_observer(self, enabled: bool = True) -> None:
        """Watch ranges from now on."""
        self.observer_enabled = enabled

    def disable_observer(self) -> None:
        """Keep the range as it is from now on."""
        self.enable_observer(False)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Round values to the grid from now on."""
        self.fake_quant_enabled = enabled

    def disable_fake_quant(self) -> None:
        """Let values pass unchanged from now on."""
        self.enable_fake_quant(False)

    def extra_repr(self) -> str:
        enabled = bool(self.observer_enabled), bool(self.fake_quant_enabled)
        return f"observer_enabled={enabled[0]}, fake_quant_enabled={enabled[1]}"


class WeightFakeQuantize(FakeQuantize):
    """A weight is known whole at every step, so its range is its current one: no memory, and no lag."""

    def observe(self, x: Tensor) -> None:
        """Forgets the last range and takes that of x, in training and in eval alike."""
        self.activation_post_process.reset_min_max_vals()
        self.activation_post_process(x)


def enable_observer(module: Module) -> None:
    """``model.apply(enable_observer)``: every fake quantizer in it watches ranges again."""
    if isinstance(module, FakeQuantize):
        module.enable_observer()


def disable_observer(module: Module) -> None:
    """``model.apply(disable_observer)``: every fake quantizer in it keeps its range."""
    if isinstance(module, FakeQuantize):
        module.disable_observer()


def enable_fake_quant(module: Module) -> None:
    """``model.apply(enable_fake_quant)``: every fake quantizer in it rounds again."""
    if hasattr(module, "fake_quant_enabled"):  # the stub behind the last layer has a say, too
        module.fake_quant_enabled = True


def disable_fake_quant(module: Module) -> None:
    """``model.apply(disable_fake_quant)``: every fake quantizer in it lets values pass."""
    if hasattr(module, "fake_quant_enabled"):
        module.fake_quant_enabled = False
