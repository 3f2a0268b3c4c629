"""Small random networks, with every kind of layer that there is, for training with quantization in the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minquant import Tensor, functional, nn, no_grad
from minquant.quant import (
    ConvBn1d,
    ConvBn2d,
    ConvBnReLU1d,
    ConvBnReLU2d,
    ConvReLU1d,
    ConvReLU2d,
    LinearBn1d,
    LinearReLU,
    QuantWrapper,
)

__all__ = ["Draw", "random_network"]

Shape = tuple[int, ...]
Draw = Callable[[np.random.Generator, int, float], Tensor]
"""(rng, rows, standard deviation) -> a batch of inputs."""
TOKENS, LENGTH = 12, 4


def random_network(rng: np.random.Generator) -> tuple[nn.Module, Draw]:
    """A float network of one of four families, features, signals, images or tokens, and what draws its inputs."""
    family = int(rng.integers(4))
    if family == 3:
        return token_network(rng)
    channels = int(rng.integers(1, 4))
    shape: Shape = [(int(rng.integers(1, 20)),), (channels, 12), (channels, 6, 6)][family]
    block = linear_block if family == 0 else conv_block
    layers: list[nn.Module] = []
    for _ in range(rng.integers(1, 4) if family == 0 else rng.integers(1, 3)):
        layers += block(rng, after(layers, shape))
    if family == 2:
        layers.append(pick(rng, [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AvgPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(2)]))
    return QuantWrapper(nn.Sequential(*layers, *head(rng, layers, shape))), normal(shape)


def normal(shape: Shape) -> Draw:
    """Normal inputs (rows, *shape)."""
    return lambda rng, rows, deviation: Tensor((deviation * rng.standard_normal((rows, *shape))).astype(np.float32))


def pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    """One of them."""
    return choices[int(rng.integers(len(choices)))]


def after(layers: list[nn.Module], shape: Shape) -> Shape:
    """The shape of one row behind these layers."""
    with no_grad():
        return nn.Sequential(*layers).eval()(Tensor(np.zeros((2, *shape), np.float32))).shape[1:] if layers else shape


def head(rng: np.random.Generator, layers: list[nn.Module], shape: Shape) -> list[nn.Module]:
    """Flatten and a last Linear."""
    features = math.prod(after(layers, shape))
    return [nn.Flatten(), nn.Linear(features, int(rng.integers(2, 10)))]


# ---- features --------------------------------------------------------------------------------------------------------


def linear_block(rng: np.random.Generator, shape: Shape) -> list[nn.Module]:
    """(N, n_in) -> (N, n_out): a Linear, alone or fused, and what may follow it."""
    n_out = int(rng.integers(2, 20))
    linear = nn.Linear(shape[0], n_out, bias=bool(rng.integers(2)))
    layer = pick(rng, [linear, LinearReLU(linear, nn.ReLU()), LinearBn1d(linear, nn.BatchNorm1d(n_out))])
    norms: list[nn.Module] = [nn.LayerNorm(n_out), nn.RMSNorm(n_out), nn.BatchNorm1d(n_out), nn.Softmax(-1)]
    return [layer, *pick(rng, [[], *([m] for m in (*activations(), *norms, Operation(rng), Operation(rng)))])]


def activations() -> list[nn.Module]:
    """What keeps any shape."""
    return [nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.SiLU(), nn.Dropout(0.2)]


class Operation(nn.Module):
    """One of FloatFunctional's operations: of x and an activation of it, or of x and a number."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.name = str(rng.choice(["add", "add_relu", "mul", "add_scalar", "mul_scalar", "cat"]))
        self.number = float(rng.standard_normal())
        self.act, self.operation = nn.Sigmoid(), nn.FloatFunctional()

    def forward(self, x: Any) -> Any:
        """(N, C, …) -> the same shape; joined, twice as many channels."""
        if self.name.endswith("scalar"):
            return getattr(self.operation, self.name)(x, self.number)
        if self.name == "cat":
            return self.operation.cat([x, self.act(x)], 1)
        return getattr(self.operation, self.name)(x, self.act(x))


# ---- signals and images ----------------------------------------------------------------------------------------------

FUSED: dict[int, tuple[Any, Any, Any, Any, Any]] = {
    1: (nn.Conv1d, nn.BatchNorm1d, ConvReLU1d, ConvBn1d, ConvBnReLU1d),
    2: (nn.Conv2d, nn.BatchNorm2d, ConvReLU2d, ConvBn2d, ConvBnReLU2d),
}


def conv_block(rng: np.random.Generator, shape: Shape) -> list[nn.Module]:
    """(N, C, *size) -> (N, M, *places): a convolution, alone or fused, and what may follow it."""
    conv_class, bn_class, with_relu, with_bn, with_both = FUSED[len(shape) - 1]
    channels = shape[0]
    groups = int(rng.choice([1, channels]))  # all channels together, or each by itself
    out = groups * int(rng.integers(1, 5 if groups == 1 else 3))
    kernel, stride, dilation = int(rng.integers(1, 4)), int(rng.integers(1, 3)), int(rng.integers(1, 3))
    bias = bool(rng.integers(2))
    conv = conv_class(channels, out, kernel, stride, padding=2, dilation=dilation, groups=groups, bias=bias)
    bn = bn_class(out)
    layer = pick(rng, [conv, with_relu(conv, nn.ReLU()), with_bn(conv, bn), with_both(conv, bn, nn.ReLU())])
    return [layer, *pick(rng, [[], *([m] for m in (*activations(), bn_class(out), Operation(rng), Operation(rng)))])]


# ---- tokens ----------------------------------------------------------------------------------------------------------


def token_network(rng: np.random.Generator) -> tuple[nn.Module, Draw]:
    """Embedding, and attention on what it looks up."""

    def draw(rng: np.random.Generator, rows: int, deviation: float) -> Tensor:
        return Tensor(rng.integers(0, TOKENS, (rows, LENGTH)))

    return Attention(int(rng.integers(2, 8)), int(rng.integers(2, 8))), draw


class Attention(nn.Module):
    """``softmax(q kᵀ) v`` of one head, with a norm and a residual, on (N, LENGTH) tokens."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, width)
        self.quant, self.dequant = nn.QuantStub(), nn.DeQuantStub()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.scores, self.mixed, self.skip = (nn.FloatFunctional() for _ in range(3))
        self.softmax, self.norm, self.act = nn.Softmax(-1), nn.LayerNorm(width), nn.GELU()
        self.flatten, self.last = nn.Flatten(), nn.Linear(LENGTH * width, out)

    def forward(self, tokens: Any) -> Any:
        """(N, LENGTH) integers -> (N, out)."""
        x = self.quant(self.embedding(tokens))  # (N, LENGTH, width)
        keys = functional.transpose(self.key(x), 1, 2)  # (N, width, LENGTH)
        weights = self.softmax(self.scores.matmul(self.query(x), keys))  # (N, LENGTH, LENGTH)
        x = self.skip.add(x, self.mixed.matmul(weights, self.value(x)))
        return self.dequant(self.last(self.flatten(self.act(self.norm(x)))))
