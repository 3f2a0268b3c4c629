"""minquant beside the installed torch: whatever needs torch here imports it when it is called."""

from __future__ import annotations

from .compare import compare
from .comparison import Comparison
from .prove import Proof, prove

__all__ = ["Comparison", "Proof", "compare", "prove"]
