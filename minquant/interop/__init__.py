"""Bridges to other libraries, which are imported when a bridge is used."""

from __future__ import annotations

from minquant.interop.from_torch import from_torch

__all__ = ["from_torch"]
