"""One step of quantization-aware training: forward, loss, backward, Adam.

Each side with its own default preset. What is checked before they are timed is the first step: how many fake
quantizers there are, the loss, and how far Adam moved the first weight. minquant's must be those that its specification
computes in NumPy. torch's loss must be that of minquant's dialect "x86", whose fake quantizers equal torch's to the
last bit; the float products between them are added in another order, which here and there carries a value over a tie,
so that the loss, a mean over the batch, differs a little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from minquant import Tensor, manual_seed, nn, optim
from minquant.bench.job import Job
from minquant.bench.operation import Operation, Peer, Shape
from minquant.bench.threads import environment
from minquant.bench.torch_side import tensor
from minquant.quant import FakeQuantize, QuantWrapper, get_default_qat_qconfig, prepare_qat

__all__ = ["OPERATIONS"]

SHAPES: dict[str, tuple[Shape, ...]] = {
    "regression": ((10000, 3, 3, 2),),
    "digits": ((64, 64, 128, 128, 10), (256, 784, 512, 512, 10)),
}
CNN: dict[str, tuple[Shape, ...]] = {"digits": ((64, 1, 8, 8, 16, 32, 10),)}
LR = 1e-3

NEAR = 1e-3, 1e-2
"""How far apart the losses of two sides may be, and the first moves of a weight, as shares. Adam's first move is
``lr · g / (|g| + 1e-8)``, which is lr for every gradient that is not tiny."""

Kinds = list[tuple[Any, ...]]
"""Names of modules that minquant and torch both have, each with its arguments."""


@dataclass(frozen=True)
class Task:
    """Layers, inputs and targets: classes, or real values."""

    layers: Kinds
    x: np.ndarray
    y: np.ndarray

    @property
    def loss(self) -> str:
        return "CrossEntropyLoss" if self.y.dtype.kind == "i" else "MSELoss"

    def model(self, library: Any) -> Any:
        """The float model, of minquant's or of torch's modules."""
        return library.Sequential(*(getattr(library, kind)(*arguments) for kind, *arguments in self.layers))

    @cached_property
    def state(self) -> dict[str, np.ndarray]:
        """The weights that everybody begins with."""
        manual_seed(0)
        return {name: value.data.copy() for name, value in self.model(nn).state_dict().items()}

    def ours(self, backend: str) -> tuple[nn.Module, Callable[[], object]]:
        """A prepared model, and a step that returns the loss."""
        model = self.model(nn)
        model.load_state_dict(self.state)
        prepared = prepare_qat(QuantWrapper(model), get_default_qat_qconfig(backend))
        optimizer, loss = optim.Adam(prepared.parameters(), lr=LR), getattr(nn, self.loss)()
        x, y = Tensor(self.x), Tensor(self.y)
        return prepared, _step(prepared, optimizer, loss, x, y)

    def expected(self, backend: str) -> np.ndarray:
        """What the first step of that dialect comes to, by the specification in NumPy."""
        with environment("MINQUANT_BACKEND", "numpy"):
            prepared, step = self.ours(backend)
            return _told(prepared, FakeQuantize, self)(step())


def _step(model: Any, optimizer: Any, loss: Any, x: Any, y: Any) -> Callable[[], object]:
    def step() -> object:
        optimizer.zero_grad()
        error = loss(model(x), y)
        error.backward()
        optimizer.step()
        return error

    return step


def _told(prepared: Any, kind: Any, task: Task) -> Callable[[object], np.ndarray]:
    """Of a first step: fake quantizers at work, loss, and the largest move of an element of the first weight."""

    def told(loss: Any) -> np.ndarray:
        working = sum(isinstance(m, kind) and bool(m.fake_quant_enabled) for m in prepared.modules())
        weight = next(value for name, value in prepared.named_parameters() if name.endswith("weight"))
        before = next(value for name, value in task.state.items() if name.endswith("weight"))
        return np.array([working, float(loss.item()), np.abs(weight.detach().numpy() - before).max()])

    return told


@lru_cache(maxsize=1)
def mlp(shape: Shape) -> Task:
    """(batch, *features): Linears with a ReLU between two of them."""
    batch, *features = shape
    rng = np.random.default_rng(shape)
    layers: Kinds = []
    for n_in, n_out in zip(features, features[1:], strict=False):
        layers += [("Linear", n_in, n_out), ("ReLU",)]
    x = rng.random((batch, features[0]), np.float32)
    is_regression = features[-1] == 2
    y = rng.random((batch, 2), np.float32) if is_regression else rng.integers(0, features[-1], batch)
    return Task(layers[:-1], x, y)


@lru_cache(maxsize=1)
def cnn(shape: Shape) -> Task:
    """(batch, channels, H, W, channels, channels, classes): two blocks of Conv2d, ReLU and MaxPool2d, and a Linear."""
    batch, channels, H, W, *widths, classes = shape
    rng = np.random.default_rng(shape)
    layers: Kinds = []
    for n_in, n_out in zip([channels, *widths], widths, strict=False):
        layers += [("Conv2d", n_in, n_out, 3, 1, 1), ("ReLU",), ("MaxPool2d", 2)]
    layers += [("Flatten",), ("Linear", widths[-1] * (H // 4) * (W // 4), classes)]
    return Task(layers, rng.random((batch, channels, H, W), np.float32), rng.integers(0, classes, batch))


def ours(task: Task, variant: str) -> Job:
    """minquant's, whose forward pass multiplies integers."""
    prepared, step = task.ours(variant)
    return Job(step, _told(prepared, FakeQuantize, task), task.expected(variant))


def _torch(task: Task, threads: int) -> Job:
    """torch.ao's, which simulates in float."""
    import torch
    import torch.ao.quantization as tq

    torch.backends.quantized.engine = "x86"
    model = task.model(torch.nn)
    model.load_state_dict({name: tensor(value) for name, value in task.state.items()})
    model = tq.QuantWrapper(model).train()
    model.qconfig = tq.get_default_qat_qconfig()
    prepared = tq.prepare_qat(model)
    optimizer, loss = torch.optim.Adam(prepared.parameters(), lr=LR), getattr(torch.nn, task.loss)()
    step = _step(prepared, optimizer, loss, tensor(task.x), tensor(task.y))
    expected = task.expected("x86")
    return Job(step, _told(prepared, tq.FakeQuantizeBase, task), expected, expected * [0, *NEAR])


PEERS = (Peer("torch.ao prepare_qat", "torch.ao prepare_qat", ("torch",), _torch, integers=False, engine="x86"),)
OPERATIONS = (
    Operation("QAT step", "N×features…", SHAPES, mlp, ("reference",), ours, PEERS),
    Operation("QAT step, CNN", "N×C×H×W×channels…", CNN, cnn, ("reference",), ours, PEERS),
)
