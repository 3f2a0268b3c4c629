"""Which grid goes to which tensor of a layer, and the presets of each engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .dialects import get_dialect
from .spec import QSpec, is_integer

__all__ = ["QConfig", "default_dynamic_qconfig", "get_default_qat_qconfig", "get_default_qconfig"]


@dataclass(frozen=True)
class QConfig:
    """How one layer is quantized.

    Args:
        activation: factory of the observer (`prepare`) or fake quantizer (`prepare_qat`) of the layer's output; for
            `quantize_dynamic` a `QSpec`, since the grid is chosen from each input and nothing needs watching.
        weight: factory of the observer or fake quantizer of the weight.
        backend: the dialect: "reference", "fbgemm", "x86", "qnnpack", "onednn" (and "fbgemm_avx2", "onednn_avx2", which
            processors without VNNI speak), "onnx", "onnxruntime" or "torchao".

    Raises:
        ValueError: an unknown backend.
        TypeError: a factory that cannot be called (an observer object where its class, or `with_args`, was meant).
    """

    activation: Callable[[], Any] | QSpec
    weight: Callable[[], Any]
    backend: str = "reference"

    def __post_init__(self) -> None:
        get_dialect(self.backend)
        for name in ("activation", "weight"):
            value = getattr(self, name)
            is_spec = name == "activation" and isinstance(value, QSpec)
            if not (is_spec or isinstance(value, type) or hasattr(value, "func")):
                raise TypeError(
                    f"QConfig: {name} must be an observer or fake quantizer class, or one with arguments "
                    f"(MinMaxObserver.with_args(dtype='qint8')); got {value!r}"
                )


def get_default_qconfig(backend: str = "reference", weight_bits: int = 8, act_bits: int = 8) -> QConfig:
    """The preset for static quantization (`prepare`).

    ==================  ==============================  ========================================
    backend             activation                      weight
    ==================  ==============================  ========================================
    reference, onednn   HistogramObserver, 0…255        symmetric int8 per channel
    fbgemm, x86         HistogramObserver, 0…127        symmetric int8 per channel
    qnnpack             HistogramObserver, 0…255        symmetric int8 per tensor
    onnx, onnxruntime   MinMaxObserver, 0…255           symmetric int8 per channel, without -128
    ==================  ==============================  ========================================

    Args:
        backend: the dialect.
        weight_bits: 2 to 8; other than 8 in the reference dialect only.
        act_bits: likewise, for activations. (The HistogramObserver weighs its cuts on 256 integers whatever the
            bits, as torch's does, so that at 2 to 4 bits it hardly cuts.)

    Raises:
        ValueError: an unknown backend, or bits that it does not know.

    Source: torch.ao.quantization.get_default_qconfig, torch 2.13.
    """
    _check_bits(weight_bits=weight_bits, act_bits=act_bits)
    return QConfig(*get_dialect(backend).observers(weight_bits, act_bits), backend)


def get_default_qat_qconfig(backend: str = "reference", weight_bits: int = 8, act_bits: int = 8) -> QConfig:
    """The preset for quantization-aware training (`prepare_qat`).

    In the reference dialect the activation's range is the smallest and largest value seen so far, and the weight's
    the current one, per channel. In torch's dialects both are moving averages with constant 0.01, fused
    (`FusedMovingAvgObsFakeQuantize`): 0…127 for fbgemm and x86, a per-tensor weight for qnnpack. ONNX prescribes
    nothing; its two dialects watch what reference watches.

    Args:
        backend: the dialect.
        weight_bits: 2 to 8; other than 8 in the reference dialect only.
        act_bits: likewise, for activations.

    Raises:
        ValueError: an unknown backend, or bits that it does not know.

    Source: torch.ao.quantization.get_default_qat_qconfig, version 1, torch 2.13.
    """
    _check_bits(weight_bits=weight_bits, act_bits=act_bits)
    return QConfig(*get_dialect(backend).fake_quantizers(weight_bits, act_bits), backend)


def default_dynamic_qconfig(backend: str = "reference", weight_bits: int = 8) -> QConfig:
    """The preset for dynamic quantization (`quantize_dynamic`).

    Reference: activations 0…255 per tensor, weights symmetric per channel. Torch's engines: weights symmetric per
    tensor, activations 0…127 (qnnpack: 0…255). onnx and onnxruntime: as reference, the weights without -128. torchao,
    for Linear layers: activations -128…127 per token, weights symmetric in groups of 32.

    Args:
        backend: the dialect.
        weight_bits: 2 to 8; other than 8 in the dialects "reference" and "torchao" only.

    Raises:
        ValueError: an unknown backend, or bits that it does not know.

    Source: torch.ao.quantization.default_dynamic_qconfig, torch 2.13.
    """
    _check_bits(weight_bits=weight_bits)
    return QConfig(*get_dialect(backend).dynamic(weight_bits), backend)


def _check_bits(**bits: int) -> None:
    for name, value in bits.items():
        if not is_integer(value) or not 2 <= value <= 8:
            raise ValueError(f"{name} must be 2 to 8, got {value!r}: integer layers have no other widths")
