"""`load`: reads what `minquant.save` wrote. Nothing in the file is executed; what does not fit is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minquant.nn import Module, Parameter
from minquant.nn.module import Hook
from minquant.quant.watching import HOOKS
from minquant.tensor import Tensor

from .savable import PREFIX
from .saved_kinds import CLASSES, FILLED, SETTINGS
from .saved_values import UnknownClassError, ValueReader, known_savable
from .saving import FORMAT, VERSION, UnreadableError, checksum, read_tensors

__all__ = ["load"]

WATCHER = "activation_post_process"
READABLE = ("1", "2")
"""Versions of the layout; in the first there were no prepared models, so no hooks and nothing savable."""


def load(path: str | os.PathLike[str], into: Module | None = None) -> Module:
    """Reads a model that `save` wrote; outputs, integers, grids and report are those of the model saved.

    A prepared model goes on where it stood: the same steps of training give the same weights, ranges and integers.

    Args:
        path: the file.
        into: needed where the model, or a part of it, is of a class of your own that is not `minquant.savable`, which a
            file cannot rebuild: a fresh float model of the same class. Its layers are replaced by those of the file;
            attributes other than parameters, buffers and layers stay as they are.

    Returns:
        The model; `into` itself where it was given.

    Raises:
        FileNotFoundError: no such file.
        IsADirectoryError: a folder.
        ValueError: a file that is not minquant's, is truncated or altered, or was written by a newer minquant; a
            class of your own without `into`, or a savable one that was not imported; an `into` that does not fit (then
            it is left as it was).
        TypeError: `into` is not a Module.
        ImportError: safetensors is not installed.
    """
    if into is not None and not isinstance(into, Module):
        raise TypeError(f"load: into must be a float model, a Module; got {into!r}")
    description, tensors = _read(Path(path))
    try:
        tree = json.loads(description)
        _check_into(tree, tensors, into, path)
        return Reader(tensors).model(tree, into)
    except MisfitError:
        raise
    except UnknownClassError as error:
        raise ValueError(f"load: {path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"load: {path} holds no model that makes sense ({error}); save it again") from error


class MisfitError(ValueError):
    """The file is sound, but does not go with `into`."""


# ---- the file ---------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """The module tree, still as JSON, and the tensors of a file that is proven to be as it was written."""
    if path.is_dir():
        raise IsADirectoryError(f"load: {path} is a folder; name a file in it, or read a checkpoint with lm.load_llama")
    if not path.is_file():
        raise FileNotFoundError(f"load: there is no file {path}")
    try:
        metadata, tensors = read_tensors(path, lambda metadata: _check_version(metadata, path))
    except UnreadableError as error:
        raise ValueError(f"load: {path} is no safetensors file{_what_else(path, error)}") from error
    tree = metadata.get("model", "")
    if checksum(tree, tensors) != metadata.get("sha256"):
        raise ValueError(f"load: {path} has been altered: its contents do not give its sha256; copy or save it again")
    return tree, tensors


def _what_else(path: Path, error: Exception) -> str:
    """What a file that cannot be read may be, by its first bytes."""
    with open(path, "rb") as file:
        start = file.read(4)
    if not start:
        return ": it is empty; copy or save it again"
    pickled = start[0] == 0x80 and 2 <= start[1] <= 5  # the protocol's number
    if pickled or start == b"PK\x03\x04":  # a zip archive: what torch.save writes today
        return (
            ", but a pickle or an archive of pickles, which can run any code when they are read, so that none is read "
            "here; load it with what wrote it, and minquant.save the model"
        )
    return f", or is truncated or damaged ({error}); copy or save it again"


def _check_version(metadata: dict[str, str], path: Path) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"load: {path} is a safetensors file, but not one that minquant.save wrote (its format is "
            f"{metadata.get('format', 'not told')!r}); lm.load_llama reads published "
            "checkpoints, safetensors.numpy.load_file and load_state_dict whatever else"
        )
    version = metadata.get("version", "")
    if version not in READABLE:
        newer = version.isdecimal() and int(version) > VERSION
        what_to_do = "upgrade minquant" if newer else "save the model again"
        known = " and ".join(READABLE)
        raise ValueError(
            f"load: {path} has format version {version or 'none'}, this minquant reads {known}; {what_to_do}"
        )


# ---- a model of the reader's own class ----------------------------------------------------------------------


def _check_into(tree: dict[str, Any], tensors: dict[str, np.ndarray], into: Module | None, path: Any) -> None:
    if into is None:
        if _stays(tree):
            where, name = _first_own(tree)
            raise MisfitError(
                f"load: {path}: {where} is of class {name}, which a file cannot rebuild, since nothing in it is "
                f"executed; pass a fresh float model: load(path, into={tree['class']}(...))"
            )
        return
    problems = _misfits(tree, tensors, into, "")
    if problems:
        raise MisfitError(f"load: {path} does not fit into this {type(into).__name__}:\n  " + "\n  ".join(problems))


def _stays(node: dict[str, Any] | None) -> bool:
    """Whether a module of `into` is kept: one of the reader's own class, or one that holds such a module."""
    if node is None or "same_as" in node:
        return False
    return node["own"] or any(map(_stays, node["children"].values()))


def _first_own(node: dict[str, Any], path: str = "") -> tuple[str, str]:
    if node["own"]:
        return repr(path) if path else "the model", node["class"]
    name, child = next((name, child) for name, child in node["children"].items() if _stays(child))
    return _first_own(child, f"{path}.{name}" if path else name)


def _misfits(node: dict[str, Any], tensors: dict[str, np.ndarray], own: Module, path: str) -> list[str]:
    """What keeps the modules of `into` that stay from taking what the file has for them."""
    where = path or "the model"
    fits = type(own) is _class(node) if not node["own"] else type(own).__name__ == node["class"]
    if not fits or (node["own"] and type(own) in SETTINGS):
        return [f"{where}: the file has a {node['class'].removeprefix(PREFIX)}, got a {type(own).__name__}"]
    problems = []
    for kind in ("parameters", "buffers", "children"):
        there = getattr(own, "_modules" if kind == "children" else f"_{kind}")
        problems += [f"{where}: the file has no {name!r}" for name in there if name not in node[kind]]
        problems += [f"{where}: has no {name!r}" for name in node[kind] if name not in there and name != WATCHER]
    for name, about in (node["parameters"] | node["buffers"]).items():
        mine = (own._parameters | own._buffers).get(name)
        if mine is not None and about is not None and mine.shape != tensors[about["tensor"]].shape:
            shape = tensors[about["tensor"]].shape
            problems.append(f"{where}: {name!r} has shape {shape} in the file, here {mine.shape}")
    for name, child in node["children"].items():
        if _stays(child) and own._modules.get(name) is not None:
            problems += _misfits(child, tensors, own._modules[name], f"{path}.{name}" if path else name)
    return problems


# ---- from the description to modules ------------------------------------------------------------------------


class Reader(ValueReader):
    """Builds what `saving.Writer` described. What stays of `into` is changed when all else has come out well."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        super().__init__(tensors)
        self.modules: dict[str, Module] = {}
        self.shared: dict[tuple[str, type], Tensor] = {}
        self.fillings: list[Callable[[], None]] = []

    def model(self, tree: dict[str, Any], into: Module | None) -> Module:
        """The whole model."""
        model = self.module(tree, "", into)
        for fill in self.fillings:
            fill()
        return model

    def module(self, node: dict[str, Any], path: str, into: Module | None) -> Module:
        """The module at this path, still to be filled: `into` if that stays, else a new one."""
        if "same_as" in node:
            return self.modules[node["same_as"]]
        settings = {name: self.value(value) for name, value in node["settings"].items()}
        module = self.modules[path] = _new(node, settings) if into is None else into
        children = {
            name: child and self.module(child, f"{path}.{name}" if path else name, _kept(child, name, into))
            for name, child in node["children"].items()
        }
        parameters = {n: self.tensor(t, Parameter) for n, t in node["parameters"].items()}
        buffers = {n: self.tensor(t, Tensor) for n, t in node["buffers"].items()}
        tables = parameters, buffers, children
        hooks: list[Hook] = [HOOKS[name] for name in node.get("hooks", ())]
        self.fillings.append(partial(_fill, module, settings, tables, hooks, node["training"]))
        return module

    def tensor(self, about: dict[str, Any] | None, kind: type[Tensor]) -> Tensor | None:
        """A parameter or buffer; one name gives one object, so that what was shared is shared again."""
        if about is None:
            return None
        key = about["tensor"], kind
        if key not in self.shared:
            self.shared[key] = kind(self.tensors[about["tensor"]], requires_grad=about["requires_grad"])
        return self.shared[key]


def _class(node: dict[str, Any]) -> type[Module]:
    kind: type[Module] = known_savable(node["class"]) if node.get("savable") else CLASSES[node["class"]]
    if not issubclass(kind, Module):
        raise ValueError(f"{node['class']} is no Module")
    return kind


def _kept(node: dict[str, Any], name: str, into: Module | None) -> Module | None:
    return into._modules[name] if into is not None and _stays(node) else None


def _new(node: dict[str, Any], settings: dict[str, Any]) -> Module:
    kind = _class(node)
    if kind in SETTINGS and kind not in FILLED:
        return kind(**{name: settings[name] for name in SETTINGS[kind]})
    module = kind.__new__(kind)  # not its constructor, which would draw random numbers or ask for children
    Module.__init__(module)
    return module


def _fill(
    module: Module, settings: dict[str, Any], tables: tuple[dict[str, Any], ...], hooks: list[Hook], training: bool
) -> None:
    for name, value in settings.items():
        setattr(module, name, value)
    for table, new in zip((module._parameters, module._buffers, module._modules), tables, strict=True):
        table.clear()
        table.update(new)
    for key in [key for key, hook in module._forward_hooks.items() if hook in HOOKS.values()]:
        del module._forward_hooks[key]
    for hook in hooks:
        module.register_forward_hook(hook)
    module.training = training
