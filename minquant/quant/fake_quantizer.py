"""What `quantize_` is told of one tensor, a config, and the module that rounds to the grid that it describes.

A fake quantizer of this file has one rule, `grid`: values -> the grid for them. Training rounds to it (`forward`) and
conversion takes its integers (`quantized`), so that both see the same integers by construction. One that a user writes
needs nothing else:

    @dataclass(frozen=True)
    class ClippedConfig(FakeQuantizeConfigBase):
        bits: int = 2

    @register_fake_quantizer(ClippedConfig)
    class ClippedFakeQuantizer(FakeQuantizerBase):
        def grid(self, x):
            end = 2 * np.abs(x).mean(axis=1)
            return choose_qparams(-end, end, QSpec(self.config.bits, symmetric=True, granularity=PerChannel()))

    quantize_(model, QATConfig(weight_config=ClippedConfig(), step="prepare"))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from minquant.nn import Module
from minquant.savable import savable
from minquant.tensor import Tensor

from .dialects import tinygemm
from .dialects.torchao import MAPPINGS, TINY, choose_qparams_with_min_max
from .fake_quant import FakeQuantize
from .fixed_observer import FixedQParamsObserver
from .grid import float_array, range_of, round_to_own_grid
from .observers import MinMaxObserver
from .qtensor import QTensor, quantize
from .spec import Granularity, PerChannel, PerGroup, PerToken, QParams, QSpec

__all__ = [
    "FakeQuantizeConfigBase",
    "FakeQuantizerBase",
    "IntxFakeQuantizeConfig",
    "IntxFakeQuantizer",
    "StaticFakeQuantizeConfig",
    "StaticFakeQuantizer",
    "TinygemmFakeQuantizeConfig",
    "TinygemmFakeQuantizer",
    "make_fake_quantizer",
    "register_fake_quantizer",
]

DTYPES = {f"{kind}{bits}": (bits, kind == "int") for kind in ("int", "uint") for bits in range(2, 9)}
NAMED = {"per_token": PerToken(), "per_channel": PerChannel(0)}


# ---- what one is told ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FakeQuantizeConfigBase:
    """What a fake quantizer is told: a frozen dataclass of numbers, strings and granularities."""


@dataclass(frozen=True, init=False)
class IntxFakeQuantizeConfig(FakeQuantizeConfigBase):
    """A grid of 2 to 8 bits, chosen anew from the values at every call.

    Args:
        dtype: "int2" … "int8", "uint2" … "uint8".
        granularity: PerGroup(size), PerChannel(0), PerToken() or PerTensor(); or "per_token", "per_channel", or
            "per_group" with a `group_size`.
        mapping_type: "symmetric", "symmetric_no_clipping_error" or "asymmetric"; "symmetric" if left out.
        eps: smallest scale; 2⁻¹²⁶ if left out.
        group_size: in the place of `granularity`.
        is_symmetric: in the place of `mapping_type`.

    Raises:
        ValueError: an unknown dtype, granularity or mapping; two of the arguments that stand for one another.

    Source: torchao.quantization.qat.IntxFakeQuantizeConfig, torchao 0.18. Its PerAxis(0) and PerRow() are PerChannel(0)
    here, of an input PerToken().
    """

    dtype: str
    granularity: Granularity
    mapping_type: str
    eps: float

    def __init__(
        self,
        dtype: str,
        granularity: Granularity | str | None = None,
        mapping_type: str | None = None,
        eps: float | None = None,
        *,
        group_size: int | None = None,
        is_symmetric: bool | None = None,
    ) -> None:
        if mapping_type is not None and is_symmetric is not None:
            raise ValueError("IntxFakeQuantizeConfig: give mapping_type or is_symmetric, not both")
        mapping = mapping_type or ("asymmetric" if is_symmetric is False else "symmetric")
        for name, value in (
            ("dtype", dtype),
            ("granularity", checked_granularity(granularity, group_size)),
            ("mapping_type", mapping),
            ("eps", float(TINY) if eps is None else float(eps)),
        ):
            object.__setattr__(self, name, value)
        check_mapping(mapping, "IntxFakeQuantizeConfig")
        self.spec  # noqa: B018 (refuses what no grid can be)

    @property
    def spec(self) -> QSpec:
        """The kind of grid."""
        bits, signed = bits_of(self.dtype, "IntxFakeQuantizeConfig")
        return QSpec(bits, signed, self.mapping_type != "asymmetric", self.granularity)


@dataclass(frozen=True)
class TinygemmFakeQuantizeConfig(FakeQuantizeConfigBase):
    """uint4 in groups with a zero point in real values: ``s = (max - min)/15``, and real 0 need not lie on the grid.

    Args:
        group_size: weights that share a scale and a zero point.

    Source: `minquant.quant.dialects.tinygemm`.
    """

    group_size: int = 128

    @property
    def spec(self) -> QSpec:
        """The kind of grid."""
        return QSpec(4, signed=False, granularity=PerGroup(self.group_size))


@dataclass(frozen=True)
class StaticFakeQuantizeConfig(FakeQuantizeConfigBase):
    """int8, symmetric, one scale for every input: given, or that of the largest magnitude seen while training.

    Args:
        scale: the scale; left out, it is observed.

    Source: the activations of torchao.quantization.Int8StaticActivationInt8WeightConfig, torchao 0.18, which wants the
    scale from its caller. Observed as `minquant.quant.get_default_qat_qconfig` does, by a running smallest and largest.
    """

    scale: float | None = None

    @property
    def spec(self) -> QSpec:
        """The kind of grid."""
        return QSpec(symmetric=True)


def bits_of(dtype: str, where: str) -> tuple[int, bool]:
    """Bits, and whether signed.

    Raises:
        ValueError: an unknown name.
    """
    if dtype not in DTYPES:
        raise ValueError(f'{where}: dtype must be "int2" … "int8" or "uint2" … "uint8", got {dtype!r}')
    return DTYPES[dtype]


def check_mapping(mapping: str, where: str) -> None:
    """Refuses an unknown mapping."""
    if mapping not in MAPPINGS:
        raise ValueError(f"{where}: mapping_type must be one of {', '.join(MAPPINGS)}; got {mapping!r}")


def checked_granularity(granularity: Granularity | str | None, group_size: int | None) -> Granularity:
    """One granularity from the several ways to say it.

    Raises:
        ValueError: none, two, or an unknown one.
    """
    where = "IntxFakeQuantizeConfig"
    if group_size is not None:
        if granularity not in (None, "per_group"):
            raise ValueError(f"{where}: group_size={group_size} contradicts granularity={granularity!r}")
        return PerGroup(group_size)
    found = NAMED.get(granularity) if isinstance(granularity, str) else granularity
    if not isinstance(found, Granularity):
        raise ValueError(
            f'{where}: expected a granularity, PerGroup(size), PerChannel(0), PerToken(), PerTensor(), "per_token" or '
            f'"per_channel", or a group_size; got granularity={granularity!r}'
        )
    return found


# ---- what rounds -----------------------------------------------------------------------------------------------------


class FakeQuantizerBase(Module):
    """A fake quantizer: `forward` rounds values to the grid for them, with a straight-through gradient.

    A subclass gives `grid`. Whatever lies between the smallest and the largest value passes its gradient on, which is
    everything: the grid is chosen from these very values.

    Args:
        config: what `register_fake_quantizer` was told that this class is for.

    Attributes:
        fake_quant_enabled: whether values are rounded; without it they pass unchanged.

    Source: torchao.quantization.qat.FakeQuantizerBase, torchao 0.18.
    """

    fake_quant_enabled: Any

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("fake_quant_enabled", True)  # a buffer, so that a checkpoint holds it

    def grid(self, x: np.ndarray) -> QParams:
        """The grid for these values, float32."""
        raise NotImplementedError(f"{type(self).__name__} must say which grid it rounds to: define grid(self, x)")

    def forward(self, x: Tensor) -> Tensor:
        """The values of x on their grid; the result's `qparams` tell which."""
        return self.round(x) if self.fake_quant_enabled else x

    def round(self, x: Tensor) -> Tensor:
        """`forward` while enabled."""
        values = float_array(x, type(self).__name__)
        return round_to_own_grid(x, self.grid(values))

    def quantized(self, x: Tensor) -> QTensor:
        """The integers behind `round`: what conversion takes."""
        return quantize(x, self.grid(float_array(x, type(self).__name__)))

    def extra_repr(self) -> str:
        return f"{self.config}, enabled={bool(self.fake_quant_enabled)}"


Quantizer = TypeVar("Quantizer", bound=type[Module])
_QUANTIZERS: dict[type, Callable[[Any], Module]] = {}


def register_fake_quantizer(config_class: type[FakeQuantizeConfigBase]) -> Callable[[Quantizer], Quantizer]:
    """``@register_fake_quantizer(MyConfig)`` before a class: QATConfig makes one of it wherever it meets a MyConfig.

    Both are then savable, see `minquant.savable`.

    Raises:
        TypeError: a config that is no subclass of FakeQuantizeConfigBase.
    """
    if not (isinstance(config_class, type) and issubclass(config_class, FakeQuantizeConfigBase)):
        raise TypeError(
            f"register_fake_quantizer: expected a subclass of FakeQuantizeConfigBase, got {config_class!r}; write "
            "@register_fake_quantizer(MyConfig) before the class"
        )

    def register(quantizer: Quantizer) -> Quantizer:
        _QUANTIZERS[savable(config_class)] = savable(quantizer)
        return quantizer

    return register


def make_fake_quantizer(config: Any) -> Any:
    """The fake quantizer that such a config asks for.

    Raises:
        TypeError: nothing is registered for it.
    """
    if type(config) not in _QUANTIZERS:
        known = ", ".join(sorted(kind.__name__ for kind in _QUANTIZERS))
        raise TypeError(
            f"no fake quantizer is registered for {config!r}; there are those for {known}; "
            "register_fake_quantizer(MyConfig) adds one"
        )
    return _QUANTIZERS[type(config)](config)


@register_fake_quantizer(IntxFakeQuantizeConfig)
class IntxFakeQuantizer(FakeQuantizerBase):
    """Rounds to the grid of an `IntxFakeQuantizeConfig`; integers equal torchao's, for weights and for activations.

    For asymmetric weights they are those of torchao's base configs. Its own IntxFakeQuantizer takes the real zero point
    of tinygemm for an integer there, so that it clips most of the range's one end; QATConfig refuses such base configs.

    Source: torchao.quantization.qat.IntxFakeQuantizer, torchao 0.18.
    """

    def grid(self, x: np.ndarray) -> QParams:
        """What torchao chooses for the range of x; see `minquant.quant.dialects.torchao`."""
        config: IntxFakeQuantizeConfig = self.config
        spec = config.spec
        nothing = np.zeros(spec.granularity.qparams_shape(x.shape), np.float32)
        low, high = range_of(x, spec.granularity) if x.size else (nothing, nothing)
        return choose_qparams_with_min_max(low, high, spec, config.mapping_type, config.eps)


@register_fake_quantizer(TinygemmFakeQuantizeConfig)
class TinygemmFakeQuantizer(FakeQuantizerBase):
    """Rounds to tinygemm's grid, which has its own kind of zero point."""

    def round(self, x: Tensor) -> Tensor:
        """``dequantize(quantize(x))`` in tinygemm's arithmetic; the gradient passes everywhere."""
        return tinygemm.fake_quantize(x, self.config.spec)

    def quantized(self, x: Tensor) -> tinygemm.TinygemmTensor:  # type: ignore[override]
        """The integers behind `round`."""
        return tinygemm.TinygemmTensor.of(float_array(x, type(self).__name__), self.config.spec)


@register_fake_quantizer(StaticFakeQuantizeConfig)
class StaticFakeQuantizer(FakeQuantize):
    """A `FakeQuantize` of a `StaticFakeQuantizeConfig`: it observes while training, and stands still in eval."""

    def __init__(self, config: StaticFakeQuantizeConfig) -> None:
        kind = {"dtype": "qint8", "qscheme": "per_tensor_symmetric", "quant_min": -128, "quant_max": 127}
        given = config.scale is not None
        fixed = {"observer": FixedQParamsObserver, "scale": config.scale, "zero_point": 0}
        super().__init__(**(fixed if given else {"observer": MinMaxObserver}), **kind)  # type: ignore[arg-type]
        self.config = config
