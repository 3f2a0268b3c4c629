"""Work in several threads: kernels run without Python's lock, so that plain threads do."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

__all__ = ["in_parts", "thread_count"]

WORTH_A_THREAD = 20_000_000
"""Operations below which handing work to a thread costs more than it saves: some 100 microseconds of them."""


def thread_count() -> int:
    """How many threads a kernel may use: the processor's, or what ``MINQUANT_NUM_THREADS`` says.

    Raises:
        ValueError: MINQUANT_NUM_THREADS is no positive integer.
    """
    wish = os.environ.get("MINQUANT_NUM_THREADS")
    if not wish:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not wish.isdecimal() or int(wish) < 1:
        raise ValueError(f"MINQUANT_NUM_THREADS must be a positive integer, got {wish!r}")
    return int(wish)


def in_parts(work: Callable[[int, int], None], count: int, operations: int) -> None:
    """Calls ``work(first, last)`` for parts that together cover ``0 … count``, one here and each other in a thread.

    The parts must not write to the same places; then the result does not depend on how many there are.
    """
    worth = min(count, operations // WORTH_A_THREAD)
    parts = min(thread_count(), worth) if worth > 1 else 1
    if parts == 1:
        work(0, count)
        return
    ends = [count * i // parts for i in range(parts + 1)]
    pool = _pool(parts - 1, os.getpid())
    others = [pool.submit(work, first, last) for first, last in zip(ends[1:-1], ends[2:], strict=True)]
    work(0, ends[1])
    for other in others:
        other.result()


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """A process's own: a fork inherits the pool, but none of its threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="minquant")
