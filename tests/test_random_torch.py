from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minquant import manual_seed, rand, randn
from minquant.random import randperm, uniform

torch = pytest.importorskip("torch")

draws = st.tuples(st.sampled_from(["rand", "randn", "randperm", "uniform"]), st.integers(0, 50))


def pair(kind: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The same draw from minquant and from torch."""
    if kind == "rand":
        return rand(n, 2).data, torch.rand(n, 2).numpy()
    if kind == "randn":
        return randn(n).data, torch.randn(n).numpy()
    if kind == "randperm":
        return randperm(n).data, torch.randperm(n).numpy()
    return uniform((n,), -0.3, 0.7), torch.empty(n).uniform_(-0.3, 0.7).numpy()


@settings(max_examples=100, deadline=None)
@given(st.integers(-(2**40), 2**40), st.lists(draws, min_size=1, max_size=10))
def test_any_sequence_of_draws_is_torchs(seed: int, sequence: list[tuple[str, int]]) -> None:
    manual_seed(seed)
    torch.manual_seed(seed)
    for kind, n in sequence:
        ours, theirs = pair(kind, n)
        assert ours.dtype == theirs.dtype
        assert np.abs(ours - theirs).max(initial=0) <= (2e-6 if kind == "randn" else 0), (kind, n)


def test_large_draws_are_torchs() -> None:
    manual_seed(1)
    torch.manual_seed(1)
    for kind, n in [("rand", 100_000), ("randn", 100_003), ("randperm", 30_000), ("uniform", 100_000)]:
        ours, theirs = pair(kind, n)
        assert np.abs(ours - theirs).max() <= (2e-6 if kind == "randn" else 0), kind


def test_the_upper_end_of_a_narrow_range_is_left_out_as_in_torch() -> None:
    manual_seed(1)
    torch.manual_seed(1)
    high = 1 + 2**-22  # two float32 steps above 1, so that a quarter of the draws rounds up to it
    ours, theirs = uniform((1000,), 1, high), torch.empty(1000).uniform_(1, high).numpy()
    np.testing.assert_array_equal(ours, theirs)
    assert ours.max() < high
