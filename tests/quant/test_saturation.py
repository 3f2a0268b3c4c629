"""reduce_range taught by its failure: the dialect of processors without VNNI, alone and in whole models."""

from __future__ import annotations

import numpy as np
import pytest

from minquant import Tensor, nn
from minquant.quant import (
    MinMaxObserver,
    PerChannelMinMaxObserver,
    QConfig,
    QParams,
    QSpec,
    QTensor,
    QuantWrapper,
    convert,
    get_default_qconfig,
    prepare,
)
from minquant.quant.dialects import get_dialect

F32 = np.float32
UINT8, INT8 = QSpec(signed=False), QSpec(symmetric=True)


def static(backend: str, qx: int, qw: int, zero_point: int = 0) -> int:
    """64 equal products, on an output grid of steps of 8192."""
    x = QTensor(np.full((1, 64), qx, np.uint8), QParams(1.0, zero_point, UINT8))
    weight = QTensor(np.full((1, 64), qw, np.int8), QParams(1.0, 0, INT8))
    y = get_dialect(backend).linear(x, weight, np.zeros(1, F32), QParams(8192.0, 0, UINT8), relu=False)
    return int(y.int_repr()[0, 0])


def test_half_of_the_sum_is_lost():
    assert static("fbgemm", 255, 127) == 253  # 2,072,640 / 8192
    assert static("fbgemm_avx2", 255, 127) == 128  # 1,048,544 / 8192
    assert static("fbgemm", 127, 127) == static("fbgemm_avx2", 127, 127) == 126  # 64 × 127·127 = 1,032,256


def test_the_zero_point_does_not_bring_it_back():
    """255 stands for 127 here, and 64 × 127·127 would fit: saturation acts on the integers as they are stored."""
    assert static("fbgemm", 255, 127, zero_point=128) == 126
    assert static("fbgemm_avx2", 255, 127, zero_point=128) == 1  # 1,048,544 - 64 × 128·127 = 8,160


def test_rescaled_to_real_values():
    x, weight = np.full((1, 64), 255, F32), QTensor(np.full((1, 64), 127, np.int8), QParams(1.0, 0, INT8))
    y = {
        (backend, spec.qmax): float(get_dialect(backend).dynamic_linear(x, weight, np.zeros(1, F32), False, spec)[0, 0])
        for backend in ("fbgemm", "fbgemm_avx2")
        for spec in (UINT8, QSpec(signed=False, qmax=127))
    }
    assert y["fbgemm", 255] == 2_072_640 and y["fbgemm_avx2", 255] == 1_048_544
    assert y["fbgemm", 127] == y["fbgemm_avx2", 127] == pytest.approx(2_072_640)


def model() -> nn.Module:
    layers = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    rng = np.random.default_rng(0)
    for layer in (layers[0], layers[2]):
        layer.weight.data[:] = np.abs(rng.standard_normal(layer.weight.shape))
        layer.bias.data[:] = 0
    return layers


def outputs(activation, x: np.ndarray) -> list[np.ndarray]:
    weight = PerChannelMinMaxObserver.with_args(dtype="qint8", qscheme="per_channel_symmetric")
    found = []
    for backend in ("fbgemm", "fbgemm_avx2"):
        prepared = prepare(QuantWrapper(model()), QConfig(activation=activation, weight=weight, backend=backend))
        prepared(x)
        found.append(convert(prepared)(x).data)
    return found


def test_a_whole_model_with_and_without_reduce_range():
    x = np.random.default_rng(1).random((20, 16)).astype(F32)
    truth = model()(Tensor(x)).data
    exact, saturated = outputs(MinMaxObserver, x)
    assert np.abs(exact - truth).max() < 0.02 * truth.max() < 0.1 * truth.max() < np.abs(saturated - truth).max()
    exact, saturated = outputs(MinMaxObserver.with_args(reduce_range=True), x)
    assert np.array_equal(exact, saturated)


def test_presets_are_fbgemms():
    assert get_default_qconfig("fbgemm_avx2").activation().quant_max == 127
    assert get_dialect("fbgemm_avx2").dynamic(8)[0] == QSpec(signed=False, qmax=127)
