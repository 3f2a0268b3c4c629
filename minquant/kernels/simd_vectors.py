"""Arithmetic on whole vectors: the operators that a dialect's rules are written of, for numbers side by side.

A rule such as ``acc * (x_scale * w_scale) + y``, which NumPy runs on arrays, runs on these in a kernel's registers.
Every operation is IEEE's, rounded by itself: nothing is fused or put into another order.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.extending import models, register_model

from minquant.kernels.isa import ISAS
from minquant.kernels.simd import I16, I32, I64, Int32Vector, _broadcast, _literals, intrinsic

__all__ = ["load_vector", "spread", "store_vector", "to_float32"]

F32 = ir.FloatType()


class Float32Vector(types.Type):
    """A register of float32 numbers."""

    def __init__(self, lanes: int) -> None:
        super().__init__(name=f"float32x{lanes}")
        self.lanes = lanes


@register_model(Float32Vector)
class Float32VectorModel(models.PrimitiveModel):
    """To LLVM, it is a vector."""

    def __init__(self, manager: Any, numba_type: Float32Vector) -> None:
        super().__init__(manager, numba_type, ir.VectorType(F32, numba_type.lanes))


STORED = {types.int16: (I16, Int32Vector), types.int32: (I32, Int32Vector), types.float32: (F32, Float32Vector)}
"""What lies in memory, and the vectors that it is loaded into."""


# ---- memory ----------------------------------------------------------------------------------------------------------


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any, lanes: int, stored: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    place = builder.add(builder.ptrtoint(data, I64), builder.mul(index, ir.Constant(I64, kind.dtype.bitwidth // 8)))
    return builder.inttoptr(place, ir.VectorType(stored, lanes).as_pointer())


@intrinsic
def load_vector(context: Any, isa: Any, array: Any, index: Any) -> Any:
    """``load_vector(isa, array, index)``: as many numbers of a flat array, from `index` on; int16 become int32."""
    if not _literals(isa) or array.dtype not in STORED:
        return None
    lanes, (stored, vector) = ISAS[isa.literal_value].lanes, STORED[array.dtype]

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loaded = builder.load(_pointer(context, builder, array, arguments[1], arguments[2], lanes, stored), align=1)
        return builder.sext(loaded, ir.VectorType(I32, lanes)) if stored is I16 else loaded

    return vector(lanes)(isa, array, types.int64), code


@intrinsic
def store_vector(context: Any, vector: Any, array: Any, index: Any) -> Any:
    """``store_vector(vector, array, index)``: its numbers into a flat array of their type, from `index` on."""
    if array.dtype not in STORED:
        return None

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        stored = STORED[array.dtype][0]
        pointer = _pointer(context, builder, array, arguments[1], arguments[2], vector.lanes, stored)
        builder.store(arguments[0], pointer, align=1)
        return context.get_dummy_value()

    return types.void(vector, array, types.int64), code


@intrinsic
def spread(context: Any, isa: Any, array: Any, index: Any) -> Any:
    """``spread(isa, array, index)``: one number of a flat array of int32 or float32 in every lane."""
    if not _literals(isa) or array.dtype not in (types.int32, types.float32):
        return None
    lanes, (stored, vector) = ISAS[isa.literal_value].lanes, STORED[array.dtype]

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, array, arguments[1], arguments[2], 1, stored)
        number = builder.load(builder.bitcast(pointer, stored.as_pointer()))
        return _broadcast(builder, number, lanes)

    return vector(lanes)(isa, array, types.int64), code


# ---- arithmetic ------------------------------------------------------------------------------------------------------


@intrinsic
def to_float32(context: Any, vector: Any) -> Any:
    """``to_float32(vector)``: f(each int32)."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.sitofp(arguments[0], ir.VectorType(F32, vector.lanes))

    return Float32Vector(vector.lanes)(vector), code


def _operator(symbol: Callable[..., Any], for_int32: str, for_float32: str) -> None:
    """Teaches numba an operator of two vectors of a kind, by the names that it has in LLVM."""

    def apply(context: Any, a: Any, b: Any) -> Any:
        name = for_int32 if isinstance(a, Int32Vector) else for_float32

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, name)(*arguments)

        return a(a, b), code

    instruction = intrinsic(apply)

    def overload(a: Any, b: Any) -> Any:
        if isinstance(a, Int32Vector | Float32Vector) and a == b:
            return lambda a, b: instruction(a, b)
        return None

    extending.overload(symbol, strict=False)(overload)  # strict would want the annotations, too


_operator(operator.add, "add", "fadd")
_operator(operator.sub, "sub", "fsub")
_operator(operator.mul, "mul", "fmul")
