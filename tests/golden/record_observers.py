"""Records what torch.ao.quantization's observers answer, for tests that run without torch.

    python tests/golden/record_observers.py        # writes tests/golden/observers.npz; recorded with torch 2.13.0

The file holds the data as arrays "data/<name>/<batch>"; under "cases" a JSON list of

    {"observer", "arguments", "data": name, "min_val", "max_val", "scale", "zero_point", "torch": version}

whose numbers are float32 values written exactly; and for case i the array "histogram/i" of a HistogramObserver.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.observer as torch_observers

FILE = Path(__file__).with_name("observers.npz")
INT8_SYMMETRIC = {"dtype": "qint8", "qscheme": "per_tensor_symmetric"}
CHANNEL_SYMMETRIC = {"dtype": "qint8", "qscheme": "per_channel_symmetric"}


def batches() -> dict[str, list[np.ndarray]]:
    """The data: several batches whose ranges grow, stay, shrink or have one sign."""
    random = np.random.RandomState(20)
    normal = random.standard_normal(300)
    sets = {
        "normal": [normal],
        "growing": [normal[:100], normal[100:200] * 2, normal[200:] * 5],
        "equal": [normal, normal[::-1]],
        "shrinking": [normal * 3, normal],
        "constant": [np.full(20, 0.3)],
        "constant, then wider": [np.full(20, 0.3), normal[:50]],
        "large constant": [np.full(5, 2.0**26)],
        "zeros": [np.zeros(10)],
        "positive": [random.random_sample(300) + 1],
        "negative": [-random.random_sample(300)],
        "outlier": [np.append(normal, 40.0)],
        "tiny": [normal * 1e-12],
        "huge": [normal * 1e30],
        "infinite": [np.append(normal[:50], [np.inf, -np.inf])],
    }
    return {name: [batch.astype(np.float32) for batch in group] for name, group in sets.items()}


def channels() -> list[np.ndarray]:
    """Three batches with two channels on the first axis and five on the last."""
    random = np.random.RandomState(21)
    return [(random.standard_normal((2, 4, 5)) * widen).astype(np.float32) for widen in (1, 2, 0.5)]


def cases(data: dict[str, list[np.ndarray]]) -> list[tuple[str, dict[str, Any], str]]:
    """Observer, arguments and name of the data of each case."""
    histogram = [
        ("HistogramObserver", arguments, name)
        for name in data
        for arguments in ({}, {"bins": 256, **INT8_SYMMETRIC, "reduce_range": True})
        if not arguments or name in ("normal", "growing", "outlier")
    ]
    per_tensor = [
        (observer, arguments, name)
        for observer in ("MinMaxObserver", "MovingAverageMinMaxObserver")
        for name, group in data.items()
        for arguments in ({}, {**INT8_SYMMETRIC, "quant_min": -8, "quant_max": 7})
        if len(group) > 1 or observer == "MinMaxObserver"
    ]
    per_channel = [
        (observer, {**arguments, "ch_axis": axis}, "channels")
        for observer in ("PerChannelMinMaxObserver", "MovingAveragePerChannelMinMaxObserver")
        for arguments in ({}, CHANNEL_SYMMETRIC, {"eps": 0.25, "reduce_range": True})
        for axis in (0, -1)
    ]
    return histogram + per_tensor + per_channel


def answer(name: str, arguments: dict[str, Any], group: list[np.ndarray]) -> tuple[dict[str, Any], np.ndarray]:
    """What torch's observer of this name answers after the batches, and its histogram (empty if it has none)."""
    named = {k: getattr(torch, v) if isinstance(v, str) else v for k, v in arguments.items()}
    observer = getattr(torch_observers, name)(**named)
    for batch in group:
        observer(torch.from_numpy(batch.copy()))
    scale, zero_point = observer.calculate_qparams()
    if "PerChannel" not in name:
        scale, zero_point = scale[0], zero_point[0]
    values = {"min_val": observer.min_val, "max_val": observer.max_val, "scale": scale, "zero_point": zero_point}
    histogram = getattr(observer, "histogram", torch.empty(0)).numpy()
    return {key: value.tolist() for key, value in values.items()}, histogram


def main() -> None:
    """Writes the file."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data = batches()
    todo = cases(data)
    data["channels"] = channels()
    arrays = {f"data/{name}/{j}": batch for name, group in data.items() for j, batch in enumerate(group)}
    rows = []
    for i, (observer, arguments, name) in enumerate(todo):
        values, histogram = answer(observer, arguments, data[name])
        rows.append({"observer": observer, "arguments": arguments, "data": name, **values, "torch": torch.__version__})
        if histogram.size:
            arrays[f"histogram/{i}"] = histogram
    np.savez_compressed(FILE, cases=np.array(json.dumps(rows)), **arrays)
    print(f"{FILE.name}: {len(rows)} cases, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
