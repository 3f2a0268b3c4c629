"""Checkpoints of a whole run, so that it goes on, bit for bit, where it was stopped.

A checkpoint is one safetensors file, written in one step (`minquant.files`). Its tensors:

==================  ==================================================================================
model.NAME          parameters and buffers of the model
optimizer.I.NAME    the optimizer's state of its parameter number I
losses              float64, of every step so far: as many as steps were done
random              minquant's random numbers (`minquant.random.get_rng_state`)
==================  ==================================================================================

Its metadata: format "minquant checkpoint", version, `run` (the run's config and what of the optimizer's state is a
number, as JSON) and sha256 of all of it. Batches need no state: they are functions of the step (`RandomWindows`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minquant import random
from minquant.files import write_atomically
from minquant.nn import Module
from minquant.optim import Optimizer
from minquant.saving import UnreadableError, checksum, import_safetensors, read_tensors

__all__ = ["Checkpoints", "load_checkpoint", "save_checkpoint"]

FORMAT, VERSION = "minquant checkpoint", "1"
NAMES = ("final", "latest", "early")


class Checkpoints:
    """The checkpoints of a run in a folder: an early one, the latest, and the final one.

    The early one shows within seconds that a run can be saved and resumed; one process of several writes.

    Args:
        folder: where they lie; it is made if it is not there.
        config: what makes the run what it is: JSON's values. A run resumes only with the config it was begun with.
        steps: of the whole run.
        early: after how many steps the early one is written.
        every: how many steps after one another the latest is replaced.
        resume: go on from the checkpoint that is furthest, and from the beginning where there is none.
        write: whether this process writes.

    Raises:
        FileExistsError: `folder` has checkpoints already, and `resume` is False.
        ValueError: early or every below 1.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        config: Mapping[str, Any],
        steps: int,
        *,
        early: int = 10,
        every: int = 100,
        resume: bool = False,
        write: bool = True,
    ) -> None:
        if min(early, every) < 1:
            raise ValueError(f"Checkpoints: early and every must be 1 or more, got {early=}, {every=}")
        self.folder, self.config, self.steps = Path(folder), dict(config), steps
        self.early, self.every, self.resuming, self.write = early, every, resume, write
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.found() and not resume:
            raise FileExistsError(
                f"{self.folder} holds the checkpoint {self.found()[0].name} of an earlier run; resume that run, "
                "or name another folder"
            )

    def found(self) -> list[Path]:
        """The checkpoints in the folder, the furthest first."""
        return [path for name in NAMES if (path := self.path(name)).is_file()]

    def path(self, name: str) -> Path:
        """Where the checkpoint "early", "latest" or "final" lies."""
        return self.folder / f"{name}.safetensors"

    def resume(self, model: Module, optimizer: Optimizer) -> list[float]:
        """Puts model, optimizer and random numbers where the run stopped; returns the losses so far."""
        if not (self.resuming and self.found()):
            return []
        return load_checkpoint(self.found()[0], model, optimizer, self.config)

    def after_step(self, model: Module, optimizer: Optimizer, losses: list[float]) -> None:
        """Writes what is due after a step."""
        done = len(losses)
        due = {"early": done == self.early, "latest": done % self.every == 0, "final": done == self.steps}
        for name in (name for name, is_due in due.items() if is_due and self.write):
            save_checkpoint(self.path(name), model, optimizer, losses, self.config)


def save_checkpoint(
    path: str | os.PathLike[str],
    model: Module,
    optimizer: Optimizer,
    losses: list[float],
    config: Mapping[str, Any],
) -> None:
    """Writes all that a run needs to go on, whole or not at all.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: a full disk, a folder that cannot be written to.
    """
    tensors, numbers = _optimizer_state(optimizer)
    tensors |= {f"model.{name}": np.asarray(t.data, order="C") for name, t in model.state_dict().items()}
    tensors |= {"losses": np.array(losses, np.float64), "random": random.get_rng_state()}
    run = json.dumps({"config": config, "optimizer": numbers}, sort_keys=True)
    metadata = {"format": FORMAT, "version": VERSION, "run": run, "sha256": checksum(run, tensors)}
    write_atomically(Path(path), import_safetensors().numpy.save(tensors, metadata))


def load_checkpoint(
    path: str | os.PathLike[str], model: Module, optimizer: Optimizer, config: Mapping[str, Any]
) -> list[float]:
    """Puts model, optimizer and minquant's random numbers where the run stopped that wrote the file.

    Args:
        path: the file.
        model: one of the same form; its values are replaced.
        optimizer: of the same parameters; its state is replaced.
        config: that of this run, which must be the one of that run.

    Returns:
        The losses of the steps that were done.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is truncated, altered or no checkpoint; another config; a model that does not fit.
            Nothing has then been changed.
    """
    run, tensors = _read(Path(path))
    _check_config(run["config"], config, path)
    state = {name.removeprefix("model."): array for name, array in tensors.items() if name.startswith("model.")}
    loaded = _loaded_state(run["optimizer"], tensors, optimizer)
    try:
        model.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"checkpoint {path} is of another model: {error}") from error
    optimizer.load_state_dict({**optimizer.state_dict(), "state": loaded})
    random.set_rng_state(tensors["random"])
    return tensors["losses"].tolist()


# ---- the file --------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the run says of itself, and the tensors, of a file that is proven to be as it was written."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    instead = "resume from another checkpoint of that folder (remove this one), or begin the run again"

    def check(metadata: Mapping[str, str]) -> None:
        if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
            raise ValueError(f"{path} is a safetensors file, but no checkpoint that this minquant reads; {instead}")

    try:
        metadata, tensors = read_tensors(path, check)
    except UnreadableError as error:
        raise ValueError(f"checkpoint {path} is truncated or damaged ({error}); {instead}") from error
    if checksum(metadata.get("run", ""), tensors) != metadata.get("sha256"):
        raise ValueError(f"checkpoint {path} has been altered: its contents do not give its sha256; {instead}")
    return json.loads(metadata["run"]), tensors


def _check_config(written: Mapping[str, Any], config: Mapping[str, Any], path: Any) -> None:
    own = json.loads(json.dumps(config))
    differing = [
        f"{key}: {written.get(key, 'not given')!r} there, {own.get(key, 'not given')!r} here"
        for key in sorted(written.keys() | own.keys())
        if written.get(key) != own.get(key)
    ]
    if differing:
        raise ValueError(
            f"checkpoint {path} is of a run with another config:\n  " + "\n  ".join(differing) + "\n"
            "resume with the config of that run, or begin this one in another folder"
        )


# ---- the optimizer ---------------------------------------------------------------------------------------------------


def _optimizer_state(optimizer: Optimizer) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Its arrays by name, and its numbers by parameter."""
    state = optimizer.state_dict()["state"]
    arrays = {
        f"optimizer.{i}.{name}": value
        for i, values in state.items()
        for name, value in values.items()
        if isinstance(value, np.ndarray)
    }
    numbers = {
        str(i): {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
        for i, values in state.items()
    }
    return arrays, numbers


def _loaded_state(
    numbers: Mapping[str, dict[str, Any]], tensors: Mapping[str, np.ndarray], optimizer: Optimizer
) -> dict[int, dict[str, Any]]:
    """By the parameter's number, what `_optimizer_state` took apart."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in numbers.items()}
    for name, array in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".")
            if int(i) >= len(params) or params[int(i)].shape != array.shape:
                raise ValueError(f"checkpoint: {name} has shape {array.shape}, no parameter of this run has it")
            state[int(i)][key] = array
    return state
