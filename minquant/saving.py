"""`save`: a whole model in one safetensors file, bit for bit; `minquant.loading` reads it again.

The file's tensors are the integers as they are stored (packed at 2 to 4 bits), scales, zero points, and the float
parameters and buffers of what is float still, observed ranges and learned scales among them. What is shared is written
once. Its metadata are four strings:

==========  ==========================================================================================
format      "minquant"
version     of this layout; a reader refuses a newer one
model       the module tree as JSON: class names, settings, hooks, and which tensor is which
sha256      of `model` and of every tensor's name, dtype, shape and bytes
==========  ==========================================================================================

Nothing in a file is ever executed: no pickle, and classes, factories and hooks are looked up by name in tables
(`minquant.saved_kinds`, `minquant.savable`), never imported.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minquant.files import write_atomically
from minquant.nn import Module
from minquant.quant import FakeQuantize, FakeQuantizerBase, QParams, QTensor
from minquant.quant.observers import Observer
from minquant.quant.watching import HOOKS
from minquant.tensor import Tensor

from .savable import name_of_savable
from .saved_kinds import SETTINGS
from .saved_values import TO_BE_SAVABLE, ValueWriter

__all__ = ["save"]

FORMAT, VERSION = "minquant", 2

REMARKS = ("path", "float_reason", "qconfig")
NO_SETTINGS = {"training", "_parameters", "_buffers", "_modules", "_forward_hooks", "share_range"}
"""Kept elsewhere; and the way to the other processes, which is this process's."""
HOOK_NAMES = {hook: name for name, hook in HOOKS.items()}


def save(model: Module, path: str | os.PathLike[str]) -> None:
    """Writes a model to one safetensors file, whichever of its lives it is in: float, prepared, trained or quantized.

    The file appears whole or not at all: it is written under a temporary name beside `path` and moved into place. A
    prepared model is saved with its observers, fake quantizers and qconfigs, so that its training or calibration goes
    on after `load` as if nothing had happened (an optimizer's state is not a model's).

    Of a class that is not minquant's own, parameters, buffers and layers are kept, other attributes are not, and `load`
    needs a model to load it into; unless it is `minquant.savable`, which keeps all. An observer or fake quantizer of
    your own must be savable.

    Args:
        model: any model.
        path: where to; an existing file is replaced.

    Raises:
        TypeError: not a Module; an attribute that a file cannot hold.
        ValueError: a forward hook; an observer or fake quantizer that no file can name.
        FileNotFoundError, OSError: no such folder, a full disk, and so on; an old file is then untouched.
        ImportError: safetensors is not installed.
    """
    if not isinstance(model, Module):
        raise TypeError(f"save: expected a Module, got {type(model).__name__}; save(model, path) takes the whole model")
    writer = Writer()
    tree = json.dumps(writer.module(model, ""), allow_nan=False, separators=(",", ":"))
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


class UnreadableError(Exception):
    """A file that is no safetensors file, or is truncated or damaged; the message is safetensors'."""


def read_tensors(path: Path, check: Callable[[dict[str, str]], None]) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors of a safetensors file; `check` may refuse the metadata before any tensor is read.

    Raises:
        UnreadableError: see there.
        ImportError: safetensors is not installed.
    """
    safetensors = import_safetensors()
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            check(metadata)
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, TypeError, AttributeError) as error:
        raise UnreadableError(str(error)) from error


def checksum(tree: str, tensors: dict[str, np.ndarray]) -> str:
    """sha256 of the module tree and of every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"\0{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class Writer(ValueWriter):
    """Describes a module tree in JSON's values, and gathers the arrays that the description names."""

    def __init__(self) -> None:
        super().__init__()
        self.modules: dict[int, str] = {}

    def module(self, module: Module, path: str) -> dict[str, Any]:
        """The module and all below it; one that is met again is told by the path where it stood first."""
        if id(module) in self.modules:
            return {"same_as": self.modules[id(module)]}
        self.modules[id(module)] = path
        _check_savable(module, path)
        settings = {n: self.value(getattr(module, n), _join(path, n)) for n in _settings(module)}
        children = {
            n: None if child is None else self.module(child, _join(path, n)) for n, child in module._modules.items()
        }
        return {
            **_kind(module),
            "training": module.training,
            "settings": settings,
            "parameters": {n: self.tensor(p, _join(path, n)) for n, p in module._parameters.items()},
            "buffers": {n: self.tensor(b, _join(path, n)) for n, b in module._buffers.items()},
            "children": children,
        }

    def tensor(self, tensor: Tensor | None, path: str) -> dict[str, Any] | None:
        """A parameter or buffer; one that is met again keeps its first name."""
        if tensor is None:
            return None
        if id(tensor) not in self.shared:
            self.shared[id(tensor)] = self.array(tensor.data, path)
        return {"tensor": self.shared[id(tensor)], "requires_grad": tensor.requires_grad}


def _kind(module: Module) -> dict[str, Any]:
    """Its class, and what was hung on it."""
    savable = name_of_savable(type(module))
    about: dict[str, Any] = {"class": savable or type(module).__name__}
    about["own"] = savable is None and type(module) not in SETTINGS
    if savable:
        about["savable"] = True
    if module._forward_hooks:
        about["hooks"] = [HOOK_NAMES[hook] for hook in module._forward_hooks.values()]
    return about


def _settings(module: Module) -> list[str]:
    """The attributes to be kept."""
    remarks = [name for name in REMARKS if name in vars(module)]
    if name_of_savable(type(module)) is None:
        return [*SETTINGS.get(type(module), ()), *remarks]
    return [name for name in vars(module) if name not in NO_SETTINGS]


def _check_savable(module: Module, path: str) -> None:
    name = f"{type(module).__name__} {path!r}" if path else f"the model ({type(module).__name__})"
    if not all(hook in HOOK_NAMES for hook in module._forward_hooks.values()):
        raise ValueError(f"save: {name} has a forward hook, which no file can hold; remove it first")
    if type(module) in SETTINGS or name_of_savable(type(module)) is not None:
        return
    if isinstance(module, Observer | FakeQuantize | FakeQuantizerBase):
        raise ValueError(f"save: {name} is of a class of your own; {TO_BE_SAVABLE}")
    for attribute, value in vars(module).items():
        if isinstance(value, QTensor | QParams):
            raise TypeError(
                f"save: {name} keeps a {type(value).__name__} in its attribute {attribute!r}; a file holds those of "
                "minquant's own layers only: make it the weight of one, or a buffer of its integers"
            )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
