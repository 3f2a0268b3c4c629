"""`to_torchao`: a model that `quantize_` converted, as a torch model whose weights are torchao's quantized tensors."""

from __future__ import annotations

from typing import Any

from minquant.nn import Module

__all__ = ["to_torchao"]


def to_torchao(model: Module) -> Any:
    """A minquant model on integers as a torch.nn.Module that torchao runs.

    Linear and Embedding are torch's own, their weights torchao's tensors:

    ===================================================  =============================================================
    minquant                                             the weight of torch.nn.Linear or torch.nn.Embedding
    ===================================================  =============================================================
    Int8DynamicActivationIntxWeightConfig                IntxUnpackedToInt8Tensor, activations int8_asym_per_token
    IntxWeightOnlyConfig, Int8WeightOnlyConfig           IntxUnpackedToInt8Tensor
    Int8DynamicActivationInt8WeightConfig                Int8Tensor with act_quant_kwargs
    Int8StaticActivationInt8WeightConfig                 Int8Tensor with act_quant_kwargs and act_quant_scale
    Int4WeightOnlyConfig                                 refused: torchao has tinygemm's weights in bfloat16 on a GPU
    ===================================================  =============================================================

    Args:
        model: a model with layers that `quantize_` made integers of, by post-training quantization or after training;
            a Llama among others. Its float layers become torch's. It is not changed, no memory is shared.

    Returns:
        A torch.nn.Module on the CPU, with minquant's names. Integers, scales and zero points are minquant's to the
        last bit, and so are the outputs of Int8Tensors. IntxUnpackedToInt8Tensors are multiplied as real values: from
        the same input, n = K + 1 additions on each side put outputs at most ``2·n·2⁻²⁴/(1 - n·2⁻²⁴)·(Σ|x̂·ŵ| + |b|)``
        apart.

    Raises:
        ImportError: torch or torchao is not installed.
        TypeError: `model` is no minquant module.
        ValueError: something that torchao has no form for, a model in training among it; the message lists
            everything, by path.

    Source: torchao.quantization, torchao 0.18.
    """
    if not isinstance(model, Module):
        raise TypeError(f"to_torchao: expected a minquant Module, got {type(model).__name__}")
    try:
        from .torch_modules import torchao_weights
    except ImportError as error:
        raise ImportError("to_torchao needs torch and torchao: pip install 'minquant[torch]'") from error
    from .torch_modules.build import build

    return build(model, torchao_weights.MAKERS, "to_torchao", torchao_weights.COVERED)
