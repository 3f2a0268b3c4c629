"""A reader's own torch module in minquant: its `forward`, run on minquant's modules and tensors.

That works where `forward` only calls submodules and uses what torch's tensors and minquant's both have: operators,
methods such as `reshape`, Python itself. Whether it calls a function of torch's, which could not read minquant's
tensors, is found by looking at its code when the model is brought over; a method that minquant's tensors lack shows
only when it runs.
"""

from __future__ import annotations

import copy
import dis
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from minquant.nn import Module

__all__ = ["Borrowed", "borrow"]

ADVICE = "write it with modules and tensor methods, or pass a minquant Module of yours as into="
OVERRIDES = ("__call__", "__getattr__", "__getattribute__", "train", "eval")
"""Methods that would change what a module does without being named in its forward."""

PLAIN = (bool, int, float, complex, str, bytes, type(None), range, slice)


class ForwardError(TypeError):
    """A borrowed forward asked for something that minquant lacks."""


class Borrowed(Module):
    """Base of the classes that `borrow` makes."""

    torch_class: str
    path = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The output; with an explanation where forward asks for something that only torch has.

        Raises:
            TypeError: see above.
        """
        try:
            return super().__call__(*args, **kwargs)
        except (AttributeError, TypeError) as error:
            if isinstance(error, ForwardError) or not _raised_by_forward(error):
                raise
            where = f" '{self.path}'" if self.path else ""
            raise ForwardError(
                f"the forward of {self.torch_class}{where}, brought over by from_torch, does not work on minquant's "
                f"modules and tensors ({error}): {ADVICE}"
            ) from error


def borrow(module: Any, torch_class: type) -> tuple[Borrowed, list[str]]:
    """A minquant module without children, whose forward is the torch module's, and what is wrong with that.

    Args:
        module: an object of a subclass of torch.nn.Module.
        torch_class: torch.nn.Module.

    Returns:
        The new module, and the problems found; with problems it must not be used.
    """
    kind = type(module)
    own = {name for c in kind.__mro__ if c not in torch_class.__mro__ for name in vars(c)}
    problems = [f"overrides {name}, which would be lost" for name in OVERRIDES if name in own]
    problems += _own_tensors(module)
    if "forward" not in own or "forward" in vars(module):
        return Borrowed(), [*problems, "has no forward in its class that could be borrowed"]
    members = {name: inspect.getattr_static(kind, name) for name in _reachable(kind, own)}
    for name, member in members.items():
        problems += [f"its {name} {what}" for code in _functions(member) for what in _foreign(code)]
    named = {name for member in members.values() for code in _functions(member) for name in _names(code.__code__)}
    new = type(kind.__name__, (Borrowed,), {**members, "torch_class": kind.__name__})()
    bookkeeping = {*vars(torch_class()), "qconfig"}
    for name, value in vars(module).items():
        if name in bookkeeping:
            continue
        if _is_plain(value):
            setattr(new, name, copy.deepcopy(value))
        elif name in named:
            problems.append(f"its forward reads {name!r}, a {type(value).__name__}; plain Python values are copied")
    return new, [f"{problem}: {ADVICE}" for problem in problems]


def _own_tensors(module: Any) -> list[str]:
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


# ---- the code of forward -------------------------------------------------------------------------------------


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


def _foreign(function: FunctionType) -> list[str]:
    """What a function uses that cannot work outside torch."""
    if hasattr(function, "__wrapped__"):
        return ["is decorated, so that its code cannot be seen"]
    found = []
    if "__class__" in function.__code__.co_freevars:
        found.append("calls super()")
    used = dict.fromkeys(use for code in _codes(function.__code__) for use in _torch_uses(code, function))
    if used:
        found.append(f"uses {', '.join(used)}, which cannot read minquant's tensors")
    return found


def _torch_uses(code: CodeType, function: FunctionType) -> Iterator[str]:
    """Each global or closed-over value of torch's, with the attributes read from it: "torch.nn.functional.relu"."""
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
        if step.opname in ("LOAD_GLOBAL", "LOAD_DEREF") and _is_torchs(scope.get(step.argval)):
            value = scope[step.argval]
            name = value.__name__ if isinstance(value, ModuleType) else f"torch's {step.argval}"
        elif step.opname == "IMPORT_NAME" and step.argval.split(".")[0] == "torch":
            name = step.argval


def _is_torchs(value: Any) -> bool:
    """Whether a value is torch, one of its modules, or something defined there."""
    where = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return isinstance(where, str) and where.split(".")[0] == "torch"


def _raised_by_forward(error: BaseException) -> bool:
    """Whether no operation or layer of minquant's was at work, only the call of forward."""
    last = ""
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        last = name if name.split(".")[0] == "minquant" else last
        trace = trace.tb_next
    return last in (__name__, Module.__module__)
