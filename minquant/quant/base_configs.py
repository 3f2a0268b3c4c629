"""The configs of `quantize_`, under torchao's names: which grid for inputs, which for weights, and who multiplies.

===================================== =============================== ========================== ===================
config                                input                           weight                     product
===================================== =============================== ========================== ===================
Int8DynamicActivationIntxWeightConfig int8 affine per token           2–8 bits, per group        integers ("intx")
Int8DynamicActivationInt8WeightConfig int8 symmetric per token        int8 symmetric per channel integers ("torchao")
Int8StaticActivationInt8WeightConfig  int8 symmetric, scale observed  int8 symmetric per channel integers ("torchao")
IntxWeightOnlyConfig                  –                               2–8 bits, per channel      float32
Int8WeightOnlyConfig                  –                               int8 symmetric per channel float32
Int4WeightOnlyConfig                  –                               uint4, tinygemm's          float32
===================================== =============================== ========================== ===================

What these integers are equals torchao 0.18 to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .fake_quantizer import (
    FakeQuantizeConfigBase,
    IntxFakeQuantizeConfig,
    StaticFakeQuantizeConfig,
    TinygemmFakeQuantizeConfig,
)
from .grid import EPS
from .spec import Granularity, PerChannel, PerGroup, PerTensor, PerToken

__all__ = [
    "BaseConfig",
    "Int4WeightOnlyConfig",
    "Int8DynamicActivationInt8WeightConfig",
    "Int8DynamicActivationIntxWeightConfig",
    "Int8StaticActivationInt8WeightConfig",
    "Int8WeightOnlyConfig",
    "IntxWeightOnlyConfig",
    "QATConfig",
]

GROUPS_OF_32, ROWS, TOKENS = PerGroup(32), PerChannel(0), PerToken()
STEPS = ("prepare", "convert")


@dataclass(frozen=True)
class BaseConfig:
    """A way to quantize a layer: what both its fake quantizers are told, and the dialect of its product."""

    backend: ClassVar[str] = "torchao"

    def __post_init__(self) -> None:
        self.fake_quantize_configs()  # which refuses what cannot be

    def fake_quantize_configs(self) -> tuple[FakeQuantizeConfigBase | None, FakeQuantizeConfigBase]:
        """What the fake quantizers of the input (None: it stays as it is) and of the weight are told."""
        raise NotImplementedError


@dataclass(frozen=True)
class Int8DynamicActivationIntxWeightConfig(BaseConfig):
    """int8 inputs, each token with a scale and zero point of its own, and weights of 2 to 8 bits in groups.

    What torchao's guide calls ``int8_dynamic_activation_int4_weight(group_size=32)`` is this with "int4".

    Args:
        weight_dtype: "int2" … "int8".
        weight_granularity: PerGroup(size) or PerChannel(0).
        weight_mapping_type: "symmetric", "symmetric_no_clipping_error" or "asymmetric".

    Source: torchao.quantization.Int8DynamicActivationIntxWeightConfig, torchao 0.18.
    """

    weight_dtype: str = "int8"
    weight_granularity: Granularity = GROUPS_OF_32
    weight_mapping_type: str = "symmetric"
    backend: ClassVar[str] = "intx"

    def fake_quantize_configs(self) -> tuple[FakeQuantizeConfigBase | None, FakeQuantizeConfigBase]:
        """See `BaseConfig`."""
        weight = _weight(self, self.weight_dtype, self.weight_granularity, self.weight_mapping_type)
        return IntxFakeQuantizeConfig("int8", TOKENS, is_symmetric=False), weight


@dataclass(frozen=True)
class IntxWeightOnlyConfig(BaseConfig):
    """Weights of 2 to 8 bits; inputs and the product stay float32. Also for an Embedding.

    Args:
        weight_dtype: "int2" … "int8".
        granularity: PerGroup(size) or PerChannel(0).
        mapping_type: "symmetric", "symmetric_no_clipping_error" or "asymmetric".

    Source: torchao.quantization.IntxWeightOnlyConfig, torchao 0.18.
    """

    weight_dtype: str = "int8"
    granularity: Granularity = ROWS
    mapping_type: str = "symmetric"

    def fake_quantize_configs(self) -> tuple[FakeQuantizeConfigBase | None, FakeQuantizeConfigBase]:
        """See `BaseConfig`."""
        return None, _weight(self, self.weight_dtype, self.granularity, self.mapping_type)


@dataclass(frozen=True)
class Int8WeightOnlyConfig(BaseConfig):
    """int8 symmetric weights; inputs and the product stay float32.

    Args:
        granularity: PerChannel(0), PerGroup(size) or PerTensor().

    Source: torchao.quantization.Int8WeightOnlyConfig, version 2, torchao 0.18, whose PerRow() is PerChannel(0) here.
    """

    granularity: Granularity = ROWS

    def fake_quantize_configs(self) -> tuple[FakeQuantizeConfigBase | None, FakeQuantizeConfigBase]:
        """See `BaseConfig`."""
        if not isinstance(self.granularity, PerChannel | PerGroup | PerTensor):
            raise ValueError(
                f"Int8WeightOnlyConfig: granularity must be PerChannel(0), PerGroup(size) or PerTensor(), got "
                f"{self.granularity!r}"
            )
        return None, IntxFakeQuantizeConfig("int8", self.granularity, eps=float(EPS))


@dataclass(frozen=True)
class Int8DynamicActivationInt8WeightConfig(BaseConfig):
    """int8 symmetric inputs, each token with its scale, and int8 symmetric weights, each output channel with its own.

    Args:
        granularity: of input and weight: (PerToken() or PerTensor(), PerChannel(0) or PerTensor()).

    Source: torchao.quantization.Int8DynamicActivationInt8WeightConfig, version 2, torchao 0.18, symmetric; its PerRow()
    is PerToken() for inputs and PerChannel(0) for weights. Asymmetric inputs are
    Int8DynamicActivationIntxWeightConfig("int8", PerChannel(0)).
    """

    granularity: tuple[Granularity, Granularity] = (TOKENS, ROWS)

    def fake_quantize_configs(self) -> tuple[FakeQuantizeConfigBase | None, FakeQuantizeConfigBase]:
        """See `BaseConfig`."""
        of_input, of_weight = _pair(self, self.granularity)
        if not isinstance(of_input, PerToken | PerTensor):
            raise ValueError(f"{type(self).__name__}: inputs take PerToken() or PerTensor(), got {of_input!r}")
        eps = float(EPS)
        return IntxFakeQuantizeConfig("int8", of_input, eps=eps), IntxFakeQuantizeConfig("int8", of_weight, eps=eps)


@dataclass(frozen=True)
class Int8StaticActivationInt8WeightConfig(BaseConfig):
    """int8 symmetric inputs with one scale for good, and int8 symmetric weights.

    Args:
        act_quant_scale: the input's scale; left out, the prepare step observes it while data runs through the model.
        granularity: of input and weight: (PerTensor(), PerChannel(0) or PerTensor()).

    Source: torchao.quantization.Int8StaticActivationInt8WeightConfig, torchao 0.18, which must be given the scale.
    """

    act_quant_scale: float | None = None
    granularity: tuple[Granularity, Granularity] = (PerTensor(), ROWS)

    def fake_quantize_configs(self) -> tuple[FakeQuantizeConfigBase | None, FakeQuantizeConfigBase]:
        """See `BaseConfig`."""
        of_input, of_weight = _pair(self, self.granularity)
        if not isinstance(of_input, PerTensor):
            raise ValueError(f"{type(self).__name__}: a scale that is known beforehand is one for all: PerTensor()")
        scale = self.act_quant_scale
        if scale is not None and not scale > 0:
            raise ValueError(f"{type(self).__name__}: act_quant_scale must be positive, got {scale!r}")
        weight = IntxFakeQuantizeConfig("int8", of_weight, eps=float(EPS))
        return StaticFakeQuantizeConfig(None if scale is None else float(scale)), weight


@dataclass(frozen=True)
class Int4WeightOnlyConfig(BaseConfig):
    """uint4 weights in groups, in tinygemm's format: ``x ≈ (q - 8)·s + z`` with ``s = (max - min)/15``, z real.

    Args:
        group_size: weights that share scale and zero point; must divide in_features.

    Source: tinygemm's functions in torchao.quantization.quant_primitives, torchao 0.18, in float32. In training torchao
    rounds ``(x - min)/s``, and its tinygemm ``(x - (z - 8·s))/s``; ties may differ by one. Here both are the latter.
    """

    group_size: int = 128

    def fake_quantize_configs(self) -> tuple[FakeQuantizeConfigBase | None, FakeQuantizeConfigBase]:
        """See `BaseConfig`."""
        config = TinygemmFakeQuantizeConfig(self.group_size)
        config.spec  # noqa: B018 (refuses a group size that is none)
        return None, config


@dataclass(frozen=True, kw_only=True)
class _Step:
    step: str


@dataclass(frozen=True)
class QATConfig(_Step):
    """Quantization-aware training: ``quantize_(model, QATConfig(base, step="prepare"))``, train, then "convert".

    Args:
        base_config: any config of this file; or
        activation_config: what rounds the input (None: nothing does), and
        weight_config: what rounds the weight; see `minquant.quant.fake_quantizer` for writing one.
        step: "prepare" or "convert". Converting needs no config: each layer becomes the integers that it was trained
            on. A base_config, if given, must be the one it was prepared with.

    Raises:
        ValueError: an unknown step; a base config beside the others; none of them in "prepare"; the others in
            "convert".
        TypeError: something that is not a config.

    Source: torchao.quantization.qat.QATConfig, torchao 0.18. Two things differ: every base config can be trained for,
    and "convert" without a base config gives integers, where torchao gives back the float layer.
    """

    base_config: BaseConfig | None = None
    activation_config: FakeQuantizeConfigBase | None = None
    weight_config: FakeQuantizeConfigBase | None = None

    def __post_init__(self) -> None:
        if self.step not in STEPS:
            raise ValueError(f'QATConfig: step must be "prepare" or "convert", got {self.step!r}')
        if self.base_config is not None and not isinstance(self.base_config, BaseConfig):
            hint = "; give it as weight_config" if isinstance(self.base_config, FakeQuantizeConfigBase) else ""
            raise TypeError(f"QATConfig: base_config must be a config of quantize_, got {self.base_config!r}{hint}")
        own = [name for name in ("activation_config", "weight_config") if getattr(self, name) is not None]
        for name in own:
            if not isinstance(getattr(self, name), FakeQuantizeConfigBase):
                raise TypeError(
                    f"QATConfig: {name} must be a config of a fake quantizer (IntxFakeQuantizeConfig, …), got "
                    f"{getattr(self, name)!r}"
                )
        if own and (self.base_config is not None or self.step == "convert"):
            beside = "beside a base_config" if self.base_config is not None else 'in the step "convert"'
            raise ValueError(f"QATConfig: {' and '.join(own)} cannot be given {beside}")
        if self.step == "prepare" and self.base_config is None and self.weight_config is None:
            raise ValueError('QATConfig: the step "prepare" needs a base_config or a weight_config')

    def fake_quantize_configs(self) -> tuple[FakeQuantizeConfigBase | None, FakeQuantizeConfigBase]:
        """What the fake quantizers of the step "prepare" are told."""
        if self.base_config is not None:
            return self.base_config.fake_quantize_configs()
        return self.activation_config, self.weight_config  # type: ignore[return-value]

    @property
    def backend(self) -> str:
        """The dialect of the product."""
        return Int8DynamicActivationIntxWeightConfig.backend if self.base_config is None else self.base_config.backend


def _weight(config: BaseConfig, dtype: str, granularity: Granularity, mapping: str) -> IntxFakeQuantizeConfig:
    kind = type(config).__name__
    if not str(dtype).startswith("int"):
        raise ValueError(f'{kind}: the weight\'s dtype must be "int2" … "int8", got {dtype!r}')
    if not isinstance(granularity, PerGroup | PerChannel):
        raise ValueError(f"{kind}: weights take PerGroup(size) or PerChannel(0), got {granularity!r}")
    return IntxFakeQuantizeConfig(dtype, granularity, mapping)


def _pair(config: BaseConfig, granularity: tuple[Granularity, Granularity]) -> tuple[Granularity, Granularity]:
    if not (isinstance(granularity, tuple | list) and len(granularity) == 2):
        raise ValueError(
            f"{type(config).__name__}: expected two granularities, of input and weight, got {granularity!r}"
        )
    of_input, of_weight = granularity
    if not isinstance(of_weight, PerChannel | PerTensor):
        raise ValueError(f"{type(config).__name__}: weights take PerChannel(0) or PerTensor(), got {of_weight!r}")
    return of_input, of_weight
