"""What Triton makes of its kernels for an NVIDIA GPU of compute capability 9.0: compiled to the end, without a GPU.

Products and sums stay apart, but where the dialect asks for `fma`; quotients are rounded correctly; nothing flushes
small numbers to 0; integers are multiplied by tensor cores.
"""

from __future__ import annotations

import re

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from minquant.kernels import triton_elements, triton_grouped, triton_tokens
from tests.kernels.test_tensors import FUNCTIONS, INTEGER_BIAS, TAKES_REAL, named

EACH = 32 * 64 // (4 * 32)
"""Elements of a thread: of a tile, among four warps."""


def assembly(kernel, types: dict[str, str], constants: dict[str, object]) -> str:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    done = compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
    assert done.asm["cubin"]
    return done.asm["ptx"]


def counts(ptx: str, *instructions: str) -> list[int]:
    return [len(re.findall(rf"\b{re.escape(instruction)}", ptx)) for instruction in instructions]


@named
def test_a_dialects_arithmetic(function):
    terms = FUNCTIONS[function]
    kernel = triton_elements._compiled(function, terms)
    types = {name: "*fp32" if name.endswith("_at") else "i32" for name in kernel.arg_names}
    sums = "*fp32" if function in TAKES_REAL else "*i32"
    types |= {"values": sums, "shift_at": sums, "out": "*u8", "low": "fp32", "high": "fp32"}
    if function in INTEGER_BIAS:
        types["t0_at"] = "*i32"
    if "double" in function.__name__:
        types |= {"t1_at": "*fp64", "t4_at": "*fp64"}
    ptx = assembly(kernel, types, {"SHIFTED": True, "CLIPPED": True, "M": 32, "N": 64})
    text = triton_elements.source(function, terms).split("def multiply_add")[1]
    asked = EACH * text.count("multiply_add("), EACH * text.count("tl.div_rn(")
    assert tuple(counts(ptx, "fma.rn", "div.rn")) == asked
    assert counts(ptx, "fma.rz", "div.full", "div.approx", "mad.f32", "mul.f32", "add.f32") == [0] * 6
    assert ".ftz" not in ptx


@pytest.mark.parametrize("bits, size", [(4, 32), (8, 64), (2, 128), (4, 256)])
def test_weights_with_groups(bits, size):
    kernel = triton_grouped._kernel
    types = dict.fromkeys(kernel.arg_names, "i32") | {
        "qx": "*i8", "packed": "*i8" if bits == 8 else "*u8", "zx": "*i32", "group_sums": "*i32", "x_scale": "*fp32",
        "w_scale": "*fp32", "y": "*fp32",
    }  # fmt: skip
    ptx = assembly(kernel, types, {"BITS": bits, "SIZE": size, "ROWS": 16, "COLUMNS": 64})
    assert re.search(r"mma\.sync\.aligned\.\w+\.row\.col(\.satfinite)?\.s32\.s8\.s8\.s32", ptx)
    assert counts(ptx, "fma.rn.f32", "mul.f32", "add.f32") == [0] * 3 and ".ftz" not in ptx


@pytest.mark.parametrize("block", [64, 16_384])
def test_rows_on_grids_of_their_own(block):
    kernel = triton_tokens._kernel
    types = dict.fromkeys(kernel.arg_names, "fp32") | {"x": "*fp32", "q": "*i8", "scale": "*fp32", "K": "i32"}
    ptx = assembly(kernel, types, {"BLOCK": block})
    divisions, *others = counts(ptx, "div.rn.f32", "fma.rn", "div.full", "div.approx", "mul.f32", "add.f32")
    assert divisions >= 2 and others == [0] * 5 and ".ftz" not in ptx
