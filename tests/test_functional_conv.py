"""Convolution, pooling, normalization and embedding, without torch."""

from __future__ import annotations

import numpy as np
import pytest

from minquant import Tensor
from minquant import functional as F
from minquant.functional.windows import add_windows, windows
from minquant.quant import QParams, QSpec, QTensor
from tests.gradcheck import gradcheck

RNG = np.random.default_rng(0)


def zeros(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.float32))


# ---- windows -------------------------------------------------------------------------------------------------------


def test_windows_by_hand() -> None:
    x = np.arange(7)
    assert windows(x, (2,), (2,), (3,)).tolist() == [[0, 3], [2, 5]]
    assert windows(x.reshape(1, 7), (1, 3), (1, 4), (1, 1)).tolist() == [[[[0, 1, 2]], [[4, 5, 6]]]]


def test_add_windows_is_the_transpose_of_windows() -> None:
    options = (2, 3), (2, 1), (1, 2)
    x = RNG.integers(-9, 9, (2, 6, 7))
    seen = windows(x, *options)
    other = RNG.integers(-9, 9, seen.shape)
    assert (seen * other).sum() == (x * add_windows(other, (6, 7), *options)).sum()


# ---- convolution ---------------------------------------------------------------------------------------------------


def by_loops(x, weight, stride, padding, dilation, groups) -> np.ndarray:
    """conv2d as its formula reads, in integers."""
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    filters, channels, kh, kw = weight.shape
    rows = (x.shape[2] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    columns = (x.shape[3] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = np.zeros((len(x), filters, rows, columns))
    for n, m, i, j in np.ndindex(out.shape):
        group = m // (filters // groups)
        for c, s, t in np.ndindex(channels, kh, kw):
            row, column = i * stride[0] + s * dilation[0], j * stride[1] + t * dilation[1]
            out[n, m, i, j] += weight[m, c, s, t] * x[n, group * channels + c, row, column]
    return out


@pytest.mark.parametrize(
    ("groups", "options"),
    [(1, ((1, 1), (0, 0), (1, 1))), (2, ((2, 1), (1, 2), (1, 3))), (4, ((3, 2), (0, 1), (2, 1)))],
)
def test_conv2d_is_its_formula(groups: int, options: tuple) -> None:
    x, weight = RNG.integers(-9, 9, (2, 4, 8, 9)), RNG.integers(-9, 9, (8, 4 // groups, 3, 2))
    out = F.conv2d(x.astype(np.float32), weight.astype(np.float32), None, *options, groups)
    np.testing.assert_array_equal(out.data, by_loops(x, weight, *options, groups))


def test_conv1d_is_conv2d_of_one_row() -> None:
    x, weight = RNG.integers(-9, 9, (2, 4, 9)), RNG.integers(-9, 9, (6, 2, 3))
    expected = by_loops(x[:, :, None], weight[:, :, None], (1, 2), (0, 1), (1, 2), 2)[:, :, 0]
    out = F.conv1d(x.astype(np.float32), weight.astype(np.float32), None, 2, 1, 2, 2)
    np.testing.assert_array_equal(out.data, expected)


@pytest.mark.parametrize("kernel", [(1, 2), (2, 4), (3, 1)])
def test_padding_same_keeps_the_size_and_has_a_gradient(kernel: tuple[int, int]) -> None:
    x, weight = RNG.uniform(-1, 1, (1, 2, 4, 5)), RNG.uniform(-1, 1, (3, 2, *kernel))
    assert F.conv2d(x, weight, padding="same").shape == (1, 3, 4, 5)
    gradcheck("conv2d, same", lambda x, w: F.conv2d(x, w, padding="same", dilation=(2, 1)), [x, weight])


def test_an_odd_element_of_padding_same_goes_to_the_end() -> None:
    x, weight = np.array([[[1.0, 2.0, 3.0]]]), np.array([[[1.0, 10.0]]])
    assert F.conv1d(x, weight, padding="same").tolist() == [[[21, 32, 3]]]


def test_no_images_give_no_images_and_gradients_of_zero() -> None:
    x, weight = zeros(0, 4, 5, 5).requires_grad_(), zeros(6, 2, 3, 3).requires_grad_()
    out = F.conv2d(x, weight, groups=2)
    assert out.shape == (0, 6, 3, 3)
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert (weight.grad.data == 0).all()
    assert F.max_pool2d(zeros(0, 2, 4, 4), 2).shape == F.avg_pool2d(zeros(0, 2, 4, 4), 2).shape == (0, 2, 2, 2)


# ---- pooling -------------------------------------------------------------------------------------------------------


def test_the_first_of_equal_largest_elements_has_the_gradient() -> None:
    x = Tensor(np.ones((1, 2, 4), np.float32), requires_grad=True)
    F.max_pool2d(x, 2).sum().backward()
    assert x.grad.tolist() == [[[1, 0, 1, 0], [0, 0, 0, 0]]]


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int8, np.uint8])
def test_padding_is_smaller_than_every_element(dtype: type) -> None:
    low = np.finfo(dtype).min if dtype is np.float32 else np.iinfo(dtype).min
    x = np.full((1, 2, 2), low, dtype)
    out = F.max_pool2d(x, 2, padding=1)
    assert out.dtype == dtype
    assert (out.data == low).all()
    assert F.max_pool2d(x + dtype(1), 2, padding=1).data.min() == low + 1


def test_max_pool2d_commutes_with_the_grid() -> None:
    integers = RNG.integers(0, 256, (2, 3, 5, 5)).astype(np.uint8)
    q = QTensor(integers, QParams(np.float32(0.1), np.int32(200), QSpec(signed=False)))
    pooled = F.max_pool2d(q, 3, 2, 1)
    assert isinstance(pooled, QTensor)
    np.testing.assert_array_equal(pooled.dequantize(), F.max_pool2d(q.dequantize(), 3, 2, 1).data)
    for call in (lambda: F.avg_pool2d(q, 2), lambda: F.conv2d(q, zeros(2, 3, 1, 1)), lambda: F.layer_norm(q, 5)):
        with pytest.raises(TypeError, match="dequantize"):
            call()


def test_adaptive_avg_pool2d_by_hand() -> None:
    x = np.arange(10, dtype=np.float32).reshape(1, 2, 5)
    out = F.adaptive_avg_pool2d(x, (1, 3))  # columns 0 1, 1 2 3, 3 4
    assert out.tolist() == [[[3, 4.5, 6]]]
    assert F.adaptive_avg_pool2d(x, None).tolist() == x.tolist()
    assert F.adaptive_avg_pool2d(x, (3, 1)).tolist() == [[[2], [4.5], [7]]]  # rows 0, 0 1, 1
    assert F.adaptive_avg_pool2d(zeros(0, 2, 4, 4), (None, 2)).shape == (0, 2, 4, 2)


# ---- normalization -------------------------------------------------------------------------------------------------


def test_running_statistics_move_in_place() -> None:
    x = np.array([[0.0, 1.0], [4.0, 1.0]], np.float32)
    mean, var = Tensor(np.zeros(2, np.float32)), Tensor(np.ones(2, np.float32))
    F.batch_norm(Tensor(x, requires_grad=True), mean, var, training=True, momentum=0.5)
    assert mean.tolist() == [1, 0.5]
    assert var.tolist() == [4.5, 0.5]  # of [0, 4], divided by n − 1: 8
    F.batch_norm(x, mean, var)
    assert mean.tolist() == [1, 0.5]
    assert not mean.requires_grad


def test_gradient_of_batch_norm_by_running_statistics() -> None:
    mean, var = Tensor(RNG.uniform(-1, 1, 3)), Tensor(RNG.uniform(0.5, 2, 3))
    arrays = [RNG.uniform(-1, 1, (2, 3, 2)), RNG.uniform(-1, 1, 3), RNG.uniform(-1, 1, 3)]
    gradcheck("batch_norm in eval", lambda x, w, b: F.batch_norm(x, mean, var, w, b), arrays)


# ---- embedding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_idx", [None, 1, -2])
def test_rows_get_the_sum_of_their_gradients(padding_idx: int | None) -> None:
    weight = Tensor(np.arange(6, dtype=np.float64).reshape(3, 2), requires_grad=True)
    out = F.embedding(np.array([[0, 2], [1, 2]]), weight, padding_idx)
    assert out.tolist() == [[[0, 1], [4, 5]], [[2, 3], [4, 5]]]
    out.sum().backward()
    assert weight.grad.tolist() == [[1, 1], [1, 1] if padding_idx is None else [0, 0], [2, 2]]


def test_gradient_of_embedding() -> None:
    index = np.array([[0, 2, 0], [1, 2, 2]])
    gradcheck("embedding", lambda w: F.embedding(index, w), [RNG.uniform(-1, 1, (4, 3))])


BAG = np.array([2, 0, 3, 2, 1])
ROWS = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [8.0, 80.0]])


def test_bags_are_sums_and_means_and_empty_ones_zero() -> None:
    offsets = np.array([0, 2, 2])
    total, mean = (F.embedding_bag(BAG, ROWS, offsets, mode) for mode in ("sum", "mean"))
    assert total.tolist() == [[5, 50], [0, 0], [14, 140]]
    assert mean.tolist() == [[2.5, 25], [0, 0], [14 / 3, 140 / 3]]
    assert F.embedding_bag(BAG, ROWS, np.array([0, 2, 2, 5]), include_last_offset=True).tolist() == mean.tolist()
    assert F.embedding_bag(np.array([[0, 1], [2, 3]]), ROWS, mode="sum").tolist() == [[3, 30], [12, 120]]
    assert F.embedding_bag(np.zeros((2, 0), int), ROWS).tolist() == [[0, 0], [0, 0]]


def test_the_padding_row_is_in_no_bag_and_not_in_its_number() -> None:
    weight = Tensor(ROWS.copy(), requires_grad=True)
    out = F.embedding_bag(np.array([[2, 0], [0, 0], [1, 3]]), weight, padding_idx=-4)
    assert out.tolist() == [[4, 40], [0, 0], [5, 50]]
    out.sum().backward()
    assert weight.grad.tolist() == [[0, 0], [0.5, 0.5], [1, 1], [0.5, 0.5]]


def test_each_index_has_its_weight() -> None:
    weights = np.array([0.5, 2.0, -1.0, 0.0, 1.0])
    out = F.embedding_bag(BAG, ROWS, np.array([0, 2]), "sum", weights)
    assert out.tolist() == [[4, 40], [-6, -60]]


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_gradients_of_embedding_bag(padding_idx: int | None) -> None:
    offsets, weight = np.array([0, 2, 2]), RNG.uniform(-1, 1, (4, 3))
    for mode in ("sum", "mean"):
        gradcheck(
            "embedding_bag", lambda w, m=mode: F.embedding_bag(BAG, w, offsets, m, None, False, padding_idx), [weight]
        )
    gradcheck(
        "embedding_bag weighted",
        lambda w, factors: F.embedding_bag(BAG, w, offsets, "sum", factors, False, padding_idx),
        [weight, RNG.uniform(-1, 1, 5)],
    )


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: F.conv2d(zeros(2, 3, 5, 5), zeros(4, 2, 3, 3)), ["conv2d", "(2, 3, 5, 5)", "3 channels", "2"]),
        (lambda: F.conv2d(zeros(5, 5), zeros(4, 2, 3, 3)), ["conv2d", "(N, C, H, W)", "(5, 5)"]),
        (lambda: F.conv2d(zeros(1, 3, 5, 5), zeros(4, 3, 3)), ["conv2d", "weight", "kh, kw", "(4, 3, 3)"]),
        (lambda: F.conv2d(zeros(1, 3, 5, 5), zeros(4, 3, 3, 3), zeros(3)), ["conv2d", "bias", "(3,)", "(4,)"]),
        (lambda: F.conv2d(zeros(1, 3, 5, 5), zeros(4, 1, 3, 3), groups=2), ["groups=2", "in_channels=3"]),
        (lambda: F.conv2d(zeros(1, 4, 5, 5), zeros(3, 2, 3, 3), groups=2), ["groups=2", "out_channels=3"]),
        (lambda: F.conv2d(zeros(1, 4, 5, 5), zeros(4, 4, 3, 3), groups=0), ["groups=0"]),
        (lambda: F.conv2d(zeros(1, 1, 2, 5), zeros(1, 1, 3, 3)), ["conv2d", "(3, 3)", "(2, 5)", "padded"]),
        (lambda: F.conv2d(zeros(1, 1, 5, 5), zeros(1, 1, 3, 3), dilation=(1, 3)), ["(3, 7)", "(5, 5)"]),
        (lambda: F.conv2d(zeros(1, 1, 5, 5), zeros(1, 1, 3, 3), stride=0), ["conv2d: stride", "0"]),
        (lambda: F.conv2d(zeros(1, 1, 5, 5), zeros(1, 1, 3, 3), padding=(1, 1, 1)), ["conv2d: padding", "(1, 1, 1)"]),
        (lambda: F.conv2d(zeros(1, 1, 5, 5), zeros(1, 1, 3, 3), padding="full"), ["padding", "'full'", "same"]),
        (lambda: F.conv2d(zeros(1, 1, 5, 5), zeros(1, 1, 3, 3), stride=2, padding="same"), ["same", "stride 1", "2"]),
        (lambda: F.conv1d(zeros(1, 1, 5, 5), zeros(1, 1, 3)), ["conv1d", "(N, C, L)", "(1, 1, 5, 5)"]),
        (lambda: F.max_pool2d(zeros(5, 5), 2), ["max_pool2d", "(5, 5)"]),
        (lambda: F.max_pool2d(zeros(1, 5, 5), 6), ["max_pool2d", "(6, 6)", "(5, 5)"]),
        (lambda: F.max_pool2d(zeros(1, 5, 5), 3, padding=2), ["max_pool2d", "padding=2", "half"]),
        (lambda: F.avg_pool2d(zeros(1, 5, 5), (2, 2, 2)), ["avg_pool2d: kernel_size", "(2, 2, 2)"]),
        (lambda: F.avg_pool2d(zeros(1, 5, 2), 4, 1), ["avg_pool2d", "(4, 4)", "(5, 2)"]),
        (lambda: F.adaptive_avg_pool2d(zeros(5, 5), 2), ["adaptive_avg_pool2d", "(5, 5)"]),
        (lambda: F.adaptive_avg_pool2d(zeros(1, 5, 0), 2), ["adaptive_avg_pool2d", "at least 1", "(1, 5, 0)"]),
        (lambda: F.adaptive_avg_pool2d(zeros(1, 5, 5), (0, None)), ["adaptive_avg_pool2d: output_size", "(0, None)"]),
        (lambda: F.batch_norm(zeros(3), None, None, training=True), ["batch_norm", "(3,)"]),
        (lambda: F.batch_norm(zeros(1, 3), None, None, training=True), ["batch_norm", "(1, 3)", "eval"]),
        (lambda: F.batch_norm(zeros(2, 3), None, None), ["running_mean", "running_var"]),
        (lambda: F.batch_norm(zeros(2, 3), zeros(2), zeros(3)), ["running_mean", "(2,)", "(3,)"]),
        (lambda: F.batch_norm(zeros(2, 3), None, None, zeros(4), training=True), ["weight", "(4,)", "(3,)"]),
        (lambda: F.layer_norm(zeros(2, 3), 2), ["layer_norm", "(2, 3)", "(2,)"]),
        (lambda: F.layer_norm(zeros(2, 3), ()), ["layer_norm: normalized_shape", "()"]),
        (lambda: F.layer_norm(zeros(2, 3), 3, zeros(2)), ["layer_norm", "weight", "(2,)", "(3,)"]),
        (lambda: F.rms_norm(zeros(2, 3), (3, 2)), ["rms_norm", "(2, 3)", "(3, 2)"]),
        (lambda: F.embedding(np.array([0]), zeros(3)), ["embedding", "(3,)"]),
        (lambda: F.embedding(np.array([0]), zeros(3, 2), padding_idx=3), ["padding_idx 3", "3 rows"]),
        (lambda: F.embedding_bag(BAG, zeros(4, 2)), ["(indices,)", "(5,)", "without offsets"]),
        (lambda: F.embedding_bag(BAG[None], zeros(4, 2), np.array([0])), ["(1, 5)", "with offsets"]),
        (lambda: F.embedding_bag(BAG, zeros(4, 2), np.array([0, 6])), ["offsets", "5 indices", "[0, 6]"]),
        (lambda: F.embedding_bag(BAG, zeros(4, 2), np.array([1])), ["offsets must begin at 0", "[1]"]),
        (lambda: F.embedding_bag(BAG, zeros(4, 2), np.array([0, 3, 2])), ["offsets", "ascend", "[0, 3, 2]"]),
        (lambda: F.embedding_bag(BAG, zeros(4, 2), np.array([0, 4]), include_last_offset=True), ["end at", "[0, 4]"]),
        (lambda: F.embedding_bag(BAG, zeros(4, 2), np.array([0]), "max"), ["mode", "'max'"]),
        (lambda: F.embedding_bag(BAG, zeros(4, 2), np.array([0]), "mean", zeros(5)), ["per_sample_weights", "'mean'"]),
        (lambda: F.embedding_bag(BAG, zeros(4, 2), np.array([0]), "sum", zeros(4)), ["(5,)", "(4,)"]),
    ],
)
def test_what_does_not_fit_is_named(call, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: F.conv2d(np.zeros((1, 1, 3, 3), int), zeros(1, 1, 3, 3)), ["Conv", "int64", ".float()"]),
        (lambda: F.conv2d(np.zeros((1, 1, 3, 3)), zeros(1, 1, 3, 3)), ["float64", "float32", ".float()"]),
        (lambda: F.conv2d(zeros(1, 1, 3, 3), zeros(1, 1, 3, 3), stride=1.5), ["stride", "1.5"]),
        (lambda: F.max_pool2d(np.zeros((1, 3, 3), bool), 2), ["max_pool2d", "bool"]),
        (lambda: F.avg_pool2d(np.zeros((1, 3, 3), int), 2), ["AvgPool2d", "int64"]),
        (lambda: F.adaptive_avg_pool2d(np.zeros((1, 3, 3), int), 2), ["AdaptiveAvgPool2d", "int64"]),
        (lambda: F.adaptive_avg_pool2d(zeros(1, 3, 3), 1.5), ["adaptive_avg_pool2d: output_size", "1.5"]),
        (lambda: F.batch_norm(np.zeros((2, 3), int), zeros(3), zeros(3)), ["int64", ".float()"]),
        (lambda: F.layer_norm(np.zeros((2, 3), int), 3), ["int64", ".float()"]),
        (lambda: F.rms_norm(np.zeros((2, 3), int), 3, eps=0.1), ["RMSNorm", ".float()"]),
        (lambda: F.rms_norm(np.zeros((2, 3), int), 3), ["RMSNorm", "int64"]),
        (lambda: F.embedding(zeros(2), zeros(3, 2)), ["embedding", "float32", "integers"]),
        (lambda: F.embedding_bag(zeros(2, 1), zeros(3, 2)), ["embedding_bag", "float32", "integers"]),
        (lambda: F.embedding_bag(BAG, zeros(4, 2), zeros(1)), ["offsets", "float32"]),
    ],
)
def test_dtypes_that_do_not_fit_are_named(call, words: list[str]) -> None:
    with pytest.raises(TypeError) as error:
        call()
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize(("index", "named"), [(7, "index 7 at \\(1, 0\\)"), (-1, "index -1 at \\(1, 0\\)")])
def test_an_index_outside_the_table_is_named(index: int, named: str) -> None:
    with pytest.raises(IndexError, match=named + r".*0 to 2"):
        F.embedding(np.array([[0, 2], [index, 9]]), zeros(3, 2))
