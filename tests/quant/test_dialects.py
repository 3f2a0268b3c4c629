"""The dialects without torch: closed forms of what each engine does, and golden vectors recorded from torch 2.13."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from minquant.crosscheck import ours
from minquant.crosscheck.suite import differing
from minquant.quant import QParams, QSpec, get_default_qat_qconfig
from minquant.quant.dialects import get_dialect
from minquant.quant.dialects.fbgemm_grid import fbgemm_qparams
from minquant.quant.dialects.onednn import reciprocal_twice
from minquant.quant.dialects.torch_rules import saturated

F32 = np.float32
UINT8 = QSpec(signed=False)
ENGINES = ("fbgemm", "x86", "qnnpack", "onednn")

# ---- golden vectors -------------------------------------------------------------------------------------------------

with np.load(Path(__file__).parents[1] / "golden" / "dialects.npz") as file:
    GOLDEN = {name: file[name] for name in file.files}


def below(prefix: str) -> dict[str, np.ndarray]:
    """The arrays directly below a prefix."""
    found = {name.removeprefix(f"{prefix}/"): array for name, array in GOLDEN.items() if name.startswith(f"{prefix}/")}
    return {name: array for name, array in found.items() if "/" not in name}


def count(prefix: str) -> int:
    return 1 + max(int(name.split("/")[1]) for name in GOLDEN if name.startswith(f"{prefix}/"))


def recorded(engine: str) -> str:
    return "fbgemm" if engine == "x86" else engine


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("i", range(count("linear")))
def test_golden_linear(engine, i):
    expected = below(f"linear/{i}/{recorded(engine)}")
    assert set(expected) == {"qx", "static", "dynamic"}
    case = below(f"linear/{i}")
    assert differing(ours.static_linear(engine, case) | ours.dynamic_linear(engine, case), expected) == {}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("kind", "flow"), [("static", ours.static_flow), ("dynamic", ours.dynamic_flow)])
def test_golden_flow(engine, kind, flow):
    expected, mine = below(f"flow/{recorded(engine)}/{kind}"), flow(engine, below("flow"))
    assert mine.keys() == expected.keys() and differing(mine, expected) == {}


@pytest.mark.parametrize("i", range(count("fused")))
def test_golden_fused_fake_quantize(i):
    case = below(f"fused/{i}")
    steps = ours.fused_steps(json.loads(str(case["options"])), case["batches"], case["gradient"])
    for step, mine in enumerate(steps):
        expected = below(f"fused/{i}/{step}")
        assert mine.keys() == expected.keys() and differing(mine, expected) == {}


def test_the_golden_vectors_tell_the_engines_apart():
    """If they did not, equality with them would prove little."""

    def statics(engine: str) -> list[np.ndarray]:
        return [GOLDEN[f"linear/{i}/{engine}/static"] for i in range(count("linear"))]

    for a, b in (("fbgemm", "qnnpack"), ("fbgemm", "onednn"), ("qnnpack", "onednn")):
        assert any((x != y).any() for x, y in zip(statics(a), statics(b), strict=True)), (a, b)


# ---- quantize: added before the rounding, or after it ---------------------------------------------------------------


def test_where_the_zero_point_is_added():
    x, grid = np.array([0.5, 1.5, 2.5], F32), QParams(1.0, 3, UINT8)
    assert get_dialect("reference").quantize(x, grid).int_repr().tolist() == [3, 5, 5]  # rint(x) + 3
    for engine in ENGINES:
        assert get_dialect(engine).quantize(x, grid).int_repr().tolist() == [4, 4, 6]  # rint(x + 3)


def test_infinities_and_overflow():
    x = np.array([np.inf, -np.inf, 3e38, -3e38], F32)
    for engine in ENGINES:
        assert get_dialect(engine).quantize(x, QParams(1e-30, 7, UINT8)).int_repr().tolist() == [255, 0, 255, 0]


def test_converted_grids_use_the_whole_range_again():
    reduced = QParams(0.5, 64, QSpec(7, signed=False))
    for engine in ENGINES:
        grid = get_dialect(engine).converted_grid(reduced)
        assert (grid.scale, grid.zero_point, grid.spec) == (0.5, 64, UINT8)
    assert get_dialect("reference").converted_grid(reduced) is reduced


# ---- the run-time grid ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "qmin", "qmax", "symmetric", "scale", "zero_point"),
    [
        (0, 255, 0, 255, False, 1, 0),
        (-255, 0, 0, 255, False, 1, 255),
        (-1, 254, 0, 255, False, 1, 1),
        (3, 127, 0, 127, False, 1, 0),
        (-64, 63, 0, 127, False, 1, 64),
        (-0.5, 254.5, 0, 255, False, 1, 0),  # 0.5 from the lower end, which rounds less: to even
        (-254.5, 0.5, 0, 255, False, 1, 254),  # 254.5 from the upper end
        (0, 0, 0, 255, False, 0.1, 0),
        (0, 1e-4, 0, 255, False, F32(6.1e-5), 0),  # too small a scale is clamped
        (-1, 1, -128, 127, True, 1 / 127, 0),  # ±1 by 127 steps above zero
        (-1, 0.5, -128, 127, True, 1 / 128, 0),  # by 128 steps below
        (0, 255, -128, 127, True, 1, -128),  # one sign: the affine rule
    ],
)
def test_fbgemms_grid(low, high, qmin, qmax, symmetric, scale, zero_point):
    found, z = fbgemm_qparams(low, high, qmin, qmax, symmetric)
    assert F32(found) == F32(scale) and z == zero_point and found.dtype == np.float64


@pytest.mark.parametrize("engine", ENGINES)
def test_run_time_ranges_and_clipping(engine):
    dialect = get_dialect(engine)
    spec = dialect.dynamic(8)[0]
    assert spec.qmax == (255 if engine == "qnnpack" else 127)
    q, scale, zero_point = dialect.quantize_at_run_time(np.array([[0, 127]], F32), spec)
    assert (q.max(), zero_point, q.dtype) == (spec.qmax, 0, np.uint8)
    assert scale == (F32(127 / 255) if engine == "qnnpack" else 1)
    q, scale, zero_point = dialect.quantize_at_run_time(np.zeros((0, 3), F32), spec)
    assert q.shape == (0, 3) and zero_point == 0


# ---- from the accumulator to the output: one channel, numbers by hand -----------------------------------------------

ACC = np.array([[5, -7, 1000]], np.int32)
OUT = QParams(0.5, 10, UINT8)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_requantize_by_hand(engine, per_channel):
    """Powers of two: every engine's order of operations gives acc·¼ + bias in steps of ½, rounded half to even."""
    w_scale = np.array([0.5] * 3, F32) if per_channel else F32(0.5)
    bias = np.array([0.0, 1.0, 0.25], F32)
    dialect = get_dialect(engine)
    q = dialect.requantize(ACC, F32(0.5), w_scale, bias, OUT, relu=False)
    assert q.tolist() == [[12, 8, 255]] and q.dtype == np.uint8  # 2.5 → 2, -1.5 → -2
    assert dialect.requantize(ACC, F32(0.5), w_scale, bias, OUT, relu=True).tolist() == [[12, 10, 255]]


def test_where_the_engines_differ_on_a_bias():
    """acc = 1, s = 1, bias 0.4: qnnpack's bias is an integer, the others' is not."""
    acc, one, grid = np.array([[1]], np.int32), F32(1), QParams(0.1, 0, UINT8)
    found = {e: int(get_dialect(e).requantize(acc, one, one, np.array([0.4], F32), grid, False)[0, 0]) for e in ENGINES}
    assert found == {"fbgemm": 14, "x86": 14, "qnnpack": 10, "onednn": 14}


def test_where_the_engines_differ_on_ties():
    """2.5 steps and an odd zero point: onednn adds it before the rounding, the others after."""
    acc, one, grid = np.array([[5]], np.int32), F32(1), QParams(2.0, 3, UINT8)
    found = {e: int(get_dialect(e).requantize(acc, one, one, np.zeros(1, F32), grid, False)[0, 0]) for e in ENGINES}
    assert found == {"fbgemm": 5, "x86": 5, "qnnpack": 5, "onednn": 6}


def test_qnnpacks_bias_is_at_most_the_largest_float_in_int32():
    grid = QParams(1.0, 0, UINT8)
    acc, one, bias = np.array([[0]], np.int32), F32(1), np.array([1e12], F32)
    assert get_dialect("qnnpack").requantize(acc, one, one, bias, grid, False) == 255


def test_packing_saturates_in_three_steps():
    steps = np.array([3.0, -3, 40000, -40000, 3e9, -3e9], F32)
    # 3e9 does not fit int32, where it becomes -2³¹
    assert saturated(steps, F32(100)).tolist() == [103, 97, 32867, -32668, -32668, -32668]


def test_rescale_orders():
    """One accumulator, and each engine's order of rounding."""
    rng = np.random.default_rng(0)
    acc = rng.integers(-(2**30), 2**30, (50, 8)).astype(np.int32)
    sx, sw, bias = F32(0.0123), rng.random(8).astype(F32) / 100, rng.standard_normal(8).astype(F32) * 1e5
    product = (sx * sw).astype(np.float64)
    exact_sum = acc.astype(F32).astype(np.float64) * product + bias
    fbgemm = get_dialect("fbgemm").rescale(acc, sx, sw, bias)
    two_roundings = acc.astype(F32) * (sx * sw) + bias
    assert np.abs(fbgemm - exact_sum).max() <= np.spacing(np.abs(fbgemm)).max() / 2
    assert np.array_equal(get_dialect("reference").rescale(acc, sx, sw, bias), two_roundings)
    assert np.array_equal(get_dialect("qnnpack").rescale(acc, sx, sw, bias), two_roundings)
    onednn = get_dialect("onednn").rescale(acc, sx, sw, bias)
    assert np.array_equal(onednn, acc.astype(F32) * sx * reciprocal_twice(sw) + bias)
    assert (fbgemm != two_roundings).any() and (onednn != two_roundings).any()


def test_onednns_scales_are_inverted_twice():
    scales = np.random.default_rng(0).random(10_000).astype(F32)
    changed = reciprocal_twice(scales) != scales
    assert 0.1 < changed.mean() < 0.2
    assert np.abs(reciprocal_twice(scales) - scales).max() <= np.spacing(F32(1))
    assert reciprocal_twice(F32(0.25)) == F32(0.25)


# ---- training -------------------------------------------------------------------------------------------------------


def test_which_fake_quantizers_the_presets_make():
    for engine in ENGINES:
        config = get_default_qat_qconfig(engine)
        activation, weight = config.activation(), config.weight()
        assert type(activation).__name__ == type(weight).__name__ == "FusedMovingAvgObsFakeQuantize"
        assert activation.activation_post_process.averaging_constant == 0.01
        assert activation.activation_post_process.quant_max == (127 if engine in ("fbgemm", "x86") else 255)
        per_channel = weight.activation_post_process.qscheme == "per_channel_symmetric"
        assert per_channel == (engine != "qnnpack")


def test_unknown_dialects():
    names = "reference, fbgemm, x86, fbgemm_avx2, qnnpack, onednn, onednn_avx2, onnx, onnxruntime, torchao, intx"
    with pytest.raises(ValueError, match=f"backend: expected one of {names}; got 'tflite'"):
        get_dialect("tflite")
