"""QTensor: packed storage, honest bytes, and operations that are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minquant
from minquant import functional as F
from minquant import nn
from minquant.quant import PerChannel, PerGroup, PerTensor, QParams, QSpec, QTensor
from minquant.quant.qtensor import pack_bits, unpack_bits

GRID = QParams(0.5, 3, QSpec())
Q = QTensor(np.arange(-6, 6, dtype=np.int8).reshape(3, 4), GRID)


# ---- packing ---------------------------------------------------------------------------------------------------


def test_two_four_bit_integers_make_one_byte():
    assert pack_bits(np.array([-8, 7]), 4).tolist() == [0x78]
    assert pack_bits(np.array([1, 15]), 4).tolist() == [0xF1]


def test_eight_three_bit_integers_make_three_bytes():
    bits = "".join(f"{q:03b}"[::-1] for q in range(8))  # lowest bit first
    expected = [int(bits[i : i + 8][::-1], 2) for i in (0, 8, 16)]
    assert pack_bits(np.arange(8), 3).tolist() == expected == [0x88, 0xC6, 0xFA]


@pytest.mark.parametrize(
    ("count", "bits", "nbytes"), [(0, 4, 0), (1, 2, 1), (5, 2, 2), (3, 3, 2), (9, 3, 4), (7, 4, 4)]
)
def test_odd_lengths_leave_zeros(count, bits, nbytes):
    packed = pack_bits(np.full(count, -1), bits)
    assert packed.dtype == np.uint8 and packed.size == nbytes
    assert "".join(f"{byte:08b}"[::-1] for byte in packed) == "1" * (count * bits) + "0" * (8 * nbytes - count * bits)


@given(
    bits=st.sampled_from([2, 3, 4, 5, 8]), signed=st.booleans(),
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_storage_gives_the_integers_back(bits, signed, shape, seed):
    spec = QSpec(bits, signed)
    integers = np.random.default_rng(seed).integers(spec.qmin, spec.qmax + 1, shape)
    q = QTensor(integers, QParams(1.0, 0, spec))
    assert np.array_equal(q.int_repr(), integers) and q.int_repr().dtype == spec.dtype
    assert q.int_repr().shape == q.shape == shape and q.numel() == integers.size
    assert q.size() == shape and q.dim() == q.ndim == len(shape) and all(q.size(i) == n for i, n in enumerate(shape))
    assert np.array_equal(unpack_bits(pack_bits(integers, bits), bits, signed, shape), integers)


def test_the_callers_array_is_not_kept():
    integers = np.zeros(3, np.int8)
    q = QTensor(integers, GRID)
    integers[:] = 7
    assert q.int_repr().tolist() == [0, 0, 0]


# ---- bytes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "shape", "nbytes"),
    [
        (QSpec(), (3, 8), 24 + 4 + 4),
        (QSpec(symmetric=True), (3, 8), 24 + 4),
        (QSpec(symmetric=True, granularity=PerChannel()), (3, 8), 24 + 3 * 4),
        (QSpec(4, granularity=PerGroup(4)), (3, 8), 12 + 6 * 4 + 6 * 4),
        (QSpec(3, symmetric=True), (3, 3), 4 + 4),
        (QSpec(2, symmetric=True), (5,), 2 + 4),
        (QSpec(5, symmetric=True), (5,), 5 + 4),
        (QSpec(16, symmetric=True), (5,), 10 + 4),
    ],
)
def test_nbytes(spec, shape, nbytes):
    scale = np.ones(spec.granularity.qparams_shape(shape))
    q = QTensor(np.zeros(shape, int), QParams(scale, 0, spec))
    assert q.nbytes == nbytes
    assert q.storage.nbytes == nbytes - scale.size * 4 * (1 if spec.symmetric else 2)


# ---- values --------------------------------------------------------------------------------------------------------


def test_dequantize_in_closed_form():
    assert Q.dequantize().tolist() == ((np.arange(-6, 6) - 3) * 0.5).reshape(3, 4).tolist()
    assert Q.dequantize().dtype == np.float32
    per_channel = QParams(np.array([1.0, 2, 4]), np.array([0, 1, 2]), QSpec(granularity=PerChannel()))
    assert QTensor(np.ones((3, 2), int), per_channel).dequantize().tolist() == [[1, 1], [0, 0], [-4, -4]]
    groups = QParams(np.array([[1.0, 10]]), np.array([[0, 1]]), QSpec(granularity=PerGroup(2)))
    assert QTensor(np.array([[1, 2, 3, 4]]), groups).dequantize().tolist() == [[1, 2, 20, 30]]


def test_the_difference_is_exact_at_the_ends():
    grid = QParams(1.0, 65535, QSpec(16, signed=False))
    assert QTensor(np.array([0, 65535]), grid).dequantize().tolist() == [-65535, 0]


def test_it_prints_its_integers_and_grid():
    assert repr(QTensor(np.array([1, 2]), GRID)) == f"QTensor([1 2], {GRID})"
    assert len(Q) == 3


# ---- operations ------------------------------------------------------------------------------------------------------


def test_operations_on_integers():
    assert F.relu(Q).int_repr().tolist() == np.maximum(Q.int_repr(), 3).tolist()
    assert np.array_equal(F.relu(Q).dequantize(), np.maximum(Q.dequantize(), 0))
    assert np.array_equal(Q.reshape(4, 3).int_repr(), Q.int_repr().reshape(4, 3))
    assert Q.reshape(-1).shape == Q.flatten().shape == (12,)
    assert nn.Flatten()(Q.reshape(1, 3, 4)).shape == (1, 12)
    assert np.array_equal(F.transpose(Q, 0, 1).int_repr(), Q.int_repr().T)
    assert np.array_equal(F.getitem(Q, (slice(1, None), 2)).int_repr(), Q.int_repr()[1:, 2])
    for result in (F.relu(Q), Q.flatten(), F.permute(Q, (1, 0)), nn.Identity()(Q), nn.Dropout().eval()(Q)):
        assert isinstance(result, QTensor) and result.qparams is GRID


ARRAY = np.ones((3, 4), np.float32)


@pytest.mark.parametrize(
    "operation",
    [
        lambda: Q + Q, lambda: Q + 1, lambda: 1 + Q, lambda: ARRAY + Q, lambda: Q - 1, lambda: 1 - Q, lambda: Q * 2,
        lambda: 2 * Q, lambda: Q / 2, lambda: 1 / Q, lambda: Q @ Q, lambda: ARRAY.T @ Q, lambda: Q**2, lambda: -Q,
    ],
)  # fmt: skip
def test_arithmetic_is_refused(operation):
    with pytest.raises(TypeError, match=r"arithmetic on a quantized tensor is refused.*Call \.dequantize\(\) first"):
        operation()


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("add", lambda: minquant.Tensor(ARRAY) + Q), ("softmax", lambda: F.softmax(Q, -1)),
        ("softmax", lambda: nn.Softmax(-1)(Q)),
        ("sigmoid", lambda: F.sigmoid(Q)), ("gelu", lambda: nn.GELU()(Q)), ("sum", lambda: F.sum(Q)),
        ("linear", lambda: nn.Linear(4, 2)(Q)), ("matmul", lambda: F.matmul(minquant.Tensor(ARRAY.T), Q)),
    ],
)  # fmt: skip
def test_float_operations_are_refused_by_name(name, operation):
    with pytest.raises(TypeError, match=rf"({name}).* has no form on integers.*put a DeQuantStub before"):
        operation()


def test_operations_need_one_scale():
    q = QTensor(np.ones((2, 3), int), QParams(np.ones(2), 0, QSpec(granularity=PerChannel())))
    with pytest.raises(TypeError, match="relu of a quantized tensor needs one scale.*int8 affine per channel"):
        F.relu(q)


@pytest.mark.parametrize("use", [lambda: np.asarray(Q), lambda: minquant.Tensor(Q),
                                 lambda: nn.CrossEntropyLoss()(Q, np.zeros(3, int))])  # fmt: skip
def test_it_is_no_plain_array(use):
    with pytest.raises(TypeError, match=r"say \.int_repr\(\) for its integers or \.dequantize\(\) for its values"):
        use()


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_integers_only():
    with pytest.raises(
        TypeError, match=r"QTensor: expected integers, got float64; minquant.quant.quantize\(x, qparams\)"
    ):
        QTensor(np.ones(3), GRID)


@pytest.mark.parametrize(("integers", "spec"), [([128], QSpec()), ([-9, 0], QSpec(4)), ([4], QSpec(2, signed=False)),
                                                ([5], QSpec(qmax=4))])  # fmt: skip
def test_integers_off_the_grid(integers, spec):
    low, high = min(integers), max(integers)
    with pytest.raises(ValueError, match=rf"QTensor: integers must lie in {spec.qmin}…{spec.qmax}, got {low}…{high}"):
        QTensor(np.array(integers), QParams(1.0, 0, spec))


def test_shape_must_fit_the_granularity():
    with pytest.raises(ValueError, match=r"needs scales of shape \(2,\), got \(3,\)"):
        QTensor(np.ones((2, 3), int), QParams(np.ones(3), 0, QSpec(granularity=PerChannel())))
    with pytest.raises(ValueError, match="must divide the last axis"):
        QTensor(np.ones((2, 3), int), QParams(np.ones((2, 1)), 0, QSpec(granularity=PerGroup(2))))
    assert QTensor(np.ones((2, 3), int), QParams(1.0, 0, QSpec(granularity=PerTensor()))).shape == (2, 3)


@pytest.mark.parametrize(("bits", "features"), [(4, 6), (4, 5), (3, 8), (3, 6), (2, 4), (8, 5)])
def test_rows_are_those_of_the_integers(bits, features):
    spec = QSpec(bits, granularity=PerChannel(0))
    integers = np.random.default_rng(bits).integers(spec.qmin, spec.qmax + 1, (7, features))
    qtensor = QTensor(integers, QParams(np.ones(7, np.float32), np.zeros(7, np.int32), spec))
    for index in (np.array([[0, 6], [3, 3]]), np.array(2), np.zeros((0,), np.int64)):
        np.testing.assert_array_equal(qtensor.rows(index), integers[index])
        assert qtensor.rows(index).dtype == np.int8
