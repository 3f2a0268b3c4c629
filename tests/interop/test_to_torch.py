"""to_torch: the same integers as minquant's, whatever the dialect, layer by layer and in whole models.

On the CPU, by the code that a GPU runs; where there is a GPU, on that as well.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from minquant import Tensor, functional, manual_seed, nn
from minquant.demos.networks import Attention, random_network
from minquant.functional import relu
from minquant.interop import to_torch
from minquant.interop.torch_modules.quantized import QuantizedTensor
from minquant.quant import (
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QConfig,
    QParams,
    QSpec,
    QTensor,
    convert,
    default_dynamic_qconfig,
    fuse_modules,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize,
    quantize_dynamic,
)
from minquant.quant import between as q_between
from minquant.quant import conv as q_conv
from minquant.quant import linear as q_linear
from minquant.quant.dialects.torchao import IntxWeightObserver
from minquant.quant.stubs import DeQuantize, Quantize

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
EXACT = ["reference", "fbgemm", "x86", "qnnpack", "onednn", "onnx", "onnxruntime"]
TORCHS = ["fbgemm", "x86", "qnnpack", "onednn"]
UINT8 = QSpec(signed=False)
seeds = st.integers(0, 2**32 - 1)


def grid(rng: np.random.Generator, spec: QSpec, shape=(), low: float = 1e-3, high: float = 0.1) -> QParams:
    scale = np.exp(rng.uniform(np.log(low), np.log(high), shape)).astype(np.float32)
    if spec.symmetric:
        return QParams(scale, np.full(shape, spec.symmetric_zero_point, np.int32), spec)
    return QParams(scale, rng.integers(spec.qmin, spec.qmax, shape, np.int32, endpoint=True), spec)


def integers(rng: np.random.Generator, shape, qparams: QParams) -> QTensor:
    """Of all sizes, the ends among them."""
    spec = qparams.spec
    q = rng.integers(spec.qmin, spec.qmax, shape, endpoint=True)
    q = np.where(rng.random(shape) < 0.1, rng.choice([spec.qmin, spec.qmax], shape), q)
    return QTensor(q.astype(spec.dtype), qparams)


def weight_grid(rng, dialect: str, rows: int, of: str) -> QParams:
    """Of the kinds that an engine has."""
    per = PerTensor() if of == "tensor" else PerChannel(0)
    symmetric = dialect != "reference" or rng.random() < 0.5
    return grid(rng, QSpec(symmetric=symmetric, granularity=per), () if of == "tensor" else (rows,))


def in_torch(x: QTensor, device: str) -> QuantizedTensor:
    return QuantizedTensor(torch.tensor(np.array(x.int_repr()), device=device), x.qparams)


def run(layer, x, device: str = "cpu"):
    """The layer in torch, on integers or real values; its result as NumPy has it."""
    given = in_torch(x, device) if isinstance(x, QTensor) else torch.tensor(x, device=device)
    y = to_torch(layer, device)(given)
    return (y.int_repr() if isinstance(y, QuantizedTensor) else y).cpu().numpy()


def expected(layer, x) -> np.ndarray:
    y = layer(x if isinstance(x, QTensor) else Tensor(x))
    return y.int_repr() if isinstance(y, QTensor) else y.data


def assert_same(layer, x, device: str = "cpu") -> np.ndarray:
    """Bit for bit; -0.0 is 0.0."""
    found, wanted = run(layer, x, device), expected(layer, x)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)
    return wanted


# ---- Linear ----------------------------------------------------------------------------------------------------------


def static_linear(rng, dialect: str, features: tuple[int, int], of: str, relu: bool, bias: bool):
    K, N = features
    weight = integers(rng, (N, K), weight_grid(rng, dialect, N, of))
    x = grid(rng, UINT8)
    noise = float(np.mean(weight.qparams.scale) * x.scale) * 60 * 60 * np.sqrt(K + 1)
    output = grid(rng, UINT8, low=noise / 100, high=noise / 20)
    kind = q_linear.QuantizedLinearReLU if relu else q_linear.QuantizedLinear
    values = (rng.normal(size=N) * noise).astype(np.float32) if bias else None
    return kind(weight, values, output, dialect), x


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


CONVS = [  # in, out, kernel, stride, padding, dilation, groups, size
    (3, 5, (3, 3), 1, 0, 1, 1, (7, 6)),
    (4, 8, (3, 2), (2, 1), (1, 0), 1, 2, (8, 9)),
    (6, 6, (3, 3), 1, "same", 2, 6, (7, 7)),
    (8, 4, (1, 1), 3, 2, 1, 4, (5, 5)),
    (2, 6, (5,), 2, 3, 1, 2, (9,)),
    (3, 3, (2,), 1, "same", 1, 3, (4,)),
    (1, 130, (3, 3), 1, 1, 1, 1, (4, 4)),
]


def conv_of(rng, dialect: str, case, of: str, relu: bool, dynamic: bool):
    C, M, kernel, stride, padding, dilation, groups, _ = case
    weight = integers(rng, (M, C // groups, *kernel), weight_grid(rng, dialect, M, of))
    axes = len(kernel)
    name = f"QuantizedConv{'ReLU' * relu}{axes}d"
    bias = rng.normal(size=M).astype(np.float32)
    if dynamic:
        spec = default_dynamic_qconfig(dialect).activation
        return getattr(q_conv, f"Dynamic{name}")(weight, bias, spec, dialect, stride, padding, dilation, groups)
    return getattr(q_conv, name)(weight, bias, grid(rng, UINT8, low=0.1, high=1), dialect, stride, padding, dilation,
                                 groups)  # fmt: skip


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


# ---- between two grids -----------------------------------------------------------------------------------------------


ACTIVATIONS = [nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.GELU("tanh"), nn.SiLU()]
OWN_GRID = {nn.Sigmoid: (1 / 256, 0), nn.Tanh: (1 / 128, 128)}


@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("shape", [(3, 70), (2, 5, 7, 3), (1000,), ()])
def test_activations_are_tables(dialect, activation, shape):
    rng = np.random.default_rng(2)
    scale, zero_point = OWN_GRID.get(type(activation), (0.03, 20))
    output = QParams(np.float32(scale), np.int32(zero_point), UINT8)
    layer = q_between.BetweenGrids(activation, output, dialect)
    for _ in range(3):
        assert_same(layer, integers(rng, shape, grid(rng, UINT8)))


@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("norm, shape", [(nn.BatchNorm2d(7), (3, 7, 4, 5)), (nn.BatchNorm1d(7), (6, 7)),
                                         (nn.BatchNorm1d(7), (2, 7, 5))])  # fmt: skip
def test_batch_norm_is_a_table_for_each_channel(dialect, norm, shape):
    rng = np.random.default_rng(22)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data = rng.uniform(0.1, 2, 7).astype(np.float32)
    layer = q_between.BetweenGrids(norm.eval(), grid(rng, UINT8, low=0.01), dialect)
    for _ in range(2):
        assert_same(layer, integers(rng, shape, grid(rng, UINT8)))
    with pytest.raises(ValueError, match="BatchNorm"):
        to_torch(q_between.BetweenGrids(nn.BatchNorm2d(7), layer.output, dialect))


@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("norm, shape", [(nn.LayerNorm(7), (5, 7)), (nn.LayerNorm((3, 7)), (4, 2, 3, 7)),
                                         (nn.LayerNorm(7, elementwise_affine=False), (7,)), (nn.RMSNorm(7), (9, 7)),
                                         (nn.RMSNorm(130, eps=1e-3), (3, 130))])  # fmt: skip
def test_norms_add_in_float64(dialect, norm, shape):
    rng = np.random.default_rng(23)
    for parameter in norm.parameters():
        parameter.data = rng.uniform(0.1, 2, parameter.shape).astype(np.float32)
    layer = q_between.BetweenGrids(norm, grid(rng, UINT8, low=0.01), dialect)
    for _ in range(3):
        assert_same(layer, integers(rng, shape, grid(rng, UINT8)))


@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("shape, dim", [((5, 7), -1), ((2, 9, 4), 1), ((3, 300), 1), ((6,), 0), ((0, 3), 1)])
def test_softmax_looks_exponentials_up(dialect, shape, dim):
    rng = np.random.default_rng(24)
    for output in (QParams(np.float32(1 / 256), np.int32(0), UINT8), QParams(np.float32(0.007), np.int32(9), UINT8)):
        layer = q_between.BetweenGrids(nn.Softmax(dim), output, dialect)
        for _ in range(3):
            assert_same(layer, integers(rng, shape, grid(rng, UINT8)))


POOLS = [nn.AvgPool2d(2), nn.AvgPool2d((3, 2), 1, (1, 1)), nn.AvgPool2d(3, 2), nn.AdaptiveAvgPool2d(1),
         nn.AdaptiveAvgPool2d((2, None)), nn.AdaptiveAvgPool2d((3, 2))]  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("pool", POOLS, ids=repr)
@pytest.mark.parametrize("shape", [(2, 37, 6, 6), (2, 1, 6, 5), (5, 4, 7), (1, 8, 8, 8), (3, 9, 1, 1)])
def test_average_pooling(device, dialect, pool, shape):
    if shape[-1] == 1 and not isinstance(pool, nn.AdaptiveAvgPool2d):
        pytest.skip("a window larger than the image")
    rng = np.random.default_rng(3)
    for _ in range(3):
        output = grid(rng, UINT8) if dialect in ("reference", "onnx", "onnxruntime") else None
        assert_same(q_between.BetweenGrids(pool, output, dialect), integers(rng, shape, grid(rng, UINT8)), device)


PAIRS = [((4, 70), (4, 70)), ((4, 70), (1, 70)), ((4, 70), (4, 1)), ((2, 5, 3, 3), (2, 5, 3, 3)),
         ((2, 9, 4, 4), (9, 1, 1)), ((129,), (129,)), ((1,), (200,))]  # fmt: skip


@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("operation", ["add", "add_relu", "mul"])
def test_sums_and_products(dialect, operation):
    rng = np.random.default_rng(4)
    layer = q_between.QFunctional(grid(rng, UINT8, low=0.02, high=0.05), dialect)
    theirs = to_torch(layer)
    for shape_x, shape_y in PAIRS:
        x, y = (integers(rng, shape, grid(rng, UINT8, low=0.01, high=0.05)) for shape in (shape_x, shape_y))
        found = getattr(theirs, operation)(in_torch(x, "cpu"), in_torch(y, "cpu"))
        np.testing.assert_array_equal(found.int_repr().numpy(), getattr(layer, operation)(x, y).int_repr())


@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("shapes, dim", [([(2, 3), (2, 5)], 1), ([(4, 3), (1, 3)], 0),
                                         ([(2, 9, 3, 3), (2, 20, 3, 3)], 1), ([(2, 9, 3, 3), (2, 9, 1, 3)], -2),
                                         ([(2, 9, 3), (2, 8, 3)], -2)])  # fmt: skip
def test_joins(dialect, shapes, dim):
    rng = np.random.default_rng(5)
    layer = q_between.QFunctional(grid(rng, UINT8, low=0.01, high=0.05), dialect)
    operands = [integers(rng, shape, grid(rng, UINT8, low=0.01, high=0.05)) for shape in shapes]
    operands.append(integers(rng, shapes[0], layer.output))  # one that lies on the output's grid
    found = to_torch(layer).cat([in_torch(x, "cpu") for x in operands], dim)
    np.testing.assert_array_equal(found.int_repr().numpy(), layer.cat(operands, dim).int_repr())


@pytest.mark.parametrize("dialect", EXACT)
@pytest.mark.parametrize("number", [0.0, 0.3, -0.7, 25.0, -25.0])
@pytest.mark.parametrize("operation", ["add_scalar", "mul_scalar"])
def test_scalars(dialect, operation, number):
    rng = np.random.default_rng(6)
    layer = q_between.QFunctional(grid(rng, UINT8), dialect)
    x = integers(rng, (5, 40), grid(rng, UINT8, low=0.01))
    found, wanted = (
        getattr(to_torch(layer), operation)(in_torch(x, "cpu"), number),
        getattr(layer, operation)(x, number),
    )
    np.testing.assert_array_equal(found.int_repr().numpy(), wanted.int_repr())
    np.testing.assert_array_equal(found.dequantize().numpy(), wanted.dequantize())


def test_tables_follow_the_grids_of_their_operands():
    rng = np.random.default_rng(7)
    layer = q_between.QFunctional(grid(rng, UINT8), "reference")
    theirs = to_torch(layer)
    for _ in range(4):
        x, y = (integers(rng, (7, 9), grid(rng, UINT8)) for _ in range(2))
        found = theirs.add(in_torch(x, "cpu"), in_torch(y, "cpu"))
        np.testing.assert_array_equal(found.int_repr().numpy(), layer.add(x, y).int_repr())


@pytest.mark.parametrize("module", [nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Identity(),
                                    nn.Dropout(0.5).eval()], ids=repr)  # fmt: skip
def test_what_works_on_integers_as_they_are(module):
    rng = np.random.default_rng(8)
    x = integers(rng, (2, 3, 6, 6), grid(rng, UINT8))
    found, wanted = to_torch(module)(in_torch(x, "cpu")), module(x)
    np.testing.assert_array_equal(found.int_repr().numpy(), wanted.int_repr())
    assert found.qparams is x.qparams


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


# ---- whole models ----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Convolutions, a skip connection and a join, in a forward of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels // 2)
        self.skip, self.join = nn.FloatFunctional(), nn.FloatFunctional()
        self.times = 2

    def forward(self, x):
        for _ in range(self.times):
            y = self.conv2(self.relu1(self.conv1(x)))
            x = self.skip.add_relu(x, y)
        return self.join.cat([x, y], 1)


class Net(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.quant, self.dequant = nn.QuantStub(), nn.DeQuantStub()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.blocks = nn.ModuleList([Block(12), Block(24)])
        self.pool, self.act, self.flatten = pool, nn.Sigmoid(), nn.Flatten()
        self.head = nn.Sequential(nn.Linear(48 * 4, 20), nn.ReLU(), nn.Linear(20, 10))

    def forward(self, x):
        x = self.stem(self.quant(x))
        for block in self.blocks:
            x = block(x)
        x = self.act(self.pool(x)).flatten(1)
        return self.dequant(self.head(x))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(4), nn.AvgPool2d(4), nn.AdaptiveAvgPool2d(2)], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("dialect", EXACT)
def test_a_model_with_all_of_it(device, dialect, pool):
    manual_seed(1)
    rng = np.random.default_rng(11)
    model = fuse_modules(Net(pool).eval(), [["stem.0", "stem.1", "stem.2"], ["head.0", "head.1"]])
    prepared = prepare(model, get_default_qconfig(dialect))
    prepared(Tensor(rng.normal(size=(20, 1, 8, 8)).astype(np.float32)))
    converted = convert(prepared)
    x = (rng.normal(size=(30, 1, 8, 8)) * 1.5).astype(np.float32)
    with torch.no_grad():
        found = to_torch(converted, device)(torch.tensor(x, device=device)).cpu().numpy()
    wanted = converted(Tensor(x)).data
    assert len(np.unique(wanted)) > 20
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dialect", TORCHS)
def test_the_cnn_on_digits(dialect):
    """The network of the conformance suite, every layer's integers."""
    from minquant.crosscheck import convnet
    from minquant.data import load_digits
    from minquant.quant import fuse_modules

    manual_seed(0)
    digits = load_digits(0)
    images = digits.x_train[:200].reshape(-1, 1, 8, 8)
    model = fuse_modules(convnet.ConvNet((8, 16, 16), "average").eval(), convnet.FUSED)
    prepared = prepare(model, get_default_qconfig(dialect))
    prepared(images)
    converted = convert(prepared)
    theirs, heard = to_torch(converted), {}
    for name in convnet.LAYERS:
        getattr(converted, name).register_forward_hook(lambda m, x, y, name=name: heard.update({name: y.int_repr()}))
        getattr(theirs, name).register_forward_hook(
            lambda m, x, y, name=name: np.testing.assert_array_equal(y.int_repr().numpy(), heard[name], name)
        )
    wanted = converted(images).data
    np.testing.assert_array_equal(theirs(torch.tensor(images)).numpy(), wanted)
    assert set(heard) == set(convnet.LAYERS)


def test_a_trained_model_in_the_reference_dialect():
    manual_seed(2)
    rng = np.random.default_rng(12)
    prepared = prepare_qat(nn.QuantWrapper(nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 3))),
                           get_default_qat_qconfig(weight_bits=3))  # fmt: skip
    x = rng.normal(size=(50, 9)).astype(np.float32)
    prepared(Tensor(x))
    converted = convert(prepared.eval())
    np.testing.assert_array_equal(to_torch(converted)(torch.tensor(x)).numpy(), converted(Tensor(x)).data)
    np.testing.assert_array_equal(to_torch(converted)(torch.tensor(x)).numpy(), prepared(Tensor(x)).data)


class Functions(nn.Module):
    """A forward that calls functions, on integers and on real values."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = nn.QuantStub(), nn.DeQuantStub()
        self.conv, self.fc = nn.Conv2d(1, 3, 3), nn.Linear(3 * 9, 5)

    def forward(self, x, scale: float = 2.0):
        x = functional.max_pool2d(relu(self.conv(self.quant(x))), 2)
        x = functional.transpose(functional.unsqueeze(functional.permute(x, (0, 2, 3, 1)), 1), 1, 2)
        x = self.dequant(self.fc(functional.flatten(functional.reshape(x, (-1, 9, 3)), 1)))
        return functional.cat([functional.abs(x) * scale, x], 1)


@pytest.mark.parametrize("dialect", EXACT)
def test_functions_of_a_forward_become_torchs(dialect):
    manual_seed(6)
    rng = np.random.default_rng(25)
    prepared = prepare(Functions().eval(), get_default_qconfig(dialect))
    prepared(Tensor(rng.normal(size=(9, 1, 8, 8)).astype(np.float32)))
    converted, x = convert(prepared), rng.normal(size=(4, 1, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(to_torch(converted)(torch.tensor(x)).numpy(), converted(Tensor(x)).data)
    assert Functions.forward.__globals__["relu"] is functional.relu  # the reader's own is as it was


@pytest.mark.parametrize("dialect", [*TORCHS, "reference"])
def test_a_dynamic_mlp(dialect):
    manual_seed(3)
    model = quantize_dynamic(
        nn.Sequential(nn.Linear(33, 40), nn.ReLU(), nn.Linear(40, 7)), default_dynamic_qconfig(dialect)
    )
    x = np.random.default_rng(13).normal(size=(50, 33)).astype(np.float32)
    np.testing.assert_array_equal(to_torch(model)(torch.tensor(x)).numpy(), model(Tensor(x)).data)


def test_a_dynamic_mlp_with_int4_groups():
    manual_seed(4)
    weight = IntxWeightObserver.with_args(weight_bits=4, granularity=PerGroup(32))
    config = QConfig(activation=QSpec(granularity=PerToken()), weight=weight, backend="reference")
    model = quantize_dynamic(nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10)), config)
    x = np.random.default_rng(14).normal(size=(33, 64)).astype(np.float32)
    np.testing.assert_array_equal(to_torch(model)(torch.tensor(x)).numpy(), model(Tensor(x)).data)


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_with_every_kind_of_layer(seed):
    """But for attention, whose products of activations are refused."""
    rng = np.random.default_rng(seed)
    manual_seed(seed)
    for bits in (8, 4, 2):
        model, draw = random_network(rng)
        prepared = prepare_qat(model.train(), get_default_qat_qconfig(weight_bits=bits, act_bits=max(bits, 4)))
        prepared(draw(rng, 16, 1))
        converted, x = convert(prepared.eval()), draw(rng, 30, 2)
        if isinstance(model, Attention):
            with pytest.raises(ValueError, match="calls matmul"):
                to_torch(converted)
        else:
            np.testing.assert_array_equal(to_torch(converted)(torch.tensor(x.data)).numpy(), converted(x).data)


def test_shared_modules_stay_shared_and_run_on_each_grid():
    """One Linear at two places, on inputs of two grids: what it keeps of the first must not serve the second."""
    rng = np.random.default_rng(15)
    layer, x_grid = static_linear(rng, "fbgemm", (9, 9), "channel", False, True)
    model = nn.Sequential(layer, layer, layer)
    theirs = to_torch(model)
    assert theirs[0] is theirs[1]
    x = integers(rng, (20, 9), x_grid)
    np.testing.assert_array_equal(theirs(in_torch(x, "cpu")).int_repr().numpy(), model(x).int_repr())


# ---- float layers ----------------------------------------------------------------------------------------------------


def test_float_layers_become_torchs_own():
    manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding="same", bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.LayerNorm(64), nn.Linear(64, 8), nn.GELU("tanh"), nn.RMSNorm(8), nn.Softmax(-1), nn.Dropout(0.1),
    ).eval()  # fmt: skip
    before = torch.random.get_rng_state()
    theirs = to_torch(model)
    assert torch.equal(before, torch.random.get_rng_state())
    assert [type(m).__module__.split(".")[:2] for m in theirs] == [["torch", "nn"]] * 11 and not theirs.training
    assert {name: tuple(v.shape) for name, v in theirs.state_dict().items()} == {
        name: v.shape for name, v in model.state_dict().items()
    }
    x = np.random.default_rng(16).normal(size=(3, 1, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(theirs(torch.tensor(x)).detach().numpy(), model(Tensor(x)).data, rtol=0, atol=1e-6)
    theirs[6].weight.data.zero_()
    assert model[6].weight.data.any()  # no memory is shared


def test_tied_parameters_stay_tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    theirs = to_torch(model)
    assert theirs[0].weight is theirs[1].weight and theirs[0].weight.requires_grad


# ---- state -----------------------------------------------------------------------------------------------------------


def test_state_dict_is_readable_and_loads_into_another():
    rng = np.random.default_rng(17)
    (one, x_grid), (other, _) = (static_linear(rng, "x86", (9, 5), "channel", False, True) for _ in range(2))
    first, second = to_torch(nn.Sequential(one)), to_torch(nn.Sequential(other))
    names = [f"0.{name}" for name in ("bias", "weight.scale", "weight.zero_point", "weight.integers", "output.scale",
                                      "output.zero_point")]  # fmt: skip
    assert list(first.state_dict()) == names
    np.testing.assert_array_equal(first.state_dict()["0.weight.integers"].numpy(), one.weight.int_repr())
    x = integers(rng, (12, 9), x_grid)
    assert (second(in_torch(x, "cpu")).int_repr().numpy() == other(x).int_repr()).all()  # it keeps its terms now
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(second(in_torch(x, "cpu")).int_repr().numpy(), one(x).int_repr())


def test_half_precision_is_refused():
    rng = np.random.default_rng(18)
    layer, x_grid = static_linear(rng, "x86", (9, 5), "channel", False, True)
    with pytest.raises(TypeError, match=r"scale must be float32, got torch.float16: move .* \.to\(device\) alone"):
        to_torch(layer).half()(in_torch(integers(rng, (1, 9), x_grid), "cpu"))


def test_it_can_be_copied_and_saved(tmp_path):
    import copy

    rng = np.random.default_rng(19)
    layer, x_grid = static_linear(rng, "qnnpack", (9, 5), "tensor", True, True)
    theirs, x = to_torch(layer), in_torch(integers(rng, (4, 9), x_grid), "cpu")
    y = theirs(x).int_repr()
    assert torch.equal(copy.deepcopy(theirs)(x).int_repr(), y)
    torch.save(theirs.state_dict(), tmp_path / "state.pt")
    fresh = to_torch(layer)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(fresh(x).int_repr(), y)


# ---- errors ----------------------------------------------------------------------------------------------------------


class UsesFunctions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        return functional.layer_norm(self.fc(x), (2,))


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(np.ones(2, np.float32))

    def forward(self, x):
        return x * self.gain


def test_everything_that_is_wrong_is_listed_by_path():
    norm = q_between.BetweenGrids(nn.BatchNorm1d(4), QParams(np.float32(1), np.int32(0), UINT8), "reference")
    inner = nn.Sequential(norm, UsesFunctions())
    with pytest.raises(ValueError) as caught:
        to_torch(nn.Sequential(inner, OwnParameter()))
    message = str(caught.value)
    assert "'0.0' (BetweenGrids): BatchNorm1d between two grids is not covered" in message
    assert (
        "'0.1' (UsesFunctions): its forward uses minquant.functional.layer_norm, which" in message
        and "cannot read torch's tensors" in message
    )
    assert "'1' (OwnParameter): has parameters of its own (gain)" in message
    assert "covered are Linear and Conv1d/2d" in message


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scores = q_between.QFunctional(QParams(np.float32(1), np.int32(0), UINT8), "reference")

    def forward(self, x, y):
        return self.scores.matmul(x, y)


def test_products_of_activations_are_refused():
    with pytest.raises(
        ValueError, match=r"'0' \(Scores\): its forward calls matmul of the QFunctional 'scores', which adds"
    ):
        to_torch(nn.Sequential(Scores()))
    x = QuantizedTensor(torch.zeros(2, 2, dtype=torch.uint8), Scores().scores.output)
    with pytest.raises(TypeError, match="matmul of two activations adds real values, in an order that each device"):
        to_torch(Scores().scores).matmul(x, x)


def test_prepared_models_and_hooks_are_refused():
    prepared = prepare(nn.QuantWrapper(nn.Linear(2, 2)), get_default_qconfig())
    with pytest.raises(ValueError, match="is prepared, not converted: call convert first"):
        to_torch(prepared)
    hooked = nn.Sequential(nn.ReLU())
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"'0' \(ReLU\): has forward hooks"):
        to_torch(hooked)
    with pytest.raises(TypeError, match="expected a minquant Module, got Linear"):
        to_torch(torch.nn.Linear(2, 2))


def test_wrong_inputs_are_refused():
    rng = np.random.default_rng(20)
    static, x_grid = static_linear(rng, "reference", (9, 5), "tensor", False, True)
    theirs = to_torch(nn.Sequential(static))
    with pytest.raises(
        TypeError, match="StaticLinear '0': expected a quantized tensor, got Tensor: there is no QuantStub"
    ):
        theirs(torch.zeros(2, 9))
    with pytest.raises(ValueError, match=r"'0': the last axis must have 9 features, got shape \(2, 8\)"):
        theirs(in_torch(integers(rng, (2, 8), x_grid), "cpu"))
    weight = integers(rng, (5, 9), weight_grid(rng, "reference", 5, "tensor"))
    dynamic = to_torch(nn.Sequential(q_linear.DynamicQuantizedLinear(weight, None, UINT8, "reference")))
    with pytest.raises(ValueError, match="the input of DynamicLinear '0' holds NaN or infinity"):
        dynamic(torch.full((2, 9), torch.nan))
    with pytest.raises(TypeError, match="expected real values, got a QuantizedTensor"):
        dynamic(in_torch(integers(rng, (2, 9), x_grid), "cpu"))
    quantizer = to_torch(Quantize(x_grid, "reference"))
    with pytest.raises(ValueError, match="NaN in the input"):
        quantizer(torch.tensor([1.0, torch.nan]))
    with pytest.raises(TypeError, match="tensor of real values"):
        quantizer(torch.tensor([1, 2]))


def test_arithmetic_on_integers_is_refused():
    rng = np.random.default_rng(21)
    x = in_torch(integers(rng, (2, 2), grid(rng, UINT8)), "cpu")
    with pytest.raises(TypeError, match="arithmetic on a quantized tensor is refused"):
        x + x
    with pytest.raises(TypeError, match="softmax has no form on integers"):
        torch.nn.functional.softmax(x, -1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_it_says_so():
    with pytest.raises(RuntimeError, match="to_torch: no CUDA device .* or ask for the CPU: device='cpu'"):
        to_torch(nn.Linear(2, 2), "cuda")


def test_sums_that_could_leave_int32_are_refused():
    K = 70_000
    weight = QTensor(np.zeros((1, K), np.int8), QParams(np.float32(1), np.int32(0), QSpec()))
    layer = q_linear.QuantizedLinear(weight, None, QParams(np.float32(1), np.int32(0), UINT8), "reference")
    x = QTensor(np.zeros((1, K), np.uint8), QParams(np.float32(1), np.int32(0), UINT8))
    with pytest.raises(ValueError, match="int32 accumulator could overflow"):
        to_torch(layer)(in_torch(x, "cpu"))
