"""Low-rank adapters in quantization-aware training: added, found, saved by themselves, merged into integers.

    add_lora_(model, 8, 16, form="light", config=Int8DynamicActivationIntxWeightConfig("int4", PerGroup(32)))
    optimizer = AdamW(lora_parameters(model))
    ...                                          # any training loop
    save_lora(model, "adapter.safetensors")      # A and B alone
    merge_lora_(model.eval())                    # integers, no adapters

Which form? "light" holds the base as packed integers: little memory, and no step rounds them or has their gradient.
Serve it as it is, adapter and all: merging rounds the sum anew, and an adapter that moves weights by less than half a
step of the grid is then all but lost. "merged" was rounded so at every step and loses nothing, but takes about the
memory and time of full quantization-aware training. See `minquant.train.lora_layers` for the formulas.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from minquant.files import write_atomically
from minquant.nn import Linear, Module, Parameter
from minquant.quant.base_configs import BaseConfig
from minquant.quant.conversion import replace_modules
from minquant.quant.in_place import FilterFn
from minquant.saving import UnreadableError, checksum, import_safetensors, read_tensors

from .lora_layers import LoraLinear, LoraLinearBase, MergedLoraLinear

__all__ = ["add_lora_", "load_lora_", "lora_parameters", "merge_lora_", "save_lora"]

FORMS: dict[str, Any] = {kind.form: kind for kind in (LoraLinear, MergedLoraLinear)}
FORMAT = "minquant adapters 1"
NAMES = ("lora_a", "lora_b")


def add_lora_(
    model: Module,
    rank: int,
    alpha: float,
    *,
    form: str,
    config: BaseConfig,
    filter_fn: FilterFn | None = None,
) -> None:
    """Gives Linears a low-rank adapter, in place, and freezes everything else in the model.

    The model's outputs do not move by this: they are those of ``quantize_(model, config)`` in the light form, of
    ``quantize_(model, QATConfig(config, step="prepare"))`` in the merged one.

    Args:
        model: changed in place.
        rank: r, columns of B and rows of A.
        alpha: the adapter counts α/r times.
        form: "light", beside a frozen base of integers; or "merged", rounded together with a float base.
        config: what the integers are, any config of `quantize_`; in the light form one that does not observe.
        filter_fn: ``(module, path) -> whether to adapt it``; left out, every Linear.

    Raises:
        TypeError: a model or config that is none.
        ValueError: an unknown form; a rank below 1 or above the layer's smaller side; alpha not above 0; nothing
            matched; a module that is no float Linear, or adapted already; a grid that the layer cannot have. The model
            is then as it was.

    Source: torchtune 0.6, as `minquant.train.lora_layers`.
    """
    _check_arguments(model, rank, alpha, form, config)
    chosen = {
        path: module
        for path, module in model.named_modules()
        if (type(module) is Linear if filter_fn is None else filter_fn(module, path))
    }
    if not chosen:
        raise ValueError(_nothing_matched(model, filter_fn))
    new = {id(module): _adapted(module, path, rank, alpha, form, config) for path, module in chosen.items()}
    for module in new.values():
        module.train(model.training)
    replace_modules(model, lambda _, module: new.get(id(module)))
    model.requires_grad_(False)
    for parameter in lora_parameters(model):
        parameter.requires_grad_()


def lora_parameters(model: Module) -> list[Parameter]:
    """The adapters' A and B: what an optimizer trains.

    Raises:
        ValueError: the model has no adapter.
    """
    return [p for module in _adapters(model, "lora_parameters").values() for p in (module.lora_a, module.lora_b)]


def merge_lora_(model: Module) -> None:
    """Makes integer layers without adapters of all adapted ones, in place.

    The merged form becomes the integers that it was trained on: in eval the outputs stay, to the last bit. The light
    form's sum is rounded to the base's grid, ``clip(rint(f(f(ŵ + (α/r)·B A) · f(1/s))) + z)``, for the first time: each
    weight moves by up to s/2, so that much of what the adapter learned may be undone; without an adapter (B = 0) the
    base's integers come back.

    Raises:
        ValueError: the model has no adapter, or none any more; NaN in one. The model is then as it was.
    """
    new = {id(module): module.merged() for module in _adapters(model, "merge_lora_").values()}
    for module in new.values():
        module.train(model.training)
    replace_modules(model, lambda _, module: new.get(id(module)))


# ---- adapters by themselves ------------------------------------------------------------------------------------------


def save_lora(model: Module, path: str | os.PathLike[str]) -> None:
    """Writes the adapters alone: their A and B by path, rank, alpha, form, and what tells their base.

    Args:
        model: with adapters.
        path: a safetensors file; it is written whole or not at all.

    Raises:
        ValueError: the model has no adapter.
        OSError: as `minquant.files.write_atomically`.
    """
    tensors, metadata = _adapter_state(model, "save_lora")
    metadata["sha256"] = checksum(json.dumps(metadata, sort_keys=True), tensors)
    write_atomically(path, import_safetensors().numpy.save(tensors, metadata))


def load_lora_(model: Module, path: str | os.PathLike[str]) -> None:
    """Reads adapters into a model that `add_lora_` gave the same ones, on the same base, in place.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a model without adapters; a file that is damaged or holds something else, or adapters of other
            layers or of another rank, alpha, form or base. The model is then as it was.
    """
    own, expected = _adapter_state(model, "load_lora_")
    tensors, metadata = _read(Path(path))
    if metadata["adapters"] != expected["adapters"]:
        raise ValueError(
            f"{path} holds other adapters ([form, rank, alpha] by layer), {metadata['adapters']}, than the model, "
            f"{expected['adapters']}; call add_lora_ as it was called for them"
        )
    if metadata["base"] != expected["base"]:
        raise ValueError(
            f"{path} holds adapters that were trained beside other weights; add them to the float model that they were "
            "trained on, with the same config"
        )
    for name, tensor in own.items():
        tensor[...] = tensors[name]


def _adapter_state(model: Module, who: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """A and B by path, and what a file says of them."""
    adapters = _adapters(model, who)
    tensors = {f"{path}.{name}": getattr(module, name).data for path, module in adapters.items() for name in NAMES}
    kinds = {path: [module.form, module.rank, module.alpha] for path, module in adapters.items()}
    base = checksum("", {path: module.frozen() for path, module in adapters.items()})
    return tensors, {"format": FORMAT, "adapters": json.dumps(kinds), "base": base}


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a file that is proven to be as it was written."""
    if not path.is_file():
        raise FileNotFoundError(f"load_lora_: there is no file {path}")

    def check(metadata: dict[str, str]) -> None:
        if metadata.get("format") != FORMAT:
            raise ValueError(f"load_lora_: {path} is a safetensors file, but not one that save_lora wrote")

    try:
        metadata, tensors = read_tensors(path, check)
    except UnreadableError as error:
        raise ValueError(f"load_lora_: {path} is truncated or damaged ({error}); copy or save it again") from error
    proven = metadata.pop("sha256", "")
    if checksum(json.dumps(metadata, sort_keys=True), tensors) != proven:
        raise ValueError(f"load_lora_: {path} has been altered: its contents do not give its sha256; save it again")
    return tensors, metadata


# ---- one layer -------------------------------------------------------------------------------------------------------


def _adapters(model: Module, who: str) -> dict[str, Any]:
    """Adapted layers by path."""
    found = {path: module for path, module in model.named_modules() if isinstance(module, LoraLinearBase)}
    if not found:
        raise ValueError(f"{who}: the model has no adapter: add_lora_ was not called, or merge_lora_ was already")
    return found


def _adapted(module: Module, path: str, rank: int, alpha: float, form: str, config: BaseConfig) -> Any:
    if isinstance(module, LoraLinearBase):
        raise ValueError(f"add_lora_: {path!r} has an adapter already")
    if type(module) is not Linear or not path:
        what = f"{path!r} is a {type(module).__name__}" if path else "the model itself is the layer"
        raise ValueError(f"add_lora_: {what}; only a float Linear inside a model can be adapted in place")
    smaller = min(module.in_features, module.out_features)
    if rank > smaller:
        raise ValueError(f"add_lora_: rank={rank} is above {smaller}, the smaller side of {path!r}: no low rank there")
    try:
        new = FORMS[form](module, config, rank, alpha)
    except ValueError as error:
        raise ValueError(f"add_lora_: {path!r}: {error}") from error
    new.path = path
    return new


def _check_arguments(model: Any, rank: Any, alpha: float, form: str, config: Any) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"add_lora_: expected a Module, got {model!r}")
    if not isinstance(config, BaseConfig):
        raise TypeError(
            f'add_lora_: expected a config, such as Int8DynamicActivationIntxWeightConfig("int4"), got {config!r}'
        )
    if form not in FORMS:
        raise ValueError(f"add_lora_: form must be {' or '.join(map(repr, FORMS))}, got {form!r}")
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"add_lora_: rank must be 1 or more, got {rank!r}")
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"add_lora_: alpha must be above 0, got {alpha!r}")


def _nothing_matched(model: Module, filter_fn: FilterFn | None) -> str:
    paths = [path for path, module in model.named_modules() if type(module) is Linear]
    if filter_fn is not None:
        return f"add_lora_: filter_fn picked no module; the Linears are {', '.join(paths) or 'none'}"
    adapted = any(isinstance(module, LoraLinearBase) for module in model.modules())
    return f"add_lora_: the model has no float Linear{' left: it is adapted already' if adapted else ''}"
