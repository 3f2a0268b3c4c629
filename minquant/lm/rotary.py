"""The angles of rotary positions: position p turns pair i by p · θ^(−2i/D), all in float32 as published models do."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

__all__ = ["rotary_tables"]


@lru_cache(maxsize=8)
def rotary_tables(positions: int, width: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, float32, (positions, width / 2) each; read-only, since models share them.

    Source: transformers 5.24, LlamaRotaryEmbedding.
    """
    frequencies = (1 / theta ** (np.arange(0, width, 2) / width)).astype(np.float32)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies  # (P, 1) * (D/2,) -> (P, D/2)
    tables = np.cos(angles), np.sin(angles)
    for table in tables:
        table.flags.writeable = False
    return tables
