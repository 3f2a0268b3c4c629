"""Torch's random numbers without torch: the Mersenne Twister (MT19937) and what torch on a CPU makes of it.

Source: torch 2.13, at::mt19937, uniform_real_distribution, normal_distribution, normal_fill, randperm_cpu.
"""

from __future__ import annotations

import math

import numpy as np

from minquant.tensor import Tensor


class Generator:
    """A stream of random numbers. A program uses one, through the functions below."""

    def __init__(self, seed: int) -> None:
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> None:
        """Start again from a seed, of which the low 32 bits count."""
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)
        self._second_normal: float | None = None  # the normals of randn come in pairs

    def get_state(self) -> np.ndarray:
        """(627,) uint32: the twister's 624 words, its position, and the bits of the second normal (NaN: none)."""
        _, words, position, _, _ = self._twister.get_state(legacy=True)
        second = np.float64(np.nan if self._second_normal is None else self._second_normal)
        return np.concatenate([words, [np.uint32(position)], second.reshape(1).view(np.uint32)])

    def set_state(self, state: np.ndarray) -> None:
        """Go on from where `get_state` was called; ValueError on anything else."""
        if state.shape != (627,) or state.dtype != np.uint32:
            raise ValueError(f"expected a state from get_rng_state, (627,) uint32, got {state.shape} {state.dtype}")
        self._twister.set_state(("MT19937", state[:624], int(state[624]), 0, 0.0))
        second = float(state[625:].view(np.float64)[0])
        self._second_normal = None if math.isnan(second) else second

    def integers(self, n: int) -> np.ndarray:
        """(n,) uint32: the next draws as they are."""
        return self._twister.randint(0, 2**32, n, np.uint32)

    def uniform(self, n: int) -> np.ndarray:
        """(n,) float32 in [0, 1): the low 24 bits of a draw each."""
        return (self.integers(n) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)

    def normal(self, n: int) -> np.ndarray:
        """(n,) float32, standard normal."""
        if n < 16:
            return np.array([self._one_normal() for _ in range(n)], np.float32)
        out = self.uniform(n)
        whole = n - n % 16
        out[:whole] = _box_muller(out[:whole])
        if n % 16:  # the last 16 are drawn afresh, those that had their turn among them
            out[-16:] = _box_muller(self.uniform(16))
        return out

    def _one_normal(self) -> float:
        if self._second_normal is not None:
            value, self._second_normal = self._second_normal, None
            return value
        a, b = self._uniform_double(), self._uniform_double()
        radius, angle = math.sqrt(-2 * math.log1p(-b)), 2 * math.pi * a
        self._second_normal = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _uniform_double(self) -> float:
        high, low = self.integers(2).tolist()
        return ((high << 32 | low) & (2**53 - 1)) * 2**-53


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    """Standard normals from uniforms in blocks of 16: 8 give radii, the other 8 angles (Box–Muller)."""
    u = uniform.reshape(-1, 2, 8)
    radius = np.sqrt(-2 * np.log(1 - u[:, 0]))
    angle = np.float32(2 * math.pi) * u[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


_default = Generator(67280421310721)  # torch's, for who never seeds


def manual_seed(seed: int) -> None:
    """Seed every random number of minquant, as torch.manual_seed does."""
    _default.manual_seed(seed)


def rand(*size: int) -> Tensor:
    """Uniform in [0, 1), float32: bit-equal to torch.rand after the same seed."""
    return Tensor(_default.uniform(math.prod(size)).reshape(size))


def randn(*size: int) -> Tensor:
    """Standard normal, float32: within 2e-6 of torch.randn after the same seed."""
    return Tensor(_default.normal(math.prod(size)).reshape(size))


def randperm(n: int) -> Tensor:
    """0 to n − 1 in random order, int64 (Fisher–Yates): equal to torch.randperm after the same seed."""
    out = np.arange(n)
    for i, draw in enumerate(_default.integers(max(n - 1, 0)).tolist()):
        j = i + draw % (n - i)
        out[i], out[j] = out[j], out[i]
    return Tensor(out)


def uniform(size: tuple[int, ...], low: float, high: float) -> np.ndarray:
    """Uniform in [low, high), float32: bit-equal to torch's uniform_ after the same seed."""
    low32, high32 = np.float32(low), np.float32(high)
    x = _default.uniform(math.prod(size)).astype(np.float64)
    out = (x * np.float64(high32 - low32) + np.float64(low32)).astype(np.float32)  # one rounding, as an FMA
    return np.where(out == high32, low32, out).reshape(size)


def get_rng_state() -> np.ndarray:
    """Where the stream of random numbers stands, (627,) uint32, for `set_rng_state`."""
    return _default.get_state()


def set_rng_state(new_state: np.ndarray) -> None:
    """Go on from where `get_rng_state` was called."""
    _default.set_state(new_state)
