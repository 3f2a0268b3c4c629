"""What processes that train one model must share of it, what makes two models one, and what cannot be shared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from minquant.nn import BatchNorm1d, BatchNorm2d, Dropout, Module
from minquant.quant.fake_quant import FakeQuantize
from minquant.quant.fixed_observer import FixedQParamsObserver
from minquant.quant.learnable import LearnableFakeQuantize
from minquant.quant.observers import Observer
from minquant.quant.qtensor import QTensor
from minquant.quant.spec import PerGroup, PerToken
from minquant.quant.stubs import GridDropout
from minquant.train.balancers import MovingAverageLossBalancer

__all__ = ["disagreements", "flat", "layout", "observers_of_activations", "refuse_what_needs_the_whole_batch"]

WEIGHT = "weight_fake_quant"  # how the paths of what watches a weight begin, under their layer
LISTED = 5  # differences that a message names


def observers_of_activations(model: Module) -> Iterator[Observer]:
    """All observers but those of weights, which every process has whole."""
    return (m for path, m in model.named_modules() if isinstance(m, Observer) and not _of_weight(path))


def layout(model: Module) -> dict[str, str]:
    """What two models must have in common to be trained as one: classes, settings, shapes, what learns, integers."""
    modules = {f"module {path or '(the model)'}": _settings(m) for path, m in model.named_modules()}
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    tensors = {
        name: f"{t.dtype} {t.shape}{', learned' if name in learned else ''}" for name, t in model.state_dict().items()
    }
    integers = {
        f"integers of {path}.{name}": sha256(value.storage.tobytes()).hexdigest()[:12]
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, QTensor)
    }
    return modules | tensors | integers


def _settings(module: Any) -> str:
    if isinstance(module, Observer):  # whose repr is what it saw
        return f"{type(module).__name__}({module.spec}, {getattr(module, 'averaging_constant', '')})"
    return f"{type(module).__name__}({module.extra_repr()})"


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every value as text, by the names that lead to it."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def disagreements(tables: Sequence[Mapping[str, str]]) -> list[str]:
    """A line for each difference between what rank 0 has by name and what another rank has; the first few."""
    first, *others = tables
    lines = [
        f"rank {rank} has {name} = {other.get(name, 'nothing')} where rank 0 has {first.get(name, 'nothing')}"
        for rank, other in enumerate(others, 1)
        for name in {**first, **other}
        if first.get(name) != other.get(name)
    ]
    return lines if len(lines) <= LISTED else [*lines[:LISTED], f"and {len(lines) - LISTED} more"]


def refuse_what_needs_the_whole_batch(model: Module) -> None:
    """Refuses a model of which processes with a part of the batch each do not compute what one process would.

    Raises:
        ValueError: all reasons are listed.
    """
    frozen = {m.bn for m in model.modules() if getattr(m, "bn_frozen", False)}
    problems = [
        f"{type(m).__name__} '{path}' {reason}"
        for path, m in model.named_modules()
        if m not in frozen and (reason := _needs_the_whole_batch(m, path))
    ]
    if problems:
        raise ValueError("several processes cannot train this model as one would:\n  " + "\n  ".join(problems))


def _needs_the_whole_batch(module: Any, path: str) -> str:
    """Why, or ""."""
    if isinstance(module, BatchNorm1d | BatchNorm2d):
        return "takes its statistics from a part of the batch; fold it, or train with freeze_bn_stats"
    if isinstance(module, Dropout | GridDropout) and module.p:
        return "draws for a part of the batch what one process draws for all of it; set p = 0"
    if isinstance(module, MovingAverageLossBalancer):
        return "follows the losses of a part of the batch; use StaticLossBalancer"
    if _of_weight(path):
        return ""
    if isinstance(module, Observer) and not isinstance(module, FixedQParamsObserver):
        plain = type(module)._observe is Observer._observe
        return "" if plain else "keeps more than a smallest and largest value; use MinMaxObserver or a moving average"
    if isinstance(module, LearnableFakeQuantize) and module.use_grad_scaling:
        return "divides by the size of a part of the batch; set use_grad_scaling=False"
    if path.endswith("activation_fake_quantizer") and not isinstance(module, FakeQuantize):
        whole = isinstance(getattr(module.config, "granularity", None), PerToken | PerGroup)
        return "" if whole else "chooses one grid for the whole batch; use PerToken()"
    return ""


def _of_weight(path: str) -> bool:
    return any(name.startswith(WEIGHT) for name in path.split("."))
