"""Inputs for ONNX's operators, under the operators' own names: random, and adversarial on purpose. Needs no onnx.

Arrays are an operator's inputs, other values its attributes. ``peer`` is who will be asked, "reference" or
"onnxruntime": where one keeps less than the specification promises, it is not asked that.

- onnx's reference implementation wraps around int32 beyond 2³¹ steps, and has one zero point a row in the shape (M, 1)
  only, and one a channel of a weight in two dimensions only;
- onnxruntime has some pairs of types only, no zero point a row, and one a channel where all are equal; blocks where
  there is more than one; no dilation with an automatic padding; and 1 as the scale of an input that is all zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minquant.quant.dialects.onnx import conv_integer
from minquant.quant.dialects.onnx_grid import RANGES, expanded
from minquant.quant.dialects.onnx_products import multiplier

from .inputs import KINDS, values
from .suite import Inputs

__all__ = [
    "draw_conv",
    "draw_dequantize",
    "draw_dynamic",
    "draw_matmul",
    "draw_narrow",
    "draw_qlinear_conv",
    "draw_qlinear_matmul",
    "draw_quantize",
]

F32 = np.float32

# ---- grids -----------------------------------------------------------------------------------------------------------


def _grid(
    rng: np.random.Generator, granularity: str, shape: tuple[int, ...], dtype: str, size: float
) -> dict[str, Any]:
    """Scale, zero point and attributes of a tensor of that shape, with values of about that size."""
    axis = int(rng.integers(-len(shape), len(shape)))
    attributes: dict[str, int] = {} if granularity == "per tensor" else {"axis": axis}
    blocks: tuple[int, ...] = () if granularity == "per tensor" else (shape[axis],)
    if granularity == "blocked":
        attributes["block_size"] = int(rng.integers(1, shape[axis] + 2))
        blocks = shape[: axis % len(shape)] + (-(-shape[axis] // attributes["block_size"]),)
        blocks += shape[axis % len(shape) + 1 :]
    low, high = RANGES[dtype]
    scale = np.maximum(size / (high - low) * rng.uniform(0.3, 3, blocks), 1e-38)
    return {"scale": np.asarray(scale, F32), "zero_point": _integers(rng, blocks, dtype)} | attributes


def _shape(rng: np.random.Generator, i: int) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(1, 7 if i % 4 else 14, int(rng.integers(1, 5))))


def _near_ties(rng: np.random.Generator, x: np.ndarray, grid: dict[str, Any]) -> np.ndarray:
    """X with half of its values moved to within a float32 step of the middle between two grid points."""
    scale = expanded(grid["scale"], x.shape, grid.get("axis", 1), grid.get("block_size", 0), "scale")
    middles = ((rng.integers(-130, 130, x.shape) + 0.5) * scale.astype(np.float64)).astype(F32)
    moved = np.nextafter(middles, rng.choice([-np.inf, 0, np.inf], x.shape).astype(F32))
    return np.where(rng.random(x.shape) < 0.5, np.where(rng.random(x.shape) < 0.5, middles, moved), x).astype(F32)


def draw_quantize(granularity: str, peer: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Every kind of value; onnxruntime also gets infinities and values far beyond the grid."""
    for i in range(40 if quick else 400):
        shape, dtype = _shape(rng, i), str(rng.choice(["uint8", "int8", "uint16", "int16"]))
        x = values(rng, shape, KINDS[i % len(KINDS)])
        grid = _grid(rng, granularity, shape, dtype, float(np.abs(x).max()) or 1.0)
        x = _near_ties(rng, x, grid)
        if peer == "onnxruntime" and i % 3 == 0:
            x = np.where(rng.random(shape) < 0.3, rng.choice([np.inf, -np.inf, 3e38, -3e38], shape), x).astype(F32)
        scale, zero_point = grid.pop("scale"), grid.pop("zero_point")
        if not _one_block(peer, scale, grid):
            given = {} if dtype == "uint8" and i % 2 else {"y_zero_point": zero_point}
            yield {"x": x, "y_scale": scale, **given, **grid}


def draw_narrow(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """4 bits, which NumPy has no type for, so that there is no zero point."""
    for i in range(20 if quick else 200):
        shape, dtype = _shape(rng, i), ("int4", "uint4")[i % 2]
        x = values(rng, shape, KINDS[i % len(KINDS)])
        scale = np.asarray(max(float(np.abs(x).max()), 1e-30) / rng.uniform(4, 20), F32)
        yield {"x": _near_ties(rng, x, {"scale": scale}), "y_scale": scale, "output_dtype": dtype}


def draw_dequantize(granularity: str, peer: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Integers of all types, scales over seventy orders of magnitude; int32 without a zero point."""
    for i in range(40 if quick else 400):
        shape, dtype = _shape(rng, i), str(rng.choice(["uint8", "int8", "uint16", "int16"]))
        grid = _grid(rng, granularity, shape, dtype, 10.0 ** rng.uniform(-37, 30))
        x = rng.integers(*RANGES[dtype], shape, endpoint=True).astype(dtype)
        scale, zero_point = grid.pop("scale"), {"x_zero_point": grid.pop("zero_point")}
        if granularity == "per tensor" and i % 5 == 0:
            x, zero_point = rng.integers(-(2**31), 2**31, shape).astype(np.int32), {}
        if not _one_block(peer, scale, grid):
            yield {"x": x, "x_scale": scale, **zero_point, **grid}


def _one_block(peer: str, scale: np.ndarray, attributes: dict[str, Any]) -> bool:
    """A single block, which onnxruntime takes for a whole tensor, and refuses."""
    return peer == "onnxruntime" and scale.size == 1 and "block_size" in attributes


def draw_dynamic(peer: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Every kind of input; a range too narrow for a scale, and for onnxruntime an all-zero one, left out."""
    for i in range(60 if quick else 1000):
        x = values(rng, _shape(rng, i), KINDS[i % len(KINDS)])
        if i % 3 == 0:  # a range whose scale is a power of two, so that exact ties abound
            x = (np.round(x / (np.abs(x).max() or 1) * 400) / 8).astype(F32)
            x.reshape(-1)[0], x.reshape(-1)[-1] = rng.choice([-63.75, -31.875, 0.25, -0.25]), 0
            x = np.concatenate([x.reshape(-1), [x.min() + F32(127.5)]]).astype(F32).clip(None, x.min() + F32(127.5))
        spread = max(x.max(), 0) - min(x.min(), 0)
        if spread > 1e-42 or (spread == 0 and peer == "reference"):
            yield {"x": x}


# ---- products --------------------------------------------------------------------------------------------------------


def _integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, extreme: bool = False) -> np.ndarray:
    low, high = RANGES[dtype]
    drawn = rng.choice([low, high], shape) if extreme else rng.integers(low, high, shape, endpoint=True)
    return np.asarray(drawn, dtype)


def _types(rng: np.random.Generator, peer: str) -> tuple[str, str, str]:
    """Of both operands and the output; onnxruntime multiplies some pairs only."""
    if peer == "onnxruntime":
        pair = [("uint8", "uint8"), ("uint8", "int8"), ("int8", "int8")][int(rng.integers(3))]
        return *pair, pair[0]
    first, second, output = (str(dtype) for dtype in rng.choice(["uint8", "int8"], 3))
    return first, second, output


def _matrices(peer: str, rng: np.random.Generator, i: int) -> tuple[Inputs, str]:
    """MatMulInteger's inputs, and the type that a quantized output would have."""
    first, second, output = _types(rng, peer)
    m, n = (int(size) for size in rng.integers(0 if i % 9 == 8 else 1, 12, 2))
    k = int(rng.integers(300, 1500)) if i % 8 == 7 else int(rng.integers(1, 40))
    batch = ((), (2,), (2, 1), (1, 3))[int(rng.integers(4))]
    a, b = _integers(rng, (*batch, m, k), first, i % 3 == 2), _integers(rng, (k, n), second, i % 3 == 2)
    if i % 5 == 4:
        b = _integers(rng, (*batch, k, n), second)
    by_row = peer == "reference" and i % 2 == 1
    by_column = i % 4 > 1 and b.ndim == 2
    za = _integers(rng, (m, 1) if by_row else (), first)
    return {
        "A": a,
        "B": b,
        "a_zero_point": za,
        "b_zero_point": _integers(rng, (n,) if by_column else (), second),
    }, output


def draw_matmul(peer: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Batches, sizes of no particular multiple, none at all, long sums of extremes."""
    for i in range(40 if quick else 400):
        inputs, _ = _matrices(peer, rng, i)
        yield {name: array for name, array in inputs.items() if i % 6 or name in "AB"}


def draw_qlinear_matmul(peer: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Every second time small sums in halves, quarters or eighths of a step, so that exact ties abound."""
    for i in range(40 if quick else 400):
        inputs, dtype = _matrices(peer, rng, i)
        a, b, za, zb = (inputs[name] for name in ("A", "B", "a_zero_point", "b_zero_point"))
        a, b = (_few(a, za), _few(b, zb)) if i % 2 else (a, b)
        a_scale, b_scale = _scales(rng, za.shape, i), _scales(rng, zb.shape, i)
        output = _output_grid(rng, dtype, a_scale.max(initial=0) * b_scale.max(initial=0), a.shape[-1], i)
        first, second = ({"": q, "_scale": s, "_zero_point": z} for q, s, z in ((a, a_scale, za), (b, b_scale, zb)))
        operands = {f"{name}{part}": v for name, of in (("a", first), ("b", second)) for part, v in of.items()}
        yield {**operands, **output}


def _few(q: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """The same with few steps from the zero point, at most 3, so that sums are small."""
    info = np.iinfo(q.dtype)
    return np.clip(q.astype(np.int64) % 7 - 3 + zero_point, info.min, info.max).astype(q.dtype)


def _scales(rng: np.random.Generator, shape: tuple[int, ...], i: int) -> np.ndarray:
    """Every second time powers of two, with which exact ties abound."""
    return np.asarray(2.0 ** rng.integers(-4, 1, shape) if i % 2 else rng.uniform(0.02, 1, shape), F32)


def _output_grid(rng: np.random.Generator, dtype: str, step: float, terms: int, i: int) -> dict[str, np.ndarray]:
    """Which a sum of so many products fills, or saturates; every second time 2 to 8 steps of it are one of the grid."""
    scale = step * (2.0 ** rng.integers(1, 4) if i % 2 else 90 * np.sqrt(terms) * rng.uniform(0.1, 4))
    return {"y_scale": np.asarray(scale or 1, F32), "y_zero_point": _integers(rng, (), dtype)}


def _convolution(operator: str, peer: str, rng: np.random.Generator, i: int) -> tuple[Inputs, dict[str, Any], str]:
    """ConvInteger's inputs and attributes, and the type that a quantized output would have."""
    first, second, output = _types(rng, peer)
    axes = int(rng.choice([1, 2, 2, 2, 3]))
    group, c, m = ((1, 3, 4), (2, 2, 1), (4, 1, 1), (3, 1, 2), (1, 8, 9))[i % 5]  # of channels in and out, a group each
    kernel = tuple(int(k) for k in rng.integers(1, 4, axes))
    attributes: dict[str, Any] = {"group": group, "strides": tuple(int(s) for s in rng.integers(1, 4, axes))}
    attributes["dilations"] = tuple(int(d) for d in rng.integers(1, 3, axes))
    if i % 4 == 3:
        attributes["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
        if peer == "onnxruntime":
            attributes["dilations"] = (1,) * axes
    else:
        attributes["pads"] = tuple(int(p) for p in rng.integers(0, 3, 2 * axes))
    size = tuple(int(n) for n in rng.integers(5, 9 if axes == 3 else 12, axes))
    x = _integers(rng, (0 if i % 16 == 15 else int(rng.integers(1, 3)), group * c, *size), first, i % 6 == 5)
    w = _integers(rng, (group * m, c, *kernel), second, i % 6 == 5)
    # a zero point for each channel: onnx's reference implementation has it in two dimensions, onnxruntime only where
    # they are all equal, and not in ConvInteger
    zw = _integers(rng, (), second)
    if axes == 2 and i % 3 and peer == "reference":
        zw = _integers(rng, (group * m,), second)
    elif i % 3 and peer == "onnxruntime" and operator == "QLinearConv":
        zw = np.full(group * m, zw)
    return {"x": x, "w": w, "x_zero_point": _integers(rng, (), first), "w_zero_point": zw}, attributes, output


def draw_conv(peer: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """One to three dimensions; strides, padding, dilations, groups, depthwise."""
    for i in range(40 if quick else 400):
        inputs, attributes, _ = _convolution("ConvInteger", peer, rng, i)
        yield {**{name: q for name, q in inputs.items() if i % 7 or name in "xw"}, **attributes}


def draw_qlinear_conv(peer: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """At times a bias that brings some accumulators to a tie between two outputs, or next to one."""
    for i in range(40 if quick else 400):
        inputs, attributes, dtype = _convolution("QLinearConv", peer, rng, i)
        x, w, zx, zw = (inputs[name] for name in ("x", "w", "x_zero_point", "w_zero_point"))
        x, w = (_few(x, zx), _few(w, zw.reshape(-1, *[1] * (w.ndim - 1)))) if i % 2 else (x, w)
        x_scale, w_scale = _scales(rng, (), i), _scales(rng, zw.shape, i)
        output = _output_grid(rng, dtype, x_scale * w_scale.max(), w[0].size, i)
        if i % 4 == 2:  # accumulators beyond 2²⁴, which float32 rounds
            output["y_scale"] = np.asarray(output["y_scale"] * 2.0**14, F32)
        given = {"x": x, "x_scale": x_scale, "x_zero_point": zx, "w": w, "w_scale": w_scale, "w_zero_point": zw}
        acc = conv_integer(x, w, zx, zw, **attributes)
        bias = _bias(rng, acc, multiplier(x_scale, w_scale, output["y_scale"]))
        yield {**given, **output, **({"B": bias} if i % 3 else {}), **attributes}


def _bias(rng: np.random.Generator, acc: np.ndarray, m: np.ndarray) -> np.ndarray:
    """For each channel of (N, M, …) one that brings some output to a tie, or one step next to it."""
    ties = (rng.integers(-60, 60, acc.shape[1]) + 0.5) / m.astype(np.float64)
    first = acc[0].reshape(acc.shape[1], -1)[:, 0] if acc.size else 0
    return np.clip(np.rint(ties) + rng.integers(-1, 2, acc.shape[1]) - first, -(2**30), 2**30).astype(np.int32)
