from __future__ import annotations

import numpy as np
import pytest

from minquant import Tensor, manual_seed, nn

torch = pytest.importorskip("torch")


def models(lib, seed: int):
    (torch.manual_seed if lib is torch.nn else manual_seed)(seed)
    return lib.Sequential(lib.Linear(7, 5), lib.ReLU(), lib.Sequential(lib.Linear(5, 3, bias=False), lib.Linear(3, 1)))


@pytest.mark.parametrize("seed", [0, 42, 2**32 + 7])
def test_linear_starts_with_torchs_numbers(seed: int) -> None:
    ours, theirs = models(nn, seed).state_dict(), models(torch.nn, seed).state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        np.testing.assert_array_equal(value.data, theirs[name].numpy(), strict=True)


def test_state_dicts_of_torch_can_be_loaded() -> None:
    ours, theirs = models(nn, 0), models(torch.nn, 1)
    ours.load_state_dict(theirs.state_dict())
    ours.load_state_dict(dict(theirs.named_parameters()))  # they require a gradient
    x = np.random.default_rng(0).uniform(-1, 1, (4, 7)).astype(np.float32)
    np.testing.assert_allclose(ours(x).data, theirs(torch.tensor(x)).detach().numpy(), atol=1e-6)


def test_names_of_modules_and_parameters_are_torchs() -> None:
    ours, theirs = models(nn, 0), models(torch.nn, 0)
    for method in ("named_modules", "named_parameters", "named_children", "named_buffers"):
        assert [n for n, _ in getattr(ours, method)()] == [n for n, _ in getattr(theirs, method)()]
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize(
    ("name", "arguments", "bound"),
    [
        ("uniform_", (), 0),
        ("uniform_", (-0.3, 0.7), 0),
        ("kaiming_uniform_", (5**0.5,), 0),
        ("normal_", (), 2e-6),
        ("normal_", (1.0, 0.5), 2e-6),
        ("zeros_", (), 0),
        ("ones_", (), 0),
    ],
)
@pytest.mark.parametrize("shape", [(3, 4), (8, 5, 3)])
def test_initial_values_are_torchs(name: str, arguments: tuple, bound: float, shape: tuple) -> None:
    manual_seed(3)
    torch.manual_seed(3)
    ours, theirs = Tensor(np.empty(shape, np.float32)), torch.empty(shape)
    assert getattr(nn.init, name)(ours, *arguments) is ours
    getattr(torch.nn.init, name)(theirs, *arguments)
    assert np.abs(ours.data - theirs.numpy()).max() <= bound
