"""Layers of minquant's with random numbers, and the same run in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from minquant import Tensor, nn
from minquant.interop import to_torch
from minquant.interop.torch_modules.quantized import QuantizedTensor
from minquant.quant import (
    PerChannel,
    PerTensor,
    QParams,
    QSpec,
    QTensor,
    default_dynamic_qconfig,
)
from minquant.quant import conv as q_conv
from minquant.quant import linear as q_linear

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
EXACT = ["reference", "fbgemm", "x86", "qnnpack", "onednn", "onnx", "onnxruntime"]
TORCHS = ["fbgemm", "x86", "qnnpack", "onednn"]
UINT8 = QSpec(signed=False)
seeds = st.integers(0, 2**32 - 1)


def grid(rng: np.random.Generator, spec: QSpec, shape=(), low: float = 1e-3, high: float = 0.1) -> QParams:
    scale = np.exp(rng.uniform(np.log(low), np.log(high), shape)).astype(np.float32)
    if spec.symmetric:
        return QParams(scale, np.full(shape, spec.symmetric_zero_point, np.int32), spec)
    return QParams(scale, rng.integers(spec.qmin, spec.qmax, shape, np.int32, endpoint=True), spec)


def integers(rng: np.random.Generator, shape, qparams: QParams) -> QTensor:
    """Of all sizes, the ends among them."""
    spec = qparams.spec
    q = rng.integers(spec.qmin, spec.qmax, shape, endpoint=True)
    q = np.where(rng.random(shape) < 0.1, rng.choice([spec.qmin, spec.qmax], shape), q)
    return QTensor(q.astype(spec.dtype), qparams)


def weight_grid(rng, dialect: str, rows: int, of: str) -> QParams:
    """Of the kinds that an engine has."""
    per = PerTensor() if of == "tensor" else PerChannel(0)
    symmetric = dialect != "reference" or rng.random() < 0.5
    return grid(rng, QSpec(symmetric=symmetric, granularity=per), () if of == "tensor" else (rows,))


def in_torch(x: QTensor, device: str) -> QuantizedTensor:
    return QuantizedTensor(torch.tensor(np.array(x.int_repr()), device=device), x.qparams)


def run(layer, x, device: str = "cpu"):
    """The layer in torch, on integers or real values; its result as NumPy has it."""
    given = in_torch(x, device) if isinstance(x, QTensor) else torch.tensor(x, device=device)
    y = to_torch(layer, device)(given)
    return (y.int_repr() if isinstance(y, QuantizedTensor) else y).cpu().numpy()


def expected(layer, x) -> np.ndarray:
    y = layer(x if isinstance(x, QTensor) else Tensor(x))
    return y.int_repr() if isinstance(y, QTensor) else y.data


def assert_same(layer, x, device: str = "cpu") -> np.ndarray:
    """Bit for bit; -0.0 is 0.0."""
    found, wanted = run(layer, x, device), expected(layer, x)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)
    return wanted


def static_linear(rng, dialect: str, features: tuple[int, int], of: str, relu: bool, bias: bool):
    K, N = features
    weight = integers(rng, (N, K), weight_grid(rng, dialect, N, of))
    x = grid(rng, UINT8)
    noise = float(np.mean(weight.qparams.scale) * x.scale) * 60 * 60 * np.sqrt(K + 1)
    output = grid(rng, UINT8, low=noise / 100, high=noise / 20)
    kind = q_linear.QuantizedLinearReLU if relu else q_linear.QuantizedLinear
    values = (rng.normal(size=N) * noise).astype(np.float32) if bias else None
    return kind(weight, values, output, dialect), x


CONVS = [  # in, out, kernel, stride, padding, dilation, groups, size
    (3, 5, (3, 3), 1, 0, 1, 1, (7, 6)),
    (4, 8, (3, 2), (2, 1), (1, 0), 1, 2, (8, 9)),
    (6, 6, (3, 3), 1, "same", 2, 6, (7, 7)),
    (8, 4, (1, 1), 3, 2, 1, 4, (5, 5)),
    (2, 6, (5,), 2, 3, 1, 2, (9,)),
    (3, 3, (2,), 1, "same", 1, 3, (4,)),
    (1, 130, (3, 3), 1, 1, 1, 1, (4, 4)),
]


def conv_of(rng, dialect: str, case, of: str, relu: bool, dynamic: bool):
    C, M, kernel, stride, padding, dilation, groups, _ = case
    weight = integers(rng, (M, C // groups, *kernel), weight_grid(rng, dialect, M, of))
    axes = len(kernel)
    name = f"QuantizedConv{'ReLU' * relu}{axes}d"
    bias = rng.normal(size=M).astype(np.float32)
    if dynamic:
        spec = default_dynamic_qconfig(dialect).activation
        return getattr(q_conv, f"Dynamic{name}")(weight, bias, spec, dialect, stride, padding, dilation, groups)
    return getattr(q_conv, name)(weight, bias, grid(rng, UINT8, low=0.1, high=1), dialect, stride, padding, dilation,
                                 groups)  # fmt: skip


POOLS = [nn.AvgPool2d(2), nn.AvgPool2d((3, 2), 1, (1, 1)), nn.AvgPool2d(3, 2), nn.AdaptiveAvgPool2d(1),
         nn.AdaptiveAvgPool2d((2, None)), nn.AdaptiveAvgPool2d((3, 2))]  # fmt: skip
