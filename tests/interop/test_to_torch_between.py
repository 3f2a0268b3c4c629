"""What lies between two grids, in torch: the same integers as minquant's in every dialect."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")


from minquant import nn
from minquant.interop import to_torch
from minquant.quant import (
    QParams,
)
from minquant.quant import between as q_between
from tests.interop.layers_in_torch import DEVICES, EXACT, POOLS, TORCHS, UINT8, assert_same, grid, in_torch, integers

# ---- between two grids -----------------------------------------------------------------------------------------------


ACTIVATIONS = [nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.GELU("tanh"), nn.SiLU()]
OWN_GRID = {nn.Sigmoid: (1 / 256, 0), nn.Tanh: (1 / 128, 128)}


@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("shape", [(3, 70), (2, 5, 7, 3), (1000,), ()])
def test_activations_are_tables(dialect, activation, shape):
    rng = np.random.default_rng(2)
    scale, zero_point = OWN_GRID.get(type(activation), (0.03, 20))
    output = QParams(np.float32(scale), np.int32(zero_point), UINT8)
    layer = q_between.BetweenGrids(activation, output, dialect)
    for _ in range(3):
        assert_same(layer, integers(rng, shape, grid(rng, UINT8)))


@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("norm, shape", [(nn.BatchNorm2d(7), (3, 7, 4, 5)), (nn.BatchNorm1d(7), (6, 7)),
                                         (nn.BatchNorm1d(7), (2, 7, 5))])  # fmt: skip
def test_batch_norm_is_a_table_for_each_channel(dialect, norm, shape):
    rng = np.random.default_rng(22)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data = rng.uniform(0.1, 2, 7).astype(np.float32)
    layer = q_between.BetweenGrids(norm.eval(), grid(rng, UINT8, low=0.01), dialect)
    for _ in range(2):
        assert_same(layer, integers(rng, shape, grid(rng, UINT8)))
    with pytest.raises(ValueError, match="BatchNorm"):
        to_torch(q_between.BetweenGrids(nn.BatchNorm2d(7), layer.output, dialect))


@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("norm, shape", [(nn.LayerNorm(7), (5, 7)), (nn.LayerNorm((3, 7)), (4, 2, 3, 7)),
                                         (nn.LayerNorm(7, elementwise_affine=False), (7,)), (nn.RMSNorm(7), (9, 7)),
                                         (nn.RMSNorm(130, eps=1e-3), (3, 130))])  # fmt: skip
def test_norms_add_in_float64(dialect, norm, shape):
    rng = np.random.default_rng(23)
    for parameter in norm.parameters():
        parameter.data = rng.uniform(0.1, 2, parameter.shape).astype(np.float32)
    layer = q_between.BetweenGrids(norm, grid(rng, UINT8, low=0.01), dialect)
    for _ in range(3):
        assert_same(layer, integers(rng, shape, grid(rng, UINT8)))


@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("shape, dim", [((5, 7), -1), ((2, 9, 4), 1), ((3, 300), 1), ((6,), 0), ((0, 3), 1)])
def test_softmax_looks_exponentials_up(dialect, shape, dim):
    rng = np.random.default_rng(24)
    for output in (QParams(np.float32(1 / 256), np.int32(0), UINT8), QParams(np.float32(0.007), np.int32(9), UINT8)):
        layer = q_between.BetweenGrids(nn.Softmax(dim), output, dialect)
        for _ in range(3):
            assert_same(layer, integers(rng, shape, grid(rng, UINT8)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("pool", POOLS, ids=repr)
@pytest.mark.parametrize("shape", [(2, 37, 6, 6), (2, 1, 6, 5), (5, 4, 7), (1, 8, 8, 8), (3, 9, 1, 1)])
def test_average_pooling(device, dialect, pool, shape):
    if shape[-1] == 1 and not isinstance(pool, nn.AdaptiveAvgPool2d):
        pytest.skip("a window larger than the image")
    rng = np.random.default_rng(3)
    for _ in range(3):
        output = grid(rng, UINT8) if dialect in ("reference", "onnx", "onnxruntime") else None
        assert_same(q_between.BetweenGrids(pool, output, dialect), integers(rng, shape, grid(rng, UINT8)), device)


PAIRS = [((4, 70), (4, 70)), ((4, 70), (1, 70)), ((4, 70), (4, 1)), ((2, 5, 3, 3), (2, 5, 3, 3)),
         ((2, 9, 4, 4), (9, 1, 1)), ((129,), (129,)), ((1,), (200,))]  # fmt: skip


@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("operation", ["add", "add_relu", "mul"])
def test_sums_and_products(dialect, operation):
    rng = np.random.default_rng(4)
    layer = q_between.QFunctional(grid(rng, UINT8, low=0.02, high=0.05), dialect)
    theirs = to_torch(layer)
    for shape_x, shape_y in PAIRS:
        x, y = (integers(rng, shape, grid(rng, UINT8, low=0.01, high=0.05)) for shape in (shape_x, shape_y))
        found = getattr(theirs, operation)(in_torch(x, "cpu"), in_torch(y, "cpu"))
        np.testing.assert_array_equal(found.int_repr().numpy(), getattr(layer, operation)(x, y).int_repr())


@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("shapes, dim", [([(2, 3), (2, 5)], 1), ([(4, 3), (1, 3)], 0),
                                         ([(2, 9, 3, 3), (2, 20, 3, 3)], 1), ([(2, 9, 3, 3), (2, 9, 1, 3)], -2),
                                         ([(2, 9, 3), (2, 8, 3)], -2)])  # fmt: skip
def test_joins(dialect, shapes, dim):
    rng = np.random.default_rng(5)
    layer = q_between.QFunctional(grid(rng, UINT8, low=0.01, high=0.05), dialect)
    operands = [integers(rng, shape, grid(rng, UINT8, low=0.01, high=0.05)) for shape in shapes]
    operands.append(integers(rng, shapes[0], layer.output))  # one that lies on the output's grid
    found = to_torch(layer).cat([in_torch(x, "cpu") for x in operands], dim)
    np.testing.assert_array_equal(found.int_repr().numpy(), layer.cat(operands, dim).int_repr())


@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("number", [0.0, 0.3, -0.7, 25.0, -25.0])
@pytest.mark.parametrize("operation", ["add_scalar", "mul_scalar"])
def test_scalars(dialect, operation, number):
    rng = np.random.default_rng(6)
    layer = q_between.QFunctional(grid(rng, UINT8), dialect)
    x = integers(rng, (5, 40), grid(rng, UINT8, low=0.01))
    found, wanted = (
        getattr(to_torch(layer), operation)(in_torch(x, "cpu"), number),
        getattr(layer, operation)(x, number),
    )
    np.testing.assert_array_equal(found.int_repr().numpy(), wanted.int_repr())
    np.testing.assert_array_equal(found.dequantize().numpy(), wanted.dequantize())


def test_tables_follow_the_grids_of_their_operands():
    rng = np.random.default_rng(7)
    layer = q_between.QFunctional(grid(rng, UINT8), "reference")
    theirs = to_torch(layer)
    for _ in range(4):
        x, y = (integers(rng, (7, 9), grid(rng, UINT8)) for _ in range(2))
        found = theirs.add(in_torch(x, "cpu"), in_torch(y, "cpu"))
        np.testing.assert_array_equal(found.int_repr().numpy(), layer.add(x, y).int_repr())


@pytest.mark.parametrize("module", [nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Identity(),
                                    nn.Dropout(0.5).eval()], ids=repr)  # fmt: skip
def test_what_works_on_integers_as_they_are(module):
    rng = np.random.default_rng(8)
    x = integers(rng, (2, 3, 6, 6), grid(rng, UINT8))
    found, wanted = to_torch(module)(in_torch(x, "cpu")), module(x)
    np.testing.assert_array_equal(found.int_repr().numpy(), wanted.int_repr())
    assert found.qparams is x.qparams


# ---- where rules part ways -------------------------------------------------------------------------------------------


def grid_with_ties(rng) -> QParams:
    """Its steps are a power of two, so that sums and halves of other such grids fall between two integers; z is odd."""
    return QParams(np.float32(2.0 ** rng.integers(-6, -2)), np.int32(2 * rng.integers(30, 90) + 1), UINT8)


@pytest.mark.parametrize("dialect", TORCHS)
def test_whole_vectors_and_what_is_left_over(dialect):
    """Lengths that are no multiple of a vector, on grids where both rules meet ties; and both tables matter."""
    rng = np.random.default_rng(26)
    two_tables = 0
    for shape in ((64 + 63,), (3, 50), (2, 37, 2, 3), (1, 33, 1, 1)):
        for _ in range(6):
            layer = q_between.QFunctional(grid_with_ties(rng), dialect)
            x, y = (integers(rng, shape, grid_with_ties(rng)) for _ in range(2))
            theirs, given = to_torch(layer), [in_torch(v, "cpu") for v in (x, y)]
            for name in ("add", "mul"):
                found, wanted = getattr(theirs, name)(*given), getattr(layer, name)(x, y)
                np.testing.assert_array_equal(found.int_repr().numpy(), wanted.int_repr())
            if len(shape) == 4:
                np.testing.assert_array_equal(theirs.cat(given, 1).int_repr().numpy(), layer.cat([x, y], 1).int_repr())
            two_tables += sum(table.rest is not None for _, table in theirs._tables.values())
    assert two_tables > 10


@pytest.mark.parametrize("norm", [nn.LayerNorm(130), nn.RMSNorm(130)], ids=repr)
def test_norms_are_not_of_float32(norm):
    """So many values that sums in float32 would show."""
    rng = np.random.default_rng(27)
    for _ in range(3):
        layer = q_between.BetweenGrids(norm, QParams(np.float32(0.025), np.int32(128), UINT8), "reference")
        assert_same(layer, integers(rng, (4000, 130), grid(rng, UINT8)))
