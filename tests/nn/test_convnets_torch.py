from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minquant import manual_seed, nn

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((3, 4, 6, 7), dtype=np.float32)
ROWS = RNG.standard_normal((5, 4, 6), dtype=np.float32)
LAYERS = [  # how to make it, and an input
    (lambda lib: lib.Conv1d(4, 6, 3), ROWS),
    (lambda lib: lib.Conv1d(4, 6, 2, 2, 1, 3, 2, False), ROWS),
    (lambda lib: lib.Conv2d(4, 8, 3, padding="same"), IMAGES),
    (lambda lib: lib.Conv2d(4, 8, (3, 2), (1, 2), (2, 1), (1, 2), groups=4), IMAGES),
    (lambda lib: lib.Conv2d(4, 2, 5, padding="valid", bias=False), IMAGES),
    (lambda lib: lib.MaxPool2d(2), IMAGES),
    (lambda lib: lib.MaxPool2d((3, 2), 1, 1, (1, 2)), IMAGES),
    (lambda lib: lib.AvgPool2d(2), IMAGES),
    (lambda lib: lib.AvgPool2d((3, 2), stride=1, padding=(1, 0)), IMAGES),
    (lambda lib: lib.AdaptiveAvgPool2d(1), IMAGES),
    (lambda lib: lib.AdaptiveAvgPool2d((4, None)), IMAGES),
    (lambda lib: lib.BatchNorm1d(4), ROWS),
    (lambda lib: lib.BatchNorm1d(4), ROWS[..., 0]),
    (lambda lib: lib.BatchNorm2d(4, 1e-3, 0.3), IMAGES),
    (lambda lib: lib.BatchNorm2d(4, momentum=None), IMAGES),
    (lambda lib: lib.BatchNorm2d(4, affine=False), IMAGES),
    (lambda lib: lib.BatchNorm2d(4, track_running_stats=False, bias=False), IMAGES),
    (lambda lib: lib.LayerNorm(6), ROWS),
    (lambda lib: lib.LayerNorm((4, 6), 1e-3, bias=False), ROWS),
    (lambda lib: lib.LayerNorm([6], elementwise_affine=False), ROWS),
    (lambda lib: lib.RMSNorm(6), ROWS),
    (lambda lib: lib.RMSNorm((4, 6), 1e-3, elementwise_affine=False), ROWS),
    (lambda lib: lib.Embedding(30, 7), np.array([[0, 29], [3, 3]])),
    (lambda lib: lib.Embedding(30, 7, padding_idx=-2), np.array([[28, 29], [3, 3]])),
    (lambda lib: lib.EmbeddingBag(30, 7), np.array([[0, 29], [3, 3]])),
    (lambda lib: lib.EmbeddingBag(30, 7, mode="sum", padding_idx=3), np.array([[0, 29], [3, 3]])),
]
every_layer = pytest.mark.parametrize(("make", "inputs"), LAYERS)


def pair(make: Any, seed: int = 0) -> tuple[Any, Any]:
    manual_seed(seed)
    torch.manual_seed(seed)
    return make(nn), make(torch.nn)


@every_layer
def test_a_layer_starts_as_torchs(make: Any, inputs: np.ndarray) -> None:
    ours, theirs = pair(make)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    bound = 2e-6 if isinstance(ours, nn.Embedding | nn.EmbeddingBag) else 0
    for name, value in ours.state_dict().items():
        other = theirs.state_dict()[name].numpy()
        assert (value.shape, value.dtype) == (other.shape, other.dtype), name
        assert np.abs(value.data - other).max() <= bound, name
    assert repr(ours) == repr(theirs).replace(", ceil_mode=False", "")
    for method in ("named_parameters", "named_buffers"):
        assert [n for n, _ in getattr(ours, method)()] == [n for n, _ in getattr(theirs, method)()]


@every_layer
def test_a_layer_with_torchs_state_computes_as_torchs_in_training_and_in_eval(make: Any, inputs: np.ndarray) -> None:
    ours, theirs = pair(make)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.uniform_(-0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    for batch in (inputs, inputs[::-1], inputs[:2]):
        assert_equal_outputs(ours, theirs, batch)
    for name, value in ours.state_dict().items():  # running statistics, below 2, rounded four times a batch
        bound = 2 * 3 * 4 * 2.0**-24 * 2 if "running" in name else 0
        assert np.abs(value.data - theirs.state_dict()[name].numpy()).max() <= bound, name
    ours.eval(), theirs.eval()
    assert_equal_outputs(ours, theirs, inputs)


def assert_equal_outputs(ours: Any, theirs: Any, batch: np.ndarray) -> None:
    """Within 32 half steps, a side, of 100: no sum of |products| here is larger."""
    a, b = ours(batch).data, theirs(torch.tensor(batch.copy())).detach().numpy()
    assert a.shape == b.shape and a.dtype == b.dtype
    assert np.abs(a - b).max() <= 2 * 32 * 2.0**-24 * 100


def test_a_small_network_learns_as_torchs() -> None:
    def make(lib: Any) -> Any:
        return lib.Sequential(
            lib.Conv2d(4, 8, 3, padding=1), lib.BatchNorm2d(8), lib.ReLU(), lib.MaxPool2d(2),
            lib.Conv2d(8, 8, 3, groups=2, bias=False), lib.BatchNorm2d(8), lib.ReLU(), lib.Flatten(), lib.LayerNorm(8),
            lib.Linear(8, 3),
        )  # fmt: skip

    ours, theirs = pair(make, seed=1)
    target = np.array([0, 1, 2])
    tolerance = 2 * 64 * 2.0**-24  # 64 half steps a side, through ten layers and back
    for _ in range(3):
        ours.zero_grad()
        theirs.zero_grad()
        a = nn.CrossEntropyLoss()(ours(IMAGES), target)
        b = torch.nn.CrossEntropyLoss()(theirs(torch.tensor(IMAGES)), torch.tensor(target))
        assert abs(a.item() - b.item()) <= tolerance
        a.backward()
        b.backward()
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert np.abs(p.grad.data - q.grad.numpy()).max() <= tolerance * 2, name  # no gradient exceeds 2
            p.data -= np.float32(0.1) * p.grad.data
            q.data -= 0.1 * q.grad
