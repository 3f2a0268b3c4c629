"""A reader's own minquant module in torch: its `forward`, run on torch's modules and tensors.

The way back of `minquant.interop.borrowed`, with the same conditions.
"""

from __future__ import annotations

import torch

from minquant.interop.forward_code import members_of, own_tensors, plain_values
from minquant.nn import Module

__all__ = ["borrow_for_torch"]

ADVICE = "write it with modules (nn.ReLU, nn.FloatFunctional …) and tensor methods that torch has too"
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
    members, used, foreign = members_of(kind, own, ("minquant", "numpy"), "torch")
    new = type(kind.__name__, (Borrowed,), members)()
    values, lost = plain_values(module, BOOKKEEPING, used)
    for name, value in values.items():
        setattr(new, name, value)
    problems += [*foreign, *lost]
    return new, [f"{problem}: {ADVICE}" for problem in problems]
