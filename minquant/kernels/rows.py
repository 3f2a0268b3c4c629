"""Gradients of rows that were taken from a table, added where they came from."""

from __future__ import annotations

from numba import njit

__all__ = ["add_rows"]


@njit(cache=True, nogil=True)
def add_rows(table, index, rows):  # type: ignore[no-untyped-def]
    """``table[index[i]] += rows[i]`` in order of i, in place: (R, N), integers (n,), (n, N)."""
    for i in range(len(index)):
        to, row = table[index[i]], rows[i]
        for j in range(len(row)):
            to[j] += row[j]
