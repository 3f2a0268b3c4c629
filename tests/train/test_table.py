"""The table: the arithmetic of its recoveries in closed form, and a tiny one made whole."""

from __future__ import annotations

import numpy as np
import pytest

from minquant.lm.evaluate import Perplexity
from minquant.train import table
from minquant.train.config import Config, ModelSizes, Quantization
from minquant.train.loop import Schedule
from minquant.train.setting import Measured
from minquant.train.table import SCHEMES, Plan, Scheme, make_table

SCHEME = Scheme("int4", Quantization("int4", 32), 0.8)


def measured(loss, wrong=0, spread=0.0):
    """640 tokens in ten blocks, that lose `loss` ± `spread` nats, and 100 questions."""
    losses = np.repeat(loss + spread * np.array([1.0, -1.0] * 5), 64)
    right = np.arange(100) >= wrong
    return Measured(Perplexity(losses, words=100, bytes=640), right, right)


def result(float_, control, ptq, qat):
    return {("float", None): float_, ("control", None): control, ("ptq", SCHEME): ptq, ("qat", SCHEME): qat}


def test_recovery_in_closed_form():
    seeds = [
        result(measured(1.0), measured(0.9), measured(1.2, wrong=20), measured(0.92, wrong=1)),  # 1 − 0.02/0.2
        result(measured(1.0), measured(0.9), measured(1.4, wrong=30), measured(1.02, wrong=3)),  # 1 − 0.12/0.4
    ]
    entry = table._recovery(SCHEME, seeds)
    assert entry["mean"] == pytest.approx((0.9 + 0.7) / 2) and entry["std"] == pytest.approx(0.2 / np.sqrt(2))
    assert entry["cost"] == pytest.approx(0.3) and entry["standard_error"] == pytest.approx(0, abs=1e-12)
    assert entry["reached"] is True and entry["figure"] == 0.8
    assert entry["acc_norm_mean"] == pytest.approx((0.95 + 0.9) / 2) and entry["acc_norm_cost"] == pytest.approx(0.25)
    assert entry["acc_norm_reached"] is True
    assert (entry["scheme"], entry["weight_bits"], entry["group_size"]) == ("int8-int4", 4, 32)


def test_a_missed_figure_is_told():
    entry = table._recovery(SCHEME, [result(measured(1), measured(1), measured(1.2), measured(1.06))])
    assert entry["mean"] == pytest.approx(0.7) and entry["std"] is None and entry["reached"] is False


@pytest.mark.parametrize(("spread", "reached"), [(0.18, True), (0.20, None)])
def test_five_standard_errors_decide_whether_rounding_costs_anything(spread, reached):
    """Ten blocks that alternate by ± spread about 0.3: a standard error of spread/3."""
    entry = table._recovery(SCHEME, [result(measured(1), measured(1), measured(1.3, spread=spread), measured(1))])
    assert entry["standard_error"] == pytest.approx(spread / 3)
    assert entry["reached"] is reached


def test_rounding_that_costs_nothing_has_no_recovery():
    entry = table._recovery(SCHEME, [result(measured(1), measured(1), measured(1), measured(1))])
    assert entry["mean"] is None and entry["reached"] is None and entry["acc_norm_mean"] is None


def test_the_schemes_are_those_of_the_figures():
    assert [(s.quantization.weight_bits, s.quantization.group_size, s.figure) for s in SCHEMES] == [
        (4, 32, 0.8), (4, 0, 0.8), (4, 32, 0.8), (3, 32, 0.8), (2, 32, 0.85),
    ]  # fmt: skip
    assert [s.quantization.activation_dtype for s in SCHEMES] == ["int8", "int8", "float32", "int8", "int8"]


@pytest.fixture
def tiny(tmp_path):
    text = tmp_path / "text.txt"
    lines = (f"the {a} {b} of every {c}\n" for a in ("small", "large") for b in ("house", "tree") for c in "abcdefgh")
    text.write_text("".join(lines) * 2, encoding="utf-8")
    sizes = ModelSizes(32, 32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    config = Config(text=str(text), context=40, batch_size=2, questions=4, model=sizes, training=Schedule(6, 1e-2))
    return Plan(config, Schedule(3, 1e-3), seeds=(0, 1), schemes=(SCHEME, SCHEMES[4]))


def test_a_tiny_table(tiny):
    seen = []
    made = make_table(tiny, lambda what, step, loss: seen.append(what))
    assert len(seen) == tiny.steps == 2 * (6 + 3 * 3)
    assert [(r["seed"], r["stage"], r["weight_bits"]) for r in made.rows] == [
        (seed, stage, bits)
        for seed in (0, 1)
        for stage, bits in (("float", 32), ("control", 32), ("ptq", 4), ("qat", 4), ("ptq", 2), ("qat", 2))
    ]
    assert len({r["nll"] for r in made.rows}) == 12 and len(made.float_seconds) == 2
    assert [entry["weight_bits"] for entry in made.recovery] == [4, 2]
    again = make_table(tiny)
    assert again.rows == made.rows and again.recovery == made.recovery


def test_every_stage_starts_from_the_same_float_model(tiny, monkeypatch):
    starts = []
    train = table.train

    def watched(model, batches, schedule, **options):
        starts.append((schedule.steps, model.lm_head.weight.data.copy(), batches.seed))
        return train(model, batches, schedule, **options)

    monkeypatch.setattr(table, "train", watched)
    make_table(Plan(tiny.config, tiny.further, seeds=(0,), schemes=tiny.schemes))
    further = [(weight, seed) for steps, weight, seed in starts if steps == 3]
    assert len(further) == 3
    assert all((weight == further[0][0]).all() and seed == further[0][1] for weight, seed in further)
    assert further[0][1] != starts[0][2]
