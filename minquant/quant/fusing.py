"""`fuse_modules` and `fuse_modules_qat`: layers that follow one another become one, with one output grid."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from minquant.nn import BatchNorm1d, BatchNorm2d, Identity, Module

from .batch_norm import folded_layer
from .fused import FUSED
from .selection import submodule

__all__ = ["fuse_modules", "fuse_modules_qat"]

BATCH_NORMS = (BatchNorm1d, BatchNorm2d)


def fuse_modules(model: Module, modules_to_fuse: Sequence[str] | Sequence[Sequence[str]]) -> Module:
    """Makes one layer of a Linear or Conv and what follows it, for `prepare` and `quantize_dynamic`.

    A batch norm is folded into the layer's weight and bias (see `minquant.quant.batch_norm`), a ReLU is fused; an
    `Identity` takes the place of each.

    Args:
        model: float model; in eval mode where batch norms are to be folded.
        modules_to_fuse: ``["conv1", "bn1", "relu1"]``, or a list of such lists.

    Returns:
        A new model with the same Parameters' values.

    Raises:
        ValueError: a path that names nothing; another sequence than Linear or Conv, batch norm, ReLU, of which either
            but not both may be missing; a batch norm in training mode, or without running statistics.

    Source: torch.ao.quantization.fuse_modules, torch 2.13.
    """
    return _fuse(model, modules_to_fuse, "fuse_modules", _folded)


def fuse_modules_qat(model: Module, modules_to_fuse: Sequence[str] | Sequence[Sequence[str]]) -> Module:
    """Makes one layer of a Linear or Conv and what follows it, for `prepare_qat`; batch norms are trained on.

    Args:
        model: float model in training mode.
        modules_to_fuse: as for `fuse_modules`. Linear, batch norm and ReLU have no class in common: fuse the first
            two.

    Returns:
        A new model with the same Parameters' values.

    Raises:
        ValueError: as `fuse_modules`; a model in eval mode.

    Source: torch.ao.quantization.fuse_modules_qat, torch 2.13.
    """
    if not model.training:
        raise ValueError(
            "fuse_modules_qat expects a model in training mode, got one in eval mode; call model.train() first, or "
            "fold batch norms for good with fuse_modules"
        )
    return _fuse(model, modules_to_fuse, "fuse_modules_qat", _kept)


def _fuse(model: Module, modules_to_fuse: Any, flow: str, fuse: Callable[[list[Any], Any], Module | None]) -> Module:
    if not modules_to_fuse or isinstance(modules_to_fuse, str):
        raise ValueError(f"{flow}: expected the paths of layers that follow one another, got {modules_to_fuse!r}")
    sequences: Any = [modules_to_fuse] if isinstance(modules_to_fuse[0], str) else modules_to_fuse
    fused = copy.deepcopy(model)
    for paths in sequences:
        parts = [submodule(fused, path, flow) for path in paths]
        new = fuse(parts, paths)
        if new is None:
            kinds = ", ".join(type(part).__name__ for part in parts)
            raise ValueError(
                f"{flow}: expected a Linear or Conv, then a batch norm, a ReLU or both, got {list(paths)} ({kinds})"
            )
        new.train(parts[0].training)
        _set_submodule(fused, paths[0], new)
        for path in paths[1:]:
            _set_submodule(fused, path, Identity().train(new.training))
    return fused


def _kept(parts: list[Any], paths: Any) -> Module | None:
    """The layers as they are, in one."""
    kind = FUSED.get(tuple(map(type, parts)))
    return None if kind is None else kind(*parts)


def _folded(parts: list[Any], paths: Any) -> Module | None:
    """The layers in one, a batch norm folded in."""
    if len(parts) < 2 or not isinstance(parts[1], BATCH_NORMS):
        return _kept(parts, paths)
    layer, bn, *relu = parts
    if (type(layer), type(bn)) not in FUSED:
        return None
    if bn.training:
        raise ValueError(
            f"fuse_modules: {paths[1]!r} is in training mode, where its statistics still change; call model.eval() "
            "first, or keep it for training with fuse_modules_qat"
        )
    new = folded_layer(layer, bn)
    return _kept([new, *relu], paths) if relu else new


def _set_submodule(model: Module, path: str, module: Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
