"""`save`: a whole model in one safetensors file, bit for bit; `minquant.loading` reads it again.

The file's tensors are the integers as they are stored (packed at 2 to 4 bits), scales, zero points, and the float
parameters and buffers of what stayed in float. Its metadata are four strings:

==========  ==========================================================================================
format      "minquant"
version     of this layout; a reader refuses a newer one
model       the module tree as JSON: class names, settings, and which tensor is which
sha256      of `model` and of every tensor's name, dtype, shape and bytes
==========  ==========================================================================================

Nothing in a file is ever executed: no pickle, and classes are looked up by name in `SETTINGS`, never imported.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from typing import Any

import numpy as np

from minquant import nn, quant
from minquant.files import write_atomically
from minquant.nn import Module
from minquant.quant import (
    DeQuantize,
    DeQuantStub,
    DynamicQuantizedLinear,
    DynamicQuantizedLinearReLU,
    FakeQuantize,
    QATEmbedding,
    QParams,
    QSpec,
    QTensor,
    Quantize,
    QuantizedLinear,
    QuantizedLinearReLU,
    QuantStub,
    QuantWrapper,
)
from minquant.quant.dialects.float_qparams import FloatQParamsTable
from minquant.quant.fused import FUSED
from minquant.quant.observers import Observer
from minquant.quant.stubs import GridDropout
from minquant.quant.weighted import QATWeighted
from minquant.tensor import Tensor

__all__ = ["save"]

FORMAT, VERSION = "minquant", 1

CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
STATIC = ("weight", "bias", "output", "backend")
DYNAMIC = ("weight", "bias", "input_spec", "backend")
SLIDE = ("stride", "padding", "dilation", "groups")
BATCH_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")

SETTINGS: dict[type[Module], tuple[str, ...]] = {
    nn.Sequential: (),
    nn.ModuleList: (),
    nn.Linear: ("in_features", "out_features"),
    **{kind: () for kind in FUSED.values()},
    QuantWrapper: (),
    nn.Conv1d: CONV,
    nn.Conv2d: CONV,
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding"),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.BatchNorm1d: BATCH_NORM,
    nn.BatchNorm2d: BATCH_NORM,
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.RMSNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.Embedding: ("num_embeddings", "embedding_dim", "padding_idx"),
    nn.EmbeddingBag: ("num_embeddings", "embedding_dim", "mode", "include_last_offset", "padding_idx"),
    nn.Identity: (),
    nn.ReLU: (),
    nn.SiLU: (),
    nn.Sigmoid: (),
    nn.Tanh: (),
    nn.GELU: ("approximate",),
    nn.Softmax: ("dim",),
    nn.Dropout: ("p",),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.MSELoss: ("reduction",),
    nn.CrossEntropyLoss: ("reduction",),
    QuantStub: (),
    DeQuantStub: (),
    DeQuantize: (),
    Quantize: ("qparams", "backend"),
    nn.FloatFunctional: (),
    quant.BetweenGrids: ("output", "backend"),
    quant.QFunctional: ("output", "backend"),
    quant.QuantizedEmbedding: ("weight",),
    quant.QuantizedEmbeddingBag: ("weight", "mode", "include_last_offset", "padding_idx"),
    QuantizedLinear: STATIC,
    QuantizedLinearReLU: STATIC,
    quant.QuantizedConv1d: STATIC + SLIDE,
    quant.QuantizedConv2d: STATIC + SLIDE,
    quant.QuantizedConvReLU1d: STATIC + SLIDE,
    quant.QuantizedConvReLU2d: STATIC + SLIDE,
    DynamicQuantizedLinear: DYNAMIC,
    DynamicQuantizedLinearReLU: DYNAMIC,
    quant.DynamicQuantizedConv1d: DYNAMIC + SLIDE,
    quant.DynamicQuantizedConv2d: DYNAMIC + SLIDE,
    quant.DynamicQuantizedConvReLU1d: DYNAMIC + SLIDE,
    quant.DynamicQuantizedConvReLU2d: DYNAMIC + SLIDE,
}
"""What a file can rebuild, and the attributes that make up each."""

FILLED = (
    nn.Sequential, nn.ModuleList, nn.Linear, *FUSED.values(), QuantWrapper, quant.BetweenGrids, nn.Conv1d, nn.Conv2d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag,
)  # fmt: skip
"""Made empty and filled with their tensors and children; the others' settings are their constructor's arguments."""

REMARKS = ("path", "float_reason")
PREPARED = (Observer, FakeQuantize, QATWeighted, QATEmbedding, GridDropout)


# ---- saving -----------------------------------------------------------------------------------------------


def save(model: Module, path: str | os.PathLike[str]) -> None:
    """Writes a converted, dynamically quantized or float model to one safetensors file.

    The file appears whole or not at all: it is written under a temporary name beside `path` and moved into place.
    Of a class that is not minquant's own, parameters, buffers and layers are kept, other attributes are not.

    Args:
        model: any model that is not prepared.
        path: where to; an existing file is replaced.

    Raises:
        TypeError: not a Module; an attribute that a file cannot hold.
        ValueError: a prepared model; a forward hook.
        FileNotFoundError, OSError: no such folder, a full disk, and so on; an old file is then untouched.
        ImportError: safetensors is not installed.
    """
    if not isinstance(model, Module):
        raise TypeError(f"save: expected a Module, got {type(model).__name__}; save(model, path) takes the whole model")
    writer = Writer()
    tree = json.dumps(writer.module(model, ""), allow_nan=False)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "model": tree,
        "sha256": checksum(tree, writer.tensors),
    }
    write_atomically(path, import_safetensors().numpy.save(writer.tensors, metadata))


def import_safetensors() -> Any:
    """The safetensors package, with the way to get it where it is missing."""
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("minquant.save and load need safetensors: pip install 'minquant[demo]'") from error
    return safetensors


def checksum(tree: str, tensors: dict[str, np.ndarray]) -> str:
    """sha256 of the module tree and of every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"\0{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class Writer:
    """Describes a module tree in JSON's values, and gathers the arrays that the description names."""

    def __init__(self) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        self.modules: dict[int, str] = {}
        self.shared: dict[int, str] = {}

    def module(self, module: Module, path: str) -> dict[str, Any]:
        """The module and all below it; one that is met again is told by the path where it stood first."""
        if id(module) in self.modules:
            return {"same_as": self.modules[id(module)]}
        self.modules[id(module)] = path
        _check_savable(module, path)
        settings = [*SETTINGS.get(type(module), ()), *(name for name in REMARKS if name in vars(module))]
        return {
            "class": type(module).__name__,
            "own": type(module) not in SETTINGS,
            "training": module.training,
            "settings": {name: self.value(getattr(module, name), _join(path, name)) for name in settings},
            "parameters": {n: self.tensor(p, _join(path, n)) for n, p in module._parameters.items()},
            "buffers": {n: self.tensor(b, _join(path, n)) for n, b in module._buffers.items()},
            "children": {
                n: None if child is None else self.module(child, _join(path, n)) for n, child in module._modules.items()
            },
        }

    def tensor(self, tensor: Tensor | None, path: str) -> dict[str, Any] | None:
        """A parameter or buffer; one that is met again keeps its first name."""
        if tensor is None:
            return None
        if id(tensor) not in self.shared:
            self.shared[id(tensor)] = self.array(tensor.data, path)
        return {"tensor": self.shared[id(tensor)], "requires_grad": tensor.requires_grad}

    def array(self, array: np.ndarray, path: str) -> str:
        """Takes an array along under its path, in C order."""
        self.tensors[path] = np.asarray(array, order="C")
        return path

    def value(self, value: Any, path: str) -> Any:
        """A setting."""
        if isinstance(value, QTensor):
            storage, qparams = self.array(value.storage, path), self.value(value.qparams, path)
            return {"QTensor": {"storage": storage, "shape": list(value.shape), "qparams": qparams}}
        if isinstance(value, FloatQParamsTable):
            arrays = {name: self.array(getattr(value, name), f"{path}.{name}") for name in ("scale", "zero_point")}
            integers = self.array(value.int_repr(), path)
            return {"FloatQParamsTable": {"integers": integers, **arrays, "bits": value.bits}}
        if isinstance(value, QParams):
            return {"QParams": self.qparams(value, path)}
        if isinstance(value, QSpec):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            granularity = fields.pop("granularity")
            fields["granularity"] = [type(granularity).__name__, *dataclasses.astuple(granularity)]
            return {"QSpec": fields}
        if isinstance(value, np.ndarray):
            return {"array": self.array(value, path)}
        return value.item() if isinstance(value, np.generic) else value

    def qparams(self, qparams: QParams, path: str) -> dict[str, Any]:
        """Scales, and the zero points unless they follow from the spec."""
        spec, zero_point = qparams.spec, qparams.zero_point
        implied = spec.symmetric and (zero_point == spec.symmetric_zero_point).all()
        return {
            "scale": self.array(qparams.scale, f"{path}.scale"),
            "zero_point": None if implied else self.array(zero_point, f"{path}.zero_point"),
            "spec": self.value(spec, path),
        }


def _check_savable(module: Module, path: str) -> None:
    name = f"{type(module).__name__} {path!r}" if path else f"the model ({type(module).__name__})"
    if isinstance(module, PREPARED) or hasattr(module, "qconfig"):
        raise ValueError(
            f"save: {name} is prepared, not converted: a file holds float and quantized models. Calibrate or train "
            "it, and save convert(model)"
        )
    if module._forward_hooks:
        raise ValueError(f"save: {name} has a forward hook, which no file can hold; remove it first")
    for attribute, value in vars(module).items():
        if type(module) not in SETTINGS and isinstance(value, QTensor | QParams):
            raise TypeError(
                f"save: {name} keeps a {type(value).__name__} in its attribute {attribute!r}; a file holds those of "
                "minquant's own layers only: make it the weight of one, or a buffer of its integers"
            )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
