"""torchao's quantization-aware training: what fake quantizers round to, and what its older quantizers convert to."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from minquant import Tensor, quant
from minquant.quant import PerChannel, PerGroup, QATConfig

from ..inputs import KINDS
from ..quiet import import_torchao
from ..suite import Check, Inputs
from .torchao_configs import (
    PLAIN,
    draw,
    embedding_of,
    in_float_units,
    linear_of,
    of_weight,
    their_embedding,
    their_linear,
)
from .torchao_primitives import PRIMITIVES

__all__ = ["CHECKS"]

QAT = "torchao.quantization.qat"
IMPORTED_BY_IT = ("torchao.prototype.mx_formats", "torchao.prototype.qat")
"""What QATConfig imports when it is first used, with remarks."""


# ---- QATConfig, prepare ----------------------------------------------------------------------------------------------


def _our_prepared(config: str, inputs: Inputs) -> Any:
    granularity = PerGroup(inputs["group"]) if inputs["granularity"] == "group" else PerChannel(0)
    base = getattr(quant, config)(f"int{inputs['bits']}", granularity)
    model = linear_of(inputs)
    quant.quantize_(model, QATConfig(base, step="prepare"))
    return model[0]


def _their_prepared(config: str, inputs: Inputs) -> Any:
    import torch

    ao, qat, *_ = map(import_torchao, ("torchao.quantization", QAT, *IMPORTED_BY_IT))
    granularity = ao.PerGroup(inputs["group"]) if inputs["granularity"] == "group" else ao.PerAxis(0)
    model, base = their_linear(inputs), getattr(ao, config)(getattr(torch, f"int{inputs['bits']}"), granularity)
    ao.quantize_(model, qat.QATConfig(base, step="prepare"))
    return model[0]


def _our_operands(config: str, inputs: Inputs) -> dict[str, np.ndarray]:
    layer = _our_prepared(config, inputs)
    rounded = {"w": layer.fake_quantized().data}
    if layer.activation_fake_quantizer is not None:
        rounded["x"] = layer.activation_fake_quantizer(Tensor(inputs["x"])).data
    return rounded


def _their_operands(config: str, inputs: Inputs) -> dict[str, np.ndarray]:
    import torch

    layer = _their_prepared(config, inputs)
    rounded = {"w": layer.weight_fake_quantizer(layer.weight).detach().numpy()}
    if layer.activation_fake_quantizer is not None:
        rounded["x"] = layer.activation_fake_quantizer(torch.from_numpy(inputs["x"])).numpy()
    return rounded


def _our_output(config: str, inputs: Inputs) -> np.ndarray:
    return _in_units(config, _our_prepared(config, inputs)(inputs["x"]).data, inputs)


def _their_output(config: str, inputs: Inputs) -> np.ndarray:
    import torch

    with torch.no_grad():
        return _in_units(config, _their_prepared(config, inputs)(torch.from_numpy(inputs["x"])).numpy(), inputs)


def _in_units(config: str, y: np.ndarray, inputs: Inputs) -> np.ndarray:
    """K + 1 roundings in torchao, groups + 8 in minquant (see `minquant.interop.to_torch`)."""
    operands, k = _our_operands(config, inputs), inputs["w"].shape[1]
    return in_float_units(y, operands["x"], operands["w"], inputs["bias"], k + k // 2 + 9)


# ---- the quantizer classes of its guide ------------------------------------------------------------------------------


def _our_quantizer(quantizer: str, model: Any, inputs: Inputs) -> dict[str, np.ndarray]:
    steps = getattr(quant, quantizer)(inputs["group"])
    steps.convert(steps.prepare(model))
    return of_weight(model[0].weight)


def _their_quantizer(quantizer: str, model: Any, inputs: Inputs) -> Any:
    steps = getattr(import_torchao(QAT), quantizer)(inputs["group"])
    return steps.convert(steps.prepare(model))[0]


def _our_linear(inputs: Inputs) -> dict[str, np.ndarray]:
    return _our_quantizer("Int8DynActInt4WeightQATQuantizer", linear_of(inputs), inputs)


def _their_linear(inputs: Inputs) -> dict[str, np.ndarray]:
    layer = _their_quantizer("Int8DynActInt4WeightQATQuantizer", their_linear(inputs), inputs)
    return _arrays(layer, q="weight", scale="scales", zero_point="zeros")


def _our_table(inputs: Inputs) -> dict[str, np.ndarray]:
    return _our_quantizer("Int4WeightOnlyEmbeddingQATQuantizer", embedding_of(inputs), inputs)


def _their_table(inputs: Inputs) -> dict[str, np.ndarray]:
    table = _their_quantizer("Int4WeightOnlyEmbeddingQATQuantizer", their_embedding(inputs), inputs)
    return _arrays(table, q="weight", scale="scale", zero_point="zero_point")


def _arrays(layer: Any, **names: str) -> dict[str, np.ndarray]:
    return {name: getattr(layer, theirs).detach().numpy() for name, theirs in names.items()}


# ---- Int4WeightOnlyConfig, whose kernels are for GPUs, against the primitives that it is made of ---------------------


def _our_tinygemm(inputs: Inputs) -> dict[str, np.ndarray]:
    model: Any = linear_of(inputs)
    quant.quantize_(model, quant.Int4WeightOnlyConfig(inputs["group"]))
    return of_weight(model[0].weight) | {"real": model[0].weight.dequantize()}


def _their_tinygemm(inputs: Inputs) -> dict[str, np.ndarray]:
    import torch

    ao, utils = import_torchao(PRIMITIVES), import_torchao("torchao.quantization.utils")
    w, block = torch.from_numpy(inputs["w"]), (1, inputs["group"])
    scale, zero_point = utils.get_groupwise_affine_qparams(w, 4, inputs["group"], torch.float32)
    q = ao._quantize_affine_tinygemm(w, block, scale, zero_point, torch.uint8, 0, 15)
    real = ao._dequantize_affine_tinygemm(q, block, scale, zero_point, torch.uint8, 0, 15, output_dtype=torch.float32)
    return {"q": q.numpy(), "scale": scale.numpy(), "zero_point": zero_point.numpy(), "real": real.numpy()}


DYNAMIC, WEIGHT_ONLY = "Int8DynamicActivationIntxWeightConfig", "IntxWeightOnlyConfig"
SOME = ("group", "channel")
OPERANDS = ((DYNAMIC, "intx dynamic"), (WEIGHT_ONLY, "intx weight-only"))

CHECKS = (
    *(
        Check(
            f"torchao/QATConfig {name}",
            f"{QAT}.QATConfig",
            partial(draw, KINDS, SOME),
            partial(_our_operands, config),
            partial(_their_operands, config),
        )
        for config, name in OPERANDS
    ),
    Check(
        "torchao/QATConfig intx dynamic output",
        f"{QAT}.QATConfig",
        partial(draw, PLAIN, SOME),
        partial(_our_output, DYNAMIC),
        partial(_their_output, DYNAMIC),
        bound=1.0,
    ),
    Check(
        "torchao/Int8DynActInt4WeightQATQuantizer",
        f"{QAT}.Int8DynActInt4WeightQATQuantizer",
        partial(draw, ("normal",), ("group",)),
        _our_linear,
        _their_linear,
    ),
    Check(
        "torchao/Int4WeightOnlyEmbeddingQATQuantizer",
        f"{QAT}.Int4WeightOnlyEmbeddingQATQuantizer",
        partial(draw, ("normal",), ("group",)),
        _our_table,
        _their_table,
    ),
    Check(
        "torchao/Int4WeightOnlyConfig",
        f"{PRIMITIVES}._quantize_affine_tinygemm",
        partial(draw, ("normal",), ("group",)),
        _our_tinygemm,
        _their_tinygemm,
    ),
)
