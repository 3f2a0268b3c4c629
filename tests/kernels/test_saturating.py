"""saturating_matmul: the numbers by hand, an exact specification, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minquant.kernels import int8_matmul
from minquant.kernels import threads as threads_of_kernels
from minquant.kernels.saturating import saturating_matmul


def specification(a: np.ndarray, b: np.ndarray) -> list[list[int]]:
    """Python's integers, one pair of products at a time."""

    def dot(row: list[int], column: list[int]) -> int:
        products = [x * y for x, y in zip(row, column, strict=True)] + [0] * (len(row) % 2)
        return sum(min(max(p + q, -32768), 32767) for p, q in zip(products[::2], products[1::2], strict=True))

    return [[dot(row, column) for column in b.T.tolist()] for row in a.tolist()]


def row_times_column(a: list[int], b: list[int]) -> int:
    return int(saturating_matmul(np.array([a], np.uint8), np.array([b], np.int8).T)[0, 0])


def test_by_hand():
    assert row_times_column([255] * 64, [127] * 64) == 32 * 32767 == 1_048_544  # exact: 2,072,640
    assert row_times_column([255] * 64, [-128] * 64) == 32 * -32768
    assert row_times_column([127, 127], [127, 127]) == 127 * 254 == 32_258  # with reduce_range it fits
    assert row_times_column([127, 127], [-128, -128]) == -32_512
    assert row_times_column([255, 0, 255, 0], [127, 127, 127, 127]) == 64_770  # the int32 sum does not saturate
    assert row_times_column([255, 255, 255], [127, 127, 127]) == 32_767 + 32_385  # an odd K: the last product alone
    assert row_times_column([255, 255], [127, -128]) == -255  # opposite signs


@pytest.mark.parametrize("threads", ["1", "3"])
def test_compiled_loops_are_numpys(monkeypatch, threads):
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 256, (517, 91)).astype(np.uint8), rng.integers(-128, 128, (203, 91)).astype(np.int8).T
    monkeypatch.setenv("MINQUANT_NUM_THREADS", threads)
    monkeypatch.setattr(threads_of_kernels, "WORTH_A_THREAD", 1)
    compiled = saturating_matmul(a, b)
    monkeypatch.setenv("MINQUANT_BACKEND", "numpy")
    assert np.array_equal(compiled, saturating_matmul(a, b))
    assert (compiled != int8_matmul(a, b)).any()


@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(0, 9), st.integers(0, 4))
def test_equals_the_specification(seed, m, k, n):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, (m, k)).astype(np.uint8)
    b = rng.integers(-128, 128, (n, k)).astype(np.int8).T
    out = saturating_matmul(a, b)
    assert out.dtype == np.int32 and out.shape == (m, n)
    assert out.tolist() == (specification(a, b) if m and n else np.zeros((m, n)).tolist())


def test_seven_bits_never_saturate():
    rng = np.random.default_rng(0)
    a = rng.choice([0, 126, 127], (20, 301)).astype(np.uint8)
    b = rng.choice([-128, -127, 127], (301, 20)).astype(np.int8)
    assert (saturating_matmul(a, b) == int8_matmul(a, b)).all()
    assert (saturating_matmul(a * 2, b) != int8_matmul(a * 2, b)).any()


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        (np.zeros((2, 3), np.int8), np.zeros((3, 2), np.int8), TypeError, "a must be uint8"),
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), TypeError, "b must be int8"),
        (np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.int8), ValueError, "must be passed transposed"),
        (np.zeros(3, np.uint8), np.zeros((3, 2), np.int8), ValueError, "expected a (M, K)"),
        (np.zeros((1, 131_071), np.uint8), np.zeros((131_071, 1), np.int8), ValueError, "K = 131070 cannot"),
    ],
)
def test_refusals(a, b, error, message):
    with pytest.raises(error) as raised:
        saturating_matmul(a, b)
    assert message in str(raised.value)


def test_the_largest_k_fits_int32():
    a, b = np.full((1, 131_070), 255, np.uint8), np.full((131_070, 1), -128, np.int8)
    assert saturating_matmul(a, b) == 65_535 * -32768 == -(2**31) + 32768
