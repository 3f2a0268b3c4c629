"""The GPU's integer product: its padding, layouts and zero-point algebra, run on the CPU by the same code.

What needs a GPU is skipped where there is none.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from minquant.kernels import cuda, int8_matmul
from minquant.quant.integer import accumulate
from minquant.quant.qtensor import pack_bits, unpack_bits

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
SIZES = st.one_of(st.integers(0, 40), st.sampled_from([63, 64, 65, 127, 128, 129]))


def product(a: np.ndarray, b: np.ndarray, device: str = "cpu", layout: str = "plain") -> np.ndarray:
    left, right = (in_layout(torch.tensor(x, device=device), layout) for x in (a, b))
    acc = cuda.product(left, cuda.columns_of(right))
    assert acc.dtype == torch.int32 and acc.is_contiguous() and str(acc.device).startswith(device)
    return acc.cpu().numpy()


def in_layout(x, layout: str):
    """The same values in other memory orders."""
    if layout == "transposed":
        return x.T.contiguous().T
    if layout == "sliced":
        room = x.new_full((2 * x.shape[0] + 1, 3 * x.shape[1] + 2), 77)
        room[1::2, 2::3] = x
        return room[1::2, 2::3]
    if layout == "offset":  # begins in the middle of what the hardware reads at once
        room = x.new_full((x.numel() + 3,), 77)
        room[3:] = x.reshape(-1)
        return room[3:].reshape(x.shape)
    return x


@st.composite
def operands(draw):
    m, k, n = (draw(SIZES) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    info = np.iinfo(draw(st.sampled_from([np.int8, np.uint8])))
    a = rng.integers(info.min, info.max, (m, k), info.dtype, endpoint=True)
    return a, rng.integers(-128, 127, (k, n), np.int8, endpoint=True)


# ---- the product -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=150, deadline=None)
@given(operands(), st.sampled_from(["plain", "transposed", "sliced", "offset"]))
def test_equals_exact_arithmetic(device, pair, layout):
    a, b = pair
    np.testing.assert_array_equal(product(a, b, device, layout), a.astype(np.int64) @ b.astype(np.int64))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("m", [1, 16, 17, 31, 32, 33])
@pytest.mark.parametrize("k, n", [(1, 1), (7, 9), (8, 8), (16, 24), (33, 130)])
def test_shapes_around_cublaslts_rules(device, dtype, m, k, n):
    rng = np.random.default_rng(m * k * n)
    info = np.iinfo(dtype)
    a = rng.integers(info.min, info.max, (m, k), dtype, endpoint=True)
    b = rng.integers(-128, 127, (k, n), np.int8, endpoint=True)
    np.testing.assert_array_equal(product(a, b, device), a.astype(np.int64) @ b.astype(np.int64))


@pytest.mark.parametrize("m, k, n", [(0, 3, 2), (2, 0, 3), (2, 3, 0), (0, 0, 0)])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_zero_sizes(m, k, n, dtype):
    np.testing.assert_array_equal(product(np.ones((m, k), dtype), np.ones((k, n), np.int8)), np.full((m, n), k))


@pytest.mark.parametrize("dtype, value", [(np.uint8, 255), (np.int8, -128)])
def test_extremes_at_the_largest_k(dtype, value):
    from minquant.kernels import max_k

    k = max_k(dtype)
    acc = product(np.full((1, k), value, dtype), np.full((k, 1), -128, np.int8))
    assert acc.item() == value * -128 * k


def test_what_reaches_cublaslt_obeys_its_rules(monkeypatch):
    """Rows of the left and columns of the right operand, without gaps, in the sizes that it takes, aligned."""
    seen = []
    real = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: seen.append((a, b)) or real(a, b))
    for shape in [(1, 1, 1), (3, 5, 7), (16, 8, 8), (17, 8, 8), (40, 24, 16), (0, 0, 0), (33, 9, 1)]:
        m, k, n = shape
        for layout in ("plain", "transposed", "sliced"):
            product(np.ones((m, k), np.uint8), np.ones((k, n), np.int8), "cpu", layout)
        product(np.ones((32, 16), np.int8), np.ones((16, 16), np.int8), "cpu", "offset")
    assert len(seen) == 28
    for a, b in seen:
        assert a.dtype == b.dtype == torch.int8
        assert a.is_contiguous() and b.T.is_contiguous()
        assert a.data_ptr() % 16 == b.data_ptr() % 16 == 0
        assert len(a) >= 32 and min(a.shape[1], b.shape[1]) > 0 and a.shape[1] % 16 == b.shape[1] % 16 == 0


def test_a_weight_that_fits_is_not_copied():
    weight = torch.zeros(16, 32, dtype=torch.int8)
    assert cuda.columns_of(weight.T).values.data_ptr() == weight.data_ptr()


# ---- zero points, packed integers ------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_accumulates_as_the_cpu_does(data):
    m, k, n = (data.draw(st.integers(0, 20)) for _ in range(3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    info = np.iinfo(data.draw(st.sampled_from([np.int8, np.uint8])))
    qx = rng.integers(info.min, info.max, (m, k), info.dtype, endpoint=True)
    qw = rng.integers(-128, 127, (n, k), np.int8, endpoint=True)
    by_row, by_column = data.draw(st.booleans()), data.draw(st.booleans())
    zx = rng.integers(info.min, info.max, (m, 1) if by_row else (), np.int32, endpoint=True)
    zw = rng.integers(-128, 127, n if by_column else (), np.int32, endpoint=True)
    as_given = torch.tensor(zx) if by_row else int(zx), torch.tensor(zw) if by_column else int(zw)
    acc, shift = cuda.sums(torch.tensor(qx), as_given[0], cuda.columns_of(torch.tensor(qw).T), as_given[1])
    assert shift is None or shift.shape == (n,)
    found = acc if shift is None else acc - shift
    np.testing.assert_array_equal(found.numpy(), accumulate(qx, np.asarray(zx), qw, np.asarray(zw)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (8, 9), (7, 16)])
def test_unpacks_what_the_cpu_packs(device, bits, signed, shape):
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    integers = np.random.default_rng(bits).integers(low, high, shape, endpoint=True)
    packed = pack_bits(integers, bits)
    found = cuda.unpack_bits(torch.tensor(packed, device=device), bits, signed, shape).cpu().numpy()
    expected = unpack_bits(packed, bits, signed, shape)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


# ---- as a backend ----------------------------------------------------------------------------------------------------


@pytest.fixture
def a_gpu_that_is_none(monkeypatch):
    """All of the backend but the device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    tensor = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda x, device: tensor(x))


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[::-1, ::-1], lambda x: np.asfortranarray(x)])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_numpy_in_and_out(a_gpu_that_is_none, dtype, view):
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 128, (5, 11)).astype(dtype), rng.integers(-128, 128, (11, 3)).astype(np.int8)
    a, b = view(a), view(b)
    b.flags.writeable = False
    acc = int8_matmul(a, b, "cuda")
    assert acc.dtype == np.int32 and acc.flags.c_contiguous
    np.testing.assert_array_equal(acc, int8_matmul(a, b, "numpy"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_equals_the_specification_on_the_gpu():
    rng = np.random.default_rng(2)
    for m, k, n in [(1, 1, 1), (255, 1023, 513), (64, 4096, 4096)]:
        a, b = rng.integers(0, 256, (m, k)).astype(np.uint8), rng.integers(-128, 128, (k, n)).astype(np.int8)
        np.testing.assert_array_equal(int8_matmul(a, b, "cuda"), int8_matmul(a, b, "numpy"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_it_says_so(monkeypatch):
    a, b = np.ones((2, 3), np.int8), np.ones((3, 2), np.int8)
    with pytest.raises(RuntimeError, match=r"no CUDA device \(torch .*\)\. .*or ask for the CPU: backend='numba'"):
        int8_matmul(a, b, "cuda")
    monkeypatch.setenv("MINQUANT_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="no CUDA device"):
        int8_matmul(a, b)


def test_without_torch_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RuntimeError, match=r"needs torch: pip install 'minquant\[torch\]'"):
        int8_matmul(np.ones((2, 3), np.int8), np.ones((3, 2), np.int8), "cuda")


def test_the_errors_of_every_backend_come_first():
    with pytest.raises(TypeError, match="a must be int8 or uint8"):
        int8_matmul(np.ones((2, 3), np.int32), np.ones((3, 2), np.int8), "cuda")


def test_auto_never_chooses_it_and_loads_no_torch():
    code = (
        "import sys, numpy as np; from minquant.kernels import int8_matmul; "
        "int8_matmul(np.ones((2, 3), np.int8), np.ones((3, 2), np.int8)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
