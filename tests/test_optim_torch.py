from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minquant
from minquant import Tensor, manual_seed, nn, optim

torch = pytest.importorskip("torch")

OPTIMIZERS = {
    "SGD": dict(lr=0.1),
    "SGD, momentum": dict(lr=0.1, momentum=0.9, dampening=0.1),
    "SGD, Nesterov": dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": dict(lr=0.1),
    "Adam, decay": dict(lr=0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
    "AdamW": dict(lr=0.1),
    "AdamW, decay": dict(lr=0.01, betas=(0.8, 0.99), weight_decay=0.3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_twenty_steps_in_two_groups_are_torchs(name: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    values = [rng.normal(size=shape).astype(dtype) for shape in [(4, 3), (4,), (2, 4)]]
    grads = [[rng.normal(size=v.shape).astype(dtype) for v in values] for _ in range(20)]
    ours = [Tensor(v.copy(), requires_grad=True) for v in values]
    theirs = [torch.tensor(v, requires_grad=True) for v in values]
    kind = name.split(",")[0]
    optimizers = [
        getattr(lib, kind)([{"params": ps[:2]}, {"params": ps[2:], "lr": 0.02}], **OPTIMIZERS[name])
        for lib, ps in [(optim, ours), (torch.optim, theirs)]
    ]
    for step in grads:
        for a, b, grad in zip(ours, theirs, step, strict=True):
            a.grad, b.grad = Tensor(grad), torch.tensor(grad)
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        # Each step rounds the weight once, and its update, which is smaller, a few times.
        bound = 20 * 2 * np.finfo(dtype).eps * max(1, np.abs(b.detach().numpy()).max())
        assert np.abs(a.data - b.detach().numpy()).max() <= bound


def train(lib: Any, modules: Any, optimizers: Any, seed: Any) -> tuple[dict[str, np.ndarray], float, np.ndarray]:
    """Fit y = x @ weights with a hidden layer: its weights, its loss on new data, the data."""
    seed(42)
    weights = np.array([[1.12, 1.6], [2.24, 2.5], [3.6, 3.9]], np.float32)
    weights = torch.tensor(weights) if lib is torch else Tensor(weights)
    train_x, test_x = lib.rand(10000, 3), lib.rand(5000, 3)
    model = modules.Sequential(modules.Linear(3, 3), modules.ReLU(), modules.Linear(3, 2))
    optimizer, loss = optimizers.Adam(model.parameters(), lr=0.1), modules.MSELoss()
    for _ in range(100):
        optimizer.zero_grad()
        loss(model(train_x), train_x @ weights).backward()
        optimizer.step()
    state = {name: np.array(value.detach().numpy()) for name, value in model.state_dict().items()}
    return state, loss(model(test_x), test_x @ weights).item(), train_x.numpy()


def test_a_hundred_steps_of_adam_end_within_5e_6_of_torch() -> None:
    ours, our_loss, our_x = train(minquant, nn, optim, manual_seed)
    theirs, their_loss, their_x = train(torch, torch.nn, torch.optim, torch.manual_seed)
    np.testing.assert_array_equal(our_x, their_x)
    for name in theirs:
        assert np.abs(ours[name] - theirs[name]).max() <= 5e-6, name
    assert f"{our_loss:.4f}" == f"{their_loss:.4f}" == "0.0037"
