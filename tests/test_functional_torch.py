from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minquant import Tensor
from minquant import functional as F
from tests.operations import CLASSES, OPERATIONS, Operation, TorchFunctions, target

torch = pytest.importorskip("torch")

ROUNDINGS = 8  # of each side, at most, in values up to the operation's magnitude


def laid_out(x: np.ndarray, layout: str) -> np.ndarray:
    """x itself, in memory as a transposed, a sliced or a reversed array has it."""
    if layout == "transposed":
        return np.ascontiguousarray(x.T).T
    if layout == "sliced" and x.ndim:
        wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan, x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    if layout == "reversed" and x.ndim:
        return np.ascontiguousarray(x[::-1])[::-1]
    return x


def both(operation: Operation, arrays: list[np.ndarray], *rest: Any) -> tuple[list[Any], list[Any]]:
    """Output and gradients, of minquant and of torch."""
    ours = [Tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(np.ascontiguousarray(a).reshape(a.shape), requires_grad=True) for a in arrays]
    our_out = operation.call(F, *ours, *rest)
    their_out = operation.call(TorchFunctions(torch), *theirs, *map(torch.tensor, rest))
    weights = np.random.default_rng(1).uniform(0.5, 1.5, our_out.shape).astype(our_out.dtype)
    our_out.backward(weights)
    their_out.backward(torch.tensor(weights))
    return (
        [our_out.data, *(None if t.grad is None else t.grad.data for t in ours)],
        [their_out.detach().numpy(), *(None if t.grad is None else t.grad.numpy() for t in theirs)],
    )


def assert_close(operation: Operation, ours: list[Any], theirs: list[Any], dtype: type) -> None:
    bound = 2 * ROUNDINGS * np.finfo(dtype).eps / 2 * operation.magnitude
    for what, a, b in zip(["output", "gradient 0", "gradient 1", "gradient 2"], ours, theirs, strict=False):
        where = f"{what} of {operation.name}"
        assert (a is None) == (b is None), where
        if a is not None:
            assert a.shape == b.shape and a.dtype == b.dtype, f"{where}: {a.shape} {a.dtype}, {b.shape} {b.dtype}"
            assert np.abs(a - b).max(initial=0) <= bound, f"{where}: expected\n{b}\ngot\n{a}"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_output_and_gradients_are_torchs(operation: Operation, dtype: type, data: st.DataObject) -> None:
    arrays = operation.arrays(data.draw(operation.shapes), data.draw(st.integers(0, 2**32 - 1)))
    layouts = st.sampled_from(["plain", "transposed", "sliced", "reversed"])
    arrays = [laid_out(a.astype(dtype), data.draw(layouts)) for a in arrays]
    assert_close(operation, *both(operation, arrays), dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("operation", CLASSES, ids=lambda operation: operation.name)
@pytest.mark.parametrize("seed", range(5))
def test_cross_entropy_is_torchs(operation: Operation, dtype: type, seed: int) -> None:
    arrays = [a.astype(dtype) for a in operation.arrays(((3, 4),), seed)]
    assert_close(operation, *both(operation, arrays, target), dtype)


def test_cross_entropy_of_one_row() -> None:
    logits = np.array([0.5, -1.0, 2.0], np.float32)
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(2)).item()
    assert abs(F.cross_entropy(logits, 2).item() - expected) <= 1e-7


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4), (7,)])
def test_positions_of_the_largest_are_torchs(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 3, shape).astype(np.float32)  # many ties
    for dim in (None, *range(len(shape))):
        for keepdim in (False, True):
            expected = torch.tensor(x).argmax(dim, keepdim).numpy()
            np.testing.assert_array_equal(F.argmax(x, dim, keepdim).data, expected, strict=True)
            if dim is not None:
                expected = torch.tensor(x).min(dim, keepdim)
                np.testing.assert_array_equal(F.min(x, dim, keepdim).values.data, expected.values.numpy())
                np.testing.assert_array_equal(F.min(x, dim, keepdim).indices.data, expected.indices.numpy())


@pytest.mark.parametrize("name", ["relu", "abs", "sqrt", "max", "min", "sigmoid", "tanh", "gelu", "silu", "exp", "log"])
def test_special_values_give_torchs_outputs_and_gradients(name: str) -> None:
    x = np.array([0.0, -0.0, 1.0, 1.0, -np.inf, np.inf, np.nan, 1e-40, -3e38], np.float32)
    # torch says that gelu(inf) is NaN and that |NaN| has the slope 0; minquant says inf and NaN.
    x = x[x != np.inf] if name == "gelu" else x[~np.isnan(x)] if name == "abs" else x
    ours, theirs = Tensor(x.copy(), requires_grad=True), torch.tensor(x, requires_grad=True)
    our_out, their_out = getattr(F, name)(ours), getattr(TorchFunctions(torch), name)(theirs)
    np.testing.assert_allclose(our_out.data, their_out.detach().numpy(), rtol=1e-6, atol=1e-44)
    our_out.sum().backward()
    their_out.sum().backward()
    np.testing.assert_allclose(ours.grad.data, theirs.grad.numpy(), rtol=1e-6, atol=1e-44)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_masked_attention_is_torchs(dtype: type) -> None:
    rng = np.random.default_rng(0)
    seen = rng.random((5, 70)) < 0.5
    arrays = [rng.uniform(-1, 1, s).astype(dtype) for s in ((2, 4, 5, 8), (2, 2, 70, 8), (2, 2, 70, 3))]
    row = Operation(
        "masked attention",
        lambda f, q, k, v, mask: f.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True),
        st.nothing(),
        magnitude=32,  # a query's gradient is a mean of 70 differences up to 2 · 3 · 1.5, times keys up to 1
    )
    assert_close(row, *both(row, arrays, seen), dtype)
