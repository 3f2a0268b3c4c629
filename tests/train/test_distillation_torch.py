"""The loss on logits against torch: kl_div with reduction="batchmean", times T², and its gradient."""

from __future__ import annotations

import numpy as np
import pytest

from minquant import Tensor
from minquant.train import LogitsDistillationLoss

torch = pytest.importorskip("torch")

EPS = np.finfo(np.float32).eps


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("shape", [(1, 2), (16, 10), (2, 8, 100)])
def test_value_and_gradient_are_torchs(shape, temperature):
    rng = np.random.default_rng(int(10 * temperature))
    s, t = (rng.normal(0, 4, shape).astype(np.float32) for _ in range(2))
    ours, theirs = Tensor(s, requires_grad=True), torch.tensor(s, requires_grad=True)
    loss = LogitsDistillationLoss(temperature)(ours, Tensor(t))
    loss.backward()

    log_q = torch.log_softmax(theirs / temperature, -1).reshape(-1, shape[-1])
    log_p = torch.log_softmax(torch.tensor(t) / temperature, -1).reshape(-1, shape[-1])
    expected = temperature**2 * torch.nn.functional.kl_div(log_q, log_p.exp(), reduction="batchmean")
    expected.backward()

    # Two sides, each within the documented bound.
    spread = (-log_p.min() - log_q.min()).item()
    logs = 32 * EPS * ((np.abs(s).max() + np.abs(t).max()) / temperature + spread)
    assert abs(loss.item() - expected.item()) <= 2 * temperature**2 * (1 + spread) * logs
    rows = s.size // shape[-1]
    assert np.abs(ours.grad.data - theirs.grad.numpy()).max() <= 2 * temperature / rows * logs
