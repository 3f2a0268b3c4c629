"""Every operation that `minquant bench` measures: minquant's side is right, and wrong data would show."""

from __future__ import annotations

import numpy as np
import pytest

from minquant.bench.job import WrongResultError, checked
from minquant.bench.operation import Peer
from minquant.bench.operations import every_operation, int8_matmul, products
from minquant.bench.operations.products import Operands, ends, operands
from minquant.kernels import reference
from minquant.kernels.saturating import saturating_matmul
from tests.bench.tiny import OURS, SPOILED, TINY, spoiled

OPERATIONS = [operation for operation in every_operation() if not operation.obstacle()]


def test_there_is_a_tiny_shape_and_a_way_to_spoil_each():
    assert set(TINY) == set(SPOILED) == {operation.name for operation in every_operation()}


@pytest.mark.parametrize(("operation", "variant", "shape"), OURS)
def test_minquants_side_is_right(operation, variant, shape):
    checked("minquant", operation.ours(operation.draw(shape), variant))


@pytest.mark.parametrize(("operation", "variant", "shape"), OURS)
def test_a_wrong_minquant_would_show(operation, variant, shape):
    with pytest.raises(WrongResultError, match="values are wrong"):
        checked("minquant", spoiled(operation, shape, lambda data: operation.ours(data, variant)))


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_a_shape_has_as_many_numbers_as_the_axes_say(operation):
    for shape in (shape for shapes in operation.shapes.values() for shape in shapes):
        assert "…" in operation.axes or len(shape) == len(operation.axes.split("×"))


@pytest.mark.parametrize("operation", [op for op in OPERATIONS if op.work], ids=lambda operation: operation.name)
def test_work_grows_with_the_batch(operation):
    for shape in TINY[operation.name]:
        once, twice = operation.work(shape), operation.work((2 * shape[0], *shape[1:]))
        assert twice.operations == 2 * once.operations and once.moved < twice.moved < 2 * once.moved


# ---- products --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 4096, 9)])
@pytest.mark.parametrize("left", ["uint8", "int8"])
def test_the_answer_is_the_references(shape, left):
    given = operands(shape).left(left)
    assert given.a.dtype == left and given.b.dtype == np.int8
    np.testing.assert_array_equal(given.product, reference.matmul(given.a, given.b))
    assert (np.abs(given.product) <= given.columns).all()


def test_both_left_operands_are_the_same_bytes():
    given = operands((3, 5, 7))
    np.testing.assert_array_equal(given.left("uint8").a, given.left("int8").a.view(np.uint8))


def test_the_operands_saturate_nowhere_and_the_ends_do():
    given = operands((40, 512, 40))
    np.testing.assert_array_equal(saturating_matmul(given.a, given.b), given.product)
    extreme = Operands(np.array([[255, 255]], np.uint8), np.full((2, 1), products.SAFE, np.int8))
    assert saturating_matmul(extreme.a, extreme.b) == extreme.product
    assert (saturating_matmul(ends("uint8").a, ends("uint8").b) != ends("uint8").product).all()


def test_who_saturates_is_found_out(monkeypatch):
    def peer(name, multiply):
        def prepare(given, threads):
            return products_job(multiply, given)

        return Peer(name, name, (), prepare, "uint8")

    peers = (peer("exact", reference.matmul), peer("pairs", saturating_matmul))
    (packed, *_) = int8_matmul.OPERATIONS
    monkeypatch.setattr(int8_matmul, "OPERATIONS", (type(packed)(**{**vars(packed), "peers": peers}),))
    assert int8_matmul.saturating(peers) == ["pairs"]


def products_job(multiply, given):
    return int8_matmul.Job(lambda: multiply(given.a, given.b), np.asarray, given.product)
