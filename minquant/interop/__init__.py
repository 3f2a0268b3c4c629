"""Bridges to other libraries, which are imported when a bridge is used."""

from __future__ import annotations

from minquant.interop.from_torch import from_torch
from minquant.interop.to_torch import to_torch
from minquant.interop.to_torchao import to_torchao

__all__ = ["from_torch", "to_torch", "to_torchao"]
