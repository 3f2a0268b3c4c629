"""What `to_torch` keeps of a minquant module beside its tensors, so that `from_torch` finds the way back."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

__all__ = ["shell_of"]


def shell_of(module: Any) -> Any:
    """A module of the same class, with the same settings and hooks, without parameters, buffers and children."""
    new = copy.copy(module)
    for table in ("_parameters", "_buffers", "_modules"):
        object.__setattr__(new, table, {})
    object.__setattr__(new, "_forward_hooks", OrderedDict(module._forward_hooks))
    return new
