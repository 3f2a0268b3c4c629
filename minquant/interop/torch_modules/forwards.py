"""A reader's own minquant module in torch: its `forward`, run on torch's modules and tensors.

The way back of `minquant.interop.borrowed`, with the same conditions, but for functions of `minquant.functional` that
torch has under the same name and with the same arguments: in the copy of forward that torch runs, they are torch's.
"""

from __future__ import annotations

from types import FunctionType, SimpleNamespace
from typing import Any

import torch

from minquant import functional
from minquant.interop.forward_code import members_of, own_tensors, plain_values
from minquant.nn import Module
from minquant.quant import QFunctional

__all__ = ["borrow_for_torch"]

ADVICE = "write it with modules (nn.ReLU, nn.FloatFunctional …) and tensor methods that torch has too"
IN_TORCH = (
    "abs", "cat", "exp", "flatten", "log", "matmul", "permute", "relu", "reshape", "sigmoid", "split", "sqrt",
    "squeeze", "stack", "tanh", "transpose", "unsqueeze",
)  # fmt: skip
IN_FUNCTIONAL = ("adaptive_avg_pool2d", "avg_pool2d", "dropout", "log_softmax", "max_pool2d", "silu", "softmax")
COUNTERPARTS: dict[Any, Any] = {
    getattr(functional, name): getattr(package, name)
    for package, names in ((torch, IN_TORCH), (torch.nn.functional, IN_FUNCTIONAL))
    for name in names
}
"""By minquant's function, torch's."""
KNOWN = {f"{where}{f.__name__}" for f in COUNTERPARTS for where in ("minquant.functional.", "minquant's ")}
BOOKKEEPING = {*vars(Module()), "path", "qconfig", "float_reason"}


class Borrowed(torch.nn.Module):
    """Base of the classes that `borrow_for_torch` makes."""


def borrow_for_torch(module: Module) -> tuple[torch.nn.Module, list[str]]:
    """A torch module without children, whose forward is the minquant module's, and what is wrong with that.

    Returns:
        The new module, and the problems found; with problems it must not be used.
    """
    kind = type(module)
    own = {name for c in kind.__mro__ if c not in Module.__mro__ for name in vars(c)}
    problems = [f"overrides {name}, which would be lost" for name in ("__call__", "train", "eval") if name in own]
    problems += own_tensors(module)
    if "forward" not in own:
        return Borrowed(), [*problems, "has no forward that torch could run"]
    members, used, foreign = members_of(kind, own, ("minquant", "numpy"), "torch", KNOWN)
    new = type(kind.__name__, (Borrowed,), {name: _with_torchs(member) for name, member in members.items()})()
    values, lost = plain_values(module, BOOKKEEPING, used)
    for name, value in values.items():
        setattr(new, name, value)
    problems += [*foreign, *lost]
    products = [name for name, child in module.named_children() if isinstance(child, QFunctional)]
    if "matmul" in used and products:
        problems.append(
            f"its forward calls matmul of the QFunctional {' or '.join(map(repr, products))}, which adds real values, "
            "in an order that each device chooses, so that its integers could differ"
        )
    return new, [f"{problem}: {ADVICE}" for problem in problems]


def _with_torchs(member: Any) -> Any:
    """A method whose names for minquant's functions mean torch's."""
    if not isinstance(member, FunctionType):
        return member
    used = [name for name in member.__code__.co_names if name in member.__globals__]
    changed = {name: _counterpart(member.__globals__[name]) for name in used}
    new = FunctionType(member.__code__, {**member.__globals__, **changed}, member.__name__, member.__defaults__,
                       member.__closure__)  # fmt: skip
    new.__kwdefaults__ = member.__kwdefaults__
    return new


def _counterpart(value: Any) -> Any:
    if value is functional:
        return SimpleNamespace(**{f.__name__: counterpart for f, counterpart in COUNTERPARTS.items()})
    return COUNTERPARTS.get(value, value) if isinstance(value, FunctionType) else value
