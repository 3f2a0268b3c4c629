"""`quantize_`: layers of a model are replaced, in place, by their prepared or their integer selves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minquant.nn import Embedding, Linear, Module

from .base_configs import BaseConfig, QATConfig
from .conversion import replace_modules
from .embedding import QuantizedEmbedding
from .fake_quantized import FakeQuantizedEmbedding, FakeQuantizedLinear
from .qtensor import QTensor
from .weighted import IntegerWeight

__all__ = ["quantize_"]

FilterFn = Callable[[Module, str], bool]
PREPARED = (FakeQuantizedLinear, FakeQuantizedEmbedding)
QUANTIZED = (IntegerWeight, QuantizedEmbedding)


def quantize_(model: Module, config: BaseConfig | QATConfig, filter_fn: FilterFn | None = None) -> None:
    """Quantizes the layers of a model that `filter_fn` picks, in place.

    A base config turns float layers into integers at once (post-training quantization). `QATConfig` does it in two
    steps: "prepare" makes fake-quantized layers on the same Parameters, so that an optimizer made before still trains
    the model; "convert" makes integers of them. In eval, prepared and converted model are equal to the last bit.

    Args:
        model: changed in place. Tied weights that become the same integers stay one.
        config: see `minquant.quant.base_configs`.
        filter_fn: ``(module, path) -> whether to quantize it``; left out, every Linear (in "convert", every prepared
            layer). An Embedding must be asked for: ``lambda module, path: isinstance(module, nn.Embedding)``.

    Raises:
        TypeError: a model, config or filter that is none.
        ValueError: nothing matched; a module that has no quantized form, or has it already; a group size that does not
            divide; an activation config for an Embedding; "convert" without "prepare", or with another base config
            than "prepare" had. The model is then as it was.

    Source: torchao.quantization.quantize_, torchao 0.18.
    """
    _check_arguments(model, config, filter_fn)
    converting = isinstance(config, QATConfig) and config.step == "convert"
    kinds: tuple[type[Module], ...] = PREPARED if converting else (Linear,)
    chosen = {
        path: module
        for path, module in model.named_modules()
        if (isinstance(module, kinds) if filter_fn is None else filter_fn(module, path))
    }
    if not chosen:
        raise ValueError(_nothing_matched(model, config, filter_fn))
    make = _converted if converting else _prepared if isinstance(config, QATConfig) else _quantized
    new = {id(module): make(module, path, config) for path, module in chosen.items()}
    _keep_tied(model, list(new.values()))
    for module in new.values():
        module.train(model.training)
    replace_modules(model, lambda _, module: new.get(id(module)))


def _check_arguments(model: Any, config: Any, filter_fn: Any) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"quantize_: expected a Module, got {model!r}")
    if not isinstance(config, BaseConfig | QATConfig):
        raise TypeError(
            f"quantize_: expected a config, such as Int8DynamicActivationIntxWeightConfig() or QATConfig(…), got "
            f"{config!r}"
        )
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"quantize_: filter_fn must be a function of (module, path), got {filter_fn!r}")


def _nothing_matched(model: Module, config: Any, filter_fn: FilterFn | None) -> str:
    paths = [path for path, module in model.named_modules() if isinstance(module, (Linear, Embedding))]
    if isinstance(config, QATConfig) and config.step == "convert":
        what = "no layer is prepared" if filter_fn is None else "filter_fn picked no layer"
        return f'quantize_: {what}; quantize_(model, QATConfig(config, step="prepare")) comes first, then training'
    if filter_fn is not None:
        return f"quantize_: filter_fn picked no module; those that can be quantized are {', '.join(paths) or 'none'}"
    quantized = any(isinstance(module, (*PREPARED, *QUANTIZED)) for module in model.modules())
    return f"quantize_: the model has no Linear{' left: it is prepared or quantized already' if quantized else ''}"


# ---- one layer -------------------------------------------------------------------------------------------------------


def _prepared(module: Module, path: str, config: BaseConfig | QATConfig) -> Any:
    _check_replaceable(module, path)
    activation, weight = config.fake_quantize_configs()
    new: FakeQuantizedLinear | FakeQuantizedEmbedding
    if isinstance(module, Embedding):
        if activation is not None:
            raise ValueError(
                f"quantize_: {path!r} is an Embedding, whose input are indices: give it a config of weights alone, "
                "such as IntxWeightOnlyConfig"
            )
        new = FakeQuantizedEmbedding(module, weight)
    else:
        new = FakeQuantizedLinear(module, activation, weight, config.backend)  # type: ignore[arg-type]
    try:
        new.check()
    except ValueError as error:
        raise ValueError(f"quantize_: {path!r}: {error}") from error
    new.path = path
    return new


def _check_replaceable(module: Module, path: str) -> None:
    if isinstance(module, PREPARED):
        raise ValueError(
            f'quantize_: {path!r} is prepared already; QATConfig(step="convert") makes integers of it after training'
        )
    if isinstance(module, QUANTIZED):
        raise ValueError(f"quantize_: {path!r} is quantized already; start from the float model")
    if type(module) not in (Linear, Embedding):
        raise ValueError(
            f"quantize_: {path or 'the model itself'!r} is a {type(module).__name__}; only Linear and Embedding have a "
            "quantized form here; let filter_fn leave it out"
        )
    if not path:
        raise ValueError(
            "quantize_: the model itself is the layer, which nothing could replace in place; put it into a Sequential"
        )


def _quantized(module: Module, path: str, config: BaseConfig | QATConfig) -> Any:
    return _prepared(module, path, config).converted()


def _converted(module: Module, path: str, config: BaseConfig | QATConfig) -> Any:
    if not isinstance(module, PREPARED):
        raise ValueError(
            f"quantize_: {path or 'the model itself'!r} is a {type(module).__name__} and was not prepared; "
            'QATConfig(config, step="prepare") comes first'
        )
    base = config.base_config if isinstance(config, QATConfig) else None
    if base is not None:
        _check_agreement(module, path, base)
    return module.converted()


def _check_agreement(module: Any, path: str, base: BaseConfig) -> None:
    activation = getattr(module, "activation_fake_quantizer", None)
    trained = (activation and activation.config, module.weight_fake_quantizer.config)
    wanted = base.fake_quantize_configs()
    if trained != wanted or getattr(module, "backend", base.backend) != base.backend:
        raise ValueError(
            f"quantize_: {path!r} was trained for input {trained[0]} and weight {trained[1]}, and is to be converted "
            f"to input {wanted[0]} and weight {wanted[1]}: the integers would not be those that it was trained on; "
            'leave the base_config out, QATConfig(step="convert"), or name the one of "prepare"'
        )


def _keep_tied(model: Module, new: list[Any]) -> None:
    """Lets layers whose integers are the same, bit for bit, share one weight, as tied layers share a Parameter."""
    seen: list[Any] = [module for module in model.modules() if isinstance(module, QUANTIZED)]
    for module in filter(lambda module: isinstance(module, QUANTIZED), new):
        for other in seen:
            if _same(module.weight, other.weight):
                module.weight = other.weight
                break
        seen.append(module)


def _same(a: Any, b: Any) -> bool:
    if not (isinstance(a, QTensor) and isinstance(b, QTensor)) or a.shape != b.shape:
        return False
    if a.qparams.spec != b.qparams.spec or (a.storage != b.storage).any():
        return False
    return all((x == y).all() for x, y in zip(a.qparams.expand(a.shape), b.qparams.expand(b.shape), strict=True))
