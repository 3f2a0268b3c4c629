"""What a run of `minquant finetune` is told: a TOML file, read into dataclasses and checked as a whole.

A file names what differs from the defaults below:

    out = "runs/qat"
    start = "runs/full/model.safetensors"

    [training]
    steps = 200
    lr = 1e-3

    [quantization]
    weight_dtype = "int4"
    group_size = 32
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from minquant.quant import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig
from minquant.quant.base_configs import BaseConfig
from minquant.quant.spec import Granularity, PerChannel, PerGroup
from minquant.train.loop import Schedule

__all__ = ["Config", "ModelSizes", "Quantization", "read_config"]

T = TypeVar("T")


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a new model (`lm.LlamaConfig`); the vocabulary is the tokenizer's, the longest text the context."""

    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    tie_word_embeddings: bool = True
    initializer_range: float = 0.05


@dataclass(frozen=True)
class Quantization:
    """Which integers.

    Raises:
        ValueError: a dtype or a group size that `quantize_` has no config for.
    """

    weight_dtype: str = "int4"  # int2 … int8
    group_size: int = 32  # weights with one scale; 0: the whole row
    activation_dtype: str = "int8"  # each token with its own scale; or float32: weights alone are quantized
    fake_quant_after_n_steps: int = 0  # trained without rounding until then

    def __post_init__(self) -> None:
        if self.activation_dtype not in ("int8", "float32"):
            raise ValueError(f"activation_dtype must be 'int8' or 'float32', got {self.activation_dtype!r}")
        if self.fake_quant_after_n_steps < 0:
            raise ValueError(f"fake_quant_after_n_steps must be 0 or more, got {self.fake_quant_after_n_steps}")
        self.base_config()

    def base_config(self) -> BaseConfig:
        """The config for `quantize_`."""
        granularity: Granularity = PerGroup(self.group_size) if self.group_size else PerChannel(0)
        if self.activation_dtype == "int8":
            return Int8DynamicActivationIntxWeightConfig(self.weight_dtype, granularity)
        return IntxWeightOnlyConfig(self.weight_dtype, granularity)

    @property
    def weight_bits(self) -> int:
        """Of each weight."""
        return int(self.weight_dtype.removeprefix("int"))

    @property
    def scheme(self) -> str:
        """The name that tables give it: activations, then weights."""
        return f"{self.activation_dtype}-{self.weight_dtype}"


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (`train.lora`)."""

    rank: int = 8
    alpha: float = 16.0
    form: str = "light"  # beside a frozen integer base; or "merged": rounded together with a float base


@dataclass(frozen=True)
class Distillation:
    """A teacher's part in the loss (`train.distillation`)."""

    teacher: str = ""  # a model as `start`; left out, `start` itself, in float
    temperature: float = 2.0
    weight: float = 0.5  # of the teacher's loss; the rest is the text's

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if not 0 < self.weight <= 1:
            raise ValueError(f"weight must lie above 0 and not above 1, got {self.weight}")


@dataclass(frozen=True)
class Saving:
    """After how many steps the early checkpoint is written, and how many steps apart the others."""

    early: int = 10
    every: int = 100

    def __post_init__(self) -> None:
        if min(self.early, self.every) < 1:
            raise ValueError(f"early and every must be 1 or more, got {self.early} and {self.every}")


@dataclass(frozen=True)
class Config:
    """A run.

    Raises:
        ValueError: sizes below 1.
    """

    out: str = "runs/finetune"  # the folder for checkpoints, the model and the loss curve
    seed: int = 0  # of a new model and of the batches
    text: str = "topics"  # CPython's language reference, or a text file
    tokenizer: str = "bytes"  # or a tokenizer.json
    start: str = ""  # a model that minquant.save wrote, or the folder of a published one; left out: a new model
    context: int = 64  # tokens in a window
    batch_size: int = 16  # windows in a batch, over all processes
    questions: int = 500  # of the multiple-choice test
    model: ModelSizes = field(default_factory=ModelSizes)
    training: Schedule = field(default_factory=Schedule)
    checkpoints: Saving = field(default_factory=Saving)
    quantization: Quantization = field(default_factory=Quantization)
    lora: Lora = field(default_factory=Lora)
    distillation: Distillation = field(default_factory=Distillation)

    def __post_init__(self) -> None:
        for name in ("context", "batch_size", "questions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")


def read_config(path: str | os.PathLike[str]) -> Config:
    """Reads a TOML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no TOML; keys that no config has, with what is close; values of a wrong type or that make no sense.
            All problems are listed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no config {path}")
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"config {path} is no TOML: {error}") from error
    problems: list[str] = []
    config = _read_table(Config, table, "", problems)
    if config is None or problems:
        raise ValueError(f"config {path}:\n  " + "\n  ".join(problems))
    return config


# ---- tables to dataclasses -------------------------------------------------------------------------------------------


def _read_table(kind: type[T], table: dict[str, Any], where: str, problems: list[str]) -> T | None:
    """An instance made of a table's values; None, and what is wrong with it, where there is none."""
    hints = typing.get_type_hints(kind)
    known = len(problems)
    values = {}
    for key, value in table.items():
        if key not in hints:
            problems.append(_unknown(where + key, key, list(hints)))
        elif dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            values[key] = _read_table(hints[key], value, f"{where}{key}.", problems)
        elif _fits(value, hints[key]):
            values[key] = tuple(value) if isinstance(value, list) else value
        else:
            problems.append(f"{where}{key} must be {_named(hints[key])}, got {value!r}")
    if len(problems) > known:
        return None
    try:
        return kind(**values)
    except ValueError as error:
        problems.append(f"{where.removesuffix('.')}: {error}" if where else str(error))
        return None


def _unknown(path: str, key: str, names: list[str]) -> str:
    close = difflib.get_close_matches(key, names, 1)
    return f"{path} is unknown; " + (f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}")


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        return isinstance(value, list) and len(value) == len(parts) and all(map(_fits, value, parts))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is hint


def _named(hint: Any) -> str:
    if dataclasses.is_dataclass(hint):
        return "a table"
    if isinstance(hint, types.GenericAlias):
        return f"a list of {len(typing.get_args(hint))} numbers"
    return {int: "an integer", float: "a number", str: "a string", bool: "true or false"}[hint]
