"""float16, autocast and GradScaler against torch 2.13."""

from __future__ import annotations

import numpy as np
import pytest

from minquant import Tensor, nn, optim
from minquant.train.mixed_precision import GradScaler, HalfPrecision, float16

torch = pytest.importorskip("torch")

F32 = np.float32


def test_every_float16_and_what_lies_between_is_rounded_as_by_torch():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    exact = np.sort(halves[np.isfinite(halves)].astype(F32))
    middle = np.append((exact[:-1] + exact[1:]) / 2, F32([-65520, 65520]))  # ties, and where infinity begins
    near = [np.nextafter(middle, F32(end)) for end in (-np.inf, np.inf)]
    x = np.concatenate([exact, middle, *near, F32([np.inf, -np.inf])])
    assert float16(x).data.tobytes() == torch.from_numpy(x).half().float().numpy().tobytes()

    ours, theirs = Tensor(np.zeros_like(x), requires_grad=True), torch.zeros(len(x), requires_grad=True)
    float16(ours).backward(x)
    theirs.half().backward(torch.from_numpy(x).half())
    assert ours.grad.data.tobytes() == theirs.grad.numpy().tobytes()


def test_a_model_computes_what_autocast_computes():
    """On eighths, whose products add up exactly in float32: so no order of sums can matter, and all is bit-equal."""
    rng = np.random.default_rng(0)
    ours = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 5))
    theirs = torch.nn.Sequential(torch.nn.Linear(24, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5))
    state = {k: (rng.integers(-16, 17, v.shape) / 8).astype(F32) for k, v in ours.state_dict().items()}
    state["0.weight"] += F32(1e-5)  # which float16 drops from most
    ours.load_state_dict(state)
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    x = (rng.integers(-16, 17, (9, 24)) / 8).astype(F32)

    y = HalfPrecision(ours)(x)
    with torch.autocast("cpu", dtype=torch.float16):
        expected = theirs(torch.from_numpy(x))
    assert np.array_equal(y.data, expected.float().detach().numpy())
    (y * F32(64)).sum().backward()
    (expected.float() * 64).sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert np.array_equal(a.grad.data, b.grad.numpy())


def test_the_scaler_does_what_torchs_does():
    rng = np.random.default_rng(1)
    options = dict(init_scale=3.0e38, growth_factor=1.7, backoff_factor=0.3, growth_interval=3)
    ours, theirs = GradScaler(**options), torch.amp.GradScaler("cpu", **options)
    p, q = Tensor(np.ones(3, F32), requires_grad=True), torch.ones(3, requires_grad=True)
    optimizers = optim.SGD([p], lr=0.125), torch.optim.SGD([q], lr=0.125)  # whose products are exact
    theirs.scale(q.sum())  # which sets its scale up
    for step in range(60):
        grad = rng.standard_normal(3).astype(F32) * F32(ours.get_scale())
        if rng.random() < 0.3 or step < 5:
            grad[rng.integers(3)] = rng.choice([np.inf, -np.inf, np.nan])
        p.grad, q.grad = Tensor(grad.copy()), torch.from_numpy(grad.copy())
        if step % 2:
            ours.unscale_(optimizers[0])
            theirs.unscale_(optimizers[1])
        for scaler, optimizer in zip((ours, theirs), optimizers, strict=True):
            scaler.step(optimizer)
            scaler.update()
        assert ours.get_scale() == theirs.get_scale()
        assert p.grad.data.tobytes() == q.grad.numpy().tobytes()
        assert p.data.tobytes() == q.detach().numpy().tobytes()


def test_the_scale_stops_where_float32_ends():
    ours, theirs = GradScaler(2.0**127, growth_interval=1), torch.amp.GradScaler("cpu", 2.0**127, growth_interval=1)
    p, q = Tensor(np.ones(1, F32), requires_grad=True), torch.ones(1, requires_grad=True)
    theirs.scale(q.sum())
    p.grad, q.grad = Tensor(np.ones(1, F32)), torch.ones(1)
    for scaler, optimizer in ((ours, optim.SGD([p])), (theirs, torch.optim.SGD([q]))):
        scaler.step(optimizer)
        scaler.update()
    assert ours.get_scale() == theirs.get_scale() == 2.0**127


def test_defaults_are_torchs():
    ours, theirs = GradScaler(), torch.amp.GradScaler("cpu")
    assert ours.get_scale() == theirs.get_scale()
    assert ours._factors == (theirs.get_growth_factor(), theirs.get_backoff_factor())
    assert ours._growth_interval == theirs.get_growth_interval()
