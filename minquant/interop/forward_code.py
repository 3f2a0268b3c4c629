"""What a module's own `forward` uses: whether it can be run on another library's modules and tensors.

That is found by looking at its code, which is not run.
"""

from __future__ import annotations

import copy
import dis
import inspect
from collections.abc import Collection, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

__all__ = ["members_of", "own_tensors", "plain_values"]

PLAIN = (bool, int, float, complex, str, bytes, type(None), range, slice)


def members_of(
    kind: type, own: set[str], packages: tuple[str, ...], reader: str, known: Collection[str] = ()
) -> tuple[dict[str, Any], set[str], list[str]]:
    """`forward` and what it needs of its class.

    Args:
        kind: the module's class.
        own: names that the reader's classes define.
        packages: whose functions cannot read the tensors on which forward is to run.
        reader: whose tensors these are.
        known: of these functions, as `_uses` names them, those that there is a counterpart for.

    Returns:
        The class's attributes by name, every name that their code uses, and what cannot work, in words.
    """
    members = {name: inspect.getattr_static(kind, name) for name in _reachable(kind, own)}
    codes = {name: _functions(member) for name, member in members.items()}
    problems = [
        f"its {name} {what}"
        for name, found in codes.items()
        for f in found
        for what in _foreign(f, packages, reader, known)
    ]
    return members, {used for found in codes.values() for f in found for used in _names(f.__code__)}, problems


def plain_values(module: Any, bookkeeping: Collection[str], used: set[str]) -> tuple[dict[str, Any], list[str]]:
    """Copies of a module's plain Python attributes, and in words which others `forward` reads."""
    others = {name: value for name, value in vars(module).items() if name not in bookkeeping}
    values = {name: copy.deepcopy(value) for name, value in others.items() if _is_plain(value)}
    return values, [
        f"its forward reads {name!r}, a {type(value).__name__}; plain Python values are copied"
        for name, value in others.items()
        if name not in values and name in used
    ]


def own_tensors(module: Any) -> list[str]:
    """Parameters and buffers that belong to no submodule."""
    found = []
    for what, table in (("parameters", module._parameters), ("buffers", module._buffers)):
        names = [name for name, tensor in table.items() if tensor is not None]
        if names:
            found.append(f"has {what} of its own ({', '.join(names)})")
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list | set | frozenset):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    return isinstance(value, PLAIN)


def _reachable(kind: type, own: set[str]) -> list[str]:
    """`forward`, and what else the reader's classes define that it names, or that these name."""
    found: list[str] = []
    waiting = ["forward"]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.append(name)
            functions = _functions(inspect.getattr_static(kind, name))
            waiting += [used for f in functions for used in _names(f.__code__) if used in own]
    return found


def _functions(member: Any) -> list[FunctionType]:
    """The functions of a class's attribute: itself, or those of a property, class method or static method."""
    if isinstance(member, property):
        return [f for f in (member.fget, member.fset) if isinstance(f, FunctionType)]
    member = getattr(member, "__func__", member)
    return [member] if isinstance(member, FunctionType) else []


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _names(code: CodeType) -> set[str]:
    """Every attribute and global that it names."""
    return {name for inner in _codes(code) for name in inner.co_names}


def _foreign(function: FunctionType, packages: tuple[str, ...], reader: str, known: Collection[str]) -> list[str]:
    """What a function uses that cannot work on the reader's tensors."""
    if hasattr(function, "__wrapped__"):
        return ["is decorated, so that its code cannot be seen"]
    found = []
    if "__class__" in function.__code__.co_freevars:
        found.append("calls super()")
    used = dict.fromkeys(use for code in _codes(function.__code__) for use in _uses(code, function, packages))
    used = {use: None for use in used if use not in known}
    if used:
        found.append(f"uses {', '.join(used)}, which cannot read {reader}'s tensors")
    return found


def _uses(code: CodeType, function: FunctionType, packages: tuple[str, ...]) -> Iterator[str]:
    """Each global or closed-over value of theirs, with the attributes read from it: "torch.nn.functional.relu"."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    scope = {**function.__globals__, **{name: cell.cell_contents for name, cell in cells}}
    value: Any = None
    name = ""
    for step in dis.get_instructions(code):
        if name and step.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(value, ModuleType):
            value, name = getattr(value, step.argval, None), f"{name}.{step.argval}"
            continue
        if name:
            yield name
        name = ""
        if step.opname in ("LOAD_GLOBAL", "LOAD_DEREF") and _package(scope.get(step.argval)) in packages:
            value = scope[step.argval]
            name = value.__name__ if isinstance(value, ModuleType) else f"{_package(value)}'s {step.argval}"
        elif step.opname == "IMPORT_NAME" and step.argval.split(".")[0] in packages:
            name = step.argval


def _package(value: Any) -> str:
    """The package that a value is, is a module of, or is defined in."""
    where = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return where.split(".")[0] if isinstance(where, str) else ""
