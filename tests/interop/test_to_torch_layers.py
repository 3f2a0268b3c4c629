"""Linear, Conv and where integers begin and end, in torch: the same integers as minquant's in every dialect.

On the CPU, by the code that a GPU runs; where there is a GPU, on that as well.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from minquant import nn
from minquant.interop import to_torch
from minquant.interop.torch_modules import quantizing
from minquant.quant import (
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QParams,
    QSpec,
    QTensor,
    default_dynamic_qconfig,
    quantize,
)
from minquant.quant import linear as q_linear
from minquant.quant.dialects import get_dialect
from minquant.quant.stubs import DeQuantize, Quantize
from tests.interop.layers_in_torch import (
    CONVS,
    DEVICES,
    EXACT,
    TORCHS,
    UINT8,
    assert_same,
    conv_of,
    grid,
    in_torch,
    integers,
    seeds,
    static_linear,
    weight_grid,
)

# ---- Linear ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("of", ["tensor", "channel"])
@pytest.mark.parametrize("dialect", EXACT)
@settings(max_examples=10, deadline=None)
@given(seeds, st.tuples(st.integers(0, 40), st.integers(1, 70), st.integers(1, 40)), st.booleans(), st.booleans())
def test_static_linear(device, dialect, of, seed, shape, relu, bias):
    rng = np.random.default_rng(seed)
    M, K, N = shape
    layer, x_grid = static_linear(rng, dialect, (K, N), of, relu, bias)
    assert_same(layer, integers(rng, (M, K), x_grid), device)


@pytest.mark.parametrize("dialect", EXACT)
def test_every_sum_near_every_code(dialect):
    """One product after the other through all sums that a small layer can have: ties, both ends and beyond."""
    rng = np.random.default_rng(0)
    weight = QTensor(np.array([[127], [1], [-128], [64]], np.int8), QParams(np.float32(0.5), np.int32(0), QSpec()))
    x = QTensor(np.arange(256, dtype=np.uint8).reshape(-1, 1), QParams(np.float32(0.25), np.int32(128), UINT8))
    for scale in (0.125, 0.25, 1.0, 100.0, 1e-7, 1e-30):  # powers of two: half of the codes are ties
        for bias in (None, np.array([0.0625, -0.125, 3e9, -3e9], np.float32), rng.normal(size=4).astype(np.float32)):
            output = QParams(np.float32(scale), np.int32(77), UINT8)
            for kind in (q_linear.QuantizedLinear, q_linear.QuantizedLinearReLU):
                assert_same(kind(weight, bias, output, dialect), x)


@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("shape", [(33,), (2, 3, 33), (0, 33), (2, 0, 33)])
def test_static_linear_of_other_axes(dialect, shape):
    rng = np.random.default_rng(1)
    layer, x_grid = static_linear(rng, dialect, (33, 9), "channel", False, True)
    assert_same(layer, integers(rng, shape, x_grid))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dialect", [*EXACT, "torchao"])
@settings(max_examples=10, deadline=None)
@given(seeds, st.tuples(st.integers(0, 40), st.integers(1, 70), st.integers(1, 40)), st.booleans(), st.booleans())
def test_dynamic_linear(device, dialect, seed, shape, relu, bias):
    rng = np.random.default_rng(seed)
    M, K, N = shape
    weight = integers(rng, (N, K), weight_grid(rng, dialect, N, rng.choice(["tensor", "channel"])))
    spec = QSpec(symmetric=True, granularity=PerToken()) if dialect == "torchao" else UINT8
    if dialect in TORCHS:
        spec = default_dynamic_qconfig(dialect).activation
    kind = q_linear.DynamicQuantizedLinearReLU if relu else q_linear.DynamicQuantizedLinear
    layer = kind(weight, rng.normal(size=N).astype(np.float32) if bias else None, spec, dialect)
    x = (rng.normal(rng.normal(), size=(M, K)) * 10.0 ** rng.integers(-6, 6)).astype(np.float32)
    assert_same(layer, x, device)


@pytest.mark.parametrize("spec", [UINT8, QSpec(), QSpec(4), QSpec(symmetric=True)], ids=str)
@pytest.mark.parametrize("granularity", [PerTensor(), PerToken()])
@settings(max_examples=10, deadline=None)
@given(seeds)
def test_dynamic_linear_on_every_kind_of_grid(spec, granularity, seed):
    rng = np.random.default_rng(seed)
    spec = QSpec(spec.bits, spec.signed, spec.symmetric, granularity)
    weight = integers(rng, (12, 19), weight_grid(rng, "reference", 12, "channel"))
    layer = q_linear.DynamicQuantizedLinear(weight, rng.normal(size=12).astype(np.float32), spec, "reference")
    x = rng.normal(size=(3, 5, 19)).astype(np.float32)
    x[0, 0] = 0
    assert_same(layer, x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("signed", [True, False])
@settings(max_examples=4, deadline=None)
@given(seeds, st.sampled_from([1, 4, 8, 32]), st.booleans())
def test_groups(device, bits, symmetric, signed, seed, size, relu):
    """int4 in groups and its like, dynamic per tensor and per token, and static."""
    rng = np.random.default_rng(seed)
    groups, N = int(rng.integers(1, 5)), int(rng.integers(1, 20))
    spec = QSpec(bits, signed, symmetric, PerGroup(size))
    weight = integers(rng, (N, groups * size), grid(rng, spec, (N, groups)))
    bias = rng.normal(size=N).astype(np.float32)
    x = rng.normal(size=(int(rng.integers(0, 40)), groups * size)).astype(np.float32)
    kind = q_linear.DynamicQuantizedLinearReLU if relu else q_linear.DynamicQuantizedLinear
    for granularity in (PerTensor(), PerToken()):
        assert_same(kind(weight, bias, QSpec(signed=False, granularity=granularity), "reference"), x, device)
    static = q_linear.QuantizedLinearReLU if relu else q_linear.QuantizedLinear
    layer = static(weight, bias, grid(rng, UINT8), "reference")
    assert_same(layer, integers(rng, x.shape, grid(rng, UINT8)), device)


def test_packed_weights_stay_packed():
    rng = np.random.default_rng(0)
    weight = integers(rng, (16, 64), grid(rng, QSpec(4, symmetric=True, granularity=PerGroup(32)), (16, 2)))
    state = to_torch(q_linear.DynamicQuantizedLinear(weight, None, UINT8, "reference")).state_dict()
    assert state["weight.integers"].dtype == torch.uint8 and state["weight.integers"].numel() == 16 * 64 // 2
    np.testing.assert_array_equal(state["weight.integers"].numpy(), weight.storage)


# ---- Conv ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("of", ["tensor", "channel"])
@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("case", CONVS, ids=str)
@pytest.mark.parametrize("relu", [True, False])
def test_static_conv(device, dialect, of, case, relu):
    rng = np.random.default_rng([len(dialect), CONVS.index(case)])
    layer = conv_of(rng, dialect, case, of, relu, dynamic=False)
    x_grid = grid(rng, UINT8)
    for batch in ((3,), (), (0,)):
        assert_same(layer, integers(rng, (*batch, case[0], *case[-1]), x_grid), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("case", CONVS, ids=str)
@pytest.mark.parametrize("relu", [True, False])
def test_dynamic_conv(device, dialect, case, relu):
    rng = np.random.default_rng([len(dialect), CONVS.index(case)])
    layer = conv_of(rng, dialect, case, "tensor", relu, dynamic=True)
    for batch in ((3,), ()):
        assert_same(layer, rng.normal(0.3, size=(*batch, case[0], *case[-1])).astype(np.float32), device)


def test_kernels_that_saturate_are_refused():
    rng = np.random.default_rng(0)
    depthwise = (8, 8, (3, 3), 1, 1, 1, 8, (5, 5))
    saturating = nn.Sequential(conv_of(rng, "fbgemm", depthwise, "tensor", False, dynamic=False))
    with pytest.raises(ValueError, match=r"'0' \(QuantizedConv2d\): fbgemm's kernel .* saturate in int16"):
        to_torch(saturating)
    to_torch(conv_of(rng, "x86", depthwise, "tensor", False, dynamic=False))  # onednn's, with VNNI
    for dialect in ("fbgemm_avx2", "onednn_avx2"):
        layer, _ = static_linear(rng, dialect, (4, 4), "tensor", False, True)
        with pytest.raises(ValueError, match=f"{dialect} adds products in pairs that saturate"):
            to_torch(layer)
        with pytest.raises(ValueError, match=f"'0' .*{dialect}"):
            to_torch(nn.Sequential(conv_of(rng, dialect, CONVS[0], "tensor", False, dynamic=False)))


# ---- where integers begin and end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dialect", EXACT)
@settings(max_examples=30, deadline=None)
@given(seeds)
def test_quantize(device, dialect, seed):
    """Random values, ties of every kind, infinities, zeros of both signs, subnormals."""
    rng = np.random.default_rng(seed)
    qparams = grid(rng, UINT8, low=1e-6, high=1e3)
    halves = ((np.arange(-600, 600) + 0.5) * np.float32(qparams.scale)).astype(np.float32)
    near = np.concatenate([halves, np.nextafter(halves, np.float32(np.inf)), np.nextafter(halves, np.float32(-np.inf))])
    special = np.array([np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38], np.float32)
    x = np.concatenate([near, special, (rng.normal(size=999) * qparams.scale * 300).astype(np.float32)])
    assert_same(Quantize(qparams, dialect), x, device)


def test_dequantize():
    rng = np.random.default_rng(9)
    for spec in (UINT8, QSpec(), QSpec(4)):
        x = integers(rng, (30, 30), grid(rng, spec))
        found = to_torch(DeQuantize())(in_torch(x, "cpu"))
        np.testing.assert_array_equal(found.numpy(), x.dequantize())


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerGroup(4)])
@pytest.mark.parametrize("bits", [4, 8])
def test_embedding(granularity, bits):
    from minquant.quant import QuantizedEmbedding

    rng = np.random.default_rng(10)
    spec = QSpec(bits, granularity=granularity)
    table = quantize(rng.normal(size=(11, 8)).astype(np.float32), grid(rng, spec, granularity.qparams_shape((11, 8))))
    layer, index = QuantizedEmbedding(table), rng.integers(0, 11, (3, 4))
    np.testing.assert_array_equal(to_torch(layer)(torch.tensor(index)).numpy(), layer(index).data)


@pytest.mark.parametrize("dialect", EXACT)
@settings(max_examples=40, deadline=None)
@given(seeds)
def test_quantize_at_run_time(dialect, seed):
    """Both ends of a range, and between them what lies at half steps of the grid that it makes, and beside them."""
    rng = np.random.default_rng(seed)
    spec = default_dynamic_qconfig(dialect).activation
    ends = (np.sort(rng.normal(size=2)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    _, scale, zero_point = get_dialect(dialect).quantize_at_run_time(ends[np.newaxis], spec)
    halves = ((np.arange(-300, 300) + 0.5 - zero_point) * np.float64(scale)).astype(np.float32)
    near = np.concatenate([halves, *(np.nextafter(halves, np.float32(end)) for end in (np.inf, -np.inf))])
    x = np.concatenate([ends, near[(near > ends[0]) & (near < ends[1])]])[np.newaxis]
    wanted = get_dialect(dialect).quantize_at_run_time(x, spec)
    found = quantizing.quantize_at_run_time(get_dialect(dialect), torch.tensor(x), spec, "a layer")
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(a), b)


def test_weights_that_turn_to_a_saturating_kernel_are_refused_when_they_run():
    """x86 leaves this convolution to onednn as long as the weight is symmetric."""
    rng = np.random.default_rng(28)
    theirs = to_torch(conv_of(rng, "x86", (8, 8, (3, 3), 1, 1, 1, 8, (5, 5)), "tensor", False, dynamic=False))
    x = in_torch(integers(rng, (1, 8, 5, 5), grid(rng, UINT8)), "cpu")
    theirs(x)
    theirs.load_state_dict({**theirs.state_dict(), "weight.zero_point": torch.tensor(3, dtype=torch.int32)})
    with pytest.raises(ValueError, match="StaticConv '': x86's kernel for it adds products in pairs"):
        theirs(x)
