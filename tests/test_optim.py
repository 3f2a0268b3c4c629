from __future__ import annotations

import math

import numpy as np
import pytest

from minquant import Tensor, manual_seed, nn, no_grad, optim, rand
from minquant.nn import Parameter


def parameter(*values: float, grad: float | None = None) -> Parameter:
    p = Parameter(np.array(values, np.float32))
    if grad is not None:
        p.grad = Tensor(np.full(len(values), grad, np.float32))
    return p


def test_sgd_steps_against_the_gradient() -> None:
    p, still = parameter(1, 2, grad=0.5), parameter(3)
    data = p.data
    optim.SGD([p, still], lr=2.0).step()
    assert p.tolist() == [0, 1]
    assert p.data is data
    assert still.tolist() == [3]  # it has no gradient


def test_sgd_with_momentum_weight_decay_and_dampening() -> None:
    p = parameter(1, grad=1)
    optimizer = optim.SGD([p], lr=0.5, momentum=0.5, dampening=0.25, weight_decay=0.5)
    optimizer.step()  # g = 1 + 0.5, v = 1.5
    assert p.tolist() == [0.25]
    optimizer.step()  # g = 1 + 0.125, v = 0.75 + 0.75 · 1.125
    assert p.tolist() == [0.25 - 0.5 * 1.59375]


def test_adam_steps_by_lr_at_first() -> None:
    for make in (optim.Adam, optim.AdamW):
        p = parameter(1, -1, grad=1e-3)
        make([p], lr=0.1, weight_decay=0).step()
        np.testing.assert_allclose(p.data, [0.9, -1.1], rtol=2e-5)  # 1e-8 beside 1e-3


def test_adamw_shrinks_the_weight_itself() -> None:
    p = parameter(1, grad=0)
    optim.AdamW([p], lr=0.5, weight_decay=0.5).step()
    assert p.tolist() == [0.75]
    p = parameter(1, grad=0)
    optim.Adam([p], lr=0.5, weight_decay=0.5).step()
    np.testing.assert_allclose(p.data, [0.5], rtol=2e-7)  # a gradient like any other: one step of lr


def test_groups_have_their_own_options() -> None:
    a, b = parameter(1, grad=1), parameter(1, grad=1)
    optimizer = optim.SGD([{"params": [a]}, {"params": b, "lr": 0.5}], lr=0.25)
    optimizer.step()
    assert (a.tolist(), b.tolist()) == ([0.75], [0.5])
    optimizer.add_param_group({"params": [parameter(0)], "momentum": 0.5})
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.5, 0.25]
    assert "'lr': 0.5" in repr(optimizer)


def test_zero_grad() -> None:
    p = parameter(1, grad=1)
    optimizer = optim.SGD([p], lr=1)
    optimizer.zero_grad(set_to_none=False)
    assert p.grad.tolist() == [0]
    optimizer.zero_grad()
    assert p.grad is None


def test_a_step_is_noticed_by_a_graph_that_needs_the_weight() -> None:
    p = parameter(2, grad=1)
    loss = (p * p).sum()
    optim.SGD([p], lr=1).step()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


@pytest.mark.parametrize("make", [optim.Adam, optim.AdamW, lambda p, lr: optim.SGD(p, lr, momentum=0.9)])
def test_a_loaded_state_goes_on_as_the_saved_one(make) -> None:
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(6, 4)).astype(np.float32)

    def run(optimizer, p, steps) -> None:
        for grad in steps:
            p.grad = Tensor(grad)
            optimizer.step()

    whole = parameter(1, 2, 3, 4)
    run(make([whole], lr=0.1), whole, grads)
    p = parameter(1, 2, 3, 4)
    first = make([p], lr=0.1)
    run(first, p, grads[:3])
    state = first.state_dict()
    assert state["param_groups"][0]["params"] == [0]
    second = make([p], lr=0.7)
    second.load_state_dict(state)
    run(second, p, grads[3:])
    np.testing.assert_array_equal(p.data, whole.data)


def test_states_that_do_not_fit_are_refused() -> None:
    one, two = optim.SGD([parameter(1)], lr=1), optim.SGD([parameter(1), parameter(2)], lr=1)
    with pytest.raises(ValueError, match=r"\[1\].*\[2\]"):
        two.load_state_dict(one.state_dict())


p, q = parameter(1), parameter(2)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: optim.SGD([], lr=1), ValueError, ["no parameters"]),
        (lambda: optim.SGD(p, lr=1), TypeError, ["list"]),
        (lambda: optim.SGD([np.zeros(2)], lr=1), TypeError, ["ndarray"]),
        (lambda: optim.SGD([p * 2], lr=1), ValueError, ["leaves", "Mul"]),
        (lambda: optim.SGD([p, q, p], lr=1), ValueError, ["twice"]),
        (lambda: optim.SGD([{"params": [p]}, {"params": [q, p]}], lr=1), ValueError, ["twice"]),
        (lambda: optim.SGD([{"params": [p], "lrr": 1}]), ValueError, ["lrr", "momentum"]),
        (lambda: optim.SGD([p], lr=-1), ValueError, ["lr", "-1"]),
        (lambda: optim.SGD([p], lr=math.nan), ValueError, ["lr", "nan"]),
        (lambda: optim.SGD([p], momentum=-1), ValueError, ["momentum"]),
        (lambda: optim.SGD([p], weight_decay=-1), ValueError, ["weight_decay"]),
        (lambda: optim.SGD([p], nesterov=True), ValueError, ["nesterov"]),
        (lambda: optim.Adam([p], betas=(0.9, 1.0)), ValueError, ["betas"]),
        (lambda: optim.AdamW([p], eps=-1), ValueError, ["eps"]),
    ],
)
def test_what_cannot_be_trained_is_named(make, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        make()
    assert [word for word in words if word not in str(raised.value)] == [], str(raised.value)


def test_a_small_network_learns() -> None:
    manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    x = rand(200, 2)
    y = x[:, :1] * x[:, 1:]
    for _ in range(200):
        optimizer.zero_grad()
        loss = nn.MSELoss()(model(x), y)
        loss.backward()
        optimizer.step()
    with no_grad():
        assert nn.MSELoss()(model(x), y).item() < 0.003  # the best straight line leaves 1/144 = 0.0069
