"""torch's side of the article's demos, recorded: what is shown where torch is not installed.

``python -m minquant.demos.recorded`` records anew with the installed torch. Integer outputs are kept for the first
rows of the test set only.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .article import EngineRun, TorchRun

__all__ = ["load", "record"]

FILE = Path(__file__).with_name("recorded_torch.npz")
NAMES = ("dynamic", "static", "qat")
ROWS = 500


def record(path: Path = FILE) -> None:
    """Runs torch's side of all demos and writes it down."""
    from minquant.crosscheck.article import run_torch

    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, dict] = {}
    for name in NAMES:
        run = run_torch(name)
        facts[name] = {"float_loss": run.float_loss, "version": run.version, "engines": {}}
        for engine, result in run.engines.items():
            facts[name]["engines"][engine] = {"loss": result.loss, "prepared_loss": result.prepared_loss}
            for key, value in result.arrays.items():
                arrays[f"{name}/{engine}/result/{key}"] = value[:ROWS] if key == "output" else value
            for key, value in run.states[engine].items():
                arrays[f"{name}/{engine}/state/{key}"] = value
    np.savez_compressed(path, **{"facts": np.array(json.dumps(facts)), **arrays})  # type: ignore[arg-type]


def load(name: str, path: Path = FILE) -> TorchRun:
    """The recorded torch side of one demo."""
    with np.load(path, allow_pickle=False) as file:
        facts = json.loads(str(file["facts"]))[name]
        run = TorchRun(facts["float_loss"], {}, {}, facts["version"], live=False)
        for engine, losses in facts["engines"].items():
            run.engines[engine] = EngineRun(losses["loss"], {}, losses["prepared_loss"])
            run.states[engine] = {}
            prefix = f"{name}/{engine}/"
            for key in file.files:
                kind, _, rest = key.removeprefix(prefix).partition("/")
                if key.startswith(prefix):
                    target = run.engines[engine].arrays if kind == "result" else run.states[engine]
                    target[rest] = file[key]
    return run


if __name__ == "__main__":
    record()
