"""The instructions behind the integer product: each that the processor has is exact, and the others are emitted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from minquant.kernels import cpu, int8_matmul, isa, simd, threads
from minquant.kernels.packing import enter, pack

ROOT = Path(__file__).parents[2]
HERE = [kind.name for kind in isa.available()]
RNG = np.random.default_rng(0)


@pytest.fixture
def force(monkeypatch):
    return lambda name: monkeypatch.setenv("MINQUANT_ISA", name)


def operands(m, k, n, dtype):
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max, (m, k), dtype, endpoint=True), RNG.integers(-128, 128, (k, n)).astype(
        np.int8
    )


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (127, 129, 131), (255, 1023, 513), (16, 4096, 40), (6, 4, 64)])
def test_every_instruction_is_exact(force, name, dtype, shape):
    force(name)
    a, b = operands(*shape, dtype)
    expected = a.astype(np.int64) @ b.astype(np.int64)
    np.testing.assert_array_equal(cpu.matmul(a, b), expected)
    np.testing.assert_array_equal(cpu.matmul(a, cpu.pack_weight(b)), expected)


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("ends", [(255, -128), (255, 127), (0, -128)])
def test_no_sum_of_products_saturates(force, name, ends):
    """Where int16 sums of pairs would: the ends of both types, side by side."""
    force(name)
    a, b = np.full((7, 64), ends[0], np.uint8), np.full((64, 33), ends[1], np.int8)
    assert (cpu.matmul(a, b) == 64 * ends[0] * ends[1]).all()
    assert (cpu.matmul(a.view(np.int8), b) == 64 * int(np.uint8(ends[0]).view(np.int8)) * ends[1]).all()


def test_the_result_does_not_depend_on_the_threads(monkeypatch):
    a, b = operands(70, 301, 519, np.uint8)
    results = []
    for count in (1, 2, 3, 7):
        monkeypatch.setenv("MINQUANT_NUM_THREADS", str(count))
        monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
        results.append(cpu.matmul(a, b))
    assert all(np.array_equal(result, results[0]) for result in results)


def test_panels_by_hand():
    """Two values of K side by side, columns next to one another, zeros where nothing is."""
    avx2 = next(kind for kind in isa.ISAS if kind.name == "avx2")
    packed = pack(np.array([[1, 2], [3, 4], [5, 6]], np.int8), avx2)
    assert packed.panels.shape == (1, 2, 16, 2)
    assert packed.panels[0, :, :3].tolist() == [[[1, 3], [2, 4], [0, 0]], [[5, 0], [6, 0], [0, 0]]]
    assert packed.sums.tolist() == [9, 12] + [0] * 14


@pytest.mark.parametrize(
    ("name", "dtype", "entered", "shift"),
    [("avx512vnni", np.uint8, 200, 0), ("avx512vnni", np.int8, 72, 128), ("neon", np.uint8, 72, -128),
     ("neon", np.int8, -56, 0), ("avx2", np.uint8, 200, 0), ("avx2", np.int8, -56, 0)],
)  # fmt: skip
def test_operands_of_another_sign_are_shifted(name, dtype, entered, shift):
    """The byte 200, that is -56 as int8."""
    kind = next(kind for kind in isa.ISAS if kind.name == name)
    a, s = enter(np.array([[200]], np.uint8).view(dtype), kind, 1)
    assert (a[0, 0], s, a.dtype) == (entered, shift, kind.operand_dtype)
    assert a.shape[1] >= kind.group and not a[0, 1 : kind.group].any()


def test_tiles_are_as_high_as_pays():
    assert [cpu.tile_rows(m, 6) for m in (1, 2, 5, 6, 7, 16, 1024)] == [1, 2, 5, 6, 4, 4, 6]


# ---- what the processor at hand lacks --------------------------------------------------------------------------------

TARGETS = {
    "avx512vnni": ("x86_64-unknown-linux-gnu", "+avx512f,+avx512vnni", "vpdpbusd"),
    "avxvnni": ("x86_64-unknown-linux-gnu", "+avx2,+avxvnni", "vpdpbusd"),
    "avx2": ("x86_64-unknown-linux-gnu", "+avx2", "vpmaddwd"),
    "neon": ("aarch64-unknown-linux-gnu", "+neon,+dotprod", "sdot"),
}


def assembly_of_dot(name: str) -> str:
    """One multiply-add of registers, for a processor that has the instruction."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    kind = next(kind for kind in isa.ISAS if kind.name == name)
    triple, features, _ = TARGETS[name]
    module = ir.Module()
    module.triple = triple
    vector = ir.VectorType(ir.IntType(32), kind.lanes)
    right = ir.VectorType(ir.IntType(16), 2 * kind.lanes) if name == "avx2" else vector
    function = ir.Function(module, ir.FunctionType(vector, [vector, vector, right]), "dot")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(simd.DOT[name](builder, kind, *function.args))
    machine = llvm.Target.from_triple(triple).create_target_machine(features=features, opt=3)
    return machine.emit_assembly(llvm.parse_assembly(str(module)))


@pytest.mark.parametrize("name", TARGETS)
def test_the_emitted_assembly_holds_the_instruction(name):
    words = assembly_of_dot(name).split()
    assert words.count(TARGETS[name][2]) == 1
    assert not {"vpmaddubsw", "callq", "bl"} & set(words)  # nothing that saturates, nothing done elsewhere


# ---- guard pages -----------------------------------------------------------------------------------------------------


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True,
                          text=True, check=False)  # fmt: skip


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect as Linux has it")
@pytest.mark.parametrize("name", HERE)
def test_no_kernel_touches_a_byte_beside_its_arrays(name):
    done = run("-m", "tests.kernels.sweep", "--seconds", "6", MINQUANT_ISA=name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{name}: ") and int(done.stdout.split()[1].replace(",", "")) > 500


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect as Linux has it")
@pytest.mark.parametrize("name", ["avx512vnni", "avxvnni", "neon"])
def test_kernels_of_other_processors_with_their_instruction_emulated(name, tmp_path):
    done = run("-m", "tests.kernels.sweep", "--seconds", "4", "--emulate", name, NUMBA_CACHE_DIR=str(tmp_path),
               MINQUANT_ISA="")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{name}: ") and int(done.stdout.split()[1].replace(",", "")) > 100


ONE_BYTE_TOO_FAR = """
import ctypes, numpy as np
from tests.kernels.sweep import Guarded
array = Guarded().array(({size},), np.uint8)
ctypes.c_ubyte.from_address(array.ctypes.data + {offset}).value
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect as Linux has it")
def test_the_guard_pages_are_there():
    assert run("-c", ONE_BYTE_TOO_FAR.format(size=100, offset=99)).returncode == 0
    assert run("-c", ONE_BYTE_TOO_FAR.format(size=100, offset=100)).returncode < 0
    assert run("-c", ONE_BYTE_TOO_FAR.format(size=4096, offset=-1)).returncode < 0


# ---- choosing --------------------------------------------------------------------------------------------------------


def test_the_best_is_chosen_and_another_can_be_forced(force, monkeypatch):
    monkeypatch.delenv("MINQUANT_ISA", raising=False)
    assert isa.chosen() is isa.available()[0]
    force("plain")
    assert isa.chosen().name == "plain"
    assert int8_matmul(np.ones((2, 3), np.uint8), np.ones((3, 2), np.int8), "numba").tolist() == [[3, 3], [3, 3]]


def test_what_cannot_be_chosen(force, monkeypatch):
    force("sse2")
    with pytest.raises(ValueError, match="MINQUANT_ISA=sse2 does not exist; choose one of avx512vnni, avxvnni, avx2"):
        isa.chosen()
    monkeypatch.setattr(isa, "available", lambda: isa.ISAS[-1:])
    force("avx2")
    with pytest.raises(ValueError, match="MINQUANT_ISA=avx2: this processor does not have it; it has plain"):
        isa.chosen()
    monkeypatch.setenv("MINQUANT_NUM_THREADS", "none")
    with pytest.raises(ValueError, match="MINQUANT_NUM_THREADS must be a positive integer, got 'none'"):
        threads.thread_count()


FORKED = """
import os, sys
import numpy as np
from minquant.kernels import cpu, threads
threads.WORTH_A_THREAD = 1
a, b = np.ones((70, 64), np.uint8), np.ones((64, 200), np.int8)
assert (cpu.matmul(a, b) == 64).all()
child = os.fork()
if not child:
    os._exit(0 if (cpu.matmul(a, b) == 64).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_threads_of_its_own():
    done = subprocess.run([sys.executable, "-c", FORKED], cwd=ROOT, env=os.environ | {"MINQUANT_NUM_THREADS": "2"},
                          timeout=60, check=False)  # fmt: skip
    assert done.returncode == 0
