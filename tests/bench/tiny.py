"""Tiny shapes of every operation, and data that is wrong by little."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from minquant.bench.job import Job
from minquant.bench.operations import every_operation
from minquant.quant import QTensor

MATMUL, LINEAR = ((1, 1, 1), (3, 5, 7), (16, 640, 33)), ((1, 64, 32), (16, 70, 33))
MILLION = ((8, 64),)
TINY = {
    "int8_matmul packed": MATMUL,
    "int8_matmul": MATMUL,
    "int8_matmul MINQUANT_ISA=avx2": MATMUL,
    "dynamic Linear": LINEAR,
    "static Linear": LINEAR,
    "static Conv2d": ((2, 4, 6, 6, 8, 3, 1, 1), (1, 3, 9, 9, 8, 7, 2, 1), (1, 8, 5, 5, 8, 3, 1, 8)),
    "int4 Linear": ((1, 64, 32),),
    "fake_quantize per tensor": MILLION,
    "fake_quantize per channel": MILLION,
    "FakeQuantize": MILLION,
    "LearnableFakeQuantize per tensor": MILLION,
    "LearnableFakeQuantize per channel": MILLION,
    "QAT step": ((20, 3, 3, 2), (8, 16, 8, 8, 10)),
    "QAT step, CNN": ((8, 1, 8, 8, 4, 6, 10),),
    "GPU int8_matmul": MATMUL,
    "GPU dynamic Linear": LINEAR,
}


def nearest(q):
    """Integers one off, towards zero."""
    return np.where(q > 0, q - 1, q + 1).astype(q.dtype)


def wrong_product(data):
    b = data.b.copy()
    b[:, 0] = nearest(b[:, 0])
    return replace(data, b=b)


def wrong_weight(data):
    qw = data.qw.copy()
    qw[0] = nearest(qw[0])
    return replace(data, qw=qw)


def turned_weight(data):
    """Wrong by enough for bfloat16."""
    qw = data.qw.copy()
    qw[0] = -qw[0]
    return replace(data, qw=qw)


def wrong_static(data):
    qw = data.weight.int_repr().copy()
    qw[0] -= 3
    return replace(data, weight=QTensor(qw, data.weight.qparams))


def wrong_input(data):
    """One value a step away."""
    x = data.x.copy()
    x[0, 2] += np.ravel(data.scale)[0]
    return replace(data, x=x)


def wrong_task(data):
    return replace(data, x=data.x[::-1] * np.float32(1.5))


SPOILED = {
    "int8_matmul packed": wrong_product,
    "int8_matmul": wrong_product,
    "int8_matmul MINQUANT_ISA=avx2": wrong_product,
    "dynamic Linear": wrong_weight,
    "static Linear": wrong_static,
    "static Conv2d": lambda data: replace(data, layer=wrong_static(data.layer)),
    "int4 Linear": wrong_weight,
    "fake_quantize per tensor": wrong_input,
    "fake_quantize per channel": wrong_input,
    "FakeQuantize": wrong_input,
    "LearnableFakeQuantize per tensor": wrong_input,
    "LearnableFakeQuantize per channel": wrong_input,
    "QAT step": wrong_task,
    "QAT step, CNN": wrong_task,
    "GPU int8_matmul": wrong_product,
    "GPU dynamic Linear": turned_weight,
}


def spoiled(operation, shape, prepare):
    """A job on wrong data, measured by what would be right."""
    data = operation.draw(shape)
    right, wrong = prepare(data), prepare(SPOILED[operation.name](data))
    return Job(wrong.call, wrong.values, right.expected, right.bound)


OURS = [
    pytest.param(operation, variant, shape, id=f"{operation.name} {variant} {'x'.join(map(str, shape))}")
    for operation in every_operation()
    if not operation.obstacle()
    for variant in operation.variants
    for shape in TINY[operation.name]
]
