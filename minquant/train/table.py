"""The table of `minquant finetune table`: what rounding costs a language model, and what training gives back.

For each seed a float model is trained from nothing. For each scheme it is then

    ptq       rounded as it is
    qat       trained on with the rounding in its forward pass, then rounded
    control   trained on for the same steps on the same batches, in float

    recovery = 1 − (qat − control) / (ptq − float)      in nats per token; 1: all that rounding costs is given back

and likewise in the share of questions answered right (`acc_norm`). A recovery means something where rounding costs
something, so it is held against the figure to reach where the cost exceeds five standard errors. Those are of the
held-out text: differences between two models are averaged over the seeds, and their spread over blocks of the text
(over questions) tells how far another text might move the mean.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minquant.lm.text import RandomWindows
from minquant.nn import Module
from minquant.quant import QATConfig, quantize_
from minquant.train.config import Config, Quantization
from minquant.train.loop import Schedule, train
from minquant.train.setting import Measured, Setting, new_model

__all__ = ["QUICK", "SCHEMES", "Plan", "Scheme", "Table", "make_table"]

STANDARD_ERRORS = 5
BLOCK = 64  # tokens that count as one observation, since neighbours are not independent


@dataclass(frozen=True)
class Scheme:
    """A way to quantize, named activations × weights, and the recovery that QAT is to reach with it."""

    name: str
    quantization: Quantization
    figure: float


SCHEMES = (
    Scheme("int8 × int4, groups of 32", Quantization("int4", 32), 0.80),
    Scheme("int8 × int4, whole rows", Quantization("int4", 0), 0.80),
    Scheme("float × int4, groups of 32", Quantization("int4", 32, "float32"), 0.80),
    Scheme("int8 × int3, groups of 32", Quantization("int3", 32), 0.80),
    Scheme("int8 × int2, groups of 32", Quantization("int2", 32), 0.85),
)
ACC_FIGURE = 0.90


@dataclass(frozen=True)
class Plan:
    """How the table is made.

    Attributes:
        config: the float model and how it is trained.
        further: how QAT and the control train on.
        seeds: of the float models.
        schemes: see `SCHEMES`.
    """

    config: Config = Config(
        training=Schedule(steps=2400, lr=6e-3, warmup_steps=50, weight_decay=0.1, betas=(0.9, 0.95))
    )
    further: Schedule = Schedule(steps=500, lr=1e-3, warmup_steps=10, weight_decay=0.1, betas=(0.9, 0.95))
    seeds: Sequence[int] = (0, 1, 2)
    schemes: Sequence[Scheme] = SCHEMES

    @property
    def steps(self) -> int:
        """Training steps in all."""
        return len(self.seeds) * (self.config.training.steps + (1 + len(self.schemes)) * self.further.steps)


QUICK = Plan(
    Config(training=Schedule(steps=60, lr=6e-3, warmup_steps=10), batch_size=4, questions=50),
    Schedule(steps=20, lr=2e-3),
    seeds=(0,),
)
"""To see it run: the models have learned too little for the figures to mean anything."""


@dataclass(frozen=True)
class Table:
    """What was measured.

    Attributes:
        rows: a model each.
        recovery: a scheme each: mean and spread over the seeds, the cost of rounding in nats with its standard error,
            the figure, and whether it was reached (None: rounding costs too little to tell).
        float_seconds: in which each float model was trained.
    """

    rows: list[dict[str, Any]]
    recovery: list[dict[str, Any]]
    float_seconds: list[float]


Progress = Callable[[str, int, float], Any]


def make_table(plan: Plan | None = None, progress: Progress = lambda what, step, loss: None) -> Table:
    """Trains and measures everything, from nothing.

    Args:
        plan: what, and how long.
        progress: called after each training step with what is trained, the step and its loss.
    """
    plan = plan or Plan()
    setting = Setting.of(plan.config)
    float_seconds: list[float] = []
    results = [_one_seed(plan, seed, setting, progress, float_seconds) for seed in plan.seeds]
    rows = [
        measured.row(stage, seed, scheme.quantization if scheme else None)
        for seed, result in zip(plan.seeds, results, strict=True)
        for (stage, scheme), measured in result.items()
    ]
    return Table(rows, [_recovery(scheme, results) for scheme in plan.schemes], float_seconds)


# ---- training --------------------------------------------------------------------------------------------------------

Result = dict[tuple[str, Scheme | None], Measured]


def _one_seed(plan: Plan, seed: int, setting: Setting, progress: Progress, float_seconds: list[float]) -> Result:
    """What was measured of a seed's models, by stage and scheme."""
    config = dataclasses.replace(plan.config, seed=seed)
    vocab_size = setting.tokenizer.vocab_size

    def trained(model: Module, what: str, schedule: Schedule, batches: RandomWindows) -> Module:
        train(model, batches, schedule, after_step=lambda step, loss: progress(f"seed {seed}: {what}", step, loss))
        return model

    started = time.perf_counter()
    model = new_model(config, vocab_size)
    trained(model, "float", config.training, setting.batches(config, vocab_size))
    float_seconds.append(time.perf_counter() - started)
    further = setting.batches(dataclasses.replace(config, seed=seed + FURTHER), vocab_size)
    control = trained(copy.deepcopy(model), "control", plan.further, further)
    result: Result = {("float", None): setting.measure(model), ("control", None): setting.measure(control)}
    for scheme in plan.schemes:
        base = scheme.quantization.base_config()
        rounded, prepared = copy.deepcopy(model), copy.deepcopy(model)
        quantize_(rounded, base)
        result["ptq", scheme] = setting.measure(rounded)
        quantize_(prepared, QATConfig(base, step="prepare"))
        trained(prepared, scheme.name, plan.further, further)
        quantize_(prepared, QATConfig(base, step="convert"))
        result["qat", scheme] = setting.measure(prepared)
    return result


FURTHER = 1000
"""Added to a seed, it draws the batches of QAT and control: other ones than those the float model has seen."""


# ---- recovery --------------------------------------------------------------------------------------------------------


def _recovery(scheme: Scheme, results: Sequence[Result]) -> dict[str, Any]:
    """What QAT gives back of what rounding costs, in nats and in questions."""
    nats = _compare(scheme, results, lambda m: _blocks(m.perplexity.losses))
    questions = _compare(scheme, results, lambda m: 1.0 - m.right_norm)  # wrong ones: less is better, as of nats
    verdict = _verdict(nats, scheme.figure)
    of_questions = {f"acc_norm_{key}": value for key, value in {**questions, **_verdict(questions, ACC_FIGURE)}.items()}
    q = scheme.quantization
    named = {"scheme": q.scheme, "name": scheme.name, "weight_bits": q.weight_bits, "group_size": q.group_size or None}
    return {**named, **nats, **verdict, **of_questions}


def _compare(scheme: Scheme, results: Sequence[Result], errors: Callable[[Measured], np.ndarray]) -> dict[str, Any]:
    """The recovery by seed, and what rounding costs on average, from errors that are compared one by one."""
    by_seed, costs = [], []
    for result in results:
        of = {stage: errors(result[stage, scheme if stage in ("ptq", "qat") else None]) for stage in STAGES}
        cost, loss = of["ptq"] - of["float"], of["qat"] - of["control"]
        by_seed.append(1 - loss.mean() / cost.mean() if cost.mean() else np.nan)
        costs.append(cost)
    average = np.mean(costs, axis=0)
    known = bool(np.isfinite(by_seed).all())
    return {
        "mean": float(np.mean(by_seed)) if known else None,
        "std": float(np.std(by_seed, ddof=1)) if known and len(by_seed) > 1 else None,
        "cost": float(average.mean()),
        "standard_error": float(average.std(ddof=1) / np.sqrt(average.size)),
    }


STAGES = ("float", "control", "ptq", "qat")


def _blocks(losses: np.ndarray) -> np.ndarray:
    """Means of BLOCK tokens each."""
    return losses[: losses.size // BLOCK * BLOCK].reshape(-1, BLOCK).mean(axis=1)


def _verdict(compared: dict[str, Any], figure: float) -> dict[str, Any]:
    measurable = compared["cost"] > STANDARD_ERRORS * compared["standard_error"]
    return {"figure": figure, "reached": compared["mean"] >= figure if measurable else None}
