"""Which layers a qconfig is about."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from minquant.nn import Conv1d, Conv2d, Embedding, EmbeddingBag, FloatFunctional, Linear, Module, QuantStub

from .between import BETWEEN_GRIDS, BetweenGrids, QFunctional
from .dialects import get_dialect
from .embedding import QuantizedEmbedding
from .fused import Fused
from .qconfig import QConfig
from .stubs import Quantize
from .weighted import IntegerWeight

__all__ = [
    "TABLES",
    "WITH_WEIGHT",
    "QConfigs",
    "check_float_model",
    "check_quant_stub",
    "is_quantized",
    "select",
    "submodule",
]

QConfigs = QConfig | Mapping[str, QConfig | None]

WITH_WEIGHT = (Fused, Linear, Conv1d, Conv2d)
"""The layers that have an integer form with a weight."""

TABLES = (Embedding, EmbeddingBag)
"""The layers that look integers up; nothing is multiplied, and their outputs are real values."""

DYNAMIC_FLOW = "quantize_dynamic"
KINDS = "Linear, Conv1d, Conv2d, these fused with what follows, Embedding and EmbeddingBag"


def select(model: Module, qconfig: Any, flow: str) -> dict[str, QConfig]:
    """The layers to quantize, by path; those that stay in float are told why.

    Args:
        model: the copy that is being changed.
        qconfig: one QConfig, or ``{path: QConfig or None}``; the longest path that fits a layer decides.
        flow: the function that asks, for messages.

    Raises:
        TypeError: something else than a QConfig.
        ValueError: a path that names no module, or one without layers to quantize; nothing left to quantize.
    """
    wishes = qconfig if isinstance(qconfig, Mapping) else {"": qconfig}
    _check_wishes(model, wishes, isinstance(qconfig, Mapping), flow)
    unknown = _unknown_layers(model, flow)
    layers = quantizable(model, flow)
    weighted = [path for path in layers if isinstance(model.get_submodule(path), (*WITH_WEIGHT, *TABLES))]
    for path in wishes:
        if not any(_is_below(layer, path) for layer in ([*layers, *unknown] if path else weighted)):
            holder = f"{path!r} holds" if path else "the model has"
            raise ValueError(f"{flow}: {holder} no layer that can be quantized; those that can are {KINDS}")
    _refuse_unknown(model, unknown, wishes, flow)
    chosen = {}
    for layer in layers:
        config, reason = _wish_for(layer, wishes)
        is_trained_table = flow == "prepare_qat" and isinstance(model.get_submodule(layer), TABLES)
        if config and is_trained_table and not get_dialect(config.backend).trains_tables:
            reason = f"{config.backend} does not train tables on the grid that it converts them to"
            config = None
        if config is None:
            model.get_submodule(layer).float_reason = reason
        else:
            chosen[layer] = config
    if not any(layer in chosen for layer in weighted):
        raise ValueError(
            f"{flow}: the qconfig leaves every layer in float ({', '.join(weighted)}); name one to quantize"
        )
    return chosen


def _check_wishes(model: Module, wishes: Mapping[str, Any], is_mapping: bool, flow: str) -> None:
    for path, wish in wishes.items():
        if not isinstance(path, str):
            raise TypeError(f"{flow}: a qconfig's keys are paths of modules, got {path!r}")
        submodule(model, path, flow)
        if not (isinstance(wish, QConfig) or (wish is None and is_mapping)):
            for_what = f" or None for {path!r}" if is_mapping else ""
            raise TypeError(
                f"{flow}: expected a QConfig{for_what}, got {wish!r}; get_default_qconfig(), get_default_qat_qconfig() "
                "and default_dynamic_qconfig() are the presets"
            )


def quantizable(model: Module, flow: str) -> list[str]:
    """Paths of the layers that the flow has a quantized form for, stubs included; a fused layer counts once.

    Raises:
        ValueError: a layer fused with its batch norm for training, in a flow without training.
    """
    static = () if flow == DYNAMIC_FLOW else (FloatFunctional, *BETWEEN_GRIDS)
    found: list[str] = []
    fused: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(f"{parent}.") for parent in fused):
            continue
        if isinstance(module, (QuantStub, *WITH_WEIGHT, *TABLES, *static)):
            found.append(path)
        if isinstance(module, Fused):
            fused.append(path)
            if module.bn is not None and flow != "prepare_qat":
                raise ValueError(
                    f"{flow}: {path!r} is a {type(module).__name__}, fused for training; fold the batch norm instead: "
                    "fuse_modules on the model in eval mode"
                )
    return found


def _unknown_layers(model: Module, flow: str) -> list[str]:
    """Paths of layers with parameters that a static flow has no integers for."""
    if flow == DYNAMIC_FLOW:
        return []
    known = (*WITH_WEIGHT, *BETWEEN_GRIDS, *TABLES)
    return [
        path
        for path, module in model.named_modules()
        if path and not module._modules and module._parameters and not isinstance(module, known)
    ]


def _refuse_unknown(model: Module, unknown: list[str], wishes: Mapping[str, QConfig | None], flow: str) -> None:
    for path in unknown:
        config, reason = _wish_for(path, wishes)
        if config is not None:
            kind = type(model.get_submodule(path)).__name__
            raise ValueError(
                f"{flow}: {path!r} is a {kind}, which has parameters and no integer form. Keep it in "
                f"float, {{{path!r}: None}} in the qconfig, with a DeQuantStub before it and a QuantStub after it"
            )
        model.get_submodule(path).float_reason = reason


def _is_below(path: str, parent: str) -> bool:
    return parent == "" or path == parent or path.startswith(f"{parent}.")


def _wish_for(layer: str, wishes: Mapping[str, QConfig | None]) -> tuple[QConfig | None, str]:
    fitting = [path for path in wishes if _is_below(layer, path)]
    if not fitting:
        return None, "not named in the qconfig"
    path = max(fitting, key=len)
    return wishes[path], f"its qconfig is None (under {path!r})"


def check_float_model(model: Module, flow: str) -> None:
    """Refuses what is no float model.

    Raises:
        TypeError: not a Module.
        ValueError: a model that is prepared or quantized already.
    """
    if not isinstance(model, Module):
        raise TypeError(f"{flow}: expected a Module, got {model!r}")
    if is_quantized(model) or any(hasattr(m, "qconfig") for m in model.modules()):
        raise ValueError(f"{flow}: this model is prepared or quantized already; start from the float model")


def check_quant_stub(model: Module, flow: str) -> None:
    """Refuses a model in which no real value could ever become an integer.

    Raises:
        ValueError: no QuantStub anywhere.
    """
    if not any(isinstance(m, QuantStub) for m in model.modules()):
        raise ValueError(
            f"{flow}: the model has no QuantStub, so nothing would turn its input into integers; wrap it, "
            "QuantWrapper(model), or put a QuantStub and a DeQuantStub around its quantized part"
        )


def is_quantized(model: Module) -> bool:
    """Whether any layer works on integers already."""
    return any(
        isinstance(m, IntegerWeight | QuantizedEmbedding | BetweenGrids | QFunctional | Quantize)
        for m in model.modules()
    )


def submodule(model: Module, path: str, flow: str) -> Module:
    """The module of that path.

    Raises:
        ValueError: there is none; the message proposes what is spelt alike.
    """
    names = [name for name, _ in model.named_modules()]
    if path not in names:
        close = difflib.get_close_matches(path, names, n=3)
        alike = f"did you mean {' or '.join(map(repr, close))}?"
        advice = alike if close else f"there are {', '.join(filter(None, names))}"
        raise ValueError(f"{flow}: no module is named {path!r}; {advice}")
    return model.get_submodule(path)
