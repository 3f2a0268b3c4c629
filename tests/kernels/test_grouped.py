"""Weights with a scale for each group: one pass of packed codes equals the arithmetic group by group, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from minquant.kernels import isa, kept, simd_bits, threads
from minquant.kernels.grouped import grouped_linear
from minquant.kernels.grouped_packing import pack_codes
from minquant.kernels.packed import GroupedWeight
from minquant.quant import DynamicQuantizedLinear, PerGroup, PerTensor, PerToken, QParams, QSpec, QTensor
from minquant.quant.dialects.reference import scaled
from minquant.quant.grouped import by_groups, grouped_output, weight_of_qtensor
from tests.kernels.sweep import Guarded
from tests.kernels.sweep_grouped import exact, product

ROOT = Path(__file__).parents[2]
HERE = [kind.name for kind in isa.available()]
F32 = np.float32


@pytest.fixture
def force(monkeypatch):
    return lambda name: monkeypatch.setenv("MINQUANT_ISA", name)


def weight_of(qw: np.ndarray, scale, zero_point, size: int, bits: int, signed: bool = True) -> GroupedWeight:
    groups = (len(qw), qw.shape[1] // size)
    terms = np.full(groups, scale, F32), np.full(groups, zero_point, np.int32)
    return GroupedWeight(qw, lambda: qw, *terms, size, bits, signed)


# ---- bit-equality ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 40, 3, 32), (4, 33, 2, 20), (7, 17, 5, 7), (255, 70, 3, 128)])
def test_equals_group_by_group(force, name, bits, shape):
    force(name)
    rng = np.random.default_rng([bits, *shape])
    for _ in range(4):
        arguments = product(rng, shape, bits, Guarded())
        got = grouped_linear(*arguments, scaled)
        np.testing.assert_array_equal(got, exact(*arguments))
        np.testing.assert_array_equal(by_groups(*arguments, scaled), got)


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("x", [(0, 255), (255, 0), (255, 255), (0, 128)])
def test_nothing_saturates_at_the_ends(force, name, bits, x):
    """The largest differences of both sides, all of one sign, over a group of 4096."""
    force(name)
    value, zx = x
    for w, zw in ((-(1 << (bits - 1)), (1 << (bits - 1)) - 1), ((1 << (bits - 1)) - 1, -(1 << (bits - 1)))):
        weight = weight_of(np.full((17, 4096), w, np.int8), 1, zw, 4096, bits)
        got = grouped_linear(
            np.full((1, 4096), value, np.uint8), F32(1), np.int32(zx), weight, np.zeros(17, F32), scaled
        )
        assert (got == F32(4096 * (value - zx) * (w - zw))).all()


@pytest.mark.parametrize(("terms", "total"), [([2.0**24, 1, -(2.0**24)], 0), ([-(2.0**24), 2.0**24, 1], 1)])
def test_groups_are_added_in_ascending_order(terms, total):
    """2²⁴ + 1 is 2²⁴ in float32."""
    weight = weight_of(np.sign([terms]).astype(np.int8), 1, 0, 1, 4)
    weight = replace(weight, scale=np.abs([terms]).astype(F32))
    assert grouped_linear(np.ones((1, 3), np.int8), F32(1), np.int32(0), weight, np.zeros(1, F32), scaled) == total


def test_no_multiply_add_is_fused():
    """f(3·f(1/3)) - 1: 0 if the product is rounded before the sum."""
    third = F32(1) / F32(3)
    weight = weight_of(np.array([[1, 3]], np.int8), 1, 0, 1, 4)
    weight = replace(weight, scale=np.array([[-1, third]], F32))
    got = grouped_linear(np.ones((1, 2), np.int8), F32(1), np.int32(0), weight, np.zeros(1, F32), scaled)
    assert got == 0 and float(third) * 3 != 1


def test_the_result_does_not_depend_on_the_threads(monkeypatch):
    arguments = product(np.random.default_rng(0), (5, 300, 4, 32), 4, Guarded())
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    results = []
    for count in (1, 2, 3, 7):
        monkeypatch.setenv("MINQUANT_NUM_THREADS", str(count))
        results.append(grouped_linear(*arguments, scaled))
    assert all(np.array_equal(result, results[0]) for result in results)


# ---- the layout ------------------------------------------------------------------------------------------------------


def test_words_by_hand():
    """Codes 0…7 of four bits: 0…3 in the low halves of the bytes, 4…7 in the high ones."""
    avx2 = next(kind for kind in isa.ISAS if kind.name == "avx2")
    qw = np.array([[-8, -7, -6, -5, -4, -3, -2, -1, 7]], np.int8)  # codes 0 … 7, and 15 in a word of its own
    words, sums = pack_codes(weight_of(qw, 1, 0, 9, 4), avx2)
    assert words.shape == (1, 1, 2, 16) and sums.shape == (1, 1, 16)
    assert [hex(word) for word in words[0, 0, :, 0]] == ["0x73625140", "0xf"] and sums[0, 0, 0] == 28 + 15
    assert not words[..., 1:].any()
    words, _ = pack_codes(weight_of(np.array([[-2, -1, 0, 1, 1]], np.int8), 1, 0, 5, 2), avx2)
    assert hex(words[0, 0, 0, 0]) == hex(0x03020100 | 3 << 2)


@pytest.mark.parametrize(("bits", "stored"), [(2, 2), (3, 4), (4, 4), (5, 8), (8, 8)])
def test_codes_stay_packed(bits, stored):
    weight = weight_of(np.zeros((64, 256), np.int8), 1, 0, 32, bits)
    words, _ = pack_codes(weight, isa.ISAS[0])
    assert words.nbytes == 64 * 256 * stored // 8


# ---- layers ----------------------------------------------------------------------------------------------------------


def layer(spec: QSpec, input_spec: QSpec) -> DynamicQuantizedLinear:
    rng = np.random.default_rng(0)
    integers = rng.integers(spec.qmin, spec.qmax, (50, 96), np.int8, endpoint=True)
    zero_point = np.zeros((50, 3), np.int32) if spec.symmetric else rng.integers(spec.qmin, spec.qmax, (50, 3))
    grid = QParams(rng.uniform(0.01, 0.1, (50, 3)), zero_point, spec)
    return DynamicQuantizedLinear(QTensor(integers, grid), rng.standard_normal(50).astype(F32), input_spec, "reference")


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("of_input", [QSpec(signed=False), QSpec(granularity=PerToken()), QSpec(symmetric=True)])
def test_layers_give_the_same_on_every_backend(monkeypatch, bits, symmetric, of_input):
    linear = layer(QSpec(bits, symmetric=symmetric, granularity=PerGroup(32)), of_input)
    x = np.random.default_rng(1).standard_normal((2, 3, 96)).astype(F32)
    monkeypatch.setenv("MINQUANT_BACKEND", "numpy")
    expected = linear(x).data
    monkeypatch.setenv("MINQUANT_BACKEND", "numba")
    np.testing.assert_array_equal(linear(x).data, expected)


def test_a_layer_unpacks_its_weight_once(monkeypatch):
    linear = layer(QSpec(4, symmetric=True, granularity=PerGroup(32)), QSpec(signed=False, granularity=PerTensor()))
    x = np.ones((1, 96), F32)
    first = linear(x).data
    assert id(linear.weight.storage) in kept._KEPT
    calls = []
    grouped = weight_of_qtensor(linear.weight)
    monkeypatch.setattr("minquant.quant.grouped.unpack_bits", lambda *_: calls.append(1))
    np.testing.assert_array_equal(linear(x).data, first)
    assert not calls and weight_of_qtensor(linear.weight) is grouped


def test_a_group_that_could_overflow_is_refused():
    weight = weight_of(np.zeros((1, 70_000), np.int8), 1, -128, 70_000, 8)
    with pytest.raises(ValueError, match="int32 accumulator could overflow: K = 70000"):
        grouped_output(np.zeros((1, 70_000), np.uint8), F32(1), np.int32(0), weight, np.zeros(1, F32), scaled)


# ---- what the processor at hand lacks --------------------------------------------------------------------------------

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
TARGETS = {
    ("avx512vnni", 4): (X86, "+avx512f,+avx512bw,+avx512vnni", {"vpdpbusd": 2}),
    ("avx512vnni", 2): (X86, "+avx512f,+avx512bw,+avx512vnni", {"vpdpbusd": 4}),
    ("avx512vnni", 8): (X86, "+avx512f,+avx512bw,+avx512vnni", {"vpdpbusd": 1}),
    ("avxvnni", 4): (X86, "+avx2,+avxvnni", {"vpdpbusd": 2}),
    ("avx2", 4): (X86, "+avx2", {"vpmaddubsw": 2, "vpmaddwd": 1, "vpsrlw": 1}),
    ("avx2", 2): (X86, "+avx2", {"vpmaddubsw": 4, "vpmaddwd": 1, "vpsrlw": 3}),
    ("avx2", 8): (X86, "+avx2", {"vpmaddubsw": 0, "vpmaddwd": 2}),
    ("neon", 4): (ARM, "+neon,+dotprod", {"sdot": 2}),
    ("neon", 8): (ARM, "+neon,+dotprod", {"sdot": 1}),
}


def assembly(name: str, bits: int) -> str:
    """A word in each lane of a register times values in others, for a processor that has the instruction."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    kind = next(kind for kind in isa.ISAS if kind.name == name)
    triple, features, _ = TARGETS[name, bits]
    module = ir.Module()
    module.triple = triple
    vector = ir.VectorType(ir.IntType(32), kind.lanes)
    function = ir.Function(module, ir.FunctionType(vector, [vector] * (2 + 8 // bits)), "dots")
    builder = ir.IRBuilder(function.append_basic_block())
    acc, words, *values = function.args
    codes = simd_bits._unpacked(builder, bits, words)
    builder.ret(simd_bits.DOTS.get(name, simd_bits._dots)(builder, kind, bits, acc, values, codes))
    machine = llvm.Target.from_triple(triple).create_target_machine(features=features, opt=3)
    return machine.emit_assembly(llvm.parse_assembly(str(module)))


@pytest.mark.parametrize(("name", "bits"), TARGETS)
def test_the_emitted_assembly_holds_the_instruction(name, bits):
    words = assembly(name, bits).split()
    expected = TARGETS[name, bits][2]
    assert {word: words.count(word) for word in expected} == expected
    assert not {"callq", "bl"} & set(words)


# ---- guard pages -----------------------------------------------------------------------------------------------------


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.kernels.sweep_grouped", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect as Linux has it")
@pytest.mark.parametrize("name", HERE)
def test_no_kernel_touches_a_byte_beside_its_arrays(name):
    done = run("--seconds", "3", "--bits", "4", MINQUANT_ISA=name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{name}: ") and int(done.stdout.split()[1].replace(",", "")) > 100


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect as Linux has it")
@pytest.mark.parametrize(("name", "bits"), [("avx512vnni", "4")])  # the others: the full sweep
def test_kernels_of_other_processors_with_their_instruction_emulated(name, bits, tmp_path):
    done = run("--seconds", "2", "--bits", bits, "--emulate", name, NUMBA_CACHE_DIR=str(tmp_path), MINQUANT_ISA="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{name}: ") and int(done.stdout.split()[1].replace(",", "")) > 50
