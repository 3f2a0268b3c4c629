"""What the tests of data-parallel training train: small models, their batches, and the ways to train them."""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant import functional, manual_seed, nn, no_grad, optim
from minquant.data import load_digits
from minquant.lm.model import Llama, LlamaConfig
from minquant.quant import (
    FakeQuantize,
    Int8DynamicActivationIntxWeightConfig,
    Int8StaticActivationInt8WeightConfig,
    LearnableFakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerGroup,
    QATConfig,
    QConfig,
    QuantWrapper,
    disable_observer,
    enable_observer,
    get_default_qat_qconfig,
    prepare_qat,
    quantize_,
)
from minquant.quant.observers import Observer
from minquant.train.parallel import Processes
from minquant.train.shared import observers_of_activations

AVERAGE = dict(observer=MovingAverageMinMaxObserver, averaging_constant=0.1, quant_min=0, quant_max=255)
ACTIVATIONS = {
    "smallest and largest": FakeQuantize.with_args(observer=MinMaxObserver, quant_min=0, quant_max=255),
    "moving average": FakeQuantize.with_args(**AVERAGE),
    "learned": LearnableFakeQuantize.with_args(**AVERAGE),
}
CONFIGS = {
    "int4 groups": Int8DynamicActivationIntxWeightConfig("int4", PerGroup(16)),
    "static int8": Int8StaticActivationInt8WeightConfig(),
    "float": None,
}
LEARN_FROM = 10
Batches = list[tuple[np.ndarray, np.ndarray]]
STEPS = 50
OPTIONS = dict(lr=2e-3)


def make_model(kind: str) -> nn.Module:
    manual_seed(1)
    if kind in ACTIVATIONS:
        net = QuantWrapper(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)))
        return prepare_qat(net, QConfig(ACTIVATIONS[kind], get_default_qat_qconfig(weight_bits=4).weight))
    sizes = dict(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    model = Llama(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16))
    if CONFIGS[kind] is not None:
        quantize_(model, QATConfig(CONFIGS[kind], step="prepare"))
    return model


def make_batches(kind: str, rows: int) -> Batches:
    rng = np.random.default_rng(2)
    if kind in ACTIVATIONS:
        digits = load_digits()
        order = rng.integers(0, len(digits.x_train), (STEPS, rows))
        return [(digits.x_train[r], digits.y_train[r]) for r in order]
    text = np.frombuffer(__doc__.encode() * 20, np.uint8).astype(np.int64) % 128
    windows = text[rng.integers(0, len(text) - 17, (STEPS, rows, 1)) + np.arange(17)]
    return [(w[:, :-1], w[:, 1:]) for w in windows]


def loss_of(model: Any, x: np.ndarray, y: np.ndarray) -> Any:
    out = model(x)
    return functional.cross_entropy(out.reshape(-1, out.shape[-1]), y.reshape(-1))


def begin_to_learn(model: nn.Module, step: int) -> None:
    for module in model.modules():
        if isinstance(module, LearnableFakeQuantize) and step == LEARN_FROM:
            module.enable_param_learning()


def ranges(model: nn.Module) -> list[bytes]:
    return [m.min_val.data.tobytes() + m.max_val.data.tobytes() for m in model.modules() if isinstance(m, Observer)]


def state(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.data.copy() for name, tensor in model.state_dict().items()}


def in_processes(processes: Processes, kind: str, batches: Batches) -> Any:
    """Every step also in one process that is given the same weights and ranges, and the whole batch.

    Returns:
        The losses; the state at the end; for each step, on rank 0, whether the ranges were one process's, and by how
        much the loss was not.
    """
    model, alone = make_model(kind), make_model(kind)
    for parameter in model.parameters():
        parameter.data += processes.rank  # which is overwritten by rank 0's
    processes.synchronise(model)
    optimizer = optim.AdamW(model.parameters(), **OPTIONS)
    losses, beside = [], []
    for step, (x, y) in enumerate(batches):
        begin_to_learn(model, step)
        begin_to_learn(alone, step)
        alone.load_state_dict(model.state_dict())
        shard = processes.shard(len(x))
        optimizer.zero_grad()
        loss = loss_of(model, x[shard.rows], y[shard.rows])
        loss.backward()
        losses.append(processes.average(loss.item(), shard.weight))
        processes.average_gradients(model.parameters(), shard.weight)
        if processes.rank == 0:
            whole = loss_of(alone, x, y).item()
            beside.append((ranges(model) == ranges(alone), abs(losses[-1] - whole)))
        optimizer.step()
    processes.check_in_step(model)
    return losses, state(model), beside


def in_one_process(processes: None, kind: str, batches: Batches, parts: int) -> Any:
    """The range of each whole batch, then the gradients of its parts, one after the other, added in float64."""
    model = make_model(kind)
    optimizer = optim.AdamW(model.parameters(), **OPTIONS)
    losses = []
    for step, (x, y) in enumerate(batches):
        begin_to_learn(model, step)
        observes = any(observers_of_activations(model)) and not (kind == "learned" and step >= LEARN_FROM)
        if observes:
            with no_grad():
                model(x)
            model.apply(disable_observer)
        losses.append(add_gradients(model, x, y, parts))
        if observes:
            model.apply(enable_observer)
        optimizer.step()
    return losses, state(model)


def add_gradients(model: nn.Module, x: np.ndarray, y: np.ndarray, parts: int) -> float:
    ends = [len(x) * part // parts for part in range(parts + 1)]
    parameters = list(model.parameters())
    total, sums = 0.0, [np.zeros(p.shape) for p in parameters]
    for start, end in zip(ends, ends[1:], strict=False):
        if start == end:
            continue
        weight = (end - start) / len(x)
        model.zero_grad()
        loss = loss_of(model, x[start:end], y[start:end])
        loss.backward()
        total += weight * loss.item()
        for grad, p in zip(sums, parameters, strict=True):
            grad += 0 if p.grad is None else weight * p.grad.data.astype(np.float64)
    for grad, p in zip(sums, parameters, strict=True):
        if p.grad is not None:
            p.grad.data[...] = grad
    return total
