"""A dialect's arithmetic as a Triton kernel: the very functions that NumPy runs on arrays, in Triton's language.

Triton reads the source of a kernel. That of a dialect's function is rewritten word by word (``np.rint`` is `rint`,
``np.where`` is ``tl.where`` …), with the functions that it calls, and a kernel put around it which reads a sum,
computes, and writes the result: one pass over memory, whatever the dialect.

Exact means: no product and sum are joined to a multiply-add (``enable_fp_fusion=False``) but where the dialect says
`fma`, and quotients are rounded correctly (``tl.div_rn``; Triton's ``/`` is not).
"""

from __future__ import annotations

import ast
import inspect
import linecache
import textwrap
from collections.abc import Callable, Sequence
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minquant.kernels.fma import fma

__all__ = ["run", "source"]

TILE = 2048
"""Elements of a block."""

HEAD = '''
import triton
import triton.language as tl


@triton.jit
def rint(x):
    """To the nearest integer, ties to even: 2²³ more (2⁵² in float64) leaves no bits behind the point."""
    shift = 8388608.0 if x.dtype == tl.float32 else 4503599627370496.0
    size = tl.abs(x)
    whole = tl.where(size < shift, (size + shift) - shift, size)
    return tl.where(x < 0, -whole, whole)


@triton.jit
def multiply_add(a, b, c):
    """Rounded once."""
    return tl.fma(tl.cast(a, tl.float32), tl.cast(b, tl.float32), tl.cast(c, tl.float32))
'''

KERNEL = """

@triton.jit
def kernel(
    values, out, shift_at, shift_row, shift_column, {pointers}, rows, columns, low, high,
    SHIFTED: tl.constexpr, CLIPPED: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) * M + tl.arange(0, M))[:, None]
    column = (tl.program_id(1).to(tl.int64) * N + tl.arange(0, N))[None, :]
    inside = (row < rows) & (column < columns)
    value = tl.load(values + row * columns + column, mask=inside)
    if SHIFTED:
        value = value - tl.load(shift_at + row * shift_row + column * shift_column, mask=inside)
{loads}
    y = {function}(value, {terms})
    if CLIPPED:
        y = tl.minimum(tl.maximum(y, low), high)
    tl.store(out + row * columns + column, y.to(out.dtype.element_ty), mask=inside)
"""

WORDS: dict[Any, str] = {
    np.rint: "rint",
    np.where: "tl.where",
    np.abs: "tl.abs",
    np.minimum: "tl.minimum",
    np.maximum: "tl.maximum",
    fma: "multiply_add",
}
CASTS: dict[Any, str] = {np.float32: "tl.float32", np.float64: "tl.float64", np.int32: "tl.int32"}


def run(
    function: Callable[..., Any],
    values: Tensor,
    terms: Sequence[Tensor],
    dtype: torch.dtype,
    low: float | None,
    high: float | None,
    shift: Tensor | None,
) -> Tensor:
    """As `minquant.kernels.tensors.apply`."""
    values = values.contiguous()
    out = torch.empty(values.shape, dtype=dtype, device=values.device)
    if not out.numel():
        return out
    rows, columns = values.shape
    N = min(TILE, 1 << (columns - 1).bit_length())  # a power of two, as Triton wants it
    M = TILE // N
    shifted = shift is not None
    read = (shift, *terms) if shifted else (values, *terms)  # values: in the place of nothing, and not read
    places = [part for term in read for part in (term, *term.expand(values.shape).stride())]
    ends = -float("inf") if low is None else float(low), float("inf") if high is None else float(high)
    clipped = low is not None or high is not None
    kernel = _compiled(function, len(terms))[-(-rows // M), -(-columns // N)]
    with torch.cuda.device_of(values):  # Triton runs on the current device
        kernel(values, out, *places, rows, columns, *ends, shifted, clipped, M, N, enable_fp_fusion=False)
    return out


@cache
def _compiled(function: Callable[..., Any], terms: int) -> Any:
    """The kernel; Triton wants its source to be found where Python looks for it."""
    text, name = source(function, terms), f"<minquant {function.__module__}.{function.__name__}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"__name__": "minquant.kernels.triton_elements"}
    exec(compile(text, name, "exec"), scope)
    return scope["kernel"]


def source(function: Callable[..., Any], terms: int) -> str:
    """A module of Triton's around a function of the value and so many terms."""
    written: dict[Any, str] = {}
    name = _write(function, written)
    names = [f"t{i}" for i in range(terms)]
    loads = [f"    {t} = tl.load({t}_at + row * {t}_row + column * {t}_column, mask=inside)" for t in names]
    kernel = KERNEL.format(
        pointers=", ".join(f"{t}_at, {t}_row, {t}_column" for t in names),
        loads="\n".join(loads),
        function=name,
        terms=", ".join(names),
    )
    return HEAD + "".join(written.values()) + kernel


def _write(function: Callable[..., Any], written: dict[Any, str]) -> str:
    """Adds a function to what is written, those that it calls before it; returns its name there."""
    name = "_".join([*function.__module__.split(".")[-1:], function.__name__])
    if function not in written:
        definition: Any = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        definition = _Rewriter(function, written).visit(definition)
        definition.name, definition.returns = name, None
        for argument in definition.args.args:
            argument.annotation = None
        if ast.get_docstring(definition):
            del definition.body[0]
        written[function] = f"\n\n@triton.jit\n{ast.unparse(ast.fix_missing_locations(definition))}\n"
    return name


class _Rewriter(ast.NodeTransformer):
    """NumPy's words, constants and calls in Triton's.

    Raises (while it visits):
        TypeError: a word that it does not know.
    """

    def __init__(self, function: Callable[..., Any], written: dict[Any, str]) -> None:
        self.globals, self.written = function.__globals__, written

    def visit_Call(self, node: ast.Call) -> ast.AST:  # noqa: N802 (ast's name)
        called = eval(ast.unparse(node.func), self.globals)
        arguments: list[Any] = [self.visit(argument) for argument in node.args]
        if called in CASTS:
            return _call("tl.cast", [*arguments, ast.parse(CASTS[called], mode="eval").body])
        if called in WORDS:
            return _call(WORDS[called], arguments)
        if isinstance(called, FunctionType):
            return _call(_write(called, self.written), arguments)
        raise TypeError(f"{ast.unparse(node)}: a dialect's arithmetic must be written in {', '.join(WORDS.values())}")

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:  # noqa: N802
        left, right = self.visit(node.left), self.visit(node.right)
        if isinstance(node.op, ast.Div):
            return _call("tl.div_rn", [left, right])
        return ast.BinOp(left, node.op, right)

    def visit_Name(self, node: ast.Name) -> ast.AST:  # noqa: N802
        value = self.globals.get(node.id)
        return ast.Constant(value.item()) if isinstance(value, np.generic) else node


def _call(function: str, arguments: list[Any]) -> ast.AST:
    return ast.Call(ast.parse(function, mode="eval").body, arguments, [])
