"""from_torch where torch is not installed."""

from __future__ import annotations

import sys

import pytest

from minquant.interop import from_torch


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it now fails
    with pytest.raises(ImportError, match=r"from_torch needs torch: pip install 'minquant\[torch\]'"):
        from_torch(object())
