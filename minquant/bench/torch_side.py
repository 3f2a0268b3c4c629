"""How torch is called at its best: quantized weights packed for each of its engines."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minquant.bench.job import Job
from minquant.bench.operation import Peer

__all__ = ["ENGINES", "on_each_engine", "packed_conv", "packed_linear", "tensor", "values"]

ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")


def on_each_engine(
    family: str, prepare: Callable[[str, Any, int], Job], variant: str | None = None
) -> tuple[Peer, ...]:
    """A function as a peer on each engine; ``prepare(engine, data, threads)``."""
    return tuple(
        Peer(f"{family}, {engine}", family, ("torch",), partial(prepare, engine), variant, engine=engine)
        for engine in ENGINES
    )


def packed_linear(engine: str, qw: np.ndarray, scale: np.ndarray, bias: np.ndarray | None) -> Any:
    """A Linear's weight (N, K) and bias, of one layer: onednn's static layers leave in it what dynamic ones die of."""
    import torch

    torch.backends.quantized.engine = engine
    return torch.ops.quantized.linear_prepack(_quantized(qw, scale), None if bias is None else tensor(bias))


def packed_conv(
    engine: str, qw: np.ndarray, scale: np.ndarray, bias: np.ndarray, stride: int, padding: int, groups: int
) -> Any:
    """A Conv2d's weight (M, C/groups, k, k) and bias."""
    import torch

    torch.backends.quantized.engine = engine
    slides = [stride] * 2, [padding] * 2, [1, 1]
    return torch.ops.quantized.conv2d_prepack(_quantized(qw, scale), tensor(bias), *slides, groups)


def _quantized(qw: np.ndarray, scale: np.ndarray) -> Any:
    """A weight of exactly these integers, symmetric, with one scale or one a channel."""
    import torch

    if scale.ndim == 0:
        return torch._make_per_tensor_quantized_tensor(tensor(qw), float(scale), 0)
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    return torch._make_per_channel_quantized_tensor(tensor(qw), tensor(scale), zeros, 0)


def tensor(array: np.ndarray) -> Any:
    """A torch tensor with memory of its own, which torch wants to be writeable."""
    import torch

    return torch.from_numpy(np.array(array))


def values(result: Any) -> np.ndarray:
    """A result in NumPy: of a quantized tensor the integers, of bfloat16 the same numbers in float32."""
    import torch

    if result.is_quantized:
        return result.int_repr().numpy()
    return (result.float() if result.dtype == torch.bfloat16 else result).detach().numpy()
