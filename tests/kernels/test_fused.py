"""The fused product is the epilogue of the integer product, bit for bit, in every dialect."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minquant.kernels import fused, pack_weight, reference
from minquant.kernels.isa import chosen
from minquant.quant import QParams, QSpec
from minquant.quant.dialects import get_dialect, onednn_avx2
from minquant.quant.dialects.base import codes_on

pytestmark = pytest.mark.skipif(chosen().name == "plain", reason="there is nothing to pack for")

ROOT = Path(__file__).parents[2]
UINT8 = QSpec(signed=False)
ENGINES = ("reference", "fbgemm", "qnnpack", "onednn", "onednn_avx2", "onnx", "onnxruntime")


def operands(M, K, N, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, (M, K), np.uint8)
    b = rng.integers(-128, 128, (K, N), np.int8)
    return a, b, rng


def scales(rng, N, per_channel):
    w_scale = (rng.random(N) * 0.01 + 1e-4).astype(np.float32)
    return np.asarray(np.float32(0.02)), w_scale if per_channel else np.asarray(w_scale[:1].reshape(()))


def epilogues(engine, rng, N, per_channel, relu):
    dialect, bias = get_dialect(engine), rng.standard_normal(N).astype(np.float32)
    grids = scales(rng, N, per_channel)
    yield dialect.to_real(*grids, bias, relu)
    yield dialect.to_codes(*grids, bias, QParams(np.float32(0.05), np.int32(120), UINT8), relu)


def expected(a, zero_point, b, epilogue):
    return epilogue(reference.matmul(a, b) - np.int32(zero_point) * b.sum(axis=0, dtype=np.int32))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_every_dialect(engine, per_channel, relu):
    for M, K, N in ((1, 30, 17), (250, 9, 70), (97, 64, 700)):
        a, b, rng = operands(M, K, N)
        for epilogue in epilogues(engine, rng, N, per_channel, relu):
            found = fused.product(a, 128, pack_weight(b, "numba"), epilogue)
            wanted = expected(a, 128, b, epilogue)
            assert found.dtype == wanted.dtype and np.array_equal(found, wanted)


def test_torchao_and_onednns_division():
    a, b, rng = operands(40, 33, 20)
    bias = rng.standard_normal(20).astype(np.float32)
    to_real = get_dialect("torchao").to_real(*scales(rng, 20, True), bias)
    output = QParams(np.float32(0.05), np.int32(120), UINT8)
    terms = np.float32(0.02), np.float32(0.003), bias, output.scale
    divided = codes_on(output, False, onednn_avx2.divided_codes, terms, np.float32(120))
    for epilogue in (to_real, divided):
        assert np.array_equal(fused.finish(reference.matmul(a, b), epilogue), epilogue(reference.matmul(a, b)))


@given(st.integers(0, 220), st.integers(0, 40), st.integers(0, 900), st.integers(0, 255), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_shape(M, K, N, zero_point, signed):
    a, b, rng = operands(M, K, N, seed=M + K + N)
    a = a.view(np.int8) if signed else a
    for epilogue in epilogues("reference", rng, N, True, True):
        found = fused.product(a, zero_point, pack_weight(b, "numba"), epilogue)
        assert np.array_equal(found, expected(a, zero_point, b, epilogue))


def test_one_scale_a_row():
    a, b, rng = operands(300, 20, 500)
    x_scale = (rng.random((300, 1)) + 0.1).astype(np.float32)
    to_real = get_dialect("reference").to_real(x_scale, scales(rng, 500, True)[1], np.zeros(500, np.float32))
    assert np.array_equal(fused.product(a, 0, pack_weight(b, "numba"), to_real), expected(a, 0, b, to_real))


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_threads_do_not_matter(threads, monkeypatch):
    monkeypatch.setenv("MINQUANT_NUM_THREADS", threads)
    a, b, rng = operands(700, 64, 300)
    for epilogue in epilogues("fbgemm", rng, 300, True, True):
        found = fused.product(a, 3, pack_weight(b, "numba"), epilogue)
        assert np.array_equal(found, expected(a, 3, b, epilogue))


@pytest.mark.parametrize("engine", ENGINES)
def test_sums_at_the_ends_of_int32(engine):
    """Codes far beyond int16 and int32, infinite ones among them, saturate alike in NumPy and in the kernel."""
    acc = np.array([[2**31 - 1, -(2**31), 2**24 + 1, -(2**24) - 1, 0]], np.int32)
    bias = np.array([0, 0, 1e30, -1e30, 3e38], np.float32)
    for scale in (np.float32(2.0**-100), np.float32(1), np.float32(2.0**90)):
        output = QParams(np.float32(1e-5), np.int32(7), UINT8)
        with np.errstate(over="ignore"):
            to_codes = get_dialect(engine).to_codes(np.asarray(scale), np.ones(5, np.float32), bias, output, False)
        assert np.array_equal(fused.finish(acc, to_codes), to_codes(acc))


# ---- guard pages -----------------------------------------------------------------------------------------------------


def swept(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.kernels.sweep_fused", *arguments]
    kernels = os.environ | {"MINQUANT_BACKEND": ""} | environment
    return subprocess.run(command, cwd=ROOT, env=kernels, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect as Linux has it")
def test_nothing_is_touched_beside_the_arrays():
    done = swept("--seconds", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{chosen().name}: ") and int(done.stdout.split()[1].replace(",", "")) > 200


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect as Linux has it")
def test_nor_with_the_instruction_of_another_processor(tmp_path):
    done = swept("--seconds", "2", "--emulate", "avx512vnni", NUMBA_CACHE_DIR=str(tmp_path), MINQUANT_ISA="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("avx512vnni: ") and int(done.stdout.split()[1].replace(",", "")) > 20
