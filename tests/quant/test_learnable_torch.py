"""LSQ against torch 2.13: every check of the conformance suite, and torch's habits that are left out on purpose."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.ao.quantization as tq
from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize

from minquant import Tensor
from minquant.crosscheck.checks import lsq
from minquant.crosscheck.quiet import one_thread
from minquant.crosscheck.suite import reproducer, run_check
from minquant.quant import LearnableFakeQuantize, MinMaxObserver
from minquant.quant.cascade import channel_sum

F32 = np.float32
X = np.array([-1.0, 0.3, 3.0], F32)


@pytest.fixture(autouse=True)
def on_one_thread():
    """One order of float sums."""
    with one_thread(torch):
        yield


@pytest.mark.parametrize("check", lsq.CHECKS, ids=lambda check: check.name)
def test_check(check):
    result = run_check(check, seed=1, quick=True)
    assert result.ok, reproducer(result, 1, True)


def test_channel_sum():
    rng = np.random.default_rng(0)
    for _ in range(300):
        before, channels, after = (int(rng.integers(0, n)) for n in (70, 80, rng.choice([2, 60])))
        x = rng.standard_normal((before, channels, after)).astype(F32)
        assert np.array_equal(channel_sum(x, 1), torch.from_numpy(x).sum((0, 2)).numpy())


# ---- torch 2.13's habits ---------------------------------------------------------------------------------------------


def learning(kind, observer, **options):
    return kind(observer, -8, 7, scale=0.5, dtype=options.pop("dtype"), **options).enable_param_learning()


def both(**options):
    """Minquant's and torch's, both learning, at 4 bits."""
    mine = learning(LearnableFakeQuantize, MinMaxObserver, dtype="qint8", **options)
    return mine, learning(_LearnableFakeQuantize, tq.MinMaxObserver, dtype=torch.qint8, **options)


def test_torch_observes_in_eval():
    mine, torchs = LearnableFakeQuantize(MinMaxObserver), _LearnableFakeQuantize(tq.MinMaxObserver)
    for factor in (1, 2):
        mine(Tensor(X * factor))
        torchs(torch.from_numpy(X * factor))
        mine.eval(), torchs.eval()
    assert mine.scale.data == F32(4) / F32(255)
    assert torchs.scale.detach().numpy() == F32(8) / F32(255)


def test_torch_lets_an_optimizer_move_an_estimated_scale():
    mine, torchs = LearnableFakeQuantize(MinMaxObserver), _LearnableFakeQuantize(tq.MinMaxObserver)
    mine(Tensor(X, requires_grad=True)).sum().backward()
    torchs(torch.from_numpy(X)).sum().backward()
    assert mine.scale.grad is None and torchs.scale.grad is not None


def test_torch_gives_an_empty_tensor_its_own_parameter_as_gradient():
    mine, torchs = both()
    empty = np.zeros((0, 3), F32)
    mine(Tensor(empty)).sum().backward()
    torchs(torch.from_numpy(empty)).sum().backward()
    assert mine.scale.grad.tolist() == [0] and torchs.scale.grad.tolist() == [0.5]


def test_torchs_backward_takes_a_huge_value_for_a_small_one():
    mine, torchs = both()
    mine(Tensor(np.array([1e30], F32))).sum().backward()
    torchs(torch.tensor([1e30])).sum().backward()
    assert mine.scale.grad.tolist() == [7] and torchs.scale.grad.tolist() == [-8]


def test_torchs_backward_truncates_the_zero_point_and_so_does_ours():
    """At -3 its forward uses -3 and its backward -2, so that a value at the grid's lower end counts as inside."""
    mine, torchs = both(zero_point=-3.0)
    x = np.array([-2.8], F32)  # code -5.6 - 3 = -8.6, clipped
    mine(Tensor(x)).sum().backward()
    torchs(torch.from_numpy(x)).sum().backward()
    assert mine.zero_point.grad.tolist() == torchs.zero_point.grad.tolist() == [0]
