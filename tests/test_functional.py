from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minquant import Tensor
from minquant import functional as F
from minquant.functional.erf import erf
from tests.gradcheck import gradcheck
from tests.operations import CLASSES, OPERATIONS, Operation, target

by_name = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
seeds = st.integers(0, 2**32 - 1)


@by_name
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_gradients_are_those_of_numeric_differences(operation: Operation, data: st.DataObject) -> None:
    arrays = operation.arrays(data.draw(operation.shapes), data.draw(seeds))
    gradcheck(operation.name, lambda *tensors: operation.call(F, *tensors), arrays)


@pytest.mark.parametrize("operation", CLASSES, ids=lambda operation: operation.name)
def test_gradients_of_cross_entropy(operation: Operation) -> None:
    (logits,) = operation.arrays(((3, 4),), 0)
    gradcheck(operation.name, lambda x: operation.call(F, x, target), [logits])


@by_name
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_results_and_gradients_keep_the_dtype(dtype: type, operation: Operation, data: st.DataObject) -> None:
    arrays = operation.arrays(data.draw(operation.shapes), data.draw(seeds))
    inputs = [Tensor(a.astype(dtype), requires_grad=True) for a in arrays]
    out = operation.call(F, *inputs)
    assert out.dtype == dtype
    out.sum().backward()
    assert all(t.grad is None or t.grad.dtype == dtype for t in inputs)


# ---- kinks and ties ----------------------------------------------------------------------------------------


def gradient(function, values) -> list[float]:
    x = Tensor(np.array(values, np.float32), requires_grad=True)
    function(x).sum().backward()
    return x.grad.tolist()


def test_kinks_have_torchs_gradient() -> None:
    assert gradient(F.relu, [-1.0, 0.0, -0.0, 1.0]) == [0, 0, 0, 1]
    assert gradient(F.abs, [-2.0, 0.0, 2.0]) == [-1, 0, 1]
    assert gradient(lambda x: F.clip(x, -1, 1), [-1.5, -1.0, 0.0, 1.0, 1.5]) == [0, 1, 1, 1, 0]


def test_equal_largest_elements_share_the_gradient_but_along_an_axis_the_first_has_it() -> None:
    assert gradient(F.max, [1.0, 3.0, 3.0]) == [0, 0.5, 0.5]
    assert gradient(F.min, [1.0, 1.0, 3.0]) == [0.5, 0.5, 0]
    assert gradient(lambda x: F.max(x, 0).values, [1.0, 3.0, 3.0]) == [0, 1, 0]
    assert F.max(Tensor([1.0, 3.0, 3.0]), 0).indices.item() == 1


def test_powers_at_zero() -> None:
    assert gradient(lambda x: x**0, [0.0, 2.0]) == [0, 0]
    assert gradient(lambda x: x**1, [0.0]) == [1]
    assert gradient(lambda x: 0.0**x, [0.0, 2.0]) == [0, 0]


# ---- accuracy ----------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-8, 8), min_size=1, max_size=50))
def test_erf_is_exact_to_4e_16(values: list[float]) -> None:
    expected = np.array([math.erf(v) for v in values])
    assert np.abs(erf(np.array(values)) - expected).max() <= 4e-16


def test_erf_of_small_and_special_values() -> None:
    tiny = np.array([1e-300, -1e-20, 1e-8, 0.0])
    np.testing.assert_allclose(erf(tiny), 2 / math.sqrt(math.pi) * tiny, rtol=1e-15)
    np.testing.assert_array_equal(erf(np.array([np.inf, -np.inf, 30.0, np.nan])), [1, -1, 1, np.nan])


def test_large_inputs_neither_overflow_nor_warn() -> None:
    x = Tensor(np.array([-1000.0, 1000.0], np.float32), requires_grad=True)
    assert F.sigmoid(x).tolist() == [0, 1]
    assert F.softmax(x, 0).tolist() == [0, 1]
    assert F.log_softmax(x, 0).tolist() == [-2000, 0]
    F.silu(x).sum().backward()
    assert x.grad.tolist() == [0, 1]
    assert F.log(Tensor([0.0])).tolist() == [-math.inf]


def test_float32_sums_are_rounded_once() -> None:
    x = np.full((100_000, 2), 0.1, np.float32)
    exact = np.float32(math.fsum(x[:, 0].tolist()))
    assert F.sum(Tensor(x), 0).tolist() == [exact, exact]


def test_softmax_adds_up_to_one_over_an_empty_batch_too() -> None:
    assert F.softmax(Tensor(np.zeros((0, 3), np.float32)), 1).shape == (0, 3)
    np.testing.assert_allclose(F.softmax(Tensor([[1.0, 2.0, 3.0]]), 1).sum(1).data, 1, rtol=1e-6)


# ---- dropout -----------------------------------------------------------------------------------------------


def test_dropout_scales_what_it_keeps_and_its_gradient_alike() -> None:
    x = Tensor(np.ones((100, 100), np.float32), requires_grad=True)
    out = F.dropout(x, 0.2)
    assert set(np.unique(out.data)) == {np.float32(0), np.float32(1.25)}
    assert abs((out.data == 0).mean() - 0.2) < 0.02  # five standard deviations
    out.sum().backward()
    np.testing.assert_array_equal(x.grad.data, out.data)


def test_dropout_outside_training_is_x_itself() -> None:
    x = Tensor([1.0, 2.0])
    assert F.dropout(x, 0.5, training=False) is x
    assert F.dropout(x, 0.0) is x
    assert F.dropout(x, 1.0).tolist() == [0, 0]


# ---- bad input ---------------------------------------------------------------------------------------------


def zeros(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: zeros(2, 3) + zeros(4), ["Add", "(2, 3)", "(4,)"]),
        (lambda: F.where(zeros(2) > 0, zeros(3), zeros(3)), ["Where"]),
        (lambda: zeros(2, 3) @ zeros(2, 3), ["matmul", "(2, 3)", "3", "2"]),
        (lambda: zeros(2, 3, 4) @ zeros(3, 4, 5), ["MatMul", "(2, 3, 4)", "(3, 4, 5)"]),
        (lambda: zeros(3) @ zeros(), ["matmul", "()", "(3,)"]),
        (lambda: F.linear(zeros(5, 4), zeros(2, 3)), ["linear", "(5, 4)", "in_features=3"]),
        (lambda: F.linear(zeros(5, 3), zeros(3)), ["linear", "weight", "(3,)"]),
        (lambda: F.linear(zeros(5, 3), zeros(2, 3), zeros(3)), ["linear", "bias", "(3,)", "(2,)"]),
        (lambda: zeros(2, 3).reshape(4, 2), ["reshape", "(2, 3)", "(4, 2)"]),
        (lambda: zeros(2, 3).permute(0, 0), ["permute", "(0, 0)", "(2, 3)"]),
        (lambda: zeros(2, 3).expand(4, 3), ["expand", "(2, 3)", "(4, 3)"]),
        (lambda: zeros(2, 3).sum(2), ["dim 2", "(2, 3)"]),
        (lambda: zeros(2, 3).sum((1, -1)), ["twice"]),
        (lambda: zeros(2, 3).transpose(0, 2), ["dim 2"]),
        (lambda: zeros(2, 3).max(5), ["dim 5"]),
        (lambda: zeros(0).max(), ["(0,)", "no elements"]),
        (lambda: zeros(2, 0).argmax(1), ["(2, 0)"]),
        (lambda: zeros(2, 3, 4).flatten(2, 1), ["flatten", "2", "1"]),
        (lambda: F.cat([zeros(2, 3), zeros(2, 4)]), ["cat", "(2, 3)", "(2, 4)"]),
        (lambda: F.cat([zeros(2, 3)], dim=2), ["dim 2", "(2, 3)"]),
        (lambda: F.cat([]), ["cat", "none"]),
        (lambda: F.stack([zeros(2), zeros(3)]), ["stack", "(2,)", "(3,)"]),
        (lambda: zeros(5).split([1, 3]), ["split", "[1, 3]", "5"]),
        (lambda: zeros(5).split(0), ["split", "0"]),
        (lambda: zeros(5).clip(), ["clip"]),
        (lambda: F.gelu(zeros(2), approximate="sigmoid"), ["gelu", "sigmoid"]),
        (lambda: F.softmax(zeros(2, 3), 2), ["dim 2", "(2, 3)"]),
        (lambda: F.dropout(zeros(2), 1.5), ["dropout", "1.5"]),
        (lambda: F.mse_loss(zeros(3, 1), zeros(3)), ["mse_loss", "(3, 1)", "(3,)"]),
        (lambda: F.mse_loss(zeros(3), zeros(3), reduction="max"), ["reduction", "max"]),
        (lambda: F.cross_entropy(zeros(2, 3), np.array([0, 3])), ["cross_entropy", "0 to 3", "0 to 2"]),
        (lambda: F.cross_entropy(zeros(2, 3), np.array([0, -1])), ["cross_entropy", "-1"]),
        (lambda: F.cross_entropy(zeros(2, 3), np.array([0])), ["cross_entropy", "(2, 3)", "(1,)"]),
    ],
)
def test_what_does_not_fit_is_named(call, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: F.linear(np.ones((2, 3), np.int64), zeros(2, 3)), ["Linear", "int64", ".float()"]),
        (lambda: F.linear(np.ones((2, 3)), zeros(2, 3)), ["linear", "float64", "float32", ".float()"]),
        (lambda: zeros(2, 3).double() @ zeros(3, 2), ["matmul", "float64", "float32"]),
        (lambda: F.exp(Tensor([1, 2])), ["Exp", "int64", ".float()"]),
        (lambda: F.mean(Tensor([1, 2])), ["Mean", "int64", ".float()"]),
        (lambda: F.where(zeros(2), zeros(2), zeros(2)), ["where", "bool", "float32"]),
        (lambda: F.cross_entropy(zeros(2, 3), zeros(2)), ["cross_entropy", "float32"]),
    ],
)
def test_dtypes_that_do_not_fit_are_named(call, words: list[str]) -> None:
    with pytest.raises(TypeError) as error:
        call()
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


def test_an_index_outside_names_the_shape() -> None:
    with pytest.raises(IndexError, match=r"\(2, 3\)"):
        zeros(2, 3)[5]
