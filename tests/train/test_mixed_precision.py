"""float16 by rounding, float32 masters, and a loss scale that finds its own size."""

from __future__ import annotations

import numpy as np
import pytest

from minquant import Tensor, manual_seed, nn, no_grad, optim
from minquant.train.mixed_precision import GradScaler, HalfPrecision, float16

F32 = np.float32


# ---- float16 -----------------------------------------------------------------------------------------------


def test_an_update_below_half_a_step_is_lost_without_a_master():
    update, half, master = F32(0.0004), Tensor(F32(1)), F32(1)
    for _ in range(1000):
        half = float16(half + update)
        master = master + update
    assert half.item() == 1.0
    assert abs(master - 1.4) <= 1000 * 2.0**-24  # a thousand float32 roundings below 2


def test_the_ends_of_float16():
    x = np.array([65519, 65520, -65520, 2.0**-24, 2.0**-25, np.nextafter(F32(2.0**-25), F32(1)), 1e-8], F32)
    assert float16(x).data.tolist() == [65504, np.inf, -np.inf, 2.0**-24, 0, 2.0**-24, 0]
    ties = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11], F32)
    assert float16(ties).data.tolist() == [1, 1 + 2.0**-9]
    assert float16(x).dtype == F32 and float16(x.astype(np.float64)).dtype == np.float64


@pytest.mark.parametrize(
    ("grad", "arrives"), [(1e-8, 0.0), (1e-8 * 1024, float(np.float16(1e-8 * 1024))), (65520, np.inf)]
)
def test_the_gradient_is_rounded_on_its_way_back(grad, arrives):
    x = Tensor(np.ones(1, F32), requires_grad=True)
    float16(x).backward(np.array([grad], F32))
    assert x.grad.data.tolist() == [arrives]


def test_integers_are_refused():
    with pytest.raises(TypeError, match="float32 or float64, got int64"):
        float16(np.arange(3))


# ---- a model -----------------------------------------------------------------------------------------------


def small_model() -> nn.Sequential:
    manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def on_grid(x: np.ndarray) -> bool:
    return bool((x.astype(np.float16).astype(F32) == x).all())


def test_every_result_and_gradient_lies_on_the_grid_and_the_masters_do_not():
    model, x = small_model(), np.random.default_rng(0).standard_normal((4, 8)).astype(F32)
    masters = {name: p.data.copy() for name, p in model.named_parameters()}
    results = []
    for layer in model:
        layer.register_forward_hook(lambda module, inputs, output: results.append((inputs[0], module)))
    y = HalfPrecision(model)(x)
    y.sum().backward()
    assert all(on_grid(inputs.data) for inputs, _ in results) and len(results) == 3 and on_grid(y.data)
    for name, p in model.named_parameters():
        assert p.dtype == p.grad.dtype == F32 and on_grid(p.grad.data) and p.grad.data.any()
        assert np.array_equal(p.data, masters[name]) and not on_grid(p.data)


def test_a_layer_rounds_its_operands_and_its_result_once():
    layer, x = nn.Linear(8, 3), np.random.default_rng(0).standard_normal((4, 8)).astype(F32)
    half = lambda a: a.astype(np.float16).astype(F32)  # noqa: E731
    expected = half(half(x) @ half(layer.weight.data).T + half(layer.bias.data))
    assert np.array_equal(HalfPrecision(layer)(x).data, expected)


def test_the_model_is_left_as_it_was_even_by_an_error():
    model = small_model()
    parameters = list(model.parameters())
    half = HalfPrecision(model)
    half(np.zeros((1, 8), F32))
    with pytest.raises(ValueError, match="in_features"):
        half(np.zeros((1, 9), F32))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert not any(module._forward_hooks for module in model.modules())
    assert all(a is b for a, b in zip(half.parameters(), parameters, strict=True))


def test_a_tied_weight_gets_one_gradient():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens):
            return self.head(self.embedding(tokens))

    model = Tied()
    HalfPrecision(model)(np.array([[0, 3]])).sum().backward()
    assert len(list(model.parameters())) == 1 and on_grid(model.head.weight.grad.data)
    assert model.embedding.weight.grad is model.head.weight.grad and model.head.weight.grad.data[1].any()


def test_a_module_that_returns_no_tensor_is_refused():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(TypeError, match="got tuple from a Pair"):
        HalfPrecision(Pair())(np.zeros(2, F32))


# ---- the loss scale ----------------------------------------------------------------------------------------


def with_gradient(value: float) -> tuple[Tensor, optim.SGD]:
    p = Tensor(np.ones(2, F32), requires_grad=True)
    p.grad = Tensor(np.full(2, value, F32))
    return p, optim.SGD([p], lr=1.0)


def test_a_small_gradient_survives_when_scaled():
    for scale, moved in ((1.0, 0.0), (1024.0, 1e-8)):
        p, scaler = Tensor(np.zeros(1, F32), requires_grad=True), GradScaler(init_scale=scale)
        optimizer = optim.SGD([p], lr=1.0)
        scaler.scale((float16(p) * F32(1e-8)).sum()).backward()
        scaler.step(optimizer)
        assert abs(-p.data[0] - moved) <= moved * 2.0**-8  # 1024e-8 is subnormal in float16: 8 bits are left


def test_a_step_with_an_overflow_is_skipped_and_the_scale_falls():
    scaler = GradScaler(init_scale=8.0)
    for bad in (np.inf, -np.inf, np.nan):
        p, optimizer = with_gradient(bad)
        scaler.step(optimizer)
        scaler.update()
        assert p.data.tolist() == [1, 1]
    assert scaler.get_scale() == 1.0
    p, optimizer = with_gradient(0.25)
    scaler.step(optimizer)
    assert p.data.tolist() == [0.75, 0.75]


def test_the_scale_grows_after_good_steps_in_a_row():
    scaler = GradScaler(init_scale=4.0, growth_factor=3.0, backoff_factor=0.25, growth_interval=2)
    seen = []
    for value in (1.0, 1.0, 1.0, np.inf, 1.0, 1.0):
        _, optimizer = with_gradient(value)
        scaler.step(optimizer)
        scaler.update()
        seen.append(scaler.get_scale())
    assert seen == [4, 12, 12, 3, 3, 9]


def test_unscaled_gradients_may_be_clipped_before_the_step():
    p, optimizer = with_gradient(8.0)
    scaler = GradScaler(init_scale=4.0)
    scaler.unscale_(optimizer)
    assert p.grad.data.tolist() == [2, 2]
    p.grad.data /= 4
    scaler.step(optimizer)
    assert p.data.tolist() == [0.5, 0.5]


def test_what_is_called_out_of_order_is_refused():
    scaler = GradScaler()
    with pytest.raises(RuntimeError, match="no step"):
        scaler.update()
    p, optimizer = with_gradient(1.0)
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="unscaled already"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="has stepped since"):
        scaler.step(optimizer)
    p.grad = None
    scaler.update()
    with pytest.raises(RuntimeError, match="no gradients"):
        scaler.step(optimizer)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("init_scale", 0.0),
        ("init_scale", np.inf),
        ("growth_factor", 1.0),
        ("backoff_factor", 1.0),
        ("growth_interval", 0),
    ],
)
def test_arguments_that_make_no_sense(argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be"):
        GradScaler(**{argument: value})


def test_training_in_float16_finds_its_scale_and_learns():
    model, scaler = small_model(), GradScaler(init_scale=2.0**30)
    half, optimizer = HalfPrecision(model), optim.Adam(model.parameters(), lr=0.05)
    x = np.random.default_rng(0).standard_normal((32, 8)).astype(F32)
    target = x[:, :3] * F32(0.5)
    skipped, before, losses = 0, scaler.get_scale(), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.MSELoss()(half(x), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < before
        before = scaler.get_scale()
        losses.append(loss.item())
    assert 5 < skipped < 30 and losses[-1] < 0.1 * losses[0]
    assert losses[0] == losses[1] == losses[5]  # nothing moves while steps are skipped
    with no_grad():
        assert np.isfinite(half(x).data).all()
