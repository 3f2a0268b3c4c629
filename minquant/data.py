"""The data set that needs no download, and minibatches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minquant.random import randperm


class Digits(NamedTuple):
    """Handwritten digits: ``x_*`` ``(N, 64)`` float32 in [0, 1], ``y_*`` ``(N,)`` int64 in 0..9."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_digits(seed: int = 0) -> Digits:
    """The 1,797 digits of 8×8 pixels that come with scikit-learn, ``x = pixel / 16``.

    1,437 to train and 360 to test, each class with its share; a seed gives the same split everywhere.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.

    Source: scikit-learn's ``load_digits``, the test set of UCI's "Optical Recognition of Handwritten Digits".
    """
    try:
        from sklearn.datasets import load_digits as load
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "load_digits: the digits come with scikit-learn, which is not installed; run: pip install 'minquant[demo]'",
            name=error.name,
        ) from error
    pixels, labels = load(return_X_y=True)
    x, y = (pixels / 16).astype(np.float32), labels.astype(np.int64)
    test = _stratified(y, 360, seed)
    return Digits(x[~test], y[~test], x[test], y[test])


def _stratified(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """A mask of ``size`` rows in which each class has its share, rounded by largest remainder."""
    shares = np.bincount(labels) * size / len(labels)
    quota = np.floor(shares).astype(int)
    largest_remainders = np.argsort(quota - shares, kind="stable")[: size - quota.sum()]
    quota[largest_remainders] += 1
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    chosen = [shuffled[labels[shuffled] == label][:count] for label, count in enumerate(quota)]
    mask = np.zeros(len(labels), bool)
    mask[np.concatenate(chosen)] = True
    return mask


def batches(x: np.ndarray, y: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Goes once through ``x`` and ``y`` in random order, ``batch_size`` rows at a time.

    The last batch may be smaller. The order is drawn by ``randperm`` when called; ``manual_seed`` repeats it.

    Raises:
        ValueError: x and y differ in length, are empty, or ``batch_size`` is below 1.
    """
    if len(x) != len(y):
        raise ValueError(f"batches: x has {len(x)} rows and y {len(y)}; they must belong together, row by row.")
    if len(x) == 0:
        raise ValueError("batches: x and y are empty; there is nothing to go through.")
    if batch_size < 1:
        raise ValueError(f"batches: batch_size must be 1 or more, got {batch_size}.")
    order = randperm(len(x)).numpy()
    rows = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    return ((x[r], y[r]) for r in rows)
