"""Attention and rotary positions: what the table of operations has no row for."""

from __future__ import annotations

import numpy as np
import pytest

from minquant import Tensor
from minquant import functional as F
from minquant.kernels.exponential import exp_below
from tests.gradcheck import gradcheck

F32 = np.float32
RNG = np.random.default_rng(0)
SEEN = np.array([[True, False, True, False], [False, True, False, False], [True, True, True, True]])


def normal(*shape: int, dtype: type = F32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def angles(steps: int, width: int, dtype: type = F32) -> tuple[np.ndarray, np.ndarray]:
    turned = normal(steps, width // 2, dtype=np.float64)
    return np.cos(turned).astype(dtype), np.sin(turned).astype(dtype)


def test_gradients_where_a_mask_hides_keys() -> None:
    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, SEEN, enable_gqa=True)

    gradcheck("masked attention", attend, [normal(2, 4, 3, 2), normal(2, 2, 4, 2), normal(2, 2, 4, 3)])


def test_a_causal_mask_is_the_mask_of_the_lower_triangle() -> None:
    q, k, v = normal(2, 3, 5, 4), normal(2, 3, 7, 4), normal(2, 3, 7, 4)
    causal = F.scaled_dot_product_attention(q, k, v, is_causal=True).data
    masked = F.scaled_dot_product_attention(q, k, v, np.tri(5, 7, dtype=bool)).data
    assert np.abs(causal - masked).max() <= 4 * 2.0**-24 * np.abs(v).max()  # two sums of shares, each rounded


def test_what_a_query_must_not_see_changes_nothing() -> None:
    q, k, v = normal(1, 2, 5, 4), normal(1, 2, 5, 4), normal(1, 2, 5, 4)
    before = F.scaled_dot_product_attention(q, k, v, is_causal=True).data
    k[:, :, 3:], v[:, :, 3:] = 100, -100
    after = F.scaled_dot_product_attention(q, k, v, is_causal=True).data
    np.testing.assert_array_equal(after[:, :, :3], before[:, :, :3])
    assert (after[:, :, 3:] != before[:, :, 3:]).all()


def test_rotary_gradients_and_lengths() -> None:
    cos, sin = angles(3, 4, np.float64)
    gradcheck("rotary", lambda x: F.rotary_embedding(x, cos, sin), [normal(2, 3, 4)])
    x = normal(2, 2, 3, 4, dtype=np.float64)
    out = F.rotary_embedding(x, cos, sin).data
    np.testing.assert_allclose((out**2).sum(-1), (x**2).sum(-1), rtol=1e-14)
    one = x[1, 0, 2, 1] + 1j * x[1, 0, 2, 3]
    turned = one * (cos[2, 1] + 1j * sin[2, 1])
    np.testing.assert_allclose([out[1, 0, 2, 1], out[1, 0, 2, 3]], [turned.real, turned.imag], rtol=1e-14)


def test_exp_below_is_exact_to_two_units_in_the_last_place() -> None:
    x = np.concatenate([-RNG.exponential(10, 100_000), np.linspace(-87, 0, 100_001)]).astype(F32)
    x = x[x >= -87.3]
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(exp_below(x) - exact) <= 2 * np.spacing(exact.astype(F32))).all()
    with np.errstate(invalid="ignore"):
        ends = exp_below(np.array([0, -0.0, -88, -1e9, -np.inf, np.nan], F32))
    np.testing.assert_array_equal(ends, [1, 1, 0, 0, 0, np.nan])


@pytest.mark.parametrize(
    ("error", "call", "words"),
    [
        (ValueError, lambda a: F.scaled_dot_product_attention(a(2, 3, 4), a(2, 3, 5), a(2, 3, 4)), ["(2, 3, 5)"]),
        (ValueError, lambda a: F.scaled_dot_product_attention(a(2, 3, 4), a(2, 5, 4), a(2, 3, 4)), ["(2, 5, 4)"]),
        (ValueError, lambda a: F.scaled_dot_product_attention(a(3, 4), a(3, 4), a(3, 4)), ["(3, 4)", "(…, H, T, D)"]),
        (ValueError, lambda a: F.scaled_dot_product_attention(a(4, 3, 4), a(2, 3, 4), a(2, 3, 4)), ["enable_gqa"]),
        (
            ValueError,
            lambda a: F.scaled_dot_product_attention(a(3, 3, 4), a(2, 3, 4), a(2, 3, 4), enable_gqa=True),
            ["3 and 2 heads", "multiple"],
        ),
        (
            ValueError,
            lambda a: F.scaled_dot_product_attention(a(2, 3, 4), a(2, 4, 4), a(2, 4, 4), SEEN, is_causal=True),
            ["attn_mask", "is_causal"],
        ),
        (
            ValueError,
            lambda a: F.scaled_dot_product_attention(a(2, 3, 4), a(2, 5, 4), a(2, 5, 4), SEEN),
            ["attn_mask", "(3, 4)", "(3, 5)"],
        ),
        (
            ValueError,
            lambda a: F.scaled_dot_product_attention(a(2, 3, 4), a(2, 4, 4), a(2, 4, 4), np.tri(3, 4, -1, dtype=bool)),
            ["query 0", "no key"],
        ),
        (
            TypeError,
            lambda a: F.scaled_dot_product_attention(a(2, 3, 4), a(2, 4, 4), a(2, 4, 4), SEEN.astype(F32)),
            ["attn_mask", "bool", "float32"],
        ),
        (
            TypeError,
            lambda a: F.scaled_dot_product_attention(a(2, 3, 4), a(2, 4, 4), Tensor(a(2, 4, 4)).double()),
            ["float32", "float64"],
        ),
        (ValueError, lambda a: F.rotary_embedding(a(2, 3, 5), *angles(3, 4)), ["(2, 3, 5)", "even"]),
        (ValueError, lambda a: F.rotary_embedding(a(2, 4, 4), *angles(3, 4)), ["(2, 4, 4)", "(3, 2)"]),
        (TypeError, lambda a: F.rotary_embedding(a(2, 3, 4), *angles(3, 4, np.float64)), ["float32", "float64"]),
    ],
)
def test_what_does_not_fit_is_named(error: type[Exception], call, words: list[str]) -> None:
    with pytest.raises(error) as raised:
        call(normal)
    assert [word for word in words if word not in str(raised.value)] == [], str(raised.value)
