"""`load_llama`: published checkpoints, config.json and *.safetensors, under the names that transformers gives them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minquant.lm.model import Llama, LlamaConfig
from minquant.tensor import Tensor

__all__ = ["load_llama", "read_config"]

STORED: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
"""Types of weights; a bfloat16 is the upper half of a float32."""
FIXED = {
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_interleaved": False,
    "quantization_config": None,
}  # fmt: skip
"""What other Llamas may have otherwise, and this one cannot."""
DERIVED = ".rotary_emb.inv_freq"
"""Older files have this in every layer; config.json gives it, too."""
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def load_llama(directory: str | os.PathLike[str]) -> Llama:
    """The model of a folder with config.json and *.safetensors, in eval().

    Args:
        directory: one file model.safetensors, or shards that model.safetensors.index.json lists.

    Returns:
        A Llama; weights stored as float32, float16 or bfloat16 become float32, exactly.

    Raises:
        FileNotFoundError: no folder, no config.json, no weights, a shard that is listed but not there.
        ValueError: another architecture, or an option of it that is not built; parameters that are missing, unexpected
            or of another shape or type (all are listed); a truncated or damaged file.

    Source: transformers 5.24, LlamaForCausalLM; the safetensors format, version 0.
    """
    directory = Path(directory)
    model = Llama(read_config(directory))
    parameters = dict(model.named_parameters())
    values: dict[str, np.ndarray] = {}
    problems = []
    for path in _weight_files(directory):
        for name, value in _tensors(path):
            if name in values:
                problems.append(f"twice: {name}")
            values[name] = value
    values = {name: value for name, value in values.items() if not name.endswith(DERIVED)}
    if model.config.tie_word_embeddings:
        problems += _repeated_table(values)
    problems += [f"missing: {name}" for name in parameters if name not in values]
    for name, value in values.items():
        problems += _problems(name, value, parameters.get(name))
    if problems:
        lines = "\n  ".join(sorted(problems))
        raise ValueError(f"load_llama: the weights in {directory} do not fit its config.json:\n  {lines}")
    for name, value in values.items():
        parameters[name].data[...] = _as_float32(value)
    return model.eval()  # type: ignore[return-value]


def _repeated_table(values: dict[str, np.ndarray]) -> list[str]:
    """Takes out the head of a file that repeats the embedding's table there, and says if it is another one."""
    table, head = values.get("model.embed_tokens.weight"), values.pop("lm_head.weight", None)
    if head is None or table is None or np.array_equal(table, head):
        return []
    return ["lm_head.weight differs from model.embed_tokens.weight: tie_word_embeddings=true makes them one"]


def _problems(name: str, value: np.ndarray, parameter: Tensor | None) -> list[str]:
    if parameter is None:
        return [f"unexpected: {name}"]
    if value.shape == parameter.shape:
        return []
    vocabulary = name.startswith(("model.embed_tokens", "lm_head"))
    hint = " (rows are the vocab_size)" if vocabulary and value.shape[1:] == parameter.shape[1:] else ""
    return [f"shape of {name}: expected {parameter.shape}, got {value.shape}{hint}"]


def _as_float32(value: np.ndarray) -> np.ndarray:
    return (value.astype(np.uint32) << 16).view(np.float32) if value.dtype == np.uint16 else value.astype(np.float32)


# ---- config.json -----------------------------------------------------------------------------------------------------


def read_config(directory: str | os.PathLike[str]) -> LlamaConfig:
    """The config.json of a folder.

    Raises:
        FileNotFoundError: no folder, or no config.json in it.
        ValueError: another architecture, an option that is not built, sizes that do not go together.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"load_llama: there is no {path}: give the folder of a published model")
    given = _json(path)
    kinds = given.get("architectures") or [given.get("model_type")]
    if kinds not in (["LlamaForCausalLM"], ["llama"]):
        raise ValueError(f"load_llama: {path} names {kinds}: expected ['LlamaForCausalLM']")
    for name, built in FIXED.items():
        if given.get(name, built) != built:
            raise ValueError(f"load_llama: {path} has {name}={given[name]!r}: only {built!r} is built")
    fields = {field.name for field in dataclasses.fields(LlamaConfig)} - {"rope_scaling"}
    known = {name: given[name] for name in fields if given.get(name) is not None}
    return LlamaConfig(**known | _rotary(given, path))


def _rotary(given: dict[str, Any], path: Path) -> dict[str, Any]:
    """rope_theta and rope_scaling, which transformers 5 calls rope_parameters."""
    rope = {**(given.get("rope_scaling") or {}), **(given.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    found: dict[str, Any] = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    if rope.get("partial_rotary_factor", 1) != 1 or kind not in ("default", "llama3"):
        raise ValueError(f'load_llama: {path} has rotary positions {rope}: only "default" and "llama3" are built')
    if kind == "llama3":
        missing = [name for name in LLAMA3 if name not in rope]
        if missing:
            raise ValueError(f"load_llama: {path}: llama3's rotary positions need {', '.join(missing)}, got {rope}")
        found["rope_scaling"] = tuple(float(rope[name]) for name in LLAMA3)
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"load_llama: {path} is no JSON ({error}): copy it again") from error
    if not isinstance(read, dict):
        raise ValueError(f"load_llama: {path} holds no JSON object: copy it again")
    return read


# ---- *.safetensors ---------------------------------------------------------------------------------------------------


def _weight_files(directory: Path) -> list[Path]:
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if not index.is_file():
        if not single.is_file():
            raise FileNotFoundError(f"load_llama: {directory} has neither {single.name} nor {index.name}")
        return [single]
    shards = [directory / name for name in sorted(set(_json(index)["weight_map"].values()))]
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"load_llama: {index.name} lists files that {directory} lacks: {', '.join(missing)}")
    return shards


def _tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values, bfloat16 as uint16: 8 bytes, the length of a JSON header; the header; the values."""
    file = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    length = int(file[:8].view("<u8")[0]) if file.size >= 8 else 0
    data = file[8 + length :]
    try:
        header = json.loads(bytes(file[8 : 8 + length]))
    except ValueError as error:
        raise ValueError(f"load_llama: {path} is no safetensors file, or truncated: copy it again") from error
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (start, end) = STORED.get(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
        if dtype is None:
            raise ValueError(
                f"load_llama: {path}: {name} is stored as {entry['dtype']}: only {', '.join(STORED)} can be read"
            )
        if end > data.size or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(
                f"load_llama: {path}: {name} does not fill its place, the file is truncated: copy it again"
            )
        yield name, np.frombuffer(data[start:end].tobytes(), dtype=dtype).reshape(shape)
