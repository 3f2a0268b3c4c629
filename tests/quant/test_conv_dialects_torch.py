"""Convolution in every dialect against its engine in torch 2.13: no integer and no value differs."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from minquant.crosscheck import ours, theirs
from minquant.crosscheck.inputs import ENGINES, KINDS
from minquant.crosscheck.processor import dialect_of
from minquant.crosscheck.quiet import one_thread
from minquant.crosscheck.windows import WINDOWS, draw_dynamic_conv, draw_static_conv

F32 = np.float32
LARGEST = {"fbgemm": 127, "x86": 127, "qnnpack": 255, "onednn": 255}


@pytest.fixture(autouse=True)
def on_one_thread():
    """As everywhere; the engine is restored."""
    with one_thread(torch):
        yield


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("per_channel", [False, True])
def test_static(engine, axes, per_channel):
    rng = np.random.default_rng(axes)
    for i in range(8 * len(WINDOWS)):
        window = WINDOWS[i % len(WINDOWS)]
        case = draw_static_conv(rng, axes, window, per_channel, i % 3 == 0, LARGEST[engine], coarse=i % 4 == 1)
        mine, torchs = ours.static_conv(dialect_of(engine), case), theirs.static_conv(engine, case)
        assert mine.shape == torchs.shape and (mine != torchs).sum() == 0, (window, case)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamic(engine, axes, per_channel):
    rng = np.random.default_rng(10 + axes)
    largest = 255 if engine == "qnnpack" else 127
    for i in range(8 * len(WINDOWS)):
        window, kind = WINDOWS[i % len(WINDOWS)], KINDS[i % len(KINDS)]
        case = draw_dynamic_conv(rng, axes, window, per_channel, kind, largest)
        mine, torchs = ours.dynamic_conv(dialect_of(engine), case), theirs.dynamic_conv(engine, case)
        assert mine.shape == torchs.shape and (mine != torchs).sum() == 0, (window, kind, case)


def test_the_depthwise_kernel_of_fbgemm_saturates_as_ours():
    rng, saturated = np.random.default_rng(0), 0
    for i in range(40):
        case = draw_static_conv(rng, 2, "common depthwise", bool(i % 2), False)
        torchs = theirs.static_conv("fbgemm", case)
        assert (ours.static_conv("fbgemm", case) != torchs).sum() == 0
        exact = ours.static_conv("qnnpack", case | {"bias": np.zeros(0, F32)})
        saturated += int((exact != theirs.static_conv("fbgemm", case | {"bias": np.zeros(0, F32)})).sum())
    assert saturated > 100


# ---- what is odd in torch itself -------------------------------------------------------------------------------------


def test_torch_writes_a_dynamic_output_to_the_grid_of_the_input():
    """A weight of 100 should give 100; the output cannot leave the input's grid."""
    case = {"qw": np.full((1, 1, 1), 100, np.int8), "w_scale": np.array(1, F32), "bias": np.zeros(0, F32)}
    case |= {"x": np.array([[[-1, 1]]], F32), "groups": np.array(1)}
    case |= {name: np.array([n]) for name, n in (("stride", 1), ("padding", 0), ("dilation", 1))}
    for engine in ENGINES:
        assert 0.9 < theirs.dynamic_conv(engine, case).max() < 4


@pytest.mark.parametrize(
    ("changed", "value"), [("out_scale", np.array(64, F32)), ("x_zero_point", np.array(0, np.int32))]
)
def test_qnnpack_remembers_the_first_call(changed, value):
    """Packed weights keep the output's scale, and the padding keeps the input's zero point, until the input's scale
    changes; hence `theirs.conv_packed` packs anew for every call."""
    case = {
        "qx": np.full((1, 1, 4), 9, np.uint8), "x_scale": np.array(1, F32), "x_zero_point": np.array(3, np.int32),
        "qw": np.ones((1, 1, 3), np.int8), "w_scale": np.array(1, F32), "bias": np.zeros(0, F32),
        "out_scale": np.array(2, F32), "out_zero_point": np.array(0, np.int32), "relu": np.array(False),
        "stride": np.array([1]), "padding": np.array([1]), "dilation": np.array([1]), "groups": np.array(1),
    }  # fmt: skip
    torch.backends.quantized.engine = "qnnpack"
    packed = theirs.conv_packed(case)

    def call(case):
        x = torch._make_per_tensor_quantized_tensor(
            torch.tensor(case["qx"]), float(case["x_scale"]), int(case["x_zero_point"])
        )
        y = torch.ops.quantized.conv1d(x, packed, float(case["out_scale"]), int(case["out_zero_point"]))
        return y.int_repr().tolist()

    def right(case):
        return ours.static_conv("qnnpack", case).tolist()

    other = case | {changed: value}
    assert call(case) == right(case)
    assert call(other) != right(other) == theirs.static_conv("qnnpack", other).tolist()
