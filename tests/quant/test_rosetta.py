"""The Rosetta table: numbers by hand, every cause by a tensor that shows it, and no difference left unexplained."""

from __future__ import annotations

import numpy as np
import pytest

from minquant import Tensor
from minquant.crosscheck.inputs import KINDS, near_ties, values
from minquant.quant import QParams, QSpec, choose_qparams
from minquant.quant.rosetta import requantizations, rosetta

F32 = np.float32
UINT8 = QSpec(signed=False)


def table(x, bits: int = 8) -> dict[str, dict]:
    return {row["dialect"]: row for row in rosetta(np.asarray(x, F32), bits).rows}


# ---- by hand --------------------------------------------------------------------------------------------------------


def test_three_divisors_for_amax_1():
    rows = table([-1, 0.9])
    divisors = {name: 1 / row["scale"] for name, row in rows.items() if row["base"] == "reference symmetric"}
    assert {name: round(d, 3) for name, d in divisors.items()} == {
        "reference symmetric": 127.5,
        "torch observer qint8": 127.5,
        "torch fused fake-quantizer, symmetric": 128,
        "torchao SYMMETRIC": 127.5,
        "torchao SYMMETRIC_NO_CLIPPING_ERR": 128,
        "ModelOpt": 127,
        "TFLite weight": 127,
    }
    assert rows["ModelOpt"]["rule"].startswith("range -127…127, divisor 127 for 127.5")
    assert rows["torch fused fake-quantizer, symmetric"]["rule"].startswith("divisor 128 for 127.5")


def test_ties_on_a_grid_of_whole_numbers():
    """s = 1, z = 1: the reference rounds and then adds, PyTorch adds and then rounds."""
    rows = table([-1, 0.5, 1.5, 2.5, 254])
    assert rows["reference affine"]["integers"].tolist() == [0, 1, 3, 3, 255]
    assert rows["torch observer quint8"]["integers"].tolist() == [0, 2, 2, 4, 255]
    assert rows["TFLite activation"]["integers"].tolist() == [-128, -126, -125, -124, 127]
    assert rows["onnx DynamicQuantizeLinear"]["integers"].tolist() == [0, 1, 3, 3, 255]
    torch = rows["torch observer quint8"]
    assert torch["rule"] == "zero point added before the rounding (moves 3)"
    assert torch["first"] == [(0.5, 1, 2), (1.5, 3, 2), (2.5, 3, 4)] and torch["differing"] == 3
    assert rows["TFLite activation"]["rule"] == ("128 lower throughout (int8); a half rounded away from zero (moves 2)")
    assert rows["onnx DynamicQuantizeLinear"]["rule"] == "no difference on this tensor"


def test_reduce_range_is_a_coarser_grid():
    row = table([-1, 0, 0.5, 1])["torch observer quint8, reduce_range"]
    assert (row["qmin"], row["qmax"], row["zero_point"]) == (0, 127, 64)
    assert row["scale"] == pytest.approx(2 / 127) and row["integers"].tolist() == [0, 64, 96, 128]  # 63.5 + 64, to even
    assert row["rule"] == "range 0…127, divisor 127 for 255 (moves 3); zero point 64 for 127 (moves 4)"


def test_true_division():
    """9.5 steps of 1/255 of 14.18: times the rounded reciprocal it is a tie, divided it is not, or the other way."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        grid = choose_qparams(0, rng.uniform(1, 100), UINT8)
        x = (np.arange(255) + 0.5).astype(F32) * grid.scale
        row = table([*x, grid.scale * F32(255)])["onnx DynamicQuantizeLinear"]
        if row["differing"]:
            assert row["rule"].startswith("true division instead of times 1/s (moves ")
            return
    raise AssertionError("no tensor of 200 shows the division")


def test_zero_points_at_a_tie():
    """-1.5 … 253.5 on 0…255: z = 1.5, and on -128…127 it is -126.5."""
    row = table([-1.5, 253.5])["TFLite activation"]
    assert row["zero_point"] == -127 and "zero point -127 for -126, a half rounded away from zero" in row["rule"]
    a = F32(1)  # ±1: z = 127.5, but for the rounding of the scale, which float64 leaves out
    row, base = (table([-a, a])[name] for name in ("qnnpack at run time", "reference affine"))
    assert (row["zero_point"], base["zero_point"]) == (128, 127)
    assert "zero point 128 for 127, counted from the maximum" in row["rule"]


def test_smallest_scales():
    rows = table([0, 1e-6])
    assert "scale 6.1e-5, the smallest for 2⁻²³, the smallest" in rows["qnnpack at run time"]["rule"]
    assert rows["reference affine"]["rule"].startswith("scale 2⁻²³, the smallest")


def test_fewer_bits():
    rows = table([-1, 0.5, 0.9], bits=4)
    assert "onnx DynamicQuantizeLinear" not in rows and rows["ModelOpt"]["qmax"] == 7
    assert (rows["reference symmetric"]["qmin"], rows["reference symmetric"]["qmax"]) == (-8, 7)
    assert rows["torch fused fake-quantizer, symmetric"]["rule"].startswith("scale max/7 for amax/7.5")


def test_what_one_dialect_refuses_the_others_still_read():
    found = rosetta(np.array([0, 1e-44], F32))
    assert list(found.left_out) == ["onnx DynamicQuantizeLinear", "TFLite activation", "TFLite weight"]
    assert str(found).count("rescale the data") == 3
    assert len(found.rows) > 10


# ---- every difference is explained ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_unexplained(kind):
    rng = np.random.default_rng(KINDS.index(kind))
    for i in range(25):
        x = values(rng, (int(rng.integers(1, 9)), int(rng.integers(1, 30))), kind)
        if i % 2:
            x = near_ties(rng, x, choose_qparams(x.min(), x.max(), UINT8))
        bits = 8 if i % 3 else int(rng.integers(2, 8))
        found = rosetta(x, bits)
        bases = {row["dialect"]: row for row in found.rows}
        for row in found.rows:
            base = bases[row["base"]]
            assert "some other way" not in row["rule"], (row, x)
            shift = -(2 ** (bits - 1)) if row["qmin"] < 0 and base["qmin"] == 0 else 0
            assert row["differing"] == (row["integers"] - shift != base["integers"]).sum()
            assert ("moves" in row["rule"]) or not row["differing"]
            real = (row["integers"] - row["zero_point"]) * np.float64(row["scale"])
            assert row["max_steps"] == (np.abs(x - real) / np.float64(row["scale"])).max()


def test_every_word_for_rounding_is_needed():
    """Each way to round is found for some dialect, so that none is there for show."""
    from minquant.quant.rosetta.causes import ROUNDINGS

    rng, seen = np.random.default_rng(1), set()
    for i in range(120):
        x = values(rng, (40, 10), KINDS[i % len(KINDS)])
        for spec in (UINT8, QSpec(symmetric=True), QSpec(symmetric=True, qmin=-127)):
            x = near_ties(rng, x, choose_qparams(x.min(), x.max(), spec))
        seen |= {words for row in rosetta(x).rows for words in ROUNDINGS if f"{words} (moves" in row["rule"]}
    assert seen == set(ROUNDINGS)


# ---- requantization -------------------------------------------------------------------------------------------------


def requantized(acc, x_scale, w_scale, output, bias=None) -> dict[str, tuple[list, str]]:
    rows = requantizations(np.array(acc, np.int32), x_scale, w_scale, output, bias)
    return {row["dialect"]: (row["integers"].tolist(), row["rule"]) for row in rows}


def test_the_question_of_the_lesson():
    found = requantized([1, 3, 5, 7], 0.5, 1.0, QParams(1.0, 1, UINT8))
    assert found == {
        "reference": ([1, 3, 3, 5], ""),
        "fbgemm and x86": ([1, 3, 3, 5], ""),
        "qnnpack": ([1, 3, 3, 5], ""),
        "onednn": ([2, 2, 4, 4], "zero point added before the rounding"),
        "onnx": ([2, 2, 4, 4], "zero point added before the rounding"),
        "onnxruntime": ([1, 3, 3, 5], ""),
        "gemmlowp, TFLite": ([2, 3, 4, 5], "rounded twice, halves upwards and then away from zero"),
    }


def test_half_a_step_of_bias():
    found = requantized([0, 1, 2, 3], 0.125, 1.0, QParams(0.0625, 0, UINT8), np.full(4, 0.06))
    assert found["fbgemm and x86"] == found["onednn"] == ([1, 3, 5, 7], "")
    assert found["qnnpack"] == ([0, 2, 4, 6], "bias rounded to whole steps of sx·sw") == found["onnxruntime"]
    whole_step = requantized([0, 1, 2, 3], 0.125, 1.0, QParams(0.0625, 0, UINT8), np.full(4, 0.07))
    assert whole_step["gemmlowp, TFLite"][0] == [2, 4, 6, 8]


def test_requantizing_random_accumulators():
    rng = np.random.default_rng(0)
    acc = rng.integers(-20000, 20000, (30, 8)).astype(np.int32)
    rows = requantizations(acc, F32(0.0123), rng.uniform(0.001, 0.01, 8), QParams(0.7, 77, UINT8), rng.normal(size=8))
    assert len(rows) == 7 and all(row["integers"].shape == acc.shape for row in rows)
    assert all(bool(row["rule"]) == bool(row["differing"]) for row in rows)


# ---- what it prints and refuses --------------------------------------------------------------------------------------


def test_prints_as_a_table():
    text = str(rosetta(Tensor(np.array([-1, 0.5], F32))))
    assert text.startswith("dialect") and "scale amax/127.5; rint(x · 1/s) + z" in text
    assert "    integers 0 255\n" in text
    assert "    first: 0.5 is 2, not 1\n" in str(rosetta(np.array([-1, 0.5, 1.5, 2.5, *range(5), 254], F32)))
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize(
    ("x", "bits", "error", "message"),
    [
        (np.array([1, 2]), 8, TypeError, "expected floating point values"),
        (np.zeros((0, 3), F32), 8, ValueError, "x is empty, of shape (0, 3)"),
        (np.array([1, np.nan, np.inf], F32), 8, ValueError, "1 NaN and 1 infinite values out of 3"),
        (np.array([-3e38, 3e38], F32), 8, ValueError, "a scale must be positive, finite"),
        (np.array([1], F32), 9, ValueError, "bits must be a whole number from 2 to 8, got 9"),
        (np.array([1], F32), 4.0, ValueError, "got 4.0"),
    ],
)
def test_refusals(x, bits, error, message):
    with pytest.raises(error) as raised:
        rosetta(x, bits)
    assert message in str(raised.value)
