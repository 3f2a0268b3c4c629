"""int8_matmul: every backend equals exact integer arithmetic and refuses what it cannot do exactly."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minquant.kernels import Packed, int8_matmul, max_k, pack_weight

BACKENDS = ["numpy", "numba"]
LARGEST_SUM = {"uint8": 255 * -128, "int8": -128 * -128}


def exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The result in int64, where nothing here can overflow."""
    return a.astype(np.int64) @ b.astype(np.int64)


def assert_exact(a: np.ndarray, b: np.ndarray, matmul=int8_matmul) -> None:
    for backend in BACKENDS:
        out = matmul(a, b, backend)
        assert out.dtype == np.int32 and out.shape == (a.shape[0], b.shape[1])
        np.testing.assert_array_equal(out, exact(a, b), err_msg=f"backend {backend}")


# Shapes and strides -------------------------------------------------------------------------------------


def strided(values: np.ndarray, layout: str) -> np.ndarray:
    """``values`` again, in a memory layout other than the row-major one."""
    if layout == "transposed":
        return values.T.copy().T
    if layout == "sliced":
        room = np.zeros((2 * values.shape[0] + 1, 3 * values.shape[1] + 2), values.dtype)
        room[1::2, 2::3] = values
        return room[1::2, 2::3]
    if layout == "negative":
        return values[::-1, ::-1].copy()[::-1, ::-1]
    if layout == "read-only":
        values = values.copy()
        values.flags.writeable = False
    return values


layouts = st.sampled_from(["plain", "transposed", "sliced", "negative", "read-only"])
dtypes = st.sampled_from([np.int8, np.uint8])


@st.composite
def operands(draw):
    m, k, n = (draw(st.integers(0, 40)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    info = np.iinfo(draw(dtypes))
    a = rng.integers(info.min, info.max, (m, k), info.dtype, endpoint=True)
    b = rng.integers(-128, 127, (k, n), np.int8, endpoint=True)
    return strided(a, draw(layouts)), strided(b, draw(layouts))


@settings(max_examples=100, deadline=None)
@given(operands())
def test_equals_exact_arithmetic(pair):
    a, b = pair
    a_before, b_before = a.copy(), b.copy()
    assert_exact(a, b)
    np.testing.assert_array_equal(a, a_before)
    np.testing.assert_array_equal(b, b_before)


@settings(max_examples=25, deadline=None)
@given(operands())
def test_equals_python_integers(pair):
    a, b = (x[:4, :4] for x in pair)
    a, b = a[:, : b.shape[0]], b[: a.shape[1]]
    by_hand = [[sum(x * y for x, y in zip(row, col, strict=True)) for col in b.T.tolist()] for row in a.tolist()]
    for backend in BACKENDS:
        assert int8_matmul(a, b, backend).tolist() == by_hand


@pytest.mark.parametrize("m, k, n", [(0, 3, 2), (2, 0, 3), (2, 3, 0), (0, 0, 0)])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_zero_sizes(m, k, n, dtype):
    assert_exact(np.ones((m, k), dtype), np.ones((k, n), np.int8))


@pytest.mark.parametrize("shape", [(257, 130, 67), (1, 512, 512), (1440, 64, 10), (10_000, 3, 3)])
def test_sizes_beyond_one_vector(shape):
    m, k, n = shape
    rng = np.random.default_rng(0)
    assert_exact(rng.integers(0, 256, (m, k)).astype(np.uint8), rng.integers(-128, 128, (k, n)).astype(np.int8))


# The edge of int32 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, expected", [(np.uint8, 65_793), (np.int8, 131_071)])
def test_max_k_is_exact_and_tight(dtype, expected):
    largest = abs(LARGEST_SUM[np.dtype(dtype).name])
    assert max_k(dtype) == expected
    assert largest * expected <= 2**31 - 1 < largest * (expected + 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_extremes_at_the_largest_k(dtype):
    k = max_k(dtype)
    a = np.full((1, k), 255 if dtype is np.uint8 else -128, dtype)
    b = np.full((k, 1), -128, np.int8)
    for backend in BACKENDS:
        assert int8_matmul(a, b, backend).item() == LARGEST_SUM[np.dtype(dtype).name] * k


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_refuses_a_k_that_could_overflow(dtype, backend):
    k = max_k(dtype) + 1
    with pytest.raises(ValueError, match=rf"K = {k} could overflow .* can overflow from K = {k}"):
        int8_matmul(np.zeros((1, k), dtype), np.zeros((k, 1), np.int8), backend)


# Mutants: plausible wrong implementations that the cases above must tell from the right one -------------


def float32_accumulator(a, b, backend):
    return (a.astype(np.float32) @ b.astype(np.float32)).astype(np.int32)


def no_widening(a, b, backend):
    return (a.astype(np.int8) @ b).astype(np.int32)


def int16_accumulator(a, b, backend):
    return (a.astype(np.int16) @ b.astype(np.int16)).astype(np.int32)


def saturating_int16_pairs(a, b, backend):
    products = a.astype(np.int32)[:, :, None] * b.astype(np.int32)[None]
    pairs = np.add.reduceat(products, range(0, a.shape[1], 2), axis=1) if a.shape[1] else products
    return np.clip(pairs, -32768, 32767).sum(1, dtype=np.int32)


def uint8_read_as_int8(a, b, backend):
    return a.view(np.int8).astype(np.int32) @ b.astype(np.int32)


def int8_read_as_uint8(a, b, backend):
    return a.view(np.uint8).astype(np.int32) @ b.astype(np.int32)


def strides_ignored(a, b, backend):
    flat = np.ravel(b, order="K").reshape(b.shape)
    return a.astype(np.int32) @ flat.astype(np.int32)


def last_k_dropped(a, b, backend):
    even = a.shape[1] // 2 * 2
    return a[:, :even].astype(np.int32) @ b[:even].astype(np.int32)


MUTANTS = [
    float32_accumulator,
    no_widening,
    int16_accumulator,
    saturating_int16_pairs,
    uint8_read_as_int8,
    int8_read_as_uint8,
    strides_ignored,
    last_k_dropped,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda f: f.__name__)
def test_mutants_are_rejected(mutant):
    rng = np.random.default_rng(0)
    rejected = 0
    for dtype in (np.int8, np.uint8):
        info = np.iinfo(dtype)
        a = rng.integers(info.min, info.max, (3, 519), dtype, endpoint=True)
        a[0] = info.max
        b = rng.integers(-128, 127, (519, 4), np.int8, endpoint=True)
        b[:, 0] = 127
        try:
            assert_exact(a, strided(b, "transposed"), matmul=mutant)
        except AssertionError:
            rejected += 1
    assert rejected


# Bad input ----------------------------------------------------------------------------------------------

A = np.zeros((2, 3), np.int8)
B = np.zeros((3, 4), np.int8)


@pytest.mark.parametrize(
    "a, b, error, message",
    [
        ([[1, 2, 3]], B, TypeError, "a must be a NumPy array, got list"),
        (A, 3, TypeError, "b must be a NumPy array, got int"),
        (A.astype(np.float32), B, TypeError, "a must be int8 or uint8, got float32; quantize it first"),
        (A.astype(np.int32), B, TypeError, "a must be int8 or uint8, got int32"),
        (A.astype(bool), B, TypeError, "a must be int8 or uint8, got bool"),
        (A, B.astype(np.uint8), TypeError, "b must be int8, got uint8.*subtract 128"),
        (A, B.astype(np.int64), TypeError, "b must be int8, got int64"),
        (
            np.zeros((), np.int8),
            B,
            ValueError,
            r"expected a \(M, K\) and b \(K, N\), got shapes \(\) and \(3, 4\)",
        ),
        (A[0], B, ValueError, r"got shapes \(3,\) and \(3, 4\)"),
        (A, B[None], ValueError, r"got shapes \(2, 3\) and \(1, 3, 4\)"),
        (
            A,
            B.T,
            ValueError,
            r"K = 3, b \(4, 3\) has K = 4; a weight stored as \(N, K\) must be passed transposed",
        ),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_operands(a, b, error, message, backend):
    with pytest.raises(error, match=message):
        int8_matmul(a, b, backend)


def test_max_k_refuses_other_dtypes():
    with pytest.raises(TypeError, match="expected int8 or uint8, got int16"):
        max_k(np.int16)


@pytest.mark.parametrize("backend", ["tpu", "Numba", ""])
def test_unknown_backend(backend):
    with pytest.raises(
        ValueError, match=rf"backend '{backend}' does not exist; choose one of 'numpy', 'numba', 'cuda' or 'auto'"
    ):
        int8_matmul(A, B, backend)


def test_environment_forces_a_backend(monkeypatch):
    monkeypatch.setenv("MINQUANT_BACKEND", "tpu")
    with pytest.raises(ValueError, match="variable MINQUANT_BACKEND 'tpu' does not exist"):
        int8_matmul(A, B)
    assert int8_matmul(A, B, "numba").shape == (2, 4)
    monkeypatch.setenv("MINQUANT_BACKEND", "")
    assert int8_matmul(A, B).shape == (2, 4)


@pytest.mark.parametrize("forced, imported", [("numpy", False), ("numba", True), ("", True)])
def test_numba_is_imported_only_where_used(forced, imported):
    code = """
import sys, numpy as np
from minquant.kernels import int8_matmul
assert "numba" not in sys.modules
int8_matmul(np.ones((2, 2), np.int8), np.ones((2, 2), np.int8))
print("numba" in sys.modules)
"""
    environment = os.environ | {"MINQUANT_BACKEND": forced}
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(imported)


# Packed once, used often ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_a_packed_operand_gives_the_same(dtype, backend):
    rng = np.random.default_rng(0)
    b = rng.integers(-128, 128, (37, 50)).astype(np.int8)
    packed = pack_weight(b.T.copy().T, backend)
    assert packed.shape == b.shape
    for m in (0, 1, 5, 23):
        a = rng.integers(0, 256, (m, 37)).astype(np.uint8).view(dtype)
        np.testing.assert_array_equal(int8_matmul(a, packed, backend), exact(a, b))


def test_packed_operands_are_checked_like_others(monkeypatch):
    packed = pack_weight(np.ones((3, 2), np.int8), "numba")
    with pytest.raises(ValueError, match="inner sizes differ"):
        int8_matmul(np.ones((2, 4), np.uint8), packed)
    monkeypatch.delenv("MINQUANT_ISA", raising=False)
    packed = pack_weight(np.ones((3, 2), np.int8), "numba")
    if isinstance(packed, Packed):
        with pytest.raises(ValueError, match="b is packed for the backend numba, got backend 'numpy'; pass b itself"):
            int8_matmul(np.ones((2, 3), np.uint8), packed, "numpy")
    with pytest.raises(TypeError, match="b must be int8, got float32"):
        pack_weight(np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"pack_weight: expected b \(K, N\), got shape \(3,\)"):
        pack_weight(np.ones(3, np.int8))
