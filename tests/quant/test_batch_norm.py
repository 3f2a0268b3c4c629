"""Batch norm folded away: fuse_modules, fuse_modules_qat, training with it, freezing and re-estimating it."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import minquant
from minquant import Tensor, nn, no_grad, optim
from minquant import functional as F
from minquant.quant import (
    ConvBn2d,
    ConvBnReLU2d,
    ConvReLU2d,
    LinearBn1d,
    LinearReLU,
    QATConvBn2d,
    QATConvBnReLU2d,
    QParams,
    QSpec,
    QuantizedConv2d,
    QuantizedConvReLU2d,
    QuantizedLinear,
    QuantWrapper,
    convert,
    disable_fake_quant,
    fake_quantize,
    fold_batch_norm,
    freeze_bn_stats,
    fuse_modules,
    fuse_modules_qat,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize_dynamic,
    reestimate_bn_stats,
    update_bn_stats,
)

F32 = np.float32
RNG = np.random.default_rng(0)
X = RNG.standard_normal((16, 2, 6, 6)).astype(F32)


def net() -> nn.Sequential:
    minquant.manual_seed(0)
    rng = np.random.default_rng(1)
    model = nn.Sequential({
        "conv1": nn.Conv2d(2, 4, 3), "bn1": nn.BatchNorm2d(4), "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(4, 3, 3, bias=False), "bn2": nn.BatchNorm2d(3), "flatten": nn.Flatten(),
        "fc": nn.Linear(12, 5), "bn3": nn.BatchNorm1d(5),
    })  # fmt: skip
    for bn in (model._modules[name] for name in ("bn1", "bn2", "bn3")):
        bn.weight.data[:] = rng.uniform(-2, 2, bn.num_features)
        bn.bias.data[:] = rng.standard_normal(bn.num_features)
        bn.running_mean.data[:] = rng.standard_normal(bn.num_features)
        bn.running_var.data[:] = rng.uniform(0.1, 4, bn.num_features)
    return model


SEQUENCES = [["conv1", "bn1", "relu1"], ["conv2", "bn2"], ["fc", "bn3"]]


def test_folding_by_hand():
    """The lesson's numbers: w 2, b 1, γ 3, β .5, μ 4, σ² 4 give 3 and -4 (ε 0)."""
    bn = nn.BatchNorm1d(1, eps=0.0)
    for name, value in (("weight", 3), ("bias", 0.5), ("running_mean", 4), ("running_var", 4)):
        getattr(bn, name).data[:] = value
    weight, bias = fold_batch_norm(Tensor(np.full((1, 1), 2, F32)), Tensor(np.ones(1, F32)), bn)
    assert (weight.item(), bias.item()) == (3, -4)
    assert fold_batch_norm(Tensor(np.full((1, 1), 2, F32)), None, bn)[1].item() == -5.5
    plain = nn.BatchNorm1d(1, eps=0.0, affine=False)
    assert fold_batch_norm(Tensor(np.full((1, 1), 2, F32)), None, plain)[0].item() == 2


def test_the_variance_of_a_constant_channel_is_0_and_eps_keeps_it_finite():
    bn = nn.BatchNorm1d(1)
    bn.running_var.data[:] = 0
    weight, _ = fold_batch_norm(Tensor(np.full((1, 1), 3, F32)), None, bn)
    assert weight.item() == pytest.approx(3 / np.sqrt(1e-5), rel=1e-6)  # 949, not 300,000


def test_fused_in_eval_it_computes_the_same():
    model = net().eval()
    fused = fuse_modules(model, SEQUENCES)
    assert isinstance(fused._modules["conv1"], ConvReLU2d) and type(fused._modules["conv2"]) is nn.Conv2d
    assert type(fused._modules["fc"]) is nn.Linear and isinstance(fused._modules["bn3"], nn.Identity)
    expected, got = model(X).data, fused(X).data
    assert np.abs(got - expected).max() <= 2e-6 * np.abs(expected).max()
    assert not any(m.training for m in fused.modules())
    assert model._modules["conv1"].weight.data[0, 0, 0, 0] != fused._modules["conv1"].layer.weight.data[0, 0, 0, 0]


def test_fused_for_training_it_computes_the_same_and_keeps_training():
    model = net()
    fused = fuse_modules_qat(model, SEQUENCES)
    kinds = [type(fused._modules[name]) for name in ("conv1", "conv2", "fc")]
    assert kinds == [ConvBnReLU2d, ConvBn2d, LinearBn1d]
    assert np.array_equal(fused(X).data, copy.deepcopy(model)(X).data)


def prepared(bits: int = 8) -> nn.Module:
    return prepare_qat(QuantWrapper(fuse_modules_qat(net(), SEQUENCES)), get_default_qat_qconfig(weight_bits=bits))


def train(model: nn.Module, steps: int, lr: float = 0.01) -> None:
    optimizer = optim.Adam(model.parameters(), lr=lr)
    target = RNG.standard_normal((16, 5)).astype(F32)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(X), target).backward()
        optimizer.step()


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("frozen", [False, True])
def test_prepared_equals_converted(bits, frozen):
    model = prepared(bits)
    assert isinstance(model.module.conv1, QATConvBnReLU2d) and isinstance(model.module.conv2, QATConvBn2d)
    train(model, 3)
    if frozen:
        model.apply(freeze_bn_stats)
        train(model, 3)
    model.eval()
    converted = convert(model)
    kinds = [type(converted.module._modules[name]) for name in ("conv1", "conv2", "fc")]
    assert kinds == [QuantizedConvReLU2d, QuantizedConv2d, QuantizedLinear]
    x = 2 * RNG.standard_normal((50, 2, 6, 6)).astype(F32)
    with no_grad():
        assert (model(x).data != converted(x).data).sum() == 0


def test_without_rounding_it_trains_as_the_float_model_does():
    """Dividing the running scale out again leaves the convolution alone, but for float32 rounding."""
    model, plain = prepared(), net()
    model.apply(disable_fake_quant)
    expected, got = plain(X), model(X)
    assert np.abs(got.data - expected.data).max() <= 1e-5 * np.abs(expected.data).max()
    for name in ("bn1", "bn2", "bn3"):
        mine = model.module._modules[{"bn1": "conv1", "bn2": "conv2", "bn3": "fc"}[name]].bn
        assert np.allclose(mine.running_mean.data, plain._modules[name].running_mean.data, rtol=1e-5, atol=1e-6)
        assert np.allclose(mine.running_var.data, plain._modules[name].running_var.data, rtol=1e-5, atol=1e-6)
    upstream = RNG.standard_normal(got.shape).astype(F32)
    for y in (got, expected):
        (y * upstream).sum().backward()
    a, b = model.module.conv1.weight.grad.data, plain._modules["conv1"].weight.grad.data
    assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max()


def test_in_training_the_folded_weight_is_rounded():
    """γ -1, σ 1: 1.5 and 0.6 are folded to -1.5 and -0.6, on 2 bits -2 and -1; not folded they would both be 1."""
    float_model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1, eps=0.0))
    float_model[0].weight.data[:] = [[1.5, 0.6]]
    float_model[1].weight.data[:] = -1
    fused = fuse_modules_qat(float_model, [["0", "1"]])
    layer = prepare_qat(QuantWrapper(fused), get_default_qat_qconfig(weight_bits=2)).module[0]
    x = fake_quantize(Tensor(np.eye(3, 2, dtype=F32)), QParams(1.0, 0, QSpec(signed=False)))
    assert layer.product(x, layer.fake_quantized(-layer.weight), None).tolist() == [[-2], [-1], [0]]
    y = layer(x)  # of 2, 1 and 0: mean 1, σ² 2/3
    step = 2 * 1.5**0.5 / 255  # of the output's grid
    assert np.abs(y.data[:, 0] - np.array([-1, 0, 1]) * 1.5**0.5).max() <= step


def test_a_channel_that_is_switched_off_stays_finite():
    model = prepared()
    model.module.conv1.bn.weight.data[1] = 0
    y = model(X)
    y.sum().backward()
    assert np.isfinite(y.data).all() and np.isfinite(model.module.conv1.weight.grad.data).all()
    assert (convert(model.eval()).module.conv1.weight.int_repr()[1] == 0).all()


def test_frozen_statistics_stand_still_and_thawed_ones_move():
    model = prepared()
    train(model, 1)
    model.apply(freeze_bn_stats)
    before = model.module.conv1.bn.running_mean.data.copy()
    train(model, 2)
    assert np.array_equal(model.module.conv1.bn.running_mean.data, before)
    model.apply(update_bn_stats)
    train(model, 1)
    assert not np.array_equal(model.module.conv1.bn.running_mean.data, before)


def test_reestimated_statistics_are_those_of_the_batches():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).eval()
    batches = [RNG.standard_normal((4, 2, 5, 5)).astype(F32) + i for i in range(3)]
    reestimate_bn_stats(model, batches)
    seen = [np.moveaxis(model[0](b).data, 1, 0).reshape(3, -1).astype(np.float64) for b in batches]
    assert np.allclose(model[1].running_mean.data, np.mean([s.mean(1) for s in seen], 0), rtol=1e-6, atol=1e-7)
    assert np.allclose(model[1].running_var.data, np.mean([s.var(1, ddof=1) for s in seen], 0), rtol=1e-6)
    assert int(model[1].num_batches_tracked) == 3 and not model[1].training


def test_reestimating_moves_nothing_else():
    model = prepared(4)
    train(model, 3)
    model.apply(freeze_bn_stats)
    ranges = {path: p.data.copy() for path, p in model.named_buffers() if path.endswith(("min_val", "max_val"))}
    weights = {path: p.data.copy() for path, p in model.named_parameters()}
    means = model.module.conv1.bn.running_mean.data.copy()
    reestimate_bn_stats(model, [X, 2 * X])
    assert all(np.array_equal(model.state_dict()[path].data, value) for path, value in (ranges | weights).items())
    assert not np.array_equal(model.module.conv1.bn.running_mean.data, means)
    assert model.module.conv1.bn_frozen and model.training and model.quant.activation_post_process.observer_enabled
    x = RNG.standard_normal((20, 2, 6, 6)).astype(F32)
    assert (model.eval()(x).data != convert(model)(x).data).sum() == 0


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fuse", "mode", "paths", "message"),
    [
        (fuse_modules, True, SEQUENCES, "fuse_modules: 'bn1' is in training mode, where its statistics still change"),
        (fuse_modules_qat, False, SEQUENCES, "fuse_modules_qat expects a model in training mode"),
        (fuse_modules_qat, True, ["bn1", "relu1"], r"got \['bn1', 'relu1'\] \(BatchNorm2d, ReLU\)"),
        (fuse_modules, False, ["conv1", "bn3"], r"got \['conv1', 'bn3'\] \(Conv2d, BatchNorm1d\)"),
        (fuse_modules, False, ["conv1", "bn1", "relu1", "conv2"], "expected a Linear or Conv, then a batch norm"),
        (fuse_modules, False, ["conv1", "bn_1"], "no module is named 'bn_1'; did you mean 'bn1'"),
        (fuse_modules_qat, True, "conv1", "expected the paths of layers that follow one another, got 'conv1'"),
    ],
)
def test_what_cannot_be_fused(fuse, mode, paths, message):
    with pytest.raises(ValueError, match=message):
        fuse(net().train(mode), paths)


def test_statistics_that_are_not_there():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match="BatchNorm2d has no running statistics"):
        fuse_modules(model, ["0", "1"])
    with pytest.raises(ValueError, match="the model has no batch norm with running statistics"):
        reestimate_bn_stats(model, [X])
    with pytest.raises(ValueError, match="expected at least one batch, got none"):
        reestimate_bn_stats(net(), [])


def test_layers_fused_for_training_in_flows_without_training():
    model = fuse_modules_qat(net(), SEQUENCES)
    for flow in (lambda: prepare(QuantWrapper(model), get_default_qconfig()), lambda: quantize_dynamic(model)):
        with pytest.raises(ValueError, match="is a ConvBnReLU2d, fused for training; fold the batch norm instead"):
            flow()


def test_linear_and_relu_still_fuse():
    fused = fuse_modules(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), ["0", "1"])
    assert isinstance(fused[0], LinearReLU) and isinstance(fused[1], nn.Identity)
