"""The saturating dialect against torch under FBGEMM_ENABLE_INSTRUCTIONS=AVX2, in a process of its own."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from minquant.crosscheck import without_vnni
from minquant.crosscheck.checks import saturation
from minquant.crosscheck.suite import run_check
from minquant.crosscheck.without_vnni import ask

pytestmark = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="needs fbgemm: an x86 processor with AVX2"
)


@pytest.mark.parametrize("check", saturation.CHECKS, ids=lambda check: check.engine)
def test_the_check_passes_and_saturates(check):
    result = run_check(check, seed=0, quick=True)
    assert result.ok and result.elements == 192, result.error


def test_torch_shows_the_numbers_of_the_lesson():
    inputs = {
        "qx": np.array([[[255] * 64], [[127] * 64]], np.uint8),
        "x": np.zeros((2, 1, 64), np.float32),
        "qw": np.full((2, 1, 64), 127, np.int8),
        "per_channel": np.zeros(2, bool),
        "bias": np.zeros((2, 1), np.float32),
        "out_scale": np.full(2, 8192, np.float32),
        "out_zero_point": np.zeros(2, np.int32),
        "relu": np.zeros(2, bool),
        "x_scale": np.ones(2, np.float32),
        "x_zero_point": np.zeros(2, np.int32),
        "w_scale": np.ones((2, 1), np.float32),
    }
    assert ask(inputs)["static"].tolist() == [[[128]], [[126]]]


def test_the_cases_tell_the_two_accumulators_apart(monkeypatch):
    check = saturation.CHECKS[0]
    inputs = next(check.draw(np.random.default_rng(0), True))
    saturated = check.ours(inputs)
    monkeypatch.setattr(saturation, "get_dialect", lambda name, real=saturation.get_dialect: real("fbgemm"))
    exact = check.ours(inputs)
    assert all((exact[name] != saturated[name]).mean() > 0.25 for name in exact)


def test_another_process_answers_as_this_one_does(monkeypatch):
    """On a processor without VNNI both are the same; with it, only the other process does without."""
    inputs = next(saturation._draw(np.random.default_rng(0), True))
    here = ask(inputs)
    monkeypatch.setattr(without_vnni, "has_vnni", lambda: True)
    there = ask(inputs)
    assert here.keys() == there.keys() and all(np.array_equal(here[name], there[name]) for name in here)


def test_what_went_wrong_over_there_is_told(monkeypatch):
    monkeypatch.setattr(without_vnni, "has_vnni", lambda: True)
    with pytest.raises(RuntimeError, match="KeyError"):
        ask({"qx": np.zeros((1, 1, 2), np.uint8)})
