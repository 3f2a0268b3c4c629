"""Which torch layer is which minquant layer, and which of torch's options minquant lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minquant import nn
from minquant.nn import Module
from minquant.quant.fused import FUSED

__all__ = ["KINDS", "Kind", "class_name", "foreign_options", "kind_of"]


@dataclass(frozen=True)
class Kind:
    """One torch layer in minquant.

    Args:
        ours: minquant's class.
        settings: attributes that both have under one name and with one meaning.
        tensors: names of its parameters and buffers.
        only: options that minquant lacks, each with the one value at which it changes nothing.
        container: whether it holds modules.
        places: names of Identities that torch keeps in it as places for observers.
    """

    ours: type[Module]
    settings: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    only: Mapping[str, Any] = field(default_factory=dict)
    container: bool = False
    places: tuple[str, ...] = ()


AFFINE = ("weight", "bias")
CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
ZEROS = {"padding_mode": "zeros"}
BATCH_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
STATISTICS = (*AFFINE, "running_mean", "running_var", "num_batches_tracked")
NORM = ("normalized_shape", "eps", "elementwise_affine")
TABLE = {"max_norm": None, "scale_grad_by_freq": False, "sparse": False}

KINDS: dict[str, Kind] = {
    "torch.nn.modules.linear.Linear": Kind(nn.Linear, ("in_features", "out_features"), AFFINE),
    "torch.nn.modules.linear.Identity": Kind(nn.Identity),
    "torch.nn.modules.conv.Conv1d": Kind(nn.Conv1d, CONV, AFFINE, ZEROS),
    "torch.nn.modules.conv.Conv2d": Kind(nn.Conv2d, CONV, AFFINE, ZEROS),
    "torch.nn.modules.batchnorm.BatchNorm1d": Kind(nn.BatchNorm1d, BATCH_NORM, STATISTICS),
    "torch.nn.modules.batchnorm.BatchNorm2d": Kind(nn.BatchNorm2d, BATCH_NORM, STATISTICS),
    "torch.nn.modules.normalization.LayerNorm": Kind(nn.LayerNorm, NORM, AFFINE),
    "torch.nn.modules.normalization.RMSNorm": Kind(nn.RMSNorm, NORM, ("weight",)),
    "torch.nn.modules.sparse.Embedding": Kind(
        nn.Embedding, ("num_embeddings", "embedding_dim", "padding_idx"), ("weight",), TABLE
    ),
    "torch.nn.modules.sparse.EmbeddingBag": Kind(
        nn.EmbeddingBag,
        ("num_embeddings", "embedding_dim", "mode", "include_last_offset", "padding_idx"),
        ("weight",),
        TABLE,
    ),
    "torch.nn.modules.pooling.MaxPool2d": Kind(
        nn.MaxPool2d,
        ("kernel_size", "stride", "padding", "dilation"),
        only={"return_indices": False, "ceil_mode": False},
    ),
    "torch.nn.modules.pooling.AvgPool2d": Kind(
        nn.AvgPool2d,
        ("kernel_size", "stride", "padding"),
        only={"ceil_mode": False, "count_include_pad": True, "divisor_override": None},
    ),
    "torch.nn.modules.pooling.AdaptiveAvgPool2d": Kind(nn.AdaptiveAvgPool2d, ("output_size",)),
    "torch.nn.modules.activation.ReLU": Kind(nn.ReLU),
    "torch.nn.modules.activation.GELU": Kind(nn.GELU, ("approximate",)),
    "torch.nn.modules.activation.SiLU": Kind(nn.SiLU),
    "torch.nn.modules.activation.Sigmoid": Kind(nn.Sigmoid),
    "torch.nn.modules.activation.Tanh": Kind(nn.Tanh),
    "torch.nn.modules.activation.Softmax": Kind(nn.Softmax, ("dim",)),
    "torch.nn.modules.dropout.Dropout": Kind(nn.Dropout, ("p",)),
    "torch.nn.modules.flatten.Flatten": Kind(nn.Flatten, ("start_dim", "end_dim")),
    "torch.nn.modules.container.Sequential": Kind(nn.Sequential, container=True),
    "torch.nn.modules.container.ModuleList": Kind(nn.ModuleList, container=True),
    "torch.ao.quantization.stubs.QuantStub": Kind(nn.QuantStub),
    "torch.ao.quantization.stubs.DeQuantStub": Kind(nn.DeQuantStub),
    "torch.ao.nn.quantized.modules.functional_modules.FloatFunctional": Kind(
        nn.FloatFunctional, places=("activation_post_process",)
    ),
    "torch.ao.quantization.stubs.QuantWrapper": Kind(nn.QuantWrapper, container=True),
    **{
        f"torch.ao.nn.intrinsic.modules.fused.{fused.__name__}": Kind(fused, container=True) for fused in FUSED.values()
    },
}
"""By the full name of torch's class, so that this table needs no torch."""

MAKING = {"__init__", "extra_repr", "reset_parameters", "__class__"}
"""Methods that do not change what a layer computes."""


def class_name(module: Any) -> str:
    """The full name of a module's class."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def kind_of(module: Any) -> Kind | None:
    """The table's row for a torch module, None if there is none.

    A subclass counts as its base if it changes nothing but how the layer is made, as ``class ConvBNReLU(Sequential)``.
    """
    changed: set[str] = set()
    for base in type(module).__mro__:
        kind = KINDS.get(f"{base.__module__}.{base.__qualname__}")
        if kind is not None:
            methods = {name for name in changed & set(dir(base)) if callable(getattr(base, name))}
            return None if methods - MAKING else kind
        changed |= vars(base).keys()
    return None


def foreign_options(module: Any, kind: Kind) -> list[str]:
    """What a torch layer asks for that minquant lacks, each with the value that it would have to have."""
    wrong = [
        f"{name}={getattr(module, name)!r}, minquant has {name}={value!r} only"
        for name, value in kind.only.items()
        if getattr(module, name) != value
    ]
    if kind.ours is nn.Softmax and module.dim is None:
        wrong.append("dim=None, minquant's Softmax needs to be told the axis")
    if kind.ours is nn.EmbeddingBag and module.mode == "max":
        wrong.append("mode='max', minquant has 'sum' and 'mean'")
    return wrong
