"""The three flows on handwritten digits: what 8, 4 and 2 bits a weight cost, over several seeds.

An MLP 64-64-64-64-10 is trained in float and quantized dynamically, statically (nearest rounding), and by
quantization-aware training (QAT) from the float weights. The control is the float model given what QAT is given: the
same further epochs, learning rates and batches. Every accuracy of a quantized model is that of its integers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np

from minquant import Tensor, manual_seed, nn, no_grad, optim
from minquant.data import Digits, batches, load_digits
from minquant.quant import (
    QuantWrapper,
    convert,
    default_dynamic_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize_dynamic,
)

__all__ = ["DigitsResult", "run"]

MODEL = "mlp-64-64-64-64-10"
SIZES = (64, 64, 64, 64, 10)
FLOWS = ("dynamic", "static", "qat")
WEIGHT_BITS = (8, 4, 2)
FLOAT_BITS, ACT_BITS = 32, 8
LEARNING_RATE = 2e-3

Accuracies = dict[tuple[str, int], float]


class Schedule(NamedTuple):
    """How long to train; with `decay` the learning rate falls linearly, epoch by epoch, towards 0."""

    epochs: int
    batch_size: int
    decay: bool


FLOAT_SCHEDULE = Schedule(epochs=20, batch_size=32, decay=False)
FURTHER_SCHEDULE = Schedule(epochs=10, batch_size=64, decay=True)


@dataclass(frozen=True)
class DigitsResult:
    """What was measured, for the report and the pictures."""

    accuracies: dict[tuple[str, int], list[float]]
    """(flow, weight bits) -> test accuracy in percent, one a seed."""
    prepared_vs_converted: dict[str, int]
    """Outputs of all QAT models on the test set, trained (in eval) against converted: values, mismatches."""
    weight: np.ndarray
    """The float weight (64, 64) of the first seed's second layer."""
    sqnr_db: dict[int, np.ndarray]
    """Weight bits -> (seeds, layers): signal to quantization noise after each Linear of the static models, in dB."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One a flow and bit width: mean and sample standard deviation over the seeds, in percent."""
        return [
            {
                "model": MODEL,
                "flow": flow,
                "weight_bits": bits,
                "act_bits": FLOAT_BITS if bits == FLOAT_BITS else ACT_BITS,
                "mean": float(np.mean(values)),
                "std": float(np.std(values, ddof=1)),
                "seeds": len(values),
            }
            for (flow, bits), values in self.accuracies.items()
        ]

    def mean(self, flow: str, weight_bits: int) -> float:
        """Mean accuracy of one flow, in percent."""
        return float(np.mean(self.accuracies[flow, weight_bits]))


class FloatRun(NamedTuple):
    """One seed's float model, and what was quantized from it without further training."""

    state: dict[str, np.ndarray]
    accuracies: Accuracies
    sqnr_db: dict[int, list[float]]


class TunedRun(NamedTuple):
    """One seed's float model trained further, with quantization in the loop or, as control, without."""

    accuracies: Accuracies
    values: int
    mismatches: int


# ---- one model -------------------------------------------------------------------------------------------------------


def mlp() -> QuantWrapper:
    """64-64-64-64-10 with ReLU in between, quantized from its input to its output."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(SIZES[:-1], SIZES[1:], strict=True):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return QuantWrapper(nn.Sequential(*layers[:-1]))


def train(model: nn.Module, digits: Digits, schedule: Schedule) -> None:
    """Adam on the cross entropy."""
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.Adam(model.parameters(), lr=LEARNING_RATE)
    model.train()
    for epoch in range(schedule.epochs):
        if schedule.decay:
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - epoch / schedule.epochs)
        for x, y in batches(digits.x_train, digits.y_train, schedule.batch_size):
            optimizer.zero_grad()
            criterion(model(Tensor(x)), y).backward()
            optimizer.step()
    model.eval()


@no_grad()
def outputs(model: nn.Module, digits: Digits) -> np.ndarray:
    """(360, 10) float32: the model's answers to the test set."""
    return model(Tensor(digits.x_test)).data


def accuracy(model: nn.Module, digits: Digits) -> float:
    """Percent of the test set."""
    return 100 * float(np.mean(outputs(model, digits).argmax(axis=1) == digits.y_test))


@no_grad()
def calibrated(model: nn.Module, digits: Digits, bits: int) -> Any:
    """The statically quantized model, calibrated on the whole training set."""
    prepared = prepare(model, get_default_qconfig(weight_bits=bits))
    prepared(Tensor(digits.x_train))
    return convert(prepared)


@no_grad()
def sqnr_db(model: Any, quantized: Any, digits: Digits) -> list[float]:
    """``10·log10(Σ y² / Σ (y - ŷ)²)`` after each Linear, each model going on from its own y: errors add up."""
    y, q = model.quant(Tensor(digits.x_test)), quantized.quant(Tensor(digits.x_test))
    ratios = []
    for layer, integer_layer in zip(model.module, quantized.module, strict=True):
        y, q = layer(y), integer_layer(q)
        if isinstance(layer, nn.Linear):
            noise = np.square(y.data - q.dequantize(), dtype=np.float64).sum()
            ratios.append(float(10 * np.log10(np.square(y.data, dtype=np.float64).sum() / noise)))
    return ratios


# ---- one seed --------------------------------------------------------------------------------------------------------


def float_run(digits: Digits, seed: int, flows: Sequence[str], schedule: Schedule) -> FloatRun:
    """Trains in float; quantizes dynamically and statically."""
    manual_seed(seed)
    model = mlp()
    train(model, digits, schedule)
    run = FloatRun({name: t.numpy() for name, t in model.state_dict().items()}, {}, {})
    run.accuracies["float", FLOAT_BITS] = accuracy(model, digits)
    for bits in WEIGHT_BITS:
        if "dynamic" in flows:
            dynamic = quantize_dynamic(model, default_dynamic_qconfig(weight_bits=bits))
            run.accuracies["dynamic", bits] = accuracy(dynamic, digits)
        static = calibrated(model, digits, bits)
        run.accuracies["static", bits] = accuracy(static, digits)
        run.sqnr_db[bits] = sqnr_db(model, static, digits)
    return run


def tuned_run(digits: Digits, seed: int, state: dict[str, np.ndarray], bits: int, schedule: Schedule) -> TunedRun:
    """Trains further from the float weights: QAT at that many weight bits, at 32 the control."""
    model: nn.Module = mlp()
    model.load_state_dict(state)
    if bits != FLOAT_BITS:
        model = prepare_qat(model, get_default_qat_qconfig(weight_bits=bits))
    manual_seed(seed)
    train(model, digits, schedule)
    if bits == FLOAT_BITS:
        return TunedRun({("control", bits): accuracy(model, digits)}, 0, 0)
    converted = convert(model)
    trained, integer = outputs(model, digits), outputs(converted, digits)
    return TunedRun({("qat", bits): accuracy(converted, digits)}, trained.size, int((trained != integer).sum()))


# ---- all seeds -------------------------------------------------------------------------------------------------------


def run(
    seeds: int = 5,
    flows: Sequence[str] = FLOWS,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    float_schedule: Schedule = FLOAT_SCHEDULE,
    further_schedule: Schedule = FURTHER_SCHEDULE,
    workers: int | None = None,
) -> DigitsResult:
    """Trains and quantizes the MLP with each of the seeds 0, 1, …, in parallel processes.

    Args:
        seeds: how many; at least 2, since a spread is reported.
        flows: of "dynamic", "static" and "qat"; static, against which the others are seen, is always measured.
        progress: called with (steps done, steps in all, what was done) after each step.
        float_schedule: training of the float model.
        further_schedule: that of QAT and of the control.
        workers: processes; as many as there are processors, at most one a seed, if left out. Results do not depend
            on it: each step seeds the random numbers itself, and BLAS runs on one thread.

    Raises:
        ValueError: fewer than 2 seeds, or an unknown flow.
        ModuleNotFoundError: scikit-learn, from which the digits come, is not installed.
    """
    if seeds < 2:
        raise ValueError(f"digits: seeds must be 2 or more to have a spread, got {seeds}")
    unknown = sorted(set(flows) - set(FLOWS))
    if unknown:
        raise ValueError(f"digits: flows are {', '.join(FLOWS)}; got {', '.join(map(str, unknown))}")
    digits = load_digits()
    tuned_bits = (FLOAT_BITS, *WEIGHT_BITS) if "qat" in flows else ()
    total = seeds * (1 + len(tuned_bits))
    processes = min(os.cpu_count() or 1, seeds) if workers is None else workers
    # Spawned, not forked: the caller may have threads (a progress bar), and a fork would copy their locks.
    with ProcessPoolExecutor(processes, get_context("spawn"), one_blas_thread) as pool:
        jobs: list[Any] = [(digits, seed, flows, float_schedule) for seed in range(seeds)]
        texts = [f"float, seed {seed + 1} of {seeds}" for seed in range(seeds)]
        floats = list(told(pool.map(float_run, *zip(*jobs, strict=True)), texts, progress, 0, total))
        pairs = [(seed, bits) for bits in tuned_bits for seed in range(seeds)]
        jobs = [(digits, seed, floats[seed].state, bits, further_schedule) for seed, bits in pairs]
        texts = [f"{tuning(bits)}, seed {seed + 1} of {seeds}" for seed, bits in pairs]
        tuned = list(told(pool.map(tuned_run, *zip(*jobs, strict=True)), texts, progress, seeds, total))
    return merged(floats, tuned)


def told(
    results: Iterable[Any], texts: list[str], progress: Callable[[int, int, str], None], done: int, total: int
) -> Iterator[Any]:
    """The results, each told to `progress` when it comes."""
    for count, (result, text) in enumerate(zip(results, texts, strict=True), start=done + 1):
        progress(count, total, text)
        yield result


def tuning(bits: int) -> str:
    """What a step that trains further is called."""
    return "control" if bits == FLOAT_BITS else f"QAT at {bits} bits"


def merged(floats: list[FloatRun], tuned: list[TunedRun]) -> DigitsResult:
    """The seeds' results as one."""
    accuracies: dict[tuple[str, int], list[float]] = {}
    for measured in [f.accuracies for f in floats] + [t.accuracies for t in tuned]:
        for key, value in measured.items():
            accuracies.setdefault(key, []).append(value)
    order = ["float", "control", *FLOWS]
    return DigitsResult(
        {key: accuracies[key] for key in sorted(accuracies, key=lambda key: (order.index(key[0]), -key[1]))},
        {"values": sum(t.values for t in tuned), "mismatches": sum(t.mismatches for t in tuned)},
        floats[0].state["module.2.weight"],
        {bits: np.array([f.sqnr_db[bits] for f in floats]) for bits in WEIGHT_BITS},
    )


def one_blas_thread() -> None:
    """Keeps a worker to its own processor, and its sums to one order."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    threadpool_limits(1)
