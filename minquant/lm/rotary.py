"""The angles of rotary positions: position p turns pair i by p · θ^(−2i/D), all in float32 as published models do."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

__all__ = ["rotary_tables"]


@lru_cache(maxsize=8)
def rotary_tables(
    positions: int, width: int, theta: float, scaling: tuple[float, ...] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, float32, (positions, width / 2) each; read-only, since models share them.

    `scaling` is `LlamaConfig.rope_scaling`. Source: transformers 5.24, LlamaRotaryEmbedding.
    """
    frequencies = 1 / theta ** (np.arange(0, width, 2) / width)
    if scaling is not None:
        frequencies = _stretched(frequencies, *scaling)
    # (P, 1) * (D/2,) -> (P, D/2)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies.astype(np.float32)
    tables = np.cos(angles), np.sin(angles)
    for table in tables:
        table.flags.writeable = False
    return tables


def _stretched(
    frequencies: np.ndarray,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: float,
) -> np.ndarray:
    """Llama 3.1's for longer texts: slow turns `factor` times slower, fast ones as they are, a line between the two.

    Source: transformers 5.24, _compute_llama3_parameters.
    """
    turns = original_max_position_embeddings * frequencies / (2 * math.pi)  # within the texts of the first training
    share = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return (1 - share) * frequencies / factor + share * frequencies
