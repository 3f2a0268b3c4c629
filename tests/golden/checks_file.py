"""The files of golden vectors: one a subject, in it each check's recorded cases. Needs no torch.

"tests/golden/checks/<subject>.npz" holds two arrays for each check:

- "<check>.json": bytes of ``{"versions": {…}, "cases": [{"inputs": {name: value}, "outputs": {name: value}}, …]}``, in
  which an array is ``{"array": [dtype, shape, order]}``, a NumPy number ``{"number": dtype}`` and a tuple
  ``{"tuple": […]}``;
- "<check>.bytes": the arrays' and numbers' bytes one after the other, in the order in which the JSON names them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).with_name("checks")


def path_of(check_name):
    """The file of a check, by the subject in its name."""
    subject = check_name.partition("/")[0]
    return FOLDER / f"{re.sub('[^a-z0-9]+', '_', subject.lower())}.npz"


def pack(recorded):
    """A check's record as its two arrays."""
    data = bytearray()

    def encode(value):
        if isinstance(value, np.ndarray):
            order = "C" if value.flags.c_contiguous or not value.flags.f_contiguous else "F"
            data.extend(value.tobytes(order))
            return {"array": [value.dtype.str, value.shape, order]}
        if isinstance(value, np.generic):
            data.extend(value.tobytes())
            return {"number": value.dtype.str}
        if isinstance(value, tuple):
            return {"tuple": [encode(item) for item in value]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"inputs and outputs are arrays, numbers, strings, None or tuples, got {type(value).__name__}")

    cases = [{part: {n: encode(v) for n, v in case[part].items()} for part in case} for case in recorded["cases"]]
    text = json.dumps({"versions": recorded["versions"], "cases": cases}, separators=(",", ":"))
    return np.frombuffer(text.encode(), np.uint8), np.frombuffer(bytes(data), np.uint8)


def unpack(text, data):
    """The inverse of `pack`."""
    at = 0

    def take(dtype, count):
        nonlocal at
        values = np.frombuffer(data.tobytes(), dtype, count, at).copy() if count else np.zeros(0, dtype)
        at += count * np.dtype(dtype).itemsize
        return values

    def decode(value):
        if not isinstance(value, dict):
            return value
        if "array" in value:
            dtype, shape, order = value["array"]
            return take(dtype, int(np.prod(shape))).reshape(shape, order=order)
        return take(value["number"], 1)[0] if "number" in value else tuple(map(decode, value["tuple"]))

    recorded = json.loads(text.tobytes())
    recorded["cases"] = [
        {part: {n: decode(v) for n, v in case[part].items()} for part in case} for case in recorded["cases"]
    ]
    return recorded


def read(path):
    """The records of a file by the check's name, packed; empty if there is no such file."""
    if not path.exists():
        return {}
    with np.load(path) as file:
        names = [name.removesuffix(".json") for name in file.files if name.endswith(".json")]
        return {name: (file[f"{name}.json"], file[f"{name}.bytes"]) for name in names}


def write(path, packed):
    """Writes a file's records in the order of their names; no record, no file."""
    if not packed:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(exist_ok=True)
    arrays = {}
    for name in sorted(packed):
        arrays[f"{name}.json"], arrays[f"{name}.bytes"] = packed[name]
    np.savez_compressed(path, **arrays)


def read_all():
    """Every record there is, by the check's name."""
    files = [read(path) for path in sorted(FOLDER.glob("*.npz"))]
    return {name: unpack(*packed) for file in files for name, packed in file.items()}
