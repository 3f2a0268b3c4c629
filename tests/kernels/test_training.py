"""Training's compiled kernels against the NumPy beside which they stand: the same bits, in one thread and in two."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minquant.kernels.cpu  # noqa: F401 (from here on numba is loaded, and small work is compiled, too)
from minquant import Tensor, functional, nn, optim
from minquant.autograd import by_channel, total
from minquant.functional.geometry import Geometry
from minquant.functional.norm import moments_of
from minquant.kernels import choice, threads
from minquant.quant import PerChannel, PerGroup, PerTensor, PerToken, QParams, QSpec, choose_qparams, fake_quantize
from minquant.quant.cascade import cascade_sum, channel_sum
from minquant.quant.grid import check_finite, range_of, straight_through_range, to_integers
from minquant.quant.learnable import RoundToLearnedGrid

F32 = np.float32
SPECIAL = np.array([0, -0.0, 0.5, -1.5, 2.5, 1e-45, -1e-40, 3e38, -3e38], F32)
FLOATS = st.floats(-100, 100, width=32) | st.sampled_from(SPECIAL.tolist())
ARRAYS = hnp.arrays(F32, hnp.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=6), elements=FLOATS)
GRANULARITIES = st.sampled_from([PerTensor(), PerChannel(0), PerChannel(1), PerChannel(-1), PerGroup(1), PerToken()])
SPECS = st.sampled_from([(8, True), (8, False), (2, True), (16, True), (16, False)])


@pytest.fixture(params=[1, 2], autouse=True)
def in_threads(request, monkeypatch):
    """Every part of the work in a thread of its own."""
    monkeypatch.setenv("MINQUANT_NUM_THREADS", str(request.param))
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)


def bits(array) -> np.ndarray:
    array = np.asarray(array)
    return array.view({4: np.int32, 8: np.int64}[array.itemsize]) if array.dtype.kind == "f" else array


def same_bits(ours, numpys) -> None:
    assert ours.dtype == numpys.dtype and ours.shape == numpys.shape
    np.testing.assert_array_equal(bits(ours), bits(numpys))


def both(compute):
    """What it computes compiled, and in NumPy."""
    with pytest.MonkeyPatch.context() as patch:
        compiled = compute()
        patch.setenv("MINQUANT_BACKEND", "numpy")
        assert choice.compiled("sums", 10**9) is None
        return compiled, compute()


def strided(x: np.ndarray, how: int) -> np.ndarray:
    """The same values in other places of memory."""
    if how == 0:
        return x
    if how == 1:
        return np.asfortranarray(x)
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::-2] = x
    return wide[..., ::-2]


# ---- fake-quantization -----------------------------------------------------------------------------------------------


@given(
    x=ARRAYS,
    granularity=GRANULARITIES,
    kind=SPECS,
    symmetric=st.booleans(),
    ranged=st.booleans(),
    how=st.integers(0, 2),
)
@settings(max_examples=150, deadline=None)
def test_fake_quantization(x, granularity, kind, symmetric, ranged, how):
    spec = QSpec(*kind, symmetric, granularity)
    finite = np.clip(x, -1e30, 1e30)
    low, high = granularity.min_max(finite) if x.size else 2 * (np.zeros(granularity.qparams_shape(x.shape), F32),)
    qparams = choose_qparams(low / 2, high / 2, spec)  # so that something is clipped
    ends = (low / 2, high / 2) if ranged else ()
    values = strided(x, how)

    def compute():
        tensor = Tensor(values, requires_grad=True)
        out = fake_quantize(tensor, qparams, *ends)
        out.backward(x + F32(1))
        return out.data, tensor.grad.data, to_integers(values, qparams)

    for ours, numpys in zip(*both(compute), strict=True):
        same_bits(ours, numpys)


def test_extremes_of_a_range_pass_and_infinities_land_on_the_ends():
    x = np.array([-np.inf, -1, np.nextafter(F32(-1), F32(-2)), 0, 2, np.nextafter(F32(2), F32(3)), np.inf], F32)
    spec = QSpec(signed=False)
    lo, hi = straight_through_range(F32(-1), F32(2), spec)

    def compute():
        tensor = Tensor(x, requires_grad=True)
        out = fake_quantize(tensor, choose_qparams(lo, hi, spec), lo, hi)
        out.sum().backward()
        return out.data, tensor.grad.data

    (ours, gradient), (numpys, other) = both(compute)
    same_bits(ours, numpys)
    same_bits(gradient, other)
    assert gradient.tolist() == [0, 1, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("at", [0, 63, 999])
def test_nan_is_refused_wherever_it_is(at):
    x = np.ones(1000, F32)
    x[at] = -np.nan
    for compute in (lambda: fake_quantize(Tensor(x), choose_qparams(0, 1, QSpec())), lambda: to_integers(x, GRID)):
        with pytest.raises(ValueError, match="1 of 1000 values are NaN"):
            compute()
    with pytest.raises(ValueError, match="1 NaN and 0 infinite"):
        check_finite(x, "x", "")
    with pytest.raises(ValueError, match="0 NaN and 1 infinite"):
        check_finite(np.where(np.isnan(x), F32(-np.inf), x), "x", "")


GRID = choose_qparams(0, 1, QSpec())


@given(x=hnp.arrays(F32, (3, 4, 5), elements=st.floats(width=32)), granularity=GRANULARITIES, how=st.integers(0, 2))
@settings(max_examples=150, deadline=None)
def test_ranges(x, granularity, how):
    ours, numpys = both(lambda: range_of(strided(x, how), granularity))
    for one, other in zip(ours, numpys, strict=True):
        np.testing.assert_array_equal(one, other)  # NaN and NaN are equal, and so are 0 and -0
        assert one.shape == granularity.qparams_shape(x.shape)


# ---- learned steps ---------------------------------------------------------------------------------------------------


@given(
    shape=st.sampled_from([(0, 3), (1, 1), (5, 7), (3, 33), (2, 40, 9), (1, 1000), (4, 1, 2100)]),
    axis=st.integers(-1, 1),
    per_channel=st.booleans(), symmetric=st.booleans(), seed=st.integers(0, 999), how=st.integers(0, 2),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_learned_steps(shape, axis, per_channel, symmetric, seed, how):
    rng = np.random.default_rng(seed)
    x, gradient = (rng.standard_normal(shape).astype(F32) for _ in range(2))
    granularity = PerChannel(axis) if per_channel else PerTensor()
    channels = granularity.qparams_shape(shape) or (1,)
    scale = rng.uniform(0.01, 0.1, channels).astype(F32)
    zero_point = np.zeros(channels, F32) if symmetric else rng.uniform(-4, 4, channels).astype(F32)
    on_grid = np.clip(np.rint(zero_point), -8, 7).astype(np.int32)
    both_of = (scale, on_grid) if per_channel else (scale[0], on_grid[0])
    qparams = QParams(*both_of, QSpec(4, symmetric=symmetric, granularity=granularity))

    def compute():
        tensors = [Tensor(a, requires_grad=True) for a in (strided(x, how), scale, zero_point)]
        out = RoundToLearnedGrid.apply(*tensors, qparams=qparams, grad_factor=0.3)
        out.backward(strided(gradient, how))
        return out.data, *(t.grad.data for t in tensors)

    for ours, numpys in zip(*both(compute), strict=True):
        same_bits(ours, numpys)


@given(n=st.integers(0, 20_000), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_cascade_sums(n, seed):
    x = np.random.default_rng(seed).standard_normal(n).astype(F32)
    same_bits(*map(np.asarray, both(lambda: cascade_sum(x))))
    wide = x[: n // 6 * 6].reshape(2, 3, -1)
    same_bits(*both(lambda: channel_sum(wide, 1)))


# ---- gradients, optimizers -------------------------------------------------------------------------------------------


@given(x=hnp.arrays(F32, (7, 9), elements=st.floats(width=32)), how=st.integers(0, 2))
@settings(max_examples=50, deadline=None)
def test_relu(x, how):
    def compute():
        tensor = Tensor(strided(x, how), requires_grad=True)
        functional.relu(tensor).backward(strided(x.copy(), how))
        return tensor.grad.data

    same_bits(*both(compute))


@given(x=hnp.arrays(F32, (7, 9), elements=st.floats(width=32)), how=st.integers(0, 2))
@settings(max_examples=50, deadline=None)
def test_silu(x, how):
    def compute():
        tensor = Tensor(strided(x, how), requires_grad=True)
        out = functional.silu(tensor)
        out.backward(strided(x.copy(), how))
        return out.data, tensor.grad.data

    for ours, numpys in zip(*both(compute), strict=True):
        np.testing.assert_array_equal(ours, numpys)  # bit-equal but for the bits of NaN
        same_bits(ours[~np.isnan(ours)], numpys[~np.isnan(numpys)])


@given(rows=st.integers(1, 9), index=hnp.arrays(np.int64, (3, 5), elements=st.integers(0, 99)), how=st.integers(0, 2))
@settings(max_examples=50, deadline=None)
def test_gradients_of_rows(rows, index, how):
    gradient = np.random.default_rng(rows).standard_normal((3, 5, 7)).astype(F32)

    def compute():
        table = Tensor(np.zeros((rows, 7), F32), requires_grad=True)
        functional.embedding(index % rows, table).backward(strided(gradient, how))
        return table.grad.data

    same_bits(*both(compute))


@given(how=st.integers(0, 2), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_rotary(how, seed):
    rng = np.random.default_rng(seed)
    x, cos, sin = (rng.standard_normal(shape).astype(F32) for shape in ((2, 3, 5, 8), (5, 4), (5, 4)))

    def compute():
        tensor = Tensor(strided(x, how), requires_grad=True)
        out = functional.rotary_embedding(tensor, cos, sin)
        out.backward(strided(x, how))
        return out.data, tensor.grad.data

    for ours, numpys in zip(*both(compute), strict=True):
        same_bits(ours, numpys)


@given(
    heads=st.sampled_from([(2, 2), (6, 2)]), steps=st.integers(1, 40), keys=st.integers(1, 40),
    causal=st.booleans(), seed=st.integers(0, 99), how=st.integers(0, 2),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_attention(heads, steps, keys, causal, seed, how):
    """Shares whose float64 sums differ in their order are at most a step apart, which moves a result by as much."""
    rng = np.random.default_rng(seed)
    shapes = (2, heads[0], steps, 4), (2, heads[1], keys, 4), (2, heads[1], keys, 3)
    arrays = [rng.uniform(-1, 1, shape).astype(F32) for shape in shapes]

    def compute():
        tensors = [Tensor(strided(a, how), requires_grad=True) for a in arrays]
        out = functional.scaled_dot_product_attention(*tensors, is_causal=causal, enable_gqa=True)
        out.backward(np.ones(out.shape, F32))
        return out.data, *(t.grad.data for t in tensors)

    for ours, numpys in zip(*both(compute), strict=True):
        size = heads[0] // heads[1] * steps  # what a key's or a value's gradient adds up
        assert (abs(ours.astype(np.float64) - numpys) <= 8 * size * 2.0**-24 * max(1, abs(numpys).max())).all()


@pytest.mark.parametrize("shape", [(3, 5, 9), (200,), (2, 70, 8)])
def test_rms_norm(shape):
    """As `test_batch_norm`: at most a step apart, at the size of the numbers whose differences and sums gradients are.

    A weight times what is a step apart: two steps.
    """
    rng = np.random.default_rng(0)
    x, gradient = (rng.standard_normal(shape).astype(F32) + F32(3) for _ in range(2))

    def compute():
        tensor, weight = Tensor(x, requires_grad=True), Tensor(x.reshape(-1, shape[-1])[0], requires_grad=True)
        out = functional.rms_norm(tensor, shape[-1], weight)
        out.backward(gradient)
        return out.data, tensor.grad.data, weight.grad.data

    for ours, numpys in zip(*both(compute), strict=True):
        scale = np.maximum(abs(ours), abs(numpys)).max()
        assert (abs(ours.astype(np.float64) - numpys) <= 2 * np.spacing(scale)).all()


@pytest.mark.parametrize("optimizer", [optim.Adam, optim.AdamW])
@pytest.mark.parametrize("size", [0, 1, 7, 1000])
@pytest.mark.parametrize("weight_decay", [0, 0.1])
def test_adam(optimizer, size, weight_decay):
    rng = np.random.default_rng(size)
    start, gradients = rng.standard_normal(size).astype(F32), rng.standard_normal((5, size)).astype(F32)
    gradients[:, : min(size, len(SPECIAL))] = SPECIAL[:size]

    def compute():
        parameter = nn.Parameter(start.copy())
        steps = optimizer([parameter], lr=0.1, weight_decay=weight_decay)
        for gradient in gradients:
            parameter.grad = Tensor(gradient)
            with np.errstate(over="ignore", invalid="ignore"):
                steps.step()
        state = steps.state[parameter]
        return parameter.data, state["exp_avg"], state["exp_avg_sq"]

    for ours, numpys in zip(*both(compute), strict=True):
        same_bits(ours, numpys)


def test_a_state_dict_keeps_its_numbers_while_the_optimizer_goes_on():
    parameter = nn.Parameter(np.ones(3, F32))
    adam = optim.Adam([parameter])
    parameter.grad = Tensor(np.ones(3, F32))
    adam.step()
    kept = adam.state_dict()["state"][0]["exp_avg"]
    before = kept.copy()
    adam.step()
    same_bits(kept, before)


# ---- windows ---------------------------------------------------------------------------------------------------------

SMALL = st.integers(1, 3)
PAIRS = st.tuples(SMALL, SMALL)


@given(
    kernel=PAIRS, stride=PAIRS, dilation=PAIRS, padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    groups=SMALL, batch=st.integers(0, 3), seed=st.integers(0, 99), how=st.integers(0, 2),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_columns_and_what_they_add_up_to(kernel, stride, dilation, padding, groups, batch, seed, how):
    geometry = Geometry.of("conv", kernel, stride, padding, dilation, groups)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, 2 * groups, 7, 8)).astype(F32)
    for values in (x, rng.integers(-128, 128, x.shape).astype(np.int8), rng.integers(0, 256, x.shape).astype(np.uint8)):
        same_bits(*both(lambda values=values: geometry.columns(strided(values, how), 3)))
    columns = geometry.columns(x)
    same_bits(*both(lambda: geometry.scatter(strided(columns, how), x.shape)))


@given(
    x=hnp.arrays(F32, (2, 3, 7, 8), elements=st.sampled_from([*SPECIAL, np.nan, -np.nan, np.inf, -np.inf])),
    kernel=PAIRS, stride=PAIRS, dilation=PAIRS, padded=st.booleans(), how=st.integers(0, 2),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_max_pooling(x, kernel, stride, dilation, padded, how):
    padding = tuple((d * (k - 1) + 1) // 2 if padded else 0 for k, d in zip(kernel, dilation, strict=True))

    def compute():
        tensor = Tensor(strided(x, how), requires_grad=True)
        out = functional.max_pool2d(tensor, kernel, stride, padding, dilation)
        out.backward(np.arange(out.numel(), dtype=F32).reshape(out.shape) * F32(0.1))
        return out.data, tensor.grad.data

    for ours, numpys in zip(*both(compute), strict=True):
        same_bits(ours, numpys)


# ---- sums ------------------------------------------------------------------------------------------------------------

U64 = 2.0**-53
AXES = st.sampled_from([None, 0, 1, 2, (0, 2), (1, 2), (0, 1), (0, 1, 2), -1])


@given(
    x=hnp.arrays(F32, st.tuples(*3 * [st.integers(0, 70)]), elements=st.floats(-9, 9, width=32)),
    axis=AXES, keepdims=st.booleans(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_sums(x, axis, keepdims):
    """Two ways to add n float64 numbers differ by at most ``2 n u Σ|x|``, and rounding each moves it half a step."""
    ours, numpys = both(lambda: total(x, axis, keepdims))
    assert ours.dtype == numpys.dtype == F32 and ours.shape == numpys.shape
    exact, sizes = (a.sum(axis=axis, keepdims=keepdims, dtype=np.float64) for a in (x, abs(x)))
    bound = 2 * x.size * U64 * sizes + np.spacing(abs(exact).astype(F32)) / 2
    assert (abs(ours - exact) <= bound).all()


@pytest.mark.parametrize(
    ("shape", "axis", "blocks"),
    [
        ((2, 3, 4, 5), (0, 2, 3), (2, 3, 20)),
        ((2, 3, 4, 5), (-1,), (1, 24, 5)),
        ((2, 3, 4, 5), (0, 2), None),
        ((2, 3), None, (1, 1, 6)),
        ((2, 3), (), (1, 6, 1)),
        ((), None, (1, 1, 1)),
    ],
)
def test_shapes_by_channel(shape, axis, blocks):
    assert by_channel(shape, axis) == blocks


@pytest.mark.parametrize("shape", [(6, 5, 3, 4), (2, 3, 9, 9), (4, 2, 80)])
def test_batch_norm(shape):
    """Sums of float64 numbers in another order: the results, rounded to float32, are at most a step apart."""
    rng = np.random.default_rng(0)
    x, gradient = (rng.standard_normal(shape).astype(F32) + F32(3) for _ in range(2))
    axes = (0, *range(2, len(shape)))

    def compute():
        tensor = Tensor(x, requires_grad=True)
        running = [Tensor(np.zeros(shape[1], F32)) for _ in range(2)]
        out = functional.batch_norm(tensor, *running, training=True)
        out.backward(gradient)
        return out.data, tensor.grad.data, *(r.data for r in running)

    for ours, numpys in zip(*both(compute), strict=True):
        scale = np.maximum(abs(ours), abs(numpys)).max()  # gradients are differences of numbers of this size
        assert (abs(ours.astype(np.float64) - numpys) <= 2 * np.spacing(scale)).all()
    (sums, squares), (other_sums, other_squares) = both(lambda: moments_of(x, axes))
    n = x.size // shape[1]
    assert (abs(sums - other_sums) <= 2 * n * U64 * abs(x).sum()).all()
    assert (abs(squares - other_squares) <= 8 * n * U64 * (x.astype(np.float64) ** 2).sum()).all()
