from __future__ import annotations

import numpy as np
import pytest

from minquant import manual_seed, rand, randn
from minquant.random import get_rng_state, randperm, set_rng_state, uniform


def test_the_first_numbers_after_a_seed_are_torchs() -> None:
    manual_seed(42)
    np.testing.assert_array_equal(rand(3).data, np.array([0.88226926, 0.91500396, 0.38286376], np.float32), strict=True)
    manual_seed(42)
    np.testing.assert_allclose(randn(3).data, [0.33669037, 0.12880941, 0.23446237], atol=2e-6)
    manual_seed(42)
    assert randperm(8).tolist() == [6, 3, 0, 7, 2, 1, 4, 5]


def test_a_seed_repeats_and_counts_by_its_low_32_bits() -> None:
    draws = []
    for seed in (7, 2**32 + 7, 8):
        manual_seed(seed)
        draws.append((randn(3).tolist(), rand(5).tolist(), randn(20).tolist(), randperm(9).tolist()))
    assert draws[0] == draws[1]
    assert all(a != b for a, b in zip(draws[0], draws[2], strict=True))


def test_ranges_and_moments() -> None:
    manual_seed(0)
    u = rand(100_000).data
    assert 0 <= u.min() < u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005  # five standard deviations
    z = randn(100_000).data
    assert abs(z.mean()) < 0.016
    assert abs(z.std() - 1) < 0.012
    assert sorted(randperm(1000).tolist()) == list(range(1000))
    v = uniform((100_000,), -0.3, 0.7)
    assert -0.3 <= v.min() < -0.299 < 0.699 < v.max() < 0.7


@pytest.mark.parametrize("size", [(), (0,), (2, 3), (16,), (4, 5)])
def test_shapes_and_dtypes(size: tuple[int, ...]) -> None:
    for values in (rand(*size).data, randn(*size).data, uniform(size, 0, 1)):
        assert values.shape == size
        assert values.dtype == np.float32
    assert randperm(3).dtype == np.int64


@pytest.mark.parametrize("drawn", [0, 3, 20])
def test_a_state_can_be_gone_back_to(drawn):
    manual_seed(5)
    randn(drawn)  # an odd number of single normals leaves one of a pair for the next draw
    state = get_rng_state()
    first = [randn(3).data, rand(7).data]
    set_rng_state(state)
    assert all((a == b).all() for a, b in zip(first, [randn(3).data, rand(7).data], strict=True))


def test_what_is_no_state_is_refused():
    with pytest.raises(ValueError, match=r"expected a state from get_rng_state, \(627,\) uint32"):
        set_rng_state(np.zeros(5, np.uint32))
