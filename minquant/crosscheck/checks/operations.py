"""Operations on quantized tensors outside of Linear and Conv, against torch's operators, in each of its engines.

torch's element-wise kernels round whole vectors and what is left over at the end differently, and images in
channels_last memory have kernels of their own, so a case also says how many bytes a vector register has where torch
runs (`lanes`) and how images lie in memory.

sigmoid and tanh are asked for all 256 integers of a grid; softmax for random rows. Values within a thousandth of a step
of a half step are left out: there the last bits of exp and tanh decide, in which torch's float32 is off by a step or
two (see `minquant.quant.dialects.torch_operations`); all others must be equal. Of matmul, which torch does in float32,
integers that another order of summation could change count as 0 on both sides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from minquant.quant import QParams, QTensor
from minquant.quant.dialects import get_dialect
from minquant.quant.dialects.torch_rounding import dequantized_in_vectors

from ..inputs import ENGINES, UINT8
from ..suite import Check, Inputs, Outputs

__all__ = ["CHECKS"]

F32 = np.float32
BESIDE_A_TIE = 1e-3
FIXED_GRIDS = {"sigmoid": (2.0**-8, 0), "tanh": (2.0**-7, 128), "softmax": (2.0**-8, 0)}


# ---- what is drawn ---------------------------------------------------------------------------------------------------


def _lanes() -> int:
    """Bytes of the vector registers that torch's kernels use here."""
    import torch

    return 64 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 32


def _scales(rng: np.random.Generator, i: int, count: int) -> list[np.float32]:
    """Scales that are small multiples of one another every other time, so that half steps abound."""
    scale = F32(2.0 ** rng.integers(-8, 3)) if i % 4 == 1 else F32(10.0 ** rng.uniform(-4, 1))
    ratios = rng.choice([0.25, 0.5, 1, 2, 3, 4], count) if i % 2 else 2.0 ** rng.uniform(-8, 7, count)
    return [scale, *(F32(scale * ratio) for ratio in ratios)][:count]


def _integers(rng: np.random.Generator, shape: tuple[int, ...], i: int) -> np.ndarray:
    """All of 0…255; every fifth time but its ends, every seventh one constant."""
    q = rng.choice([0, 1, 254, 255], shape) if i % 5 == 4 else rng.integers(0, 256, shape)
    return (np.full(shape, rng.integers(0, 256)) if i % 7 == 6 else q).astype(np.uint8)


def _shapes(rng: np.random.Generator, i: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes that broadcast: mostly equal, short and long, at times empty, images every third time."""
    if i % 3 == 2:
        n, c, h, w = (int(rng.integers(1, end)) for end in (3, 40, 5, 5))
        return (n, c, h, w), ((n, c, 1, 1) if i % 2 else (n, c, h, w))
    rows, columns = int(rng.integers(0 if i % 10 == 9 else 1, 4)), int(rng.integers(1, 300 if i % 3 else 20))
    return (rows, columns), ((1, columns), (rows, columns), (columns,))[i % 5 % 3]


def _draw_two(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Two operands and an output grid, for add, mul and cat."""
    lanes = _lanes()
    for i in range(60 if quick else 1000):
        shapes = _shapes(rng, i)
        scales = _scales(rng, i, 3)
        if i % 11 == 10:
            scales = [scales[0]] * 3
        zero_points = rng.integers(0, 255, 3)  # qnnpack refuses a relu whose only output is 255
        case = {f"q{n}": _integers(rng, s, i) for n, s in zip("ab", shapes, strict=True)}
        yield case | {
            **{f"scale_{n}": s for n, s in zip(("out", "a", "b"), scales, strict=True)},
            **{f"zero_point_{n}": int(z) for n, z in zip(("a", "b", "out"), zero_points, strict=True)},
            "relu": bool(rng.random() < 0.5),
            "channels_last": bool(rng.random() < 0.5),
            "lanes": lanes,
        }


def _draw_mul(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Now and then with an output scale so small that the products leave int32."""
    for i, case in enumerate(_draw_two(rng, quick)):
        yield {**case, "scale_out": F32(case["scale_a"] * case["scale_b"] * 1e-6)} if i % 9 == 8 else case


def _draw_cat(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Operands of one shape but for the axis of concatenation, which is the channels' half of the time."""
    for i, case in enumerate(_draw_two(rng, quick)):
        qa, qb = case["qa"], np.broadcast_to(case["qb"], case["qa"].shape)
        dim = 1 if i % 2 else int(rng.integers(-qa.ndim, qa.ndim))
        at_most = int(rng.integers(1, qb.shape[dim] + 1)) if qb.shape[dim] else 0
        grids = {name: case[name] for name in case if name.startswith(("scale", "zero_point"))}
        if i % 6 == 5:  # an operand on the output's grid is copied
            grids |= {"scale_out": grids["scale_b"], "zero_point_out": grids["zero_point_b"]}
        yield {**case, **grids, "qb": np.take(qb, np.arange(at_most), dim), "dim": dim}


def _draw_scalar(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """One operand and a number: zero, whole steps, half steps, and beyond both ends of the grid."""
    for i in range(60 if quick else 1000):
        scale = _scales(rng, i, 1)[0]
        numbers = [
            0.0,
            float(scale) * int(rng.integers(-400, 400)),
            float(scale) * (int(rng.integers(-400, 400)) + 0.5),
        ]
        number = [*numbers, float(rng.standard_normal() * scale * 300), float(rng.standard_normal())][i % 5]
        q = _integers(rng, (0 if i % 20 == 19 else int(rng.integers(1, 100)),), i)
        yield {"qa": q, "scale_a": scale, "zero_point_a": int(rng.integers(0, 256)), "number": number}


def _draw_images(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Images, a window or an output size; 2 × 2 windows, in which half steps abound, every third time."""
    lanes = _lanes()
    for i in range(60 if quick else 600):
        n, c, h, w = (int(rng.integers(1, end)) for end in (3, 6 if i < 10 else 70, 9, 9))
        kernel = (2, 2) if i % 3 == 0 else tuple(int(k) for k in rng.integers(1, 5, 2))
        kernel = tuple(min(k, size) for k, size in zip(kernel, (h, w), strict=True))
        kernel = kernel if kernel != (1, 1) else (1, min(2, w))
        size = tuple(int(s) for s in rng.integers(1, 4, 2)) if i % 2 else (max(h // 2, 1), max(w // 2, 1))
        if kernel != (1, 1):  # of which qnnpack has no pooling
            yield {
                "qa": _integers(rng, (n, c, h, w), i),
                "scale_a": _scales(rng, i, 1)[0],
                "zero_point_a": int(rng.integers(0, 256)),
                "kernel": kernel,
                "stride": tuple(int(s) for s in rng.integers(1, 4, 2)),
                "padding": tuple(int(rng.integers(0, k // 2 + 1)) for k in kernel),
                "size": size,
                "channels_last": bool(rng.random() < 0.5),
                "lanes": lanes,
            }


def _draw_activation(operation: str, engine: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """All integers of a grid, in whole vectors and left over; for softmax, rows and columns of some."""
    lanes = _lanes()
    for i in range(60 if quick else 1500):
        scale = F32(2.0 ** rng.integers(-8, 2)) if i % 3 == 0 else F32(10.0 ** rng.uniform(-4, 1.3))
        own_grid = i % 2 or operation == "tanh" or (operation, engine) == ("sigmoid", "qnnpack")
        out = FIXED_GRIDS[operation] if own_grid else (10.0 ** rng.uniform(-4, 0), int(rng.integers(0, 256)))
        q = rng.permutation(256)[: None if i % 4 else int(rng.integers(1, 64))].astype(np.uint8)
        if operation == "softmax":
            shape = tuple(int(n) for n in rng.integers(1, 9, 2 + i % 2))
            q = rng.integers(*((100, 104) if i % 3 else (0, 256)), shape).astype(np.uint8)
        case = {"qa": q, "scale_a": scale, "zero_point_a": int(rng.integers(0, 256)), "lanes": lanes}
        case |= {"dim": i % q.ndim, "scale_out": F32(out[0]), "zero_point_out": out[1], "channels_last": False}
        close = _beside_a_tie(operation, case)
        if operation != "softmax":
            case["qa"] = q[~close]
        if not (operation == "softmax" and close.any()):
            yield case


def _beside_a_tie(operation: str, case: dict[str, Any]) -> np.ndarray:
    """Where the exact result lies close to a half step, however the input is dequantized."""
    x, output = _tensor(case, "a"), _grid(case, "out")
    codes = [
        _exact(operation, real.astype(np.float64), case["dim"]) / np.float64(output.scale) + output.zero_point
        for real in (x.dequantize(), dequantized_in_vectors(x))
    ]
    return np.any([np.abs(np.abs(code - np.floor(code)) - 0.5) < BESIDE_A_TIE for code in codes], axis=0)


def _exact(operation: str, x: np.ndarray, dim: int) -> np.ndarray:
    if operation != "softmax":
        return np.tanh(x) if operation == "tanh" else 0.5 + 0.5 * np.tanh(x / 2)
    power = np.exp(x - x.max(axis=dim, keepdims=True))
    return power / power.sum(axis=dim, keepdims=True)


def _draw_matmul(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Small matrices, at times a batch of them."""
    for i in range(60 if quick else 600):
        m, k, n = (int(size) for size in rng.integers(1, 12, 3))
        batch = (2,) if i % 3 == 0 else ()
        scales = _scales(rng, i, 2)
        yield {
            "qa": _integers(rng, (*batch, m, k), i),
            "qb": _integers(rng, (*batch, k, n), i),
            **{f"scale_{name}": s for name, s in zip("ab", scales, strict=True)},
            **{f"zero_point_{name}": int(rng.integers(0, 256)) for name in ("a", "b", "out")},
            "scale_out": F32(scales[0] * scales[1] * rng.choice([32, 64, 100, 1000])),
        }


def _certain(inputs: Inputs) -> np.ndarray:
    """Where no order of float32 sums can change the integer: farther from a half step than k + 2 roundings reach."""
    a, b = (_tensor(inputs, name).dequantize().astype(np.float64) for name in "ab")
    steps = a @ b / np.float64(inputs["scale_out"])
    reach = (a.shape[-1] + 2) * 2.0**-24 * (np.abs(a) @ np.abs(b) / np.float64(inputs["scale_out"]) + 255)
    return np.abs(np.abs(steps - np.floor(steps)) - 0.5) > reach


# ---- minquant --------------------------------------------------------------------------------------------------------


def _grid(inputs: Inputs, name: str) -> QParams:
    return QParams(np.asarray(inputs[f"scale_{name}"], F32), np.asarray(inputs[f"zero_point_{name}"], np.int32), UINT8)


def _tensor(inputs: Inputs, name: str) -> QTensor:
    return QTensor(inputs[f"q{name}"], _grid(inputs, name))


OURS: dict[str, Callable[[Any, Inputs], QTensor]] = {
    "add": lambda d, i: d.add(_tensor(i, "a"), _tensor(i, "b"), _grid(i, "out"), i["relu"]),
    "mul": lambda d, i: d.mul(_tensor(i, "a"), _tensor(i, "b"), _grid(i, "out"), i["relu"]),
    "cat": lambda d, i: d.cat([_tensor(i, "a"), _tensor(i, "b")], i["dim"], _grid(i, "out")),
    "add_scalar": lambda d, i: d.add_scalar(_tensor(i, "a"), i["number"], _grid(i, "a")),
    "mul_scalar": lambda d, i: d.mul_scalar(_tensor(i, "a"), i["number"], _grid(i, "a")),
    "avg_pool2d": lambda d, i: d.avg_pool2d(_tensor(i, "a"), i["kernel"], i["stride"], i["padding"], _grid(i, "a")),
    "adaptive_avg_pool2d": lambda d, i: d.adaptive_avg_pool2d(_tensor(i, "a"), i["size"], _grid(i, "a")),
    "matmul": lambda d, i: d.matmul(_tensor(i, "a"), _tensor(i, "b"), _grid(i, "out")),
    "sigmoid": lambda d, i: d.sigmoid(_tensor(i, "a"), _grid(i, "out")),
    "tanh": lambda d, i: d.tanh(_tensor(i, "a"), _grid(i, "out")),
    "softmax": lambda d, i: d.softmax(_tensor(i, "a"), i["dim"], _grid(i, "out")),
}


def _ours(operation: str, engine: str, inputs: Inputs) -> Outputs:
    dialect: Any = copy.copy(get_dialect(engine))
    dialect.lanes, dialect.channels_last = inputs.get("lanes", 32), inputs.get("channels_last", False)
    y = OURS[operation](dialect, inputs)
    q = y.int_repr() * _certain(inputs) if operation == "matmul" else y.int_repr()
    return {"q": q, "scale": y.qparams.scale, "zero_point": y.qparams.zero_point}


# ---- torch -----------------------------------------------------------------------------------------------------------


def _torch_tensor(inputs: Inputs, name: str) -> Any:
    import torch

    grid = float(inputs[f"scale_{name}"]), int(inputs[f"zero_point_{name}"])
    q = torch._make_per_tensor_quantized_tensor(torch.from_numpy(np.array(inputs[f"q{name}"])), *grid)
    last = q.dim() == 4 and inputs.get("channels_last", False)
    return q.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _theirs(operation: str, engine: str, inputs: Inputs) -> Outputs:
    import torch

    torch.backends.quantized.engine = engine
    quantized, pool = torch.ops.quantized, torch.nn.functional
    a = _torch_tensor(inputs, "a")
    out = float(inputs.get("scale_out", 1)), int(inputs.get("zero_point_out", 0))
    if operation in ("add", "mul", "matmul"):
        operator = getattr(quantized, f"{operation}_relu" if inputs.get("relu") else operation)
        y = operator(a, _torch_tensor(inputs, "b"), *out)
    elif operation == "cat":
        y = quantized.cat([a, _torch_tensor(inputs, "b")], inputs["dim"], *out)
    elif operation in ("add_scalar", "mul_scalar"):
        y = getattr(quantized, operation)(a, inputs["number"])
    elif operation == "avg_pool2d":
        y = pool.avg_pool2d(a, *(tuple(inputs[name]) for name in ("kernel", "stride", "padding")))
    elif operation == "adaptive_avg_pool2d":
        y = pool.adaptive_avg_pool2d(a, tuple(inputs["size"]))
    elif operation == "tanh":
        y = torch.tanh(a)
    else:
        y = getattr(quantized, operation)(a, *((inputs["dim"],) if operation == "softmax" else ()), *out)
    q = y.int_repr().numpy()
    q = q * _certain(inputs) if operation == "matmul" else q
    return {"q": q, "scale": np.asarray(y.q_scale(), F32), "zero_point": np.array(y.q_zero_point())}


DRAW = {
    "add": _draw_two,
    "mul": _draw_mul,
    "cat": _draw_cat,
    "matmul": _draw_matmul,
    "add_scalar": _draw_scalar,
    "mul_scalar": _draw_scalar,
    "avg_pool2d": _draw_images,
    "adaptive_avg_pool2d": _draw_images,
}
POOLS = dict.fromkeys(("avg_pool2d", "adaptive_avg_pool2d"), "torch.nn.functional.{}")
ORACLES = {"tanh": "torch.{}", **POOLS}

CHECKS = tuple(
    Check(
        f"{operation}/{engine}",
        ORACLES.get(operation, "torch.ops.quantized.{}").format(operation),
        DRAW.get(operation, partial(_draw_activation, operation, engine)),
        partial(_ours, operation, engine),
        partial(_theirs, operation, engine),
        engine=engine,
    )
    for operation in OURS
    for engine in ENGINES
)
