"""torchao's `quantize_`, config by config: integers, scales and zero points, and what the layers compute."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from minquant import nn, quant
from minquant.quant import PerChannel, PerGroup, PerTensor, PerToken
from minquant.quant.dialects import get_dialect

from ..inputs import KINDS, values
from ..quiet import import_torchao
from ..suite import Check, Inputs
from .torchao_primitives import MAPPINGS, PRIMITIVES, blocks

__all__ = [
    "CHECKS",
    "PLAIN",
    "draw",
    "embedding_of",
    "in_float_units",
    "linear_of",
    "of_weight",
    "their_embedding",
    "their_linear",
]

F32 = np.float32
ROUNDING = 2.0**-24
SMALLEST_STEP = 2.0**-149
WEIGHTS = ("normal", "positive", "negative", "ties", "constant", "denormal", "huge", "signed zeros")
PLAIN = ("normal", "positive", "negative", "ties", "constant", "signed zeros")
"""Inputs whose products neither overflow nor vanish."""
OURS: dict[str, Any] = {"group": PerGroup, "channel": lambda _: PerChannel(0), "tensor": lambda _: PerTensor()}


def draw(
    kinds: tuple[str, ...], granularities: tuple[str, ...], rng: np.random.Generator, quick: bool
) -> Iterator[Inputs]:
    """X (M, K), a weight (N, K) and a bias; every number of bits, mapping and granularity in turn.

    Args:
        kinds: of values in x.
        granularities: of the weight.
        rng: where everything is drawn from.
        quick: fewer.
    """
    for i in range(21 if quick else 168):
        (m, k), group = blocks(rng, i)
        n = int(rng.integers(1, 4 if i < 12 else 12))
        yield {
            "x": values(rng, (m, k), kinds[i % len(kinds)]),
            "w": values(rng, (n, k), WEIGHTS[i % len(WEIGHTS)]),
            "bias": values(rng, (n,), "normal") if rng.random() < 0.7 else None,
            "bits": 2 + i % 7,
            "mapping": list(MAPPINGS)[i // 7 % 3],
            "granularity": granularities[i % len(granularities)] if i < 42 else str(rng.choice(granularities)),
            "group": group,
        }


# ---- both sides' layers ----------------------------------------------------------------------------------------------


def linear_of(inputs: Inputs) -> nn.Sequential:
    """A float Linear of minquant's, in a model."""
    n, k = inputs["w"].shape
    layer = nn.Linear(k, n, bias=inputs["bias"] is not None)
    layer.weight.data = inputs["w"].copy()
    if layer.bias is not None:
        layer.bias.data = inputs["bias"].copy()
    return nn.Sequential(layer)


def embedding_of(inputs: Inputs) -> nn.Sequential:
    """A float Embedding of minquant's, in a model."""
    table = nn.Embedding(*inputs["w"].shape)
    table.weight.data = inputs["w"].copy()
    return nn.Sequential(table)


def their_linear(inputs: Inputs) -> Any:
    """A float Linear of torch's, in a model."""
    import torch

    layer = torch.nn.Linear(*inputs["w"].shape[::-1], bias=inputs["bias"] is not None)
    layer.weight = torch.nn.Parameter(torch.tensor(inputs["w"]))
    if inputs["bias"] is not None:
        layer.bias = torch.nn.Parameter(torch.tensor(inputs["bias"]))
    return torch.nn.Sequential(layer)


def their_embedding(inputs: Inputs) -> Any:
    """A float Embedding of torch's, in a model."""
    import torch

    return torch.nn.Sequential(torch.nn.Embedding.from_pretrained(torch.tensor(inputs["w"])))


def _quantized(config: Any, inputs: Inputs) -> Any:
    model = linear_of(inputs)
    quant.quantize_(model, config(inputs))
    return model[0]


def _their_quantized(config: Any, inputs: Inputs) -> Any:
    model = their_linear(inputs)
    import_torchao("torchao.quantization").quantize_(model, config(inputs))
    return model[0]


def of_weight(weight: Any) -> dict[str, np.ndarray]:
    """Integers, scales and zero points of minquant's."""
    return {"q": weight.int_repr(), "scale": weight.qparams.scale, "zero_point": weight.qparams.zero_point}


def _of_their_weight(weight: Any, like: tuple[int, ...]) -> dict[str, np.ndarray]:
    grid = {name: getattr(weight, name).numpy().reshape(like) for name in ("scale", "zero_point")}
    return {"q": weight.qdata.numpy(), **grid}


def _shape(inputs: Inputs) -> tuple[int, ...]:
    """Of the scales."""
    return tuple(OURS[inputs["granularity"]](inputs["group"]).qparams_shape(inputs["w"].shape))


# ---- configs ---------------------------------------------------------------------------------------------------------


def _our_weight_only(inputs: Inputs) -> Any:
    granularity = OURS[inputs["granularity"]](inputs["group"])
    return quant.IntxWeightOnlyConfig(f"int{inputs['bits']}", granularity, inputs["mapping"])


def _our_dynamic(inputs: Inputs) -> Any:
    granularity = OURS[inputs["granularity"]](inputs["group"])
    return quant.Int8DynamicActivationIntxWeightConfig(f"int{inputs['bits']}", granularity, inputs["mapping"])


def _their_intx(name: str, inputs: Inputs) -> Any:
    import torch

    ao = import_torchao("torchao.quantization")
    of = ao.PerGroup(inputs["group"]) if inputs["granularity"] == "group" else ao.PerAxis(0)
    kind = import_torchao(PRIMITIVES).MappingType[MAPPINGS[inputs["mapping"]]]
    return getattr(ao, name)(getattr(torch, f"int{inputs['bits']}"), of, kind)


def _our_int8(inputs: Inputs) -> Any:
    return quant.Int8WeightOnlyConfig(OURS[inputs["granularity"]](inputs["group"]))


def _their_int8(inputs: Inputs) -> Any:
    ao = import_torchao("torchao.quantization")
    return ao.Int8WeightOnlyConfig(granularity=_their_granularity(inputs), set_inductor_config=False)


def _their_granularity(inputs: Inputs) -> Any:
    ao = import_torchao("torchao.quantization")
    return {"group": ao.PerGroup(inputs["group"]), "channel": ao.PerRow(), "tensor": ao.PerTensor()}[
        inputs["granularity"]
    ]


def _our_int8_by_int8(of_input: str, inputs: Inputs) -> Any:
    weight = OURS[inputs["granularity"]](None)
    if of_input == "static":
        return quant.Int8StaticActivationInt8WeightConfig(_static_scale(inputs), (PerTensor(), weight))
    return quant.Int8DynamicActivationInt8WeightConfig((PerToken() if of_input == "token" else PerTensor(), weight))


def _their_int8_by_int8(of_input: str, inputs: Inputs) -> Any:
    import torch

    ao = import_torchao("torchao.quantization")
    both = [ao.PerRow() if of_input == "token" else ao.PerTensor(), _their_granularity(inputs)]
    if of_input != "static":
        return ao.Int8DynamicActivationInt8WeightConfig(granularity=both, set_inductor_config=False)
    scale = torch.full((1, 1), _static_scale(inputs))
    return ao.Int8StaticActivationInt8WeightConfig(scale, granularity=both, set_inductor_config=False)


def _static_scale(inputs: Inputs) -> float:
    """So narrow that values are clipped."""
    return float(np.maximum(np.abs(inputs["x"]).max() / F32(90), F32(2.0**-100)))


# ---- weights ---------------------------------------------------------------------------------------------------------


def _our_weights(config: Any, inputs: Inputs) -> dict[str, np.ndarray]:
    return of_weight(_quantized(config, inputs).weight)


def _their_weights(config: Any, inputs: Inputs) -> dict[str, np.ndarray]:
    return _of_their_weight(_their_quantized(config, inputs).weight, _shape(inputs))


def _our_table(inputs: Inputs) -> dict[str, np.ndarray]:
    model: Any = embedding_of(inputs)
    quant.quantize_(model, _our_weight_only(inputs), lambda module, path: path == "0")
    return of_weight(model[0].weight) | {"rows": model(np.arange(len(inputs["w"]))).data}


def _their_table(inputs: Inputs) -> dict[str, np.ndarray]:
    import torch

    model = their_embedding(inputs)
    config = _their_intx("IntxWeightOnlyConfig", inputs)
    import_torchao("torchao.quantization").quantize_(model, config, lambda module, path: path == "0")
    rows = model(torch.arange(len(inputs["w"])))
    return _of_their_weight(model[0].weight, _shape(inputs)) | {"rows": rows.numpy()}


# ---- outputs ---------------------------------------------------------------------------------------------------------


def _our_output(config: Any, inputs: Inputs) -> np.ndarray:
    return _quantized(config, inputs)(inputs["x"]).data


def _their_output(config: Any, inputs: Inputs) -> np.ndarray:
    import torch

    with torch.no_grad():
        return _their_quantized(config, inputs)(torch.from_numpy(inputs["x"])).numpy()


def in_float_units(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, roundings: int) -> np.ndarray:
    """The output divided by how far that many roundings may move it from the exact product of the operands.

    n roundings in a row err by at most ``n·u / (1 - n·u)`` of ``Σ|x||w| + |bias|``, u = 2⁻²⁴ (Higham 2002, section
    3.1), and where products of operands or scales are subnormal by a step of 2⁻¹⁴⁹ for each product of integers more.
    """
    size = np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T + (0 if bias is None else np.abs(bias))
    room = roundings * ROUNDING / (1 - roundings * ROUNDING)
    return y / (room * size + x.shape[-1] * 2.0**15 * SMALLEST_STEP)


def _in_units(output: Any, config: Any, inputs: Inputs) -> np.ndarray:
    """Of a dynamic Linear: K + 1 roundings in torchao, groups + 8 in minquant (see `minquant.interop.to_torch`)."""
    layer, k = _quantized(_our_dynamic, inputs), inputs["w"].shape[1]
    q, scale, zero_point = get_dialect("intx").quantize_at_run_time(inputs["x"], layer.input_spec)
    operands = (q.astype(np.int32) - zero_point).astype(F32) * scale, layer.weight.dequantize()
    return in_float_units(output(config, inputs), *operands, inputs["bias"], k + k // 2 + 9)


def _in_float_units(output: Any, config: Any, weight: Any, inputs: Inputs) -> np.ndarray:
    """Of a Linear with integer weights alone: K + 1 roundings a side, + 2 where torchao multiplies by scales last."""
    w = _quantized(weight, inputs).weight.dequantize()
    return in_float_units(output(config, inputs), inputs["x"], w, inputs["bias"], inputs["w"].shape[1] + 3)


# ---- checks ----------------------------------------------------------------------------------------------------------

AO = "torchao.quantization."
DYNAMIC, WEIGHT_ONLY = "Int8DynamicActivationIntxWeightConfig", "IntxWeightOnlyConfig"
INT8, STATIC = "Int8DynamicActivationInt8WeightConfig", "Int8StaticActivationInt8WeightConfig"
SOME, ALL = ("group", "channel"), ("group", "channel", "tensor")
IN_FLOAT = (
    ("intx weight-only", WEIGHT_ONLY, _our_weight_only, partial(_their_intx, WEIGHT_ONLY), SOME),
    ("int8 weight-only", "Int8WeightOnlyConfig", _our_int8, _their_int8, ALL),
)
INTX = ("intx dynamic", DYNAMIC, _our_dynamic, partial(_their_intx, DYNAMIC), SOME)
BY_INT8 = (("int8 per token", INT8, "token"), ("int8 per tensor", INT8, "tensor"), ("int8 static", STATIC, "static"))

CHECKS = (
    *(
        Check(
            f"torchao/quantize_ {name}",
            AO + oracle,
            partial(draw, ("normal",), granularities),
            partial(_our_weights, ours),
            partial(_their_weights, theirs),
        )
        for name, oracle, ours, theirs, granularities in (INTX, *IN_FLOAT)
    ),
    Check("torchao/quantize_ embedding", AO + WEIGHT_ONLY, partial(draw, ("normal",), SOME), _our_table, _their_table),
    Check(
        "torchao/quantize_ intx dynamic output",
        AO + DYNAMIC,
        partial(draw, PLAIN, SOME),
        partial(_in_units, _our_output, _our_dynamic),
        partial(_in_units, _their_output, INTX[3]),
        bound=1.0,
    ),
    *(
        Check(
            f"torchao/quantize_ {name} output",
            AO + oracle,
            partial(draw, PLAIN, granularities),
            partial(_in_float_units, _our_output, ours, ours),
            partial(_in_float_units, _their_output, theirs, ours),
            bound=2.0,
        )
        for name, oracle, ours, theirs, granularities in IN_FLOAT
    ),
    *(
        Check(
            f"torchao/quantize_ {name}{what}",
            AO + oracle,
            partial(draw, KINDS if what else ("normal",), ("channel", "tensor")),
            partial(ours, partial(_our_int8_by_int8, of_input)),
            partial(theirs, partial(_their_int8_by_int8, of_input)),
        )
        for name, oracle, of_input in BY_INT8
        for what, ours, theirs in (("", _our_weights, _their_weights), (" output", _our_output, _their_output))
    ),
)
