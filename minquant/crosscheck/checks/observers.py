"""Observers: the ranges that they remember, the histogram, and the grid that they choose."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import minquant.quant as quant
from minquant.quant import histogram

from ..inputs import KINDS, values
from ..suite import Case, Check

__all__ = ["CHECKS"]

F32 = np.float32
MIN_MAX = (
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "PerChannelMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
)


def _both(name: str, arguments: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    import torch.ao.quantization.observer as theirs

    named = {k: getattr(torch, v) if isinstance(v, str) else v for k, v in arguments.items()}
    return getattr(quant, name)(**arguments), getattr(theirs, name)(**named)


def _watch(ours: Any, theirs: Any, x: np.ndarray) -> None:
    import torch

    with np.errstate(over="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.inf detected in input tensor")
        ours(x)
        theirs(torch.from_numpy(x.copy()))


def _remembered(ours: Any, theirs: Any, *names: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Buffers of both; copies, since the next batch changes them."""
    return {n: getattr(ours, n).data.copy() for n in names}, {n: getattr(theirs, n).numpy().copy() for n in names}


def _grids(ours: Any, theirs: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    names = ("scale", "zero_point")
    mine, other = ours.calculate_qparams(), theirs.calculate_qparams()
    return dict(zip(names, mine, strict=True)), {n: a.numpy() for n, a in zip(names, other, strict=True)}


def _arguments(rng: np.random.Generator, granularity: str, scheme: str) -> dict[str, Any]:
    dtype = str(rng.choice(["quint8", "qint8"]))
    arguments: dict[str, Any] = {"dtype": dtype, "qscheme": f"per_{granularity}_{scheme}"}
    if rng.random() < 0.3:
        low, high = (0, 15) if dtype == "quint8" else (-7, 7)
        arguments |= {"quant_min": low, "quant_max": high}
    if rng.random() < 0.3 and (dtype, scheme) != ("quint8", "symmetric"):
        arguments["reduce_range"] = True
    if rng.random() < 0.3:
        arguments["eps"] = float(10 ** rng.uniform(-9, 0))
    return arguments


def _sprinkled(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """X with a few elements that are ±0, infinite, NaN, subnormal or huge."""
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, 3e38, -3e38], F32)
    return np.where(rng.random(x.shape) < 0.02, rng.choice(odd, x.shape), x)


def _min_max(name: str, scheme: str, rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    """Range and grid after each of one to three batches, one kind of input after the other."""
    per_channel = "PerChannel" in name
    for i in range(40 if quick else 300):
        arguments = _arguments(rng, "channel" if per_channel else "tensor", scheme)
        shape = tuple(rng.integers(1, 9, rng.integers(2, 5)).tolist())
        if per_channel:
            arguments["ch_axis"] = int(rng.integers(-len(shape), len(shape)))
        if "Moving" in name and rng.random() < 0.5:
            arguments["averaging_constant"] = float(rng.uniform(0.001, 1))
        ours, theirs = _both(name, arguments)
        for _ in range(int(rng.integers(1, 4))):
            x = values(rng, shape, KINDS[i % len(KINDS)])
            x = _sprinkled(rng, x) if i % 3 == 0 else x
            _watch(ours, theirs, x)
            for mine, other in (_remembered(ours, theirs, "min_val", "max_val"), _grids(ours, theirs)):
                yield {**arguments, "x": x}, mine, other


def _nothing_seen(rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    for name in (*MIN_MAX, "HistogramObserver"):
        ours, theirs = _both(name, {})
        _watch(ours, theirs, np.zeros((0, 3), F32))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "must run observer before calling calculate_qparams")
            yield {"observer": name}, *_grids(ours, theirs)
        yield {"observer": name}, *_remembered(ours, theirs, "min_val", "max_val")


# ---- histogram -------------------------------------------------------------------------------------------------------


def _batch(rng: np.random.Generator) -> np.ndarray:
    """One of many shapes of distribution, at one of many magnitudes."""
    n = int(rng.choice([1, 2, 17, 300, 3000]))
    normal = rng.standard_normal(n)
    shapes = (
        normal,
        rng.random(n),
        np.full(n, rng.standard_normal()),
        -rng.exponential(size=n),
        np.append(normal, 100 * rng.standard_normal()),
        np.maximum(normal, 0),
        rng.integers(-5, 6, n) / 4,
        normal + 1e4,
        np.zeros(n),
        np.exp(5 * normal),
    )
    size = rng.choice([1.0, 10 ** rng.uniform(-8, 8), 10 ** rng.uniform(-37, -25), 10 ** rng.uniform(25, 33)])
    return np.clip(shapes[rng.integers(len(shapes))] * size, -1e37, 1e37).astype(F32)


def _next_batch(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """New, of another scale, the same, or shifted; sometimes with an infinity, which is dropped."""
    choices = (_batch(rng), x * F32(rng.uniform(0.1, 3)), x, x + F32(rng.standard_normal() * abs(x).max() / 2))
    return choices[rng.integers(4)]


def _counts(rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    """Bins and range after each batch, through every way of growing."""
    for _ in range(20 if quick else 250):
        bins = int(rng.choice([2048, 2048, 1, 2, 7, 100]))
        ours, theirs = _both("HistogramObserver", {"bins": bins})
        x = _batch(rng)
        for _ in range(int(rng.integers(1, 6))):
            _watch(ours, theirs, np.append(x, F32(np.inf)) if rng.random() < 0.1 else x)
            yield {"bins": bins, "x": x}, *_remembered(ours, theirs, "histogram", "min_val", "max_val")
            x = _next_batch(rng, x)


def _search(scheme: str, rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    """The range that loses least; torch's search takes up to two seconds, so there are few cases."""
    for _ in range(2 if quick else 15):
        arguments = _arguments(rng, "tensor", scheme) | {"bins": int(rng.choice([2048, 256]))}
        ours, theirs = _both("HistogramObserver", arguments)
        for x in (_batch(rng), _batch(rng)):
            _watch(ours, theirs, x)
        yield {**arguments, "last": x}, *_grids(ours, theirs)


def _histc(rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    import torch

    for _ in range(50 if quick else 500):
        x, bins = _batch(rng), int(rng.choice([1, 10, 2048]))
        low, high = x.min(), x.max()
        theirs = torch.histc(torch.from_numpy(x), bins, min=torch.tensor(low), max=torch.tensor(high)).numpy()
        yield {"x": x, "bins": bins}, histogram.count(x, bins, low, high), theirs


def _linspace(rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    import torch

    for _ in range(50 if quick else 400):
        ends = rng.standard_normal(2) * 10 ** rng.uniform(-30, 30) + rng.choice([0, 100])
        low, high = np.sort(ends.astype(F32))
        n = int(rng.choice([2, 3, 33, 513, 2049, 32769]))
        theirs = torch.linspace(torch.tensor(low), torch.tensor(high), n).numpy()
        yield {"low": low, "high": high, "n": n}, histogram.linspace(low, high, n), theirs


def _cascade_sum(rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    import torch

    for _ in range(100 if quick else 1000):
        n = int(rng.choice([1, 7, 8, 31, 100, 511, 2048, 4097, 32768]))
        x = (rng.standard_normal(n) * 10.0 ** rng.integers(-6, 6, n)).astype(F32)
        yield {"x": x}, histogram.cascade_sum(x), torch.from_numpy(x).sum().numpy()


OBSERVER = "torch.ao.quantization."

CHECKS = (
    *(
        Check(f"observer/{name} {scheme}", OBSERVER + name, partial(_min_max, name, scheme))
        for name in MIN_MAX
        for scheme in ("affine", "symmetric")
    ),
    Check("observer/nothing seen", "torch.ao.quantization.*Observer", _nothing_seen),
    Check("histogram/bins and range", OBSERVER + "HistogramObserver", _counts),
    *(
        Check(f"histogram/search {scheme}", OBSERVER + "HistogramObserver", partial(_search, scheme))
        for scheme in ("affine", "symmetric")
    ),
    Check("histogram/count", "torch.histc", _histc),
    Check("histogram/linspace", "torch.linspace", _linspace),
    Check("histogram/sum", "torch.sum", _cascade_sum),
)
