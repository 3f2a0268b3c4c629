"""Operations on quantized tensors as torch's engines run them: small numbers worked out by hand, without torch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from minquant.quant import QParams, QSpec, QTensor
from minquant.quant.dialects import get_dialect
from minquant.quant.dialects.torch_pooling import regions
from minquant.quant.dialects.torch_rounding import in_vectors, inner_run

UINT8 = QSpec(signed=False)
ENGINES = ("fbgemm", "x86", "onednn", "qnnpack")
NATIVE = ENGINES[:3]


def grid(scale: float, zero_point: int) -> QParams:
    return QParams(np.asarray(scale, np.float32), np.asarray(zero_point, np.int32), UINT8)


def tensor(q: Any, scale: float = 1.0, zero_point: int = 0) -> QTensor:
    return QTensor(np.array(q, np.uint8), grid(scale, zero_point))


def dialect(engine: str, **settings: Any) -> Any:
    """An engine's dialect with other lanes or another memory order."""
    changed = copy.copy(get_dialect(engine))
    for name, value in settings.items():
        setattr(changed, name, value)
    return changed


def integers(y: QTensor) -> list:
    return y.int_repr().tolist()


# ---- element-wise ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_add_brings_two_grids_to_a_third(engine: str) -> None:
    a, b = tensor([[10, 20, 30]], 0.5, 10), tensor([[4, 4, 0]], 2.0, 4)  # 0, 5, 10 and 0, 0, -8
    assert integers(dialect(engine).add(a, b, grid(1.0, 100), relu=False)) == [[100, 105, 102]]
    assert integers(dialect(engine).add(a, b, grid(0.01, 0), relu=False)) == [[0, 255, 200]]
    below = tensor([[4, 0, 0]], 2.0, 4)
    assert integers(dialect(engine).add(a, below, grid(1.0, 100), relu=True)) == [[100, 100, 102]]


@pytest.mark.parametrize("engine", NATIVE)
def test_a_half_step_goes_one_way_in_whole_vectors_and_the_other_way_left_over(engine: str) -> None:
    # 0.5 + 0 = 0.5 of a step, odd zero point 3: rint(0.5) + 3 = 3, but rint(0.5 + 3) = rint(3.5) = 4
    a, b = tensor([1] * 65, 0.5), tensor([0] * 65, 0.5)
    assert integers(dialect(engine).add(a, b, grid(1.0, 3), relu=False)) == [3] * 64 + [4]
    assert integers(dialect(engine, lanes=64).add(a, b, grid(1.0, 3), relu=False)) == [4] * 65


def test_qnnpack_adds_in_fixed_point_and_rounds_halves_away_from_zero() -> None:
    a, zero = tensor([[11, 9, 13, 7]], 0.5, 10), tensor([[0] * 4])  # ±0.5 and ±1.5 steps
    assert integers(dialect("qnnpack").add(a, zero, grid(1.0, 100), relu=False)) == [[101, 99, 102, 98]]
    assert integers(dialect("x86").add(a, zero, grid(1.0, 100), relu=False)) == [[100, 100, 102, 98]]


@pytest.mark.parametrize("scale", [256.0, 2.0**-15])
def test_qnnpack_refuses_scales_too_far_apart(scale: float) -> None:
    with pytest.raises(ValueError, match=r"qnnpack.*2\^-14 to 2\^8.*calibrate"):
        dialect("qnnpack").add(tensor([1], scale), tensor([1]), grid(1.0, 0), relu=False)


@pytest.mark.parametrize("engine", ENGINES)
def test_mul(engine: str) -> None:
    a, b = tensor([[12, 8, 10]], 0.5, 10), tensor([[7, 7, 0]], 2.0, 4)  # 1, -1, 0 and 6, 6, -8
    assert integers(dialect(engine).mul(a, b, grid(1.0, 100), relu=False)) == [[106, 94, 100]]
    assert integers(dialect(engine).mul(a, b, grid(1.0, 100), relu=True)) == [[106, 100, 100]]


def test_a_product_beyond_int32_is_lost_in_whole_vectors_alone() -> None:
    a = tensor([255] * 65)
    assert integers(dialect("x86").mul(a, a, grid(1e-6, 0), relu=False)) == [0] * 64 + [255]


@pytest.mark.parametrize("engine", ENGINES)
def test_operands_broadcast(engine: str) -> None:
    a, row = tensor([[1, 2], [3, 4]]), tensor([[10, 20]])
    assert integers(dialect(engine).add(a, row, grid(1.0, 0), relu=False)) == [[11, 22], [13, 24]]
    assert integers(dialect(engine).mul(a, row, grid(1.0, 0), relu=False)) == [[10, 40], [30, 80]]


def test_empty_operands() -> None:
    for engine in ENGINES:
        empty = tensor(np.zeros((0, 3)))
        assert dialect(engine).add(empty, empty, grid(1.0, 0), relu=False).shape == (0, 3)
        assert dialect(engine).mul(empty, empty, grid(1.0, 0), relu=False).shape == (0, 3)


# ---- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "run"),
    [
        ([(4, 70), (4, 70)], 280),
        ([(4, 70), (70,)], 70),  # from row to row the second operand starts again
        ([(4, 70), (4, 1)], 70),
        ([(2, 3, 70), (1, 3, 70)], 210),
        ([(2, 3, 70), (2, 1, 1)], 210),
        ([(150,), ()], 150),
        ([(5, 1), (5, 1)], 5),
        ([(0, 3), (0, 3)], 0),
    ],
)
def test_how_far_a_kernel_walks_in_one_go(shapes: list[tuple[int, ...]], run: int) -> None:
    longest = max(map(len, shapes))
    assert inner_run([(1,) * (longest - len(s)) + s for s in shapes]) == run


def test_images_are_walked_through_in_the_order_of_memory() -> None:
    shape = (1, 13, 5, 1)  # 65 elements, of which one is left over: the last in memory
    assert np.argwhere(~in_vectors([shape], 32, channels_last=False)).tolist() == [[0, 12, 4, 0]]
    assert np.argwhere(~in_vectors([shape], 32, channels_last=True)).tolist() == [[0, 12, 4, 0]]
    one_row_each = in_vectors([(1, 70, 2, 1), (1, 70, 1, 1)], 32, channels_last=True)
    assert one_row_each[0, :64].all() and not one_row_each[0, 64:].any()
    assert not in_vectors([(1, 70, 2, 1), (1, 70, 1, 1)], 32, channels_last=False).any()


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "q", "scale", "zero_point"),
    [
        (2.0, [0, 100, 255], 0.5, 96),  # four steps: the zero point moves
        (1.25, [0, 100, 255], 0.5, 98),  # 2.5 steps are 2
        (100.0, [72, 144, 255], 0.69607843, 0),  # 100 - 200 = -100: (255 + 100) / 255 · 0.5
        (-127.5, [0, 72, 183], 0.69607843, 255),  # 100 + 255 = 355: 355 / 255 · 0.5
    ],
)
def test_adding_a_number_moves_the_zero_point_or_stretches_the_grid(
    number: float, q: list[int], scale: float, zero_point: int
) -> None:
    y = get_dialect("x86").add_scalar(tensor([0, 100, 255], 0.5, 100), number, grid(1.0, 0))
    assert (float(y.qparams.scale), int(y.qparams.zero_point)) == (np.float32(scale), zero_point)
    assert integers(y) == q


@pytest.mark.parametrize(
    ("number", "q", "scale", "zero_point"),
    [(3.0, [0, 100, 255], 1.5, 90), (0.0, [0, 0, 0], 1.0, 0), (-3.0, [255, 155, 0], 1.5, 165)],
)
def test_multiplying_by_a_number_changes_the_grid(number: float, q: list[int], scale: float, zero_point: int) -> None:
    x = tensor([0, 100, 255], 0.5, 90)
    y = get_dialect("qnnpack").mul_scalar(x, number, grid(1.0, 0))
    assert (integers(y), float(y.qparams.scale), int(y.qparams.zero_point)) == (q, scale, zero_point)
    np.testing.assert_array_equal(y.dequantize(), x.dequantize() * np.float32(number))


# ---- concatenation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_cat_brings_operands_to_one_grid(engine: str) -> None:
    a, b = tensor([[10, 12]], 0.5, 10), tensor([[3]], 2.0, 1)  # 0, 1 and 4
    assert integers(dialect(engine).cat([a, b], 1, grid(1.0, 100))) == [[100, 101, 104]]


def test_channels_last_images_have_a_cat_of_their_own() -> None:
    image = tensor(np.ones((1, 9, 1, 2)), 0.5)  # 0.5 of a step and an odd zero point
    last = dialect("x86").cat([image], 1, grid(1.0, 3)).int_repr()
    assert last[0, :, 0, 0].tolist() == [3] * 8 + [4]  # whole vectors of 8 channels, one left over
    assert (dialect("x86", channels_last=False).cat([image], 1, grid(1.0, 3)).int_repr() == 4).all()
    assert (dialect("x86").cat([image], -3, grid(1.0, 3)).int_repr() == 4).all()
    assert (dialect("x86").cat([image], 1, grid(0.5, 0)).int_repr() == 1).all()  # its own grid: copied


# ---- pooling ---------------------------------------------------------------------------------------------------------

HALF = np.array([[[[10, 10], [11, 11]]] * 9])  # nine channels of means 10.5


@pytest.mark.parametrize(
    ("engine", "channels_last", "means"),
    [
        ("x86", False, [10] * 9),  # rint(7.5 + 3)
        ("x86", True, [11] * 8 + [10]),  # rint(7.5) + 3, and the channel left over
        ("qnnpack", False, [11] * 9),
        ("qnnpack", True, [11] * 9),
    ],
)
def test_a_mean_between_two_integers_depends_on_engine_and_memory(
    engine: str, channels_last: bool, means: list[int]
) -> None:
    x = tensor(HALF, 0.1, 3)
    y = dialect(engine, channels_last=channels_last).avg_pool2d(x, (2, 2), (2, 2), (0, 0), grid(1.0, 0))
    assert integers(y) == [[[[mean]] for mean in means]]
    assert (y.qparams.scale, y.qparams.zero_point) == (x.qparams.scale, 3)


@pytest.mark.parametrize("engine", ENGINES)
def test_padding_counts_as_real_zeros(engine: str) -> None:
    x = tensor([[[[50, 50], [50, 50]]]], 0.1, 10)
    y = dialect(engine).avg_pool2d(x, (2, 2), (2, 2), (1, 1), grid(1.0, 0))
    assert integers(y) == [[[[20, 20], [20, 20]]]]  # one value of 40 steps and three zeros


@pytest.mark.parametrize("engine", ENGINES)
def test_adaptive_pooling(engine: str) -> None:
    x = tensor([[[[1, 3, 5], [7, 9, 11]]]], 0.1, 2)
    assert integers(dialect(engine).adaptive_avg_pool2d(x, (1, 1), grid(1.0, 0))) == [[[[6]]]]
    assert integers(dialect(engine).adaptive_avg_pool2d(x, (2, 2), grid(1.0, 0))) == [[[[2, 4], [8, 10]]]]
    assert integers(dialect(engine).adaptive_avg_pool2d(x, (2, 3), grid(1.0, 0))) == integers(x)


def test_regions_of_adaptive_pooling_overlap_where_they_must() -> None:
    assert regions(5, 2) == [slice(0, 3), slice(2, 5)]
    assert regions(4, 2) == [slice(0, 2), slice(2, 4)]


# ---- activations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_sigmoid_tanh_and_softmax_at_zero_and_at_the_ends(engine: str) -> None:
    x = tensor([0, 100, 255], 1.0, 100)
    assert integers(dialect(engine).sigmoid(x, grid(1 / 256, 0))) == [0, 128, 255]
    assert integers(dialect(engine).tanh(x, grid(1 / 128, 128))) == [0, 128, 255]
    assert integers(dialect(engine).softmax(tensor([7, 7, 7, 7]), 0, grid(1 / 256, 0))) == [64] * 4
    assert integers(dialect(engine).softmax(tensor([0, 255]), 0, grid(1 / 256, 0))) == [0, 255]


@pytest.mark.parametrize(("engine", "operation"), [*((e, "tanh") for e in ENGINES), ("qnnpack", "sigmoid")])
def test_an_operation_with_one_grid_names_it(engine: str, operation: str) -> None:
    with pytest.raises(ValueError, match=rf"{engine}: {operation} writes to the grid of scale 0\.0.*reference"):
        getattr(dialect(engine), operation)(tensor([1]), grid(0.5, 3))


def test_softmax_of_qnnpack_divides_integers() -> None:
    # S = min((2³² - 1)/2, 2²³ - 1); t = S and rint(S/e): 256·t/Σt = 187.15 and 68.85
    x = tensor([[4, 3]], 1.0)
    assert integers(dialect("qnnpack").softmax(x, 1, grid(1 / 256, 0))) == [[187, 69]]
    assert integers(dialect("qnnpack").softmax(x, 1, grid(1 / 128, 0))) == [[94, 34]]  # torch's native kernel
    near_a_half = tensor([[44, 85, 122]], 0.125)  # 256·exp(0)/Σ = 253.49999996, which float32 makes 253.5
    assert integers(dialect("qnnpack").softmax(near_a_half, 1, grid(1 / 256, 0))) == [[0, 2, 253]]
    assert integers(dialect("x86").softmax(near_a_half, 1, grid(1 / 256, 0))) == [[0, 2, 254]]
