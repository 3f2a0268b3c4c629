"""The digits and the minibatches: complete, disjoint, repeatable."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minquant.data import batches, load_digits
from minquant.random import manual_seed


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return load_digits()


def test_digits_shapes_and_ranges(digits):
    assert digits.x_train.shape == (1437, 64) and digits.x_test.shape == (360, 64)
    assert digits.y_train.shape == (1437,) and digits.y_test.shape == (360,)
    for x, y in (digits[:2], digits[2:]):
        assert x.dtype == np.float32 and x.min() == 0 and x.max() == 1
        assert y.dtype == np.int64 and set(y) == set(range(10))
        np.testing.assert_array_equal(x * 16, np.rint(x * 16))


def test_split_keeps_every_row_once(digits):
    from sklearn.datasets import load_digits as load

    def rows(x, y):
        return sorted(np.column_stack([x * 16, y]).tolist())

    both = np.concatenate([digits.x_train, digits.x_test]), np.concatenate([digits.y_train, digits.y_test])
    pixels, labels = load(return_X_y=True)
    assert rows(*both) == rows(pixels / 16, labels)


def test_split_is_stratified(digits):
    test, train = np.bincount(digits.y_test), np.bincount(digits.y_train)
    assert np.all(np.abs(test - (test + train) * 360 / 1797) < 1)


def test_split_depends_on_the_seed_alone(digits):
    for a, b in zip(load_digits(), digits, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(load_digits(seed=1).x_test, digits.x_test)
    assert hashlib.sha256(digits.y_test.tobytes()).hexdigest()[:16] == "9255af9750b3b8e5"


def test_without_scikit_learn():
    code = """
import sys
sys.modules["sklearn"] = None
from minquant.data import load_digits
try:
    load_digits()
except ModuleNotFoundError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'minquant[demo]'" in out.stdout


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_batches_hold_every_row_once(n, batch_size, seed):
    x, y = np.arange(n, dtype=np.float32)[:, None] / 2, np.arange(n)
    manual_seed(seed)
    seen = list(batches(x, y, batch_size))
    assert [len(b) for _, b in seen[:-1]] == [batch_size] * (len(seen) - 1)
    assert 1 <= len(seen[-1][1]) <= batch_size
    for x_batch, y_batch in seen:
        np.testing.assert_array_equal(x_batch[:, 0] * 2, y_batch)
    assert sorted(np.concatenate([b for _, b in seen]).tolist()) == list(range(n))
    manual_seed(seed)
    again = np.concatenate([b for _, b in batches(x, y, batch_size)])
    np.testing.assert_array_equal(again, np.concatenate([b for _, b in seen]))


def test_batches_differ_from_epoch_to_epoch():
    x = y = np.arange(100)
    manual_seed(0)
    first, second = (np.concatenate([b for _, b in batches(x, y, 10)]) for _ in range(2))
    assert not np.array_equal(first, np.arange(100)) and not np.array_equal(first, second)


@pytest.mark.parametrize(
    "n, m, batch_size, message",
    [(3, 2, 1, "x has 3 rows and y 2"), (0, 0, 1, "are empty"), (3, 3, 0, "must be 1 or more, got 0")],
)
def test_bad_batches_are_refused_when_called(n, m, batch_size, message):
    with pytest.raises(ValueError, match=message):
        batches(np.zeros(n), np.zeros(m), batch_size)
