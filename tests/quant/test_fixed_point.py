"""gemmlowp's requantization: numbers by hand, and an exact specification in fractions, written separately."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minquant.quant import QParams, QSpec
from minquant.quant.dialects.fixed_point import (
    multiply_by_quantized_multiplier,
    quantize_multiplier,
    requantize,
    rounding_divide_by_pot,
    saturating_rounding_doubling_high_mul,
)

UINT8, INT8 = QSpec(signed=False), QSpec()
int32s = st.one_of(
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-40, 40),
    st.integers(-7, 7).map(lambda n: n * 2**28),
    st.sampled_from([-(2**31), -(2**31) + 1, 2**31 - 1, 2**30, -(2**30)]),
)

# ---- the specification, in exact fractions --------------------------------------------------------------------------


def ties_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


def ties_away(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2)) if x >= 0 else math.ceil(x - Fraction(1, 2))


def high_mul_specification(a: int, b: int) -> int:
    return min(ties_up(Fraction(a * b, 2**31)), 2**31 - 1)


def multiplier_specification(m: float) -> tuple[int, int]:
    """The largest shift that leaves the mantissa, rounded half away, with at least 31 bits."""
    if m == 0:
        return 0, 0
    shift = 0
    while Fraction(m) >= Fraction(2) ** shift:
        shift += 1
    while Fraction(m) < Fraction(2) ** (shift - 1):
        shift -= 1
    mantissa = ties_away(Fraction(m) / Fraction(2) ** shift * 2**31)
    if mantissa == 2**31:
        mantissa, shift = 2**30, shift + 1
    return (mantissa, shift) if shift >= -31 else (0, 0)


def multiply_specification(x: int, mantissa: int, shift: int) -> int:
    once = high_mul_specification(x * 2 ** max(shift, 0), mantissa)
    return ties_away(Fraction(once, 2 ** max(-shift, 0)))


@given(int32s, int32s)
def test_high_mul(a, b):
    assert saturating_rounding_doubling_high_mul(np.int32(a), np.int32(b)) == high_mul_specification(a, b)


def test_high_mul_as_gemmlowp_writes_it():
    """Its C++ adds a nudge that depends on the sign and divides towards zero."""
    rng = np.random.default_rng(0)
    a = np.concatenate([rng.integers(-(2**31), 2**31, 5000), rng.integers(-9, 9, 5000)]).astype(np.int32)
    b = np.concatenate([rng.integers(-(2**31), 2**31, 5000), rng.choice([2**30, 3 * 2**28], 5000)]).astype(np.int32)
    for x, y, found in zip(a.tolist(), b.tolist(), saturating_rounding_doubling_high_mul(a, b).tolist(), strict=True):
        nudge = 2**30 if x * y >= 0 else 1 - 2**30
        assert found == math.trunc(Fraction(x * y + nudge, 2**31))


@given(int32s, st.integers(0, 31))
def test_divide_by_power_of_two(x, exponent):
    found = rounding_divide_by_pot(np.int32(x), exponent)
    assert found == ties_away(Fraction(x, 2**exponent))
    mask = (1 << exponent) - 1  # as gemmlowp writes it
    assert found == (x >> exponent) + ((x & mask) > (mask >> 1) + (x < 0))


multipliers = st.one_of(
    st.floats(0, 8, allow_subnormal=True),
    st.sampled_from([0.5, 0.25, 1.0, 1 - 2.0**-53, 0.75, 2.0**-31, 2.0**-32, 2.0**-33, 2.0**-32 * (1 - 2.0**-40)]),
    st.integers(2**30, 2**31 - 1).map(lambda n: (n + 0.5) / 2**34),  # a mantissa at a tie
)


@given(multipliers)
def test_multiplier(m):
    mantissa, shift = (int(part) for part in quantize_multiplier(m))
    assert (mantissa, shift) == multiplier_specification(m)
    if mantissa:
        assert abs(Fraction(mantissa) * Fraction(2) ** (shift - 31) - Fraction(m)) <= Fraction(m) / 2**31


@given(st.integers(-(2**27), 2**27 - 1) | st.integers(-40, 40), multipliers)
def test_multiply(x, m):
    mantissa, shift = quantize_multiplier(m)
    found = multiply_by_quantized_multiplier(np.int32(x), mantissa, shift)
    assert found.dtype == np.int32
    assert found == multiply_specification(x, int(mantissa), int(shift))
    # ½ of the last rounding, ½ of the first one halved by a shift, what the mantissa lacks, and 2²⁷·2⁻³² if it is 0
    assert abs(int(found) - Fraction(m) * x) <= Fraction(3, 4) + abs(Fraction(m) * x) / 2**31 + Fraction(1, 2**5)


# ---- by hand --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("m", "mantissa", "shift"),
    [
        (0.5, 2**30, 0),
        (0.25, 2**30, -1),
        (1.0, 2**30, 1),
        (0.75, 3 * 2**29, 0),
        (0.0, 0, 0),
        (1 - 2.0**-40, 2**30, 1),  # the mantissa rounds up to 2³¹ and is halved
        (2.0**-32, 2**30, -31),
        (2.0**-33, 0, 0),  # every bit would be shifted out
    ],
)
def test_multipliers_by_hand(m, mantissa, shift):
    assert [int(part) for part in quantize_multiplier(m)] == [mantissa, shift]


def grid(zero_point: int, spec: QSpec = UINT8) -> QParams:
    return QParams(1.0, zero_point, spec)


def test_the_question_of_the_lesson():
    acc = np.array([1, 3, 5, 7], np.int32)
    assert requantize(acc, 0.5, grid(1)).tolist() == [2, 3, 4, 5]


def test_it_rounds_twice():
    at_half, at_quarter = (requantize(np.array([x], np.int32), m, grid(9)) - 9.0 for x, m in ((-5, 0.5), (-10, 0.25)))
    assert (at_half, at_quarter) == (-2, -3)  # both are -2.5
    assert requantize(np.array([1, -1], np.int32), 0.25, grid(9)).tolist() == [10, 9]  # ¼ becomes 1, -¼ becomes 0


def test_ends_signs_relu_and_channels():
    acc = np.array([[600, -600], [-4, 4]], np.int32)
    assert requantize(acc, 0.5, grid(10)).tolist() == [[255, 0], [8, 12]]
    signed = requantize(acc, 0.5, grid(-10, INT8))
    assert signed.tolist() == [[127, -128], [-12, -8]] and signed.dtype == np.int8
    assert requantize(acc, 0.5, grid(10), relu=True).tolist() == [[255, 10], [10, 12]]
    assert requantize(acc, np.array([0.5, 0.25]), grid(10)).tolist() == [[255, 0], [8, 11]]
    assert requantize(np.zeros((0, 2), np.int32), 0.5, grid(10)).shape == (0, 2)


@pytest.mark.parametrize("m", [-0.5, math.nan, math.inf])
def test_impossible_multipliers(m):
    with pytest.raises(ValueError, match="expected finite multipliers from 0"):
        quantize_multiplier(m)


def test_what_tflite_leaves_undefined():
    with pytest.raises(ValueError, match="leaves int32"):
        multiply_by_quantized_multiplier(np.array([2**30], np.int32), *quantize_multiplier(2.5))
