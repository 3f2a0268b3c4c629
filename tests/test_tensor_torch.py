from __future__ import annotations

import operator

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minquant import Tensor
from minquant.autograd import result_dtype

torch = pytest.importorskip("torch")

dtypes = st.sampled_from([np.bool_, np.uint8, np.int8, np.int32, np.int64, np.float32, np.float64])


@st.composite
def operands(draw: st.DrawFn) -> object:
    """An array with axes, one without, or a Python number."""
    if draw(st.booleans()):
        return np.ones(draw(st.sampled_from([(), (2,), (2, 1)])), draw(dtypes))
    return draw(st.sampled_from([True, 3, 0.5]))


@settings(max_examples=300, deadline=None)
@given(a=operands(), b=operands())
def test_promotion_is_torchs(a: object, b: object) -> None:
    theirs = [torch.tensor(x) if isinstance(x, np.ndarray) else x for x in (a, b)]
    expected = str(torch.result_type(*theirs)).removeprefix("torch.")
    assert str(result_dtype([a, b])) == expected
    if isinstance(a, np.ndarray) and a.dtype != bool:
        ours = Tensor(a)
        assert str((ours * b).dtype) == expected
        assert str((ours / b).dtype) == str((theirs[0] / theirs[1]).dtype).removeprefix("torch.")


@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv", "pow"])
def test_mixed_precision_gradients_have_the_inputs_dtypes(name: str) -> None:
    a, b = np.array([0.5, 1.5], np.float32), np.array([[2.0], [3.0]])
    ours = [Tensor(a, requires_grad=True), Tensor(b, requires_grad=True)]
    theirs = [torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)]
    for tensors in (ours, theirs):
        getattr(operator, name)(*tensors).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        expected = other.grad.numpy()
        assert mine.grad.dtype == expected.dtype
        np.testing.assert_allclose(mine.grad.data, expected, rtol=4 * np.finfo(expected.dtype).eps)


indices = st.one_of(
    st.integers(-3, 2),
    st.slices(3),
    st.just(None),
    st.just(...),
    st.lists(st.integers(-3, 2), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=3, max_size=3).map(lambda values: np.array(values)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(indices, min_size=1, max_size=3))
def test_indexing_is_torchs(index: list) -> None:
    assume(sum(i is ... for i in index) <= 1)  # NumPy allows one
    x = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    theirs = torch.tensor(x, requires_grad=True)
    try:
        expected = theirs[tuple(torch.tensor(i) if isinstance(i, np.ndarray) else i for i in index)]
    except (IndexError, ValueError):  # torch has no negative steps
        return
    ours = Tensor(x, requires_grad=True)
    got = ours[tuple(Tensor(i) if isinstance(i, np.ndarray) else i for i in index)]
    np.testing.assert_array_equal(got.data, expected.detach().numpy())
    (got * got).sum().backward()
    (expected * expected).sum().backward()
    np.testing.assert_array_equal(ours.grad.data, theirs.grad.numpy())


@pytest.mark.parametrize("index", [(0, slice(None), [2, 0]), ([1, 1], 0), (..., 1), ([0, 2], slice(1), 1)])
def test_writing_at_an_index_is_torchs(index: tuple) -> None:
    x = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    ours, theirs = Tensor(x.copy(), requires_grad=True), torch.tensor(x, requires_grad=True)
    value = np.float32(5)
    results = []
    for leaf, v in [
        (ours, Tensor(value, requires_grad=True)),
        (theirs, torch.tensor(value, requires_grad=True)),
    ]:
        y = leaf * 2
        y[index] = v
        (y * y).sum().backward()
        results.append([np.asarray(t.detach()) for t in (y, leaf.grad, v.grad)])
    for mine, other in zip(*results, strict=True):
        np.testing.assert_array_equal(mine, other)
    with_no_graph = Tensor(x.copy())
    with_no_graph[index] = value
    plain = torch.tensor(x)
    plain[index] = torch.tensor(value)
    np.testing.assert_array_equal(with_no_graph.data, plain.numpy())
