"""LSQ without torch: gradients in closed form, phases, learning, and prepared == converted."""

from __future__ import annotations

import numpy as np
import pytest

import minquant.functional as F
from minquant import Tensor, manual_seed, nn, optim
from minquant.quant import (
    LearnableFakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
    QConfig,
    QuantWrapper,
    convert,
    disable_observer,
    fake_quantize,
    fuse_modules_qat,
    prepare_qat,
)
from minquant.quant.cascade import channel_sum

F32 = np.float32
INT4 = {"quant_min": -8, "quant_max": 7, "dtype": "qint8"}
PER_CHANNEL = {"observer": PerChannelMinMaxObserver, "qscheme": "per_channel_symmetric", **INT4}


def learning(scale: float, zero_point: float = 0.0, **options) -> LearnableFakeQuantize:
    options = {"observer": MinMaxObserver, **INT4, **options}
    return LearnableFakeQuantize(scale=scale, zero_point=zero_point, **options).enable_param_learning()


def gradients(fake_quant: LearnableFakeQuantize, x: list, upstream: list) -> tuple[list, list, list]:
    tensor = Tensor(np.array(x, F32), requires_grad=True)
    (fake_quant(tensor) * Tensor(np.array(upstream, F32))).sum().backward()
    return tensor.grad.tolist(), fake_quant.scale.grad.tolist(), fake_quant.zero_point.grad.tolist()


# ---- gradients in closed form ----------------------------------------------------------------------------------------


def test_inside_the_scale_gets_the_rounding_error_in_steps():
    # 0.75 and -0.5 on steps of 1/2: codes 1.5 -> 2 and -1
    dx, ds, dz = gradients(learning(0.5), [0.75, -0.5], [1, 3])
    assert (dx, ds, dz) == ([1, 3], [0.5], [0])


def test_outside_the_scale_gets_the_end_of_the_grid_and_the_zero_point_the_step():
    dx, ds, dz = gradients(learning(0.5, 2.0), [100, -100, 1], [1, 3, 5])
    assert dx == [0, 0, 5]
    assert ds == [(7 - 2) + 3 * (-8 - 2)]
    assert dz == [-0.5 - 3 * 0.5]


def test_the_ends_of_the_grid_are_inside():
    dx, _, _ = gradients(learning(1.0), [-8.5, -8.51, 7.5, 7.49], [1, 1, 1, 1])
    assert dx == [1, 0, 0, 1]  # -8.5 rounds to -8, 7.5 to 8


def test_per_channel_each_scale_gets_its_own_gradient():
    fake_quant = learning(1.0, channel_len=2, **{**PER_CHANNEL, "qscheme": "per_channel_affine"})
    _, ds, dz = gradients(fake_quant, [[0.25, 100], [-100, 0.5]], [[1, 1], [2, 2]])
    assert ds == [-0.25 + 7, -16 - 1]
    assert dz == [-1, -2]


def test_grad_scaling_divides_by_the_root_of_size_times_qmax():
    plain = gradients(learning(0.5, 1.0), [100, -3, 0.2], [1, 1, 1])
    scaled = gradients(learning(0.5, 1.0, use_grad_scaling=True), [100, -3, 0.2], [1, 1, 1])
    assert scaled[0] == plain[0]
    for mine, expected in zip(scaled[1:], plain[1:], strict=True):
        assert mine == pytest.approx([expected[0] / 21**0.5], rel=1e-6)


def test_an_empty_batch_has_no_gradient():
    fake_quant = learning(0.5, use_grad_scaling=True)
    fake_quant(Tensor(np.zeros((0, 4), F32), requires_grad=True)).sum().backward()
    assert fake_quant.scale.grad.tolist() == [0] and fake_quant.zero_point.grad.tolist() == [0]


@pytest.mark.parametrize("shape", [(3, 32, 1), (5, 40, 1), (5, 3, 1), (4, 5, 9), (7, 1, 3), (2, 0, 3), (0, 4, 2)])
def test_channel_sum_sums(shape):
    x = np.arange(np.prod(shape), dtype=F32).reshape(shape)
    assert np.array_equal(channel_sum(x, 1), x.sum(axis=(0, 2)))
    assert np.array_equal(channel_sum(x, -2), x.sum(axis=(0, 2)))


# ---- phases ----------------------------------------------------------------------------------------------------------


def test_static_the_observer_sets_the_scale_while_training_only():
    fake_quant = LearnableFakeQuantize(MinMaxObserver)
    x = Tensor(np.array([-1.0, 3.0], F32), requires_grad=True)
    out = fake_quant(x)
    assert fake_quant.scale.data == F32(4) / F32(255) and fake_quant.zero_point.data == 64
    assert np.array_equal(out.data, fake_quantize(x.data, fake_quant.activation_post_process.qparams()))
    out.sum().backward()
    assert fake_quant.scale.grad is None
    fake_quant.eval()(Tensor(x.data * 9))
    assert fake_quant.scale.data == F32(4) / F32(255)


def test_observation_lets_values_pass():
    fake_quant = LearnableFakeQuantize(MinMaxObserver).enable_static_observation()
    x = Tensor(np.array([-1.0, 3.0], F32))
    assert fake_quant(x) is x and fake_quant.scale.data == F32(4) / F32(255)


def test_learning_nothing_is_observed():
    fake_quant = LearnableFakeQuantize(MinMaxObserver)
    fake_quant(Tensor(np.array([-1.0, 3.0], F32)))
    fake_quant.enable_param_learning()
    fake_quant(Tensor(np.array([-9.0, 9.0], F32), requires_grad=True)).sum().backward()
    assert fake_quant.scale.data == F32(4) / F32(255)
    assert fake_quant.scale.grad is not None
    fake_quant.enable_static_estimate()
    assert fake_quant.scale.grad is None and not fake_quant.scale.requires_grad
    fake_quant(Tensor(np.array([-9.0, 9.0], F32)))
    assert fake_quant.scale.data == F32(18) / F32(255)


def test_the_first_observation_tells_the_number_of_channels():
    fake_quant = LearnableFakeQuantize(**PER_CHANNEL)
    scale = fake_quant.scale
    fake_quant(Tensor(np.array([[1.0, -2.0], [3.0, 15.0], [0.0, 0.75]], F32)))
    assert fake_quant.scale is scale and np.allclose(scale.data, [2 / 7.5, 2, 0.1])
    with pytest.raises(ValueError, match="the scale has 4 channels, x has 3"):
        LearnableFakeQuantize(channel_len=4, **PER_CHANNEL)(Tensor(np.ones((3, 2), F32)))


def test_the_scale_stays_positive_and_the_zero_point_on_the_grid():
    fake_quant = learning(-0.5, 9.6)
    qparams = fake_quant(Tensor(np.ones(3, F32))).qparams
    assert qparams.scale == fake_quant.scale.data == F32(2.0**-23)
    assert qparams.zero_point == 7
    assert learning(1.0, 2.5).qparams().zero_point == 2  # half to even
    assert [learning(1.0, z).qparams().zero_point for z in (2.75, -1.75)] == [3, -2]


def test_a_symmetric_zero_point_stays():
    fake_quant = learning(1.0, 3.0, qscheme="per_tensor_symmetric")
    fake_quant(Tensor(np.ones(2, F32), requires_grad=True)).sum().backward()
    assert fake_quant.zero_point.grad is None and fake_quant.qparams().zero_point == 0


def test_nothing_seen():
    with pytest.raises(ValueError, match="saw no data"):
        LearnableFakeQuantize(MinMaxObserver).eval()(Tensor(np.ones(2, F32)))
    assert learning(1.0)(Tensor(np.ones(2, F32))).data.tolist() == [1, 1]  # nobody waits for an observer


def test_divergence_is_an_error():
    fake_quant = learning(1.0)
    fake_quant.scale.data = np.array([np.nan], F32)
    with pytest.raises(ValueError, match=r"LearnableFakeQuantize.scale holds 1 NaN .* Did training diverge"):
        fake_quant(Tensor(np.ones(2, F32)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel_len": 0}, "channel_len must be a positive integer, or -1; got 0"),
        ({"channel_len": True}, "channel_len must be a positive integer"),
        ({"qscheme": "per_tensor_symmetric"}, "learned around 0; use dtype='qint8'"),
        ({"quant_min": -8, "quant_max": 0, "dtype": "qint8", "use_grad_scaling": True}, "divides by quant_max, got 0"),
        ({"quant_min": 0, "quant_max": 256}, "does not fit 'quint8'"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LearnableFakeQuantize(MinMaxObserver, **options)


# ---- learning --------------------------------------------------------------------------------------------------------


def test_learning_finds_the_best_scale():
    x = np.random.default_rng(0).standard_normal(4096).astype(F32)
    fake_quant = LearnableFakeQuantize(MinMaxObserver, qscheme="per_tensor_symmetric", **INT4)
    before = ((fake_quant(Tensor(x)).data - x) ** 2).mean()
    fake_quant.enable_param_learning()
    optimizer = optim.Adam([fake_quant.scale], lr=1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        F.mse_loss(fake_quant(Tensor(x)), x).backward()
        optimizer.step()
    after = ((fake_quant(Tensor(x)).data - x) ** 2).mean()
    least = min(((np.clip(np.rint(x / s), -8, 7) * s - x) ** 2).mean() for s in np.linspace(0.1, 0.8, 701))
    assert after < 1.01 * least < 0.5 * before  # 0.01117, 0.01114, 0.0229


def lsq_model(seed: int, sizes: list[int]) -> nn.Module:
    manual_seed(seed)
    layers = [layer for k, n in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(k, n), nn.ReLU())]
    activation = LearnableFakeQuantize.with_args(observer=MovingAverageMinMaxObserver, averaging_constant=0.5)
    weight = LearnableFakeQuantize.with_args(use_grad_scaling=True, **PER_CHANNEL)
    return prepare_qat(QuantWrapper(nn.Sequential(*layers[:-1])).train(), QConfig(activation, weight))


def train(model: nn.Module, x: np.ndarray, target: np.ndarray, steps: int, lr: float = 0.01) -> list[float]:
    optimizer, losses = optim.Adam(model.parameters(), lr=lr), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("seed", range(8))
def test_prepared_equals_converted(seed):
    rng = np.random.default_rng(seed)
    sizes = [int(n) for n in rng.integers(1, 24, int(rng.integers(2, 5)))]
    model = lsq_model(seed, sizes)
    x, target = rng.standard_normal((32, sizes[0])).astype(F32), rng.standard_normal((32, sizes[-1])).astype(F32)
    for learn in (False, True):
        if learn:
            learners = [m for m in model.modules() if isinstance(m, LearnableFakeQuantize)]
            before = [m.scale.data.copy() for m in learners]
            for m in learners:
                m.enable_param_learning()
        train(model.train(), x, target, 5)
        integer_model = convert(model.eval())
        wide = (rng.standard_normal((200, sizes[0])) * 3).astype(F32)
        assert (model(wide).data != integer_model(wide).data).sum() == 0
    assert all((m.scale.data != old).any() for m, old in zip(learners, before, strict=True))
    learned = model.module[0].weight_fake_quant
    assert np.array_equal(integer_model.module[0].weight.qparams.scale, learned.qparams().scale)


@pytest.mark.parametrize("seed", range(12))
def test_prepared_equals_converted_with_convolutions(seed):
    rng = np.random.default_rng(seed)
    manual_seed(seed)
    a, b, c = (int(n) for n in rng.integers(1, 5, 3))
    layers = [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, c, 3, stride=2), nn.Flatten()]
    model = QuantWrapper(nn.Sequential(*layers, nn.Linear(9 * c, 3))).train()
    fused = fuse_modules_qat(model, ["module.0", "module.1", "module.2"])
    half = 1 << int(rng.integers(1, 8))
    symmetric = {"dtype": "qint8", "quant_min": -half, "quant_max": half - 1}
    weight = LearnableFakeQuantize.with_args(**{**PER_CHANNEL, **symmetric})
    activation = LearnableFakeQuantize.with_args(observer=MinMaxObserver, quant_max=2 * half - 1)
    prepared = prepare_qat(fused, QConfig(activation, weight))
    x = rng.standard_normal((40, a, 7, 7)).astype(F32)
    train(prepared, x[:8], np.zeros((8, 3), F32), 2)
    prepared.apply(lambda m: m.enable_param_learning() if isinstance(m, LearnableFakeQuantize) else None)
    train(prepared, x[:8], np.zeros((8, 3), F32), 3)
    assert np.array_equal(convert(prepared.eval())(x).data, prepared(x).data)


def test_training_with_learned_scales_fits():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 8)).astype(F32)
    target = np.tanh(x @ rng.standard_normal((8, 3)).astype(F32))
    model = lsq_model(0, [8, 32, 3])
    losses = train(model, x, target, 100)
    model.apply(lambda m: m.enable_param_learning() if isinstance(m, LearnableFakeQuantize) else None)
    learned = train(model, x, target, 200, lr=3e-3)
    assert losses[-1] < losses[0] / 2
    assert learned[-1] < losses[-1]


def test_the_learned_scale_is_in_the_checkpoint():
    model = lsq_model(0, [4, 3])
    x = np.ones((2, 4), F32)
    train(model, x, np.ones((2, 3), F32), 2)
    state = model.state_dict()
    scales = [name for name in state if name.endswith(("fake_quant.scale", "post_process.scale"))]
    assert len(scales) == 3  # the stub's, the weight's and the output's
    again = lsq_model(1, [4, 3])
    again(x)  # the first observation tells the number of channels
    again.load_state_dict(state)
    for prepared in (model, again):
        prepared.apply(disable_observer)
    assert np.array_equal(again.eval()(x).data, model.eval()(x).data)


def test_who_learns_from_the_start_needs_no_observer():
    weight = LearnableFakeQuantize.with_args(**{**PER_CHANNEL, "observer": PerChannelMinMaxObserver})
    activation = LearnableFakeQuantize.with_args(observer=MinMaxObserver, scale=0.1)
    model = prepare_qat(QuantWrapper(nn.Sequential(nn.Linear(3, 2))).train(), QConfig(activation, weight))
    for path in ("quant.activation_post_process", "module.0.activation_post_process"):
        model.get_submodule(path).enable_param_learning()
    x = np.random.default_rng(0).standard_normal((9, 3)).astype(F32)
    train(model, x, np.zeros((9, 2), F32), 2)
    assert np.array_equal(convert(model.eval())(x).data, model(x).data)
