"""What a GPU would trip over, without one: modules run on torch's device "meta", which has shapes and no numbers.

Every operation is watched: its operands must lie on one device, and no quotient may have a number for its divisor, with
whose reciprocal torch's GPU kernels would multiply.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minquant import nn
from minquant.interop import to_torch
from minquant.interop.torch_modules import quantizing
from minquant.interop.torch_modules.quantized import Grid, QuantizedTensor, Weight
from minquant.quant import (
    BetweenGrids,
    DynamicQuantizedLinear,
    PerGroup,
    PerTensor,
    PerToken,
    QFunctional,
    QParams,
    QSpec,
    QuantizedEmbedding,
    default_dynamic_qconfig,
    quantize,
)
from tests.interop.layers_in_torch import CONVS, EXACT, POOLS, TORCHS, UINT8, conv_of, grid, integers, static_linear


class Watch(TorchDispatchMode):
    """Refuses what a GPU would refuse, or compute otherwise."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        assert len(devices) < 2 or "copy" in str(function), f"{function} mixes {devices}"
        if "div" in str(function) and "meta" in devices:
            assert isinstance(args[1], torch.Tensor), f"{function} divides by a number"
        return function(*args, **(kwargs or {}))


def on_meta(module):
    """The module without its numbers; what the host has read of them, it keeps."""
    for part in module.modules():
        if isinstance(part, Grid):
            assert part.qparams is not None
        if isinstance(part, Weight):
            assert part.has_zero_points in (True, False)
            part._columns, weight = None, part.qtensor()
            part.qtensor = lambda weight=weight: weight
        if hasattr(part, "host_bias"):
            bias = part.host_bias()
            part.host_bias = lambda bias=bias: bias
    for part in module.modules():
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else torch.empty_like(buffer, device="meta")
        for name, parameter in part._parameters.items():
            part._parameters[name] = None if parameter is None else torch.empty_like(parameter, device="meta")
    return module


def quantized(shape, qparams):
    return QuantizedTensor(torch.empty(shape, dtype=getattr(torch, qparams.spec.dtype.name), device="meta"), qparams)


def assert_stays(run):
    """What comes out lies where it went in."""
    with Watch():
        y = run()
    assert (y.integers if isinstance(y, QuantizedTensor) else y).device.type == "meta"


@pytest.fixture(autouse=True)
def some_range(monkeypatch):
    """In place of the one number that a dynamic layer reads from the device."""

    def ends(x, spec, where):
        per_token = spec.granularity.qparams_shape((2, 2)) != ()
        return np.array([[-1, 2]] * (len(x) if per_token else 1), np.float32)

    monkeypatch.setattr(quantizing, "finite_range", ends)


@pytest.mark.parametrize("dialect", EXACT)
def test_layers(dialect):
    rng = np.random.default_rng(0)
    for of in ("tensor", "channel"):
        layer, x_grid = static_linear(rng, dialect, (33, 9), of, True, True)
        module = on_meta(to_torch(layer))
        assert_stays(lambda module=module, x_grid=x_grid: module(quantized((5, 33), x_grid)))
    for case in CONVS[:3]:
        module = on_meta(to_torch(conv_of(rng, dialect, case, "channel", False, dynamic=False)))
        shape = (3, case[0], *case[-1])
        assert_stays(lambda module=module, shape=shape: module(quantized(shape, grid(rng, UINT8))))
        module = on_meta(to_torch(conv_of(rng, dialect, case, "tensor", True, dynamic=True)))
        assert_stays(lambda module=module, shape=shape: module(torch.empty(shape, device="meta")))


@pytest.mark.parametrize("dialect", EXACT)
def test_dynamic_linear(dialect):
    rng = np.random.default_rng(1)
    weight = integers(rng, (9, 33), grid(rng, QSpec(symmetric=True)))
    spec = default_dynamic_qconfig(dialect).activation if dialect in TORCHS else UINT8
    module = on_meta(to_torch(DynamicQuantizedLinear(weight, None, spec, dialect)))
    assert_stays(lambda: module(torch.empty(5, 33, device="meta")))


@pytest.mark.parametrize("granularity", [PerTensor(), PerToken()])
@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_and_tables(granularity, symmetric):
    rng = np.random.default_rng(2)
    weight = integers(rng, (9, 64), grid(rng, QSpec(4, symmetric=symmetric, granularity=PerGroup(32)), (9, 2)))
    spec = QSpec(signed=False, granularity=granularity)
    module = on_meta(to_torch(DynamicQuantizedLinear(weight, None, spec, "reference")))
    assert_stays(lambda: module(torch.empty(5, 64, device="meta")))
    of = grid(rng, QSpec(4, granularity=PerGroup(4)), (11, 2))
    table = on_meta(to_torch(QuantizedEmbedding(quantize(rng.normal(size=(11, 8)).astype(np.float32), of))))
    assert_stays(lambda: table(torch.zeros(3, 4, dtype=torch.int64, device="meta")))


@pytest.mark.parametrize("dialect", EXACT)
def test_between_two_grids(dialect):
    rng = np.random.default_rng(3)
    output = grid(rng, UINT8, low=0.02, high=0.05)
    x, y = (quantized((2, 37, 6, 6), grid(rng, UINT8, low=0.01, high=0.05)) for _ in range(2))
    for pool in POOLS:
        own = output if dialect in ("reference", "onnx", "onnxruntime") else None
        module = on_meta(to_torch(BetweenGrids(pool, own, dialect)))
        assert_stays(lambda module=module: module(x))
    sigmoid = BetweenGrids(nn.Sigmoid(), QParams(np.float32(1 / 256), np.int32(0), UINT8), dialect)
    others = (nn.BatchNorm2d(37).eval(), nn.LayerNorm(6), nn.RMSNorm(6), nn.Softmax(1))
    for layer in (sigmoid, *(BetweenGrids(module, output, dialect) for module in others)):
        module = on_meta(to_torch(layer))
        assert_stays(lambda module=module: module(x))
    functional = on_meta(to_torch(QFunctional(output, dialect)))
    for run in (
        lambda: functional.add_relu(x, y), lambda: functional.mul(x, y), lambda: functional.cat([x, y], 1),
        lambda: functional.add_scalar(x, 0.3), lambda: functional.mul_scalar(x, -2.0), lambda: x.dequantize(),
    ):  # fmt: skip
        assert_stays(run)


def test_the_watch_sees():
    with Watch(), pytest.raises(AssertionError, match="mixes"):
        torch.ones(2) + torch.empty(2, device="meta")
    with Watch(), pytest.raises(AssertionError, match="divides by a number"):
        torch.empty(2, device="meta") / 3.0
