"""Convolution, pooling, normalization and embedding against torch, with every option drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minquant import Tensor
from minquant import functional as F

torch = pytest.importorskip("torch")
TF = torch.nn.functional

HALF_STEP = {np.float32: 2.0**-24, np.float64: 2.0**-53}
dtypes = st.sampled_from([np.float32, np.float64])
seeds = st.integers(0, 2**32 - 1)


def outcome(make: Callable, function: Callable, arrays: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """Output and gradients, all gradients of the output being between 0.5 and 1.5."""
    inputs = [make(a) for a in arrays]
    out = function(*inputs)
    grad = np.random.default_rng(seed).uniform(0.5, 1.5, tuple(out.shape)).astype(arrays[0].dtype)
    out.backward(Tensor(grad) if make is ours else torch.tensor(grad))
    return [np.asarray(t.detach()) for t in (out, *(i.grad for i in inputs))]


def ours(array: np.ndarray) -> Tensor:
    return Tensor(array.copy(), requires_grad=True)


def theirs(array: np.ndarray) -> Any:
    return torch.tensor(array, requires_grad=True)


def assert_sums_agree(function: Callable, arrays: list[np.ndarray], terms: Sequence[int], dtype: Any) -> None:
    """Output and gradients are sums of products; two ways to add n of them differ by at most 2 (n + 2) u Σ|…|.

    Σ|…| is the same computation on absolute values, in float64. `function` takes a library's functions first.
    """
    arrays = [a.astype(dtype) for a in arrays]
    a = outcome(ours, lambda *inputs: function(F, *inputs), arrays, 1)
    b = outcome(theirs, lambda *inputs: function(TF, *inputs), arrays, 1)
    wide = [np.abs(x).astype(np.float64) for x in arrays]
    sums = outcome(theirs, lambda *inputs: function(TF, *inputs), wide, 1)
    for what, x, y, total, n in zip(["output", "input", "weight", "bias"], a, b, sums, (*terms,), strict=False):
        assert x.shape == y.shape and x.dtype == y.dtype == dtype, what
        excess = np.abs(x - y) - 2 * (n + 2) * HALF_STEP[dtype] * total * (1 + 1e-6)
        assert excess.max(initial=-np.inf) <= 0, f"{what} exceeds its bound by {excess.max()}"


# ---- convolution ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("axes", [1, 2])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_convolutions_are_torchs(axes: int, data: st.DataObject) -> None:
    def each(low: int, high: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=axes, max_size=axes))

    groups, inner, outer = (data.draw(st.integers(1, 3)) for _ in range(3))
    kernel, stride, dilation = each(1, 4), each(1, 3), each(1, 3)
    padding = data.draw(st.sampled_from(["valid", "same", each(0, 2)]))
    if padding == "same":
        stride = [1] * axes
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    image = [data.draw(st.integers(s, s + 5)) for s in span]
    batch = data.draw(st.lists(st.integers(1, 3), max_size=1))
    rng = np.random.default_rng(data.draw(seeds))
    shapes = [(*batch, groups * inner, *image), (groups * outer, inner, *kernel), (groups * outer,)]
    arrays = [rng.standard_normal(shape) for shape in shapes][: 3 if data.draw(st.booleans()) else 2]

    def conv(library: Any, x: Any, weight: Any, bias: Any = None) -> Any:
        function = library.conv1d if axes == 1 else library.conv2d
        return function(x, weight, bias, stride, padding, dilation, groups)

    windows = int(np.prod([*batch, *(n + 4 for n in image)]))  # no more than there are places for them
    terms = inner * int(np.prod(kernel)) + 1, outer * int(np.prod(kernel)), windows, windows
    assert_sums_agree(conv, arrays, terms, data.draw(dtypes))


# ---- pooling -------------------------------------------------------------------------------------------------------


@st.composite
def pools(draw: st.DrawFn, dilated: bool) -> tuple[tuple[int, ...], list[Any]]:
    """Shape of the input, and the options in their order."""
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, dilation = draw(pairs), draw(pairs) if dilated else (1, 1)
    stride = draw(st.one_of(st.none(), pairs))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    image = [draw(st.integers(d * (k - 1) + 1, 9)) for k, d in zip(kernel, dilation, strict=True)]
    shape = (*draw(st.lists(st.integers(1, 2), max_size=1)), draw(st.integers(1, 3)), *image)
    return shape, [kernel, stride, padding, *([dilation] if dilated else [])]


@settings(max_examples=100, deadline=None)
@given(drawn=pools(dilated=True), dtype=dtypes, seed=seeds)
def test_max_pool2d_is_torchs_ties_included(drawn: tuple, dtype: Any, seed: int) -> None:
    shape, options = drawn
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, shape).astype(dtype)  # many ties
    a, b = ours(x), theirs(x)
    out_a, out_b = F.max_pool2d(a, *options), TF.max_pool2d(b, *options)
    np.testing.assert_array_equal(out_a.data, out_b.detach().numpy(), strict=True)
    grad = rng.integers(1, 100, out_a.shape).astype(dtype)  # whose sums are exact
    out_a.backward(grad)
    out_b.backward(torch.tensor(grad))
    np.testing.assert_array_equal(a.grad.data, b.grad.numpy(), strict=True)


@settings(max_examples=60, deadline=None)
@given(drawn=pools(dilated=False), dtype=dtypes, seed=seeds)
def test_avg_pool2d_is_torchs(drawn: tuple, dtype: Any, seed: int) -> None:
    shape, options = drawn
    kernel = int(np.prod(options[0]))
    x = np.random.default_rng(seed).standard_normal(shape)
    assert_sums_agree(lambda library, x: library.avg_pool2d(x, *options), [x], (kernel, kernel), dtype)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=dtypes, seed=seeds)
def test_adaptive_avg_pool2d_is_torchs(data: st.DataObject, dtype: Any, seed: int) -> None:
    shape = [*data.draw(st.lists(st.integers(1, 2), max_size=1)), *(data.draw(st.integers(1, 9)) for _ in range(3))]
    size = data.draw(st.tuples(*[st.one_of(st.none(), st.integers(1, 12))] * 2))
    x = np.random.default_rng(seed).standard_normal(shape)
    assert_sums_agree(lambda library, x: library.adaptive_avg_pool2d(x, size), [x], (81, 144), dtype)


def test_nan_and_infinities_pass_through_pooling_as_in_torch() -> None:
    x = np.array([[[np.nan, 1, -np.inf, 2], [3, np.inf, -np.inf, -np.inf]]], np.float32)
    for options in ((2,), (1, 2), (2, 1, 1)):
        expected = TF.max_pool2d(torch.tensor(x), *options).numpy()
        np.testing.assert_array_equal(F.max_pool2d(x, *options).data, expected)


# ---- normalization -------------------------------------------------------------------------------------------------


def normalized_bound(x: np.ndarray, axes: tuple[int, ...], eps: float, weight: np.ndarray, bias: np.ndarray) -> Any:
    """32 half steps of the largest intermediate value, (|x| + |mean|) / std · |weight| + |bias|.

    A side rounds the mean and the variance, each a sum of at most 60 elements whose partial sums are rounded in
    pairs or in float64 (8 half steps each), and then six results.
    """
    mean, std = x.mean(axes, keepdims=True), np.sqrt(x.var(axes, keepdims=True) + eps)
    return 2 * 32 * 2.0**-24 * ((np.abs(x) + np.abs(mean)) / std * np.abs(weight) + np.abs(bias))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(2, 5), channels=st.integers(1, 4), tail=st.lists(st.integers(1, 3), max_size=2), seed=seeds,
    training=st.booleans(), offset=st.sampled_from([0, 10]),
)  # fmt: skip
def test_batch_norm_is_torchs(
    rows: int, channels: int, tail: list[int], seed: int, training: bool, offset: int
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, channels, *tail)) + offset).astype(np.float32)
    weight, bias, mean, var = rng.uniform(0.5, 1.5, (4, channels)).astype(np.float32)
    means, variances = (mean.copy(), torch.tensor(mean)), (var.copy(), torch.tensor(var))
    a, b = (
        library.batch_norm(x_, m, v, w, b, training, 0.3, 1e-3)
        for library, x_, m, v, w, b in (
            (F, Tensor(x), Tensor(means[0]), Tensor(variances[0]), weight, bias),
            (TF, torch.tensor(x), means[1], variances[1], torch.tensor(weight), torch.tensor(bias)),
        )
    )
    kept = (1, channels, *(1 for _ in tail))
    axes = (0, *range(2, x.ndim))
    wide = x.astype(np.float64)
    if training:
        bound = normalized_bound(wide, axes, 1e-3, weight.reshape(kept), bias.reshape(kept))
    else:
        terms = (np.abs(wide) + mean.reshape(kept)) / np.sqrt(var.reshape(kept)) * weight.reshape(kept)
        bound = 2 * 8 * 2.0**-24 * (terms + bias.reshape(kept))
    assert (np.abs(a.data - b.numpy()) <= bound).all()
    for moved, other in (means, variances):  # a side rounds four times, values up to those of the statistics
        assert (np.abs(moved - other.numpy()) <= 2 * 4 * 2.0**-24 * (np.abs(moved) + (wide**2).max())).all()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), kept=st.integers(0, 2), seed=seeds,
    offset=st.sampled_from([0, 10]), affine=st.booleans(),
)  # fmt: skip
def test_layer_norm_and_rms_norm_are_torchs(shape: list[int], kept: int, seed: int, offset: int, affine: bool) -> None:
    sizes = tuple(shape[min(kept, len(shape) - 1) :])
    axes = tuple(range(-len(sizes), 0))
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(shape) + offset).astype(np.float32)
    weight, bias = rng.uniform(0.5, 1.5, (2, *sizes)).astype(np.float32)
    ours_, theirs_ = ((weight, bias), (torch.tensor(weight), torch.tensor(bias))) if affine else ((None,) * 2,) * 2
    bound = normalized_bound(x.astype(np.float64), axes, 1e-3, weight if affine else 1, bias if affine else 0)
    a, b = F.layer_norm(x, sizes, *ours_, 1e-3), TF.layer_norm(torch.tensor(x), sizes, *theirs_, 1e-3)
    assert (np.abs(a.data - b.numpy()) <= bound).all()
    for eps in (None, 1e-3):
        c, d = F.rms_norm(x, sizes, ours_[0], eps), TF.rms_norm(torch.tensor(x), sizes, theirs_[0], eps)
        assert (np.abs(c.data - d.numpy()) <= 2 * 16 * 2.0**-24 * np.abs(d.numpy())).all()  # no cancellation


# ---- embedding -----------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=2), rows=st.integers(1, 5), seed=seeds, padded=st.booleans(),
    dtype=st.sampled_from([np.int32, np.int64]),
)  # fmt: skip
def test_embedding_is_torchs(shape: list[int], rows: int, seed: int, padded: bool, dtype: Any) -> None:
    rng = np.random.default_rng(seed)
    index, weight = rng.integers(0, rows, shape).astype(dtype), rng.standard_normal((rows, 3)).astype(np.float32)
    index = np.asarray(index, dtype)
    padding_idx = int(rng.integers(-rows, rows)) if padded else None
    a, b = ours(weight), theirs(weight)
    out_a, out_b = F.embedding(index, a, padding_idx), TF.embedding(torch.tensor(index), b, padding_idx)
    np.testing.assert_array_equal(out_a.data, out_b.detach().numpy(), strict=True)
    grad = rng.integers(-99, 99, out_a.shape).astype(np.float32)  # whose sums are exact
    out_a.backward(grad)
    out_b.backward(torch.tensor(grad))
    np.testing.assert_array_equal(a.grad.data, b.grad.numpy(), strict=True)


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), rows=st.integers(1, 5), seed=seeds,
    padded=st.booleans(), mode=st.sampled_from(["sum", "mean", "weighted"]), last=st.booleans(), dtype=dtypes,
)  # fmt: skip
def test_embedding_bag_is_torchs(
    lengths: list[int], rows: int, seed: int, padded: bool, mode: str, last: bool, dtype: Any
) -> None:
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *lengths])[: None if last else -1]
    index = rng.integers(0, rows, sum(lengths))
    arrays = [rng.standard_normal((rows, 3))] + ([rng.standard_normal(len(index))] if mode == "weighted" else [])
    options = {"include_last_offset": last, "padding_idx": int(rng.integers(-rows, rows)) if padded else None}
    options["mode"] = "mean" if mode == "mean" else "sum"

    def bag(lib: Any, weight: Any, factors: Any = None) -> Any:
        integer = (lambda a: a) if lib is F else torch.tensor
        return lib.embedding_bag(integer(index), weight, integer(offsets), per_sample_weights=factors, **options)

    assert_sums_agree(bag, arrays, (max(lengths), len(index), 3), dtype)
