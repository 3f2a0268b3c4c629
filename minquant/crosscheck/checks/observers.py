"""Observers: the ranges that they remember, the histogram, and the grid that they choose."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import minquant.quant as quant
from minquant.quant import histogram

from ..flat import numbered, series
from ..inputs import KINDS, values
from ..suite import Check, Inputs

__all__ = ["CHECKS"]

F32 = np.float32
MIN_MAX = (
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "PerChannelMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
)
RANGE, GRID = ("min_val", "max_val"), ("scale", "zero_point")


def _steps(observer: Any, wrap: Any, inputs: Inputs, buffers: tuple[str, ...], grids: bool) -> dict[str, np.ndarray]:
    """What an observer of either side remembers and answers after each batch."""
    found: dict[str, np.ndarray] = {}
    for i, x in enumerate(series(inputs, "x")):
        with np.errstate(over="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.inf detected in input tensor")
            warnings.filterwarnings("ignore", "must run observer before calling calculate_qparams")
            observer(wrap(x.copy()))
            found |= {f"{name} {i}": np.asarray(getattr(observer, name).data).copy() for name in buffers}
            if grids:
                found |= {f"{n} {i}": np.asarray(a) for n, a in zip(GRID, observer.calculate_qparams(), strict=True)}
    return found


def _ours(buffers: tuple[str, ...], grids: bool, inputs: Inputs) -> dict[str, np.ndarray]:
    observer = getattr(quant, inputs["observer"])(**_options(inputs))
    return _steps(observer, np.asarray, inputs, buffers, grids)


def _theirs(buffers: tuple[str, ...], grids: bool, inputs: Inputs) -> dict[str, np.ndarray]:
    import torch
    import torch.ao.quantization as tq

    options = {k: getattr(torch, v) if isinstance(v, str) else v for k, v in _options(inputs).items()}
    return _steps(getattr(tq, inputs["observer"])(**options), torch.from_numpy, inputs, buffers, grids)


def _options(inputs: Inputs) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name != "observer" and not name.startswith("x ")}


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


def _min_max(name: str, scheme: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """One to three batches, one kind of input after the other."""
    per_channel = "PerChannel" in name
    for i in range(40 if quick else 300):
        arguments = _arguments(rng, "channel" if per_channel else "tensor", scheme)
        shape = tuple(rng.integers(1, 4 if i < 6 else 9, rng.integers(2, 5)).tolist())
        if per_channel:
            arguments["ch_axis"] = int(rng.integers(-len(shape), len(shape)))
        if "Moving" in name and rng.random() < 0.5:
            arguments["averaging_constant"] = float(rng.uniform(0.001, 1))
        batches = [values(rng, shape, KINDS[i % len(KINDS)]) for _ in range(int(rng.integers(1, 4)))]
        batches = [_sprinkled(rng, x) for x in batches] if i % 3 == 0 else batches
        yield {"observer": name, **arguments, **numbered("x", batches)}


def _nothing_seen(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    for name in (*MIN_MAX, "HistogramObserver"):
        yield {"observer": name, "x 0": np.zeros((0, 3), F32)}


# ---- histogram -------------------------------------------------------------------------------------------------------


def _batch(rng: np.random.Generator, small: bool = False) -> np.ndarray:
    """One of many shapes of distribution, at one of many magnitudes."""
    n = int(rng.choice([1, 2, 17, 60] if small else [1, 2, 17, 300, 3000]))
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


def _next_batch(rng: np.random.Generator, x: np.ndarray, small: bool) -> np.ndarray:
    """New, of another scale, the same, or shifted."""
    choices = (_batch(rng, small), x * F32(rng.uniform(0.1, 3)), x, x + F32(rng.standard_normal() * abs(x).max() / 2))
    return choices[rng.integers(4)]


def _growing(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Batches that make the bins grow in every way; sometimes with an infinity, which is dropped."""
    for i in range(20 if quick else 250):
        bins = int(rng.choice([2048, 2048, 1, 2, 7, 100]))
        batches = [_batch(rng, i < 6)]
        for _ in range(int(rng.integers(0, 5))):
            batches.append(_next_batch(rng, batches[-1], i < 6))
        batches = [np.append(x, F32(np.inf)) if rng.random() < 0.1 else x for x in batches]
        yield {"observer": "HistogramObserver", "bins": bins, **numbered("x", batches)}


def _search(scheme: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """The range that loses least; torch's search takes up to two seconds, so there are few cases."""
    for i in range(1 if quick else 4):
        arguments = _arguments(rng, "tensor", scheme) | {"bins": 2048 if i % 2 else 256}
        batches = _batch(rng, i < 2), _batch(rng, i < 2)
        yield {"observer": "HistogramObserver", **arguments, **numbered("x", batches)}


# ---- what the histogram is made with ---------------------------------------------------------------------------------


def _binned(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    for i in range(50 if quick else 500):
        x = _batch(rng, i < 6)
        yield {"x": x, "bins": int(rng.choice([1, 10, 2048])), "low": x.min(), "high": x.max()}


def _our_count(inputs: Inputs) -> np.ndarray:
    return histogram.count(inputs["x"], inputs["bins"], inputs["low"], inputs["high"])


def _histc(inputs: Inputs) -> np.ndarray:
    import torch

    low, high = torch.tensor(inputs["low"]), torch.tensor(inputs["high"])
    return torch.histc(torch.from_numpy(inputs["x"]), inputs["bins"], min=low, max=high).numpy()


def _ends(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    for i in range(50 if quick else 400):
        ends = rng.standard_normal(2) * 10 ** rng.uniform(-30, 30) + rng.choice([0, 100])
        low, high = np.sort(ends.astype(F32))
        yield {"low": low, "high": high, "n": int(rng.choice([2, 3, 33] if i < 6 else [2, 3, 33, 513, 2049, 32769]))}


def _our_linspace(inputs: Inputs) -> np.ndarray:
    return histogram.linspace(inputs["low"], inputs["high"], inputs["n"])


def _their_linspace(inputs: Inputs) -> np.ndarray:
    import torch

    return torch.linspace(torch.tensor(inputs["low"]), torch.tensor(inputs["high"]), inputs["n"]).numpy()


def _summands(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    for i in range(100 if quick else 1000):
        n = int(rng.choice([1, 7, 8, 31, 100] if i < 8 else [1, 7, 8, 31, 100, 511, 2048, 4097, 32768]))
        yield {"x": (rng.standard_normal(n) * 10.0 ** rng.integers(-6, 6, n)).astype(F32)}


def _our_sum(inputs: Inputs) -> np.ndarray:
    return histogram.cascade_sum(inputs["x"])


def _their_sum(inputs: Inputs) -> np.ndarray:
    import torch

    return torch.from_numpy(inputs["x"]).sum().numpy()


OBSERVER = "torch.ao.quantization."


def _check(name: str, oracle: str, draw: Any, buffers: tuple[str, ...], grids: bool) -> Check:
    return Check(name, OBSERVER + oracle, draw, partial(_ours, buffers, grids), partial(_theirs, buffers, grids))


CHECKS = (
    *(
        _check(f"observer/{name} {scheme}", name, partial(_min_max, name, scheme), RANGE, True)
        for name in MIN_MAX
        for scheme in ("affine", "symmetric")
    ),
    _check("observer/nothing seen", "*Observer", _nothing_seen, RANGE, True),
    _check("histogram/bins and range", "HistogramObserver", _growing, ("histogram", *RANGE), False),
    *(
        _check(f"histogram/search {scheme}", "HistogramObserver", partial(_search, scheme), (), True)
        for scheme in ("affine", "symmetric")
    ),
    Check("histogram/count", "torch.histc", _binned, _our_count, _histc),
    Check("histogram/linspace", "torch.linspace", _ends, _our_linspace, _their_linspace),
    Check("histogram/sum", "torch.sum", _summands, _our_sum, _their_sum),
)
