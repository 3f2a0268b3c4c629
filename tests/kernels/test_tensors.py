"""A dialect's arithmetic on torch's tensors, and rewritten for Triton, is NumPy's, bit for bit."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from minquant.interop.torch_modules import quantizing, sums
from minquant.kernels import tensors, triton_elements
from minquant.kernels.fma import fma
from minquant.quant.dialects import fbgemm, onednn, onednn_avx2, onnx, qnnpack, reference, torch_pooling

F32 = np.float32
FUNCTIONS = {
    reference.real: 3, fbgemm.real: 3, onednn.real: 3,
    reference.codes: 5, fbgemm.codes: 5, fbgemm.codes_of_one_scale: 5, onednn.codes: 5, onednn_avx2.codes: 5,
    onednn_avx2.divided_codes: 5, qnnpack.codes: 5, onnx.codes_in_double: 5, onnx.codes_in_single: 5,
    quantizing.plain_code: 3, quantizing.fused_code: 3, quantizing.onednn_code: 3, quantizing.divided_code: 3,
    sums.added: 3, torch_pooling.code_left_over: 2, torch_pooling.code_in_vectors: 2,
    torch_pooling.adaptive_code_in_vectors: 2,
}  # fmt: skip
"""What runs on tensors, and how many terms each has."""
TAKES_REAL = {f for f in FUNCTIONS if f.__module__.endswith(("quantizing", "torch_pooling"))}
INTEGER_BIAS = {qnnpack.codes, onnx.codes_in_double, onnx.codes_in_single}
named = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f"{f.__module__.split('.')[-1]}.{f.__name__}")


def operands(function, rng):
    """Sums and terms of all sizes, with ties: half of the scales are powers of two."""
    rows, columns = int(rng.integers(1, 40)), int(rng.integers(1, 70))
    acc = np.int32(np.clip(rng.normal(size=(rows, columns)) * 2.0 ** rng.integers(0, 33), -(2**31), 2**31 - 1))
    values = acc.astype(F32) * F32(2.0 ** rng.integers(-40, 1)) if function in TAKES_REAL else acc
    terms = []
    for i in range(FUNCTIONS[function]):
        shape = [(), (columns,), (rows, 1)][rng.integers(3 if i == 0 else 2)]
        exponent = rng.integers(-20, 4, shape)
        terms.append((2.0**exponent if rng.random() < 0.5 else rng.uniform(0.5, 1, shape) * 2.0**exponent).astype(F32))
    if function in INTEGER_BIAS:
        terms[0] = rng.integers(-(2**20), 2**20, columns).astype(np.int32)
    if FUNCTIONS[function] in (2, 5):
        terms[-1] = np.asarray(rng.integers(0, 256), np.float64 if "double" in function.__name__ else F32)
    if "double" in function.__name__:
        terms[1] = terms[1].astype(np.float64)
    return values, terms


def assert_same(found, wanted):
    wanted = np.asarray(wanted)
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(found, wanted.astype(found.dtype))


@named
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_tensors_compute_what_numpy_computes(function, seed):
    values, terms = operands(function, np.random.default_rng(seed))
    found = tensors.in_torch(function)(torch.tensor(values), *map(torch.tensor, terms))
    assert found.dtype == getattr(torch, str(function(values, *terms).dtype))
    assert_same(found.numpy(), function(values, *terms))


@named
def test_clipped_and_narrowed(function):
    values, terms = operands(function, np.random.default_rng(0))
    found = tensors.apply(function, torch.tensor(values), [torch.tensor(t) for t in terms], torch.uint8, 3, 250)
    assert found.dtype == torch.uint8
    assert_same(found.numpy(), np.clip(function(values, *terms), 3, 250).astype(np.uint8))
    shift, given = torch.tensor(values[0]), [torch.tensor(t) for t in terms]
    found = tensors.apply(function, torch.tensor(values), given, torch.float64, shift=shift)
    assert_same(found.numpy(), function(values - values[0], *terms))


def numbers():
    return st.one_of(st.floats(width=32, allow_nan=False), st.integers(-(2**24), 2**24).map(float))


@settings(max_examples=500, deadline=None)
@given(numbers(), numbers(), numbers())
def test_fma_rounds_once(a, b, c):
    wanted = fma(F32(a), F32(b), F32(c))
    found = tensors.fma(*(torch.tensor(F32(v)) for v in (a, b, c))).numpy()
    np.testing.assert_array_equal(found.view(np.int32), wanted.view(np.int32))


def test_fma_where_two_roundings_would_be_wrong():
    """Odd products of 25 bits lie in the middle of two float32 numbers; what is added is too little for float64."""
    rng = np.random.default_rng(1)
    a, b = (2 * rng.integers(2**11, 2**12, 20_000).astype(F32) + 1 for _ in range(2))
    c = (rng.choice([-1, 1], 20_000) * 2.0 ** rng.integers(-60, -30, 20_000)).astype(F32)
    wanted = fma(a, b, c)
    assert (wanted != (a.astype(np.float64) * b + c).astype(F32)).any()
    np.testing.assert_array_equal(tensors.fma(*map(torch.tensor, (a, b, c))).numpy(), wanted)


def test_words_that_torch_has_no_counterpart_of_are_errors():
    def foreign(x):
        return np.cbrt(x)

    with pytest.raises(AttributeError, match="cbrt"):
        tensors.in_torch(foreign)(torch.ones(2))
    with pytest.raises(TypeError, match=r"np.cbrt\(x\): a dialect's arithmetic must be written in rint, tl.where"):
        triton_elements.source(foreign, 0)


# ---- Triton ----------------------------------------------------------------------------------------------------------

IN_NUMPY = SimpleNamespace(
    cast=lambda x, dtype: dtype(x), float32=F32, float64=np.float64, int32=np.int32, where=np.where, abs=np.abs,
    minimum=np.minimum, maximum=np.maximum, fma=fma, div_rn=np.divide,
)  # fmt: skip
"""Triton's words in NumPy."""


@named
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_is_rewritten_for_triton_is_the_same(function, seed):
    """The text, without its kernel, run on arrays."""
    values, terms = operands(function, np.random.default_rng(seed))
    text = triton_elements.source(function, len(terms)).split("\n\n\n@triton.jit\ndef kernel(")[0]
    scope = {"triton": SimpleNamespace(jit=lambda f: f), "tl": IN_NUMPY}
    exec("\n".join(line for line in text.splitlines() if not line.startswith("import")), scope)
    rewritten = list(scope.values())[-1]
    assert_same(np.asarray(rewritten(values, *terms)), function(values, *terms))


@named
def test_no_quotient_is_left_to_tritons_own_division(function):
    assert " / " not in triton_elements.source(function, FUNCTIONS[function])


ELEMENTS = """
import numpy as np, torch
from minquant.kernels import triton_elements
from tests.kernels.test_tensors import FUNCTIONS, assert_same, operands
for function in FUNCTIONS:
    for seed in range(3):
        values, terms = operands(function, np.random.default_rng(seed))
        given = torch.tensor(values), [torch.tensor(t) for t in terms]
        real = triton_elements.run(function, *given, torch.float64, None, None, None)
        assert_same(real.numpy(), function(values, *terms))
        shift = torch.tensor(values[0])
        real = triton_elements.run(function, *given, torch.float64, None, None, shift)
        assert_same(real.numpy(), function(values - values[0], *terms))
        codes = triton_elements.run(function, *given, torch.uint8, 3, 250, None)
        assert_same(codes.numpy(), np.clip(function(values, *terms), 3, 250).astype(np.uint8))
"""


GROUPS = """
import itertools, numpy as np, torch
from minquant.interop.torch_modules.quantized import Weight
from minquant.interop.torch_modules.sums import in_triton
from minquant.quant import PerGroup, QParams, QSpec, QTensor
from minquant.quant.dialects import get_dialect
rng = np.random.default_rng(0)
for bits, size, (M, G, N), by_row, dtype in itertools.product(
    (2, 4, 8), (32, 64), ((1, 2, 70), (17, 3, 64), (33, 1, 5)), (False, True), (np.int8, np.uint8)
):
    spec, info = QSpec(bits, symmetric=True, granularity=PerGroup(size)), np.iinfo(dtype)
    of_rows = (M, 1) if by_row else ()
    qw = rng.integers(spec.qmin, spec.qmax, (N, G * size), np.int8, endpoint=True)
    grid = QParams(rng.uniform(1e-3, 1e-2, (N, G)).astype(np.float32), np.zeros((N, G), np.int32), spec)
    qx = rng.integers(info.min, info.max, (M, G * size), dtype, endpoint=True)
    zx = rng.integers(info.min, info.max, of_rows, np.int32, endpoint=True)
    x_scale = rng.uniform(1e-3, 1e-2, of_rows).astype(np.float32)
    wanted = get_dialect("reference").real_output(qx, x_scale, np.asarray(zx), qw, grid, np.zeros(N, np.float32))
    weight, given = Weight(QTensor(qw, grid)), torch.tensor(zx) if by_row else int(zx)
    found = in_triton(torch.tensor(qx), given, weight, torch.tensor(x_scale)).numpy()
    np.testing.assert_array_equal(found, wanted)
"""


TOKENS = """
import numpy as np, pytest, torch
from minquant.interop.torch_modules import quantizing
from minquant.quant import PerToken, QSpec
from minquant.quant.dialects import get_dialect
rng = np.random.default_rng(0)
for name in ("reference", "torchao"):
    for bits in (8, 4):
        spec = QSpec(bits, symmetric=True, granularity=PerToken())
        for R, K in ((1, 1), (7, 70), (33, 1000), (0, 5), (3, 4096)):
            x = (rng.normal(size=(R, K)) * 10.0 ** rng.integers(-8, 8, (R, 1))).astype(np.float32)
            x[1:2] = 0
            x[2:3] = np.rint(x[2:3]) / 2  # ties
            assert quantizing.is_in_triton(get_dialect(name), torch.tensor(x), spec)
            wanted, found = get_dialect(name).quantize_at_run_time(x, spec), quantizing.in_triton(torch.tensor(x), spec)
            for a, b in zip(found, wanted):
                np.testing.assert_array_equal(np.asarray(a), b)
            quantizing.refuse_not_finite(found[1], "a layer")
for bad in (np.nan, np.inf, -np.inf):
    x = np.ones((3, 9), np.float32)
    x[1, 4] = bad
    scale = quantizing.in_triton(torch.tensor(x), spec)[1]
    assert scale.isnan().tolist() == [[False], [True], [False]]
    with pytest.raises(ValueError, match="the input of a layer holds NaN or infinity"):
        quantizing.refuse_not_finite(scale, "a layer")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("program", [ELEMENTS, GROUPS, TOKENS], ids=["elements", "groups", "tokens"])
def test_the_kernels_in_tritons_interpreter(program):
    """Loads, stores, strides and edges, without a GPU."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], env=os.environ | {"TRITON_INTERPRET": "1"},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
