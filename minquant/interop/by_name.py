"""Filling a reader's own minquant model with what a torch model has under the same names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minquant.nn import Module

from .torch_layers import kind_of
from .torch_tensors import array_of, tensor_problem

__all__ = ["fill"]


def fill(into: Module, theirs: Any) -> Module:
    """Copies every parameter and buffer of a torch module into the one of the same name.

    Args:
        into: the module to fill.
        theirs: torch.nn.Module.

    Returns:
        `into`.

    Raises:
        TypeError: `into` is no Module.
        ValueError: names that are missing, unexpected or misshapen, tensors of another kind, layers of one name with
            other settings, parameters tied on one side only. All are listed, and nothing has been changed.
    """
    if not isinstance(into, Module):
        raise TypeError(f"from_torch: expected a minquant Module as into, got {into!r}")
    given, own = dict(_tensors(theirs)), dict(_tensors(into))
    problems = [f"missing in torch: {name}" for name in own.keys() - given.keys()]
    problems += [f"unexpected, not in into: {name}" for name in given.keys() - own.keys()]
    both = sorted(given.keys() & own.keys())
    for name in both:
        problems += _misfit(name, given[name], own[name])
    problems += _ties(both, given, own) + _settings(into, theirs)
    if problems:
        lines = "\n  ".join(sorted(problems))
        raise ValueError(f"from_torch: {type(into).__name__} does not fit {type(theirs).__name__}:\n  {lines}")
    for name in both:
        own[name].data[...] = array_of(given[name])
        own[name].requires_grad = given[name].requires_grad
    into.train(theirs.training)
    for _, ours, other in _same_paths(into, theirs):
        ours.training = other.training
    return into


def _tensors(module: Any) -> Iterator[tuple[str, Any]]:
    """Parameters and buffers by name, shared ones under each of their names."""
    for path, part in _modules(module):
        for name, tensor in (part._parameters | part._buffers).items():
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor


def _modules(module: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _modules(child, f"{path}.{name}" if path else name)


def _misfit(name: str, given: Any, own: Any) -> list[str]:
    problem = tensor_problem(given)
    if problem:
        return [f"{name} {problem}"]
    if tuple(given.shape) != own.shape:
        return [f"shape of {name}: {tuple(given.shape)} in torch, {own.shape} in into"]
    if str(given.dtype) != f"torch.{own.dtype}":
        return [f"dtype of {name}: {given.dtype} in torch, {own.dtype} in into"]
    return []


def _ties(names: list[str], given: dict[str, Any], own: dict[str, Any]) -> list[str]:
    """Names that stand for one tensor on one side only: training would part them, or filling overwrite one."""
    problems = []
    for where, here, there in (("torch", given, own), ("into", own, given)):
        first: dict[int, str] = {}
        for name in names:
            partner = first.setdefault(id(here[name]), name)
            if there[partner] is not there[name]:
                problems.append(f"{partner} and {name} are one tensor in {where} only")
    return problems


def _same_paths(into: Module, theirs: Any) -> Iterator[tuple[str, Module, Any]]:
    other = dict(_modules(theirs))
    return ((path, ours, other[path]) for path, ours in _modules(into) if path in other)


def _settings(into: Module, theirs: Any) -> list[str]:
    """Layers of one path and kind that would compute something else."""
    problems = []
    for path, ours, other in _same_paths(into, theirs):
        kind = kind_of(other)
        if kind is not None and isinstance(ours, kind.ours):
            for name in kind.settings:
                mine, given = getattr(ours, name), getattr(other, name)
                if not _alike(mine, given):
                    problems.append(f"{path}: {name} is {given!r} in torch, {mine!r} in into")
    return problems


def _alike(mine: Any, given: Any) -> bool:
    """Whether two settings are equal; 3 and (3, 3) are."""
    pair = sorted((mine, given), key=lambda value: isinstance(value, tuple | list))
    if isinstance(pair[0], int) and isinstance(pair[1], tuple | list):
        return set(pair[1]) == {pair[0]}
    return bool(mine == given)
