"""Layers that belong together as one: a Linear or Conv with the batch norm and the ReLU behind it."""

from __future__ import annotations

from typing import ClassVar

from minquant.nn import BatchNorm1d, BatchNorm2d, Conv1d, Conv2d, Linear, Module, ReLU, Sequential

__all__ = [
    "FUSED",
    "ConvBn1d",
    "ConvBn2d",
    "ConvBnReLU1d",
    "ConvBnReLU2d",
    "ConvReLU1d",
    "ConvReLU2d",
    "Fused",
    "LinearBn1d",
    "LinearReLU",
]


class Fused(Sequential):
    """Layers fused into one with one output grid; it computes what they compute one after the other.

    With a ReLU inside, the grid need not cover the negative values, which the ReLU would throw away.

    Args:
        modules: the layers, in order.

    Raises:
        TypeError: other layers than those that the class is made for.

    Source: torch.ao.nn.intrinsic, torch 2.13, whose names these are.
    """

    kinds: ClassVar[tuple[type[Module], ...]]

    def __init__(self, *modules: Module) -> None:
        if tuple(map(type, modules)) != self.kinds:
            got = " and ".join(type(m).__name__ for m in modules)
            expected = " and ".join(f"a {kind.__name__}" for kind in self.kinds)
            raise TypeError(f"{type(self).__name__}: expected {expected}, got {got}")
        super().__init__(*modules)

    @property
    def layer(self) -> Module:
        """The Linear or Conv in it."""
        return self[0]

    @property
    def bn(self) -> BatchNorm1d | BatchNorm2d | None:
        """The batch norm in it, if any."""
        return self[1] if issubclass(self.kinds[1], BatchNorm1d | BatchNorm2d) else None

    @property
    def has_relu(self) -> bool:
        """Whether it ends in a ReLU."""
        return self.kinds[-1] is ReLU


class LinearReLU(Fused):
    """A Linear and the ReLU behind it. See `Fused`."""

    kinds = (Linear, ReLU)


class ConvReLU1d(Fused):
    """A Conv1d and the ReLU behind it. See `Fused`."""

    kinds = (Conv1d, ReLU)


class ConvReLU2d(Fused):
    """A Conv2d and the ReLU behind it. See `Fused`."""

    kinds = (Conv2d, ReLU)


class LinearBn1d(Fused):
    """A Linear and the batch norm behind it, for training: see `fuse_modules_qat`."""

    kinds = (Linear, BatchNorm1d)


class ConvBn1d(Fused):
    """A Conv1d and the batch norm behind it, for training: see `fuse_modules_qat`."""

    kinds = (Conv1d, BatchNorm1d)


class ConvBn2d(Fused):
    """A Conv2d and the batch norm behind it, for training: see `fuse_modules_qat`."""

    kinds = (Conv2d, BatchNorm2d)


class ConvBnReLU1d(Fused):
    """A Conv1d, batch norm and ReLU, for training: see `fuse_modules_qat`."""

    kinds = (Conv1d, BatchNorm1d, ReLU)


class ConvBnReLU2d(Fused):
    """A Conv2d, batch norm and ReLU, for training: see `fuse_modules_qat`."""

    kinds = (Conv2d, BatchNorm2d, ReLU)


FUSED: dict[tuple[type[Module], ...], type[Fused]] = {
    kind.kinds: kind
    for kind in (
        LinearReLU, ConvReLU1d, ConvReLU2d, LinearBn1d, ConvBn1d, ConvBn2d, ConvBnReLU1d, ConvBnReLU2d,
    )
}  # fmt: skip
"""The class for each sequence of layers."""
