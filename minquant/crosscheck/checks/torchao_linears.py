"""torchao's dynamic Linears: real values times real values, and integers times integers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from minquant import nn
from minquant.quant import (
    PerChannel,
    PerChannelMinMaxObserver,
    PerGroup,
    PerTensor,
    PerToken,
    QConfig,
    QSpec,
    quantize_dynamic,
)
from minquant.quant.dialects import get_dialect, torchao

from ..inputs import KINDS, values
from ..quiet import import_torchao
from ..suite import Check, Inputs
from .torchao_primitives import MAPPINGS, PRIMITIVES, blocks

__all__ = ["CHECKS"]

F32 = np.float32
ROUNDING = 2.0**-24
SMALLEST_STEP = 2.0**-149


def _draw(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """X (B, M, K), a weight (N, K) and a bias, and how the weight is quantized."""
    for i in range(30 if quick else 200):
        (m, k), group = blocks(rng, i)
        k = 2048 if i % 20 == 19 else k  # so many products that float32 rounds the accumulator
        n, batch = (int(rng.integers(1, 4 if i < 12 else 20)) for _ in range(2))
        kind = str(rng.choice(["normal", "positive", "ties", "constant", "denormal"]))
        yield {
            "x": values(rng, (batch, m, k), KINDS[i % len(KINDS)]),
            "w": values(rng, (n, k), kind),
            "bias": values(rng, (n,), "normal") if rng.random() < 0.8 else None,
            "bits": int(rng.integers(2, 9)),
            "group": group if rng.random() < 0.6 else None,
            "mapping": str(rng.choice(list(MAPPINGS))),
        }


def _our_layer(inputs: Inputs, config: QConfig) -> Any:
    n, k = inputs["w"].shape
    layer = nn.Linear(k, n, bias=inputs["bias"] is not None)
    layer.weight.data = inputs["w"]
    if layer.bias is not None:
        layer.bias.data = inputs["bias"]
    model: Any = quantize_dynamic(nn.Sequential(layer), config)
    return model[0]


def _intx_config(inputs: Inputs) -> QConfig:
    weight = torchao.IntxWeightObserver.with_args(
        weight_bits=inputs["bits"],
        granularity=PerChannel() if inputs["group"] is None else PerGroup(inputs["group"]),
        mapping=inputs["mapping"],
    )
    return QConfig(QSpec(granularity=PerToken()), weight, "torchao")


def _their_layer(inputs: Inputs, config: Any) -> Any:
    import torch

    layer = torch.nn.Linear(*inputs["w"].shape[::-1], bias=inputs["bias"] is not None)
    layer.weight = torch.nn.Parameter(torch.from_numpy(inputs["w"].copy()))
    if inputs["bias"] is not None:
        layer.bias = torch.nn.Parameter(torch.from_numpy(inputs["bias"].copy()))
    model = torch.nn.Sequential(layer)
    import_torchao("torchao.quantization").quantize_(model, config)
    return model[0]


def _their_intx_layer(inputs: Inputs) -> Any:
    import torch

    ao, group = import_torchao("torchao.quantization"), inputs["group"]
    config = ao.Int8DynamicActivationIntxWeightConfig(
        weight_dtype=getattr(torch, f"int{inputs['bits']}"),
        weight_granularity=ao.PerAxis(0) if group is None else ao.PerGroup(group),
        weight_mapping_type=import_torchao(PRIMITIVES).MappingType[MAPPINGS[inputs["mapping"]]],
    )
    return _their_layer(inputs, config)


# ---- Int8DynamicActivationIntxWeightConfig: the operands exactly, the product within its rounding errors -------------


def _our_operands(inputs: Inputs) -> dict[str, np.ndarray]:
    layer = _our_layer(inputs, _intx_config(inputs))
    q, scale, zero_point = get_dialect("torchao").quantize_at_run_time(inputs["x"], layer.input_spec)
    x = (q.astype(np.int32) - zero_point).astype(F32) * scale
    return {"x": x, "w": layer.weight.dequantize()}


def _their_operands(inputs: Inputs) -> dict[str, np.ndarray]:
    import torch

    module = import_torchao("torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor")
    x = module._apply_int8_act_asym_per_token_quant_dequant(torch.from_numpy(inputs["x"]))
    return {"x": x.numpy(), "w": _their_intx_layer(inputs).weight.dequantize().detach().numpy()}


def _in_units(y: np.ndarray, inputs: Inputs) -> np.ndarray:
    """The output divided by how far it may lie from the exact product of the operands.

    n = K + 1 float32 additions in any order err by at most ``n·u / (1 - n·u)`` of ``Σ|x||w| + |bias|``, with u = 2⁻²⁴
    (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1), and each product that is subnormal by
    2⁻¹⁵⁰ more. Two sides may lie two units apart.
    """
    operands = _our_operands(inputs)
    size = np.abs(operands["x"]).astype(np.float64) @ np.abs(operands["w"]).astype(np.float64).T
    size += 0 if inputs["bias"] is None else np.abs(inputs["bias"])
    n = inputs["w"].shape[1] + 1
    return y / (n * ROUNDING / (1 - n * ROUNDING) * size + n * SMALLEST_STEP)


def _our_product(inputs: Inputs) -> np.ndarray:
    return _in_units(_our_layer(inputs, _intx_config(inputs))(inputs["x"]).data, inputs)


def _their_product(inputs: Inputs) -> np.ndarray:
    import torch

    with torch.no_grad():
        return _in_units(_their_intx_layer(inputs)(torch.from_numpy(inputs["x"])).numpy(), inputs)


# ---- Int8DynamicActivationInt8WeightConfig: exactly ------------------------------------------------------------------


def _our_int8(of_activations: str, inputs: Inputs) -> np.ndarray:
    spec = QSpec(symmetric=True, granularity=PerToken() if of_activations == "per token" else PerTensor())
    weight = PerChannelMinMaxObserver.with_args(dtype="qint8", qscheme="per_channel_symmetric")
    return _our_layer(inputs, QConfig(spec, weight, "torchao"))(inputs["x"]).data


def _their_int8(of_activations: str, inputs: Inputs) -> np.ndarray:
    import torch

    ao = import_torchao("torchao.quantization")
    of = [ao.PerRow() if of_activations == "per token" else ao.PerTensor(), ao.PerRow()]
    config = ao.Int8DynamicActivationInt8WeightConfig(granularity=of, set_inductor_config=False)
    with torch.no_grad():
        return _their_layer(inputs, config)(torch.from_numpy(inputs["x"])).numpy()


INTX, INT8 = (
    f"torchao.quantization.{name}"
    for name in ("Int8DynamicActivationIntxWeightConfig", "Int8DynamicActivationInt8WeightConfig")
)
CHECKS = (
    Check("torchao/dynamic Linear intx operands", INTX, _draw, _our_operands, _their_operands),
    Check("torchao/dynamic Linear intx product", INTX, _draw, _our_product, _their_product, bound=2.0),
    *(
        Check(f"torchao/dynamic Linear int8 {of}", INT8, _draw, partial(_our_int8, of), partial(_their_int8, of))
        for of in ("per token", "per tensor")
    ),
)
