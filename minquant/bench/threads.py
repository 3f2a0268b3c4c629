"""One number of threads for everybody."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

__all__ = ["environment", "limited"]


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """While it lasts, minquant, NumPy's BLAS and torch, where it is installed, use so many.

    onnxruntime's number belongs to a session (`minquant.bench.onnx_side`).
    """
    with ExitStack() as stack:
        stack.enter_context(environment("MINQUANT_NUM_THREADS", str(threads)))
        if importlib.util.find_spec("threadpoolctl"):
            from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

            stack.enter_context(threadpool_limits(threads, user_api="blas"))
        if importlib.util.find_spec("torch"):
            stack.enter_context(_torch(threads))
        yield


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """A variable of the environment, while it lasts."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _torch(threads: int) -> Iterator[None]:
    import torch

    from minquant.crosscheck.quiet import quiet

    before, engine = torch.get_num_threads(), torch.backends.quantized.engine
    with quiet(torch):
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
            torch.backends.quantized.engine = engine
