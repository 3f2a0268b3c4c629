"""The table of operations that the tests of minquant.functional read.

It calls an operation through a library: minquant.functional, or torch by the same names (`TorchFunctions`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Operation:
    """One row: how to call it, on which inputs, and how exact it is.

    Attributes:
        shapes: a strategy for the shapes of its inputs.
        low, high: the range of their values.
        kinks: values at which it has no derivative; inputs keep 0.05 away.
        distinct: the values are at least 0.05 apart (for a largest element that stays the largest).
        magnitude: no intermediate value is larger; results may be a few float steps of that apart.
    """

    name: str
    call: Callable[..., Any]
    shapes: st.SearchStrategy[Shapes]
    low: float = -3.0
    high: float = 3.0
    kinks: tuple[float, ...] = ()
    distinct: bool = False
    magnitude: float = 32.0

    def arrays(self, shapes: Shapes, seed: int) -> list[np.ndarray]:
        """Float64 inputs of these shapes."""
        rng = np.random.default_rng(seed)
        return [self._values(rng, shape) for shape in shapes]

    def _values(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape))
        if self.distinct:
            return (rng.permutation(size) * 0.1 + rng.uniform(0, 0.05) - 1).reshape(shape)
        x = rng.uniform(self.low, self.high, shape)
        for kink in self.kinks:
            x = np.where(np.abs(x - kink) < 0.05, kink + 0.05 + np.abs(x - kink), x)
        return x


class TorchFunctions:
    """torch's operations under the names of minquant.functional."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch

    def __getattr__(self, name: str) -> Any:
        home = self.torch.nn.functional if hasattr(self.torch.nn.functional, name) else self.torch
        return getattr(home, name)

    def expand(self, input: Any, sizes: tuple[int, ...]) -> Any:
        return input.expand(*sizes)


size = st.integers(1, 4)


def shapes_of(axes: int, least: int | None = None) -> st.SearchStrategy[Shapes]:
    """One input, of `least` to `axes` axes."""
    return st.lists(size, min_size=axes if least is None else least, max_size=axes).map(lambda s: (tuple(s),))


@st.composite
def broadcast(draw: st.DrawFn, inputs: int = 2) -> Shapes:
    """Shapes that broadcast: of one result, each input drops leading axes and has some axes of 1."""
    result = draw(st.lists(size, max_size=3))
    shapes = []
    for _ in range(inputs):
        kept = result[draw(st.integers(0, len(result))) :]
        shapes.append(tuple(draw(st.sampled_from([1, n])) for n in kept))
    return tuple(shapes)


@st.composite
def products(draw: st.DrawFn) -> Shapes:
    """Operands of a matrix product: vectors, matrices, and batches that broadcast."""
    n, k, m = draw(size), draw(size), draw(size)
    batch_a, batch_b = draw(broadcast())
    a = draw(st.sampled_from([(k,), (*batch_a, n, k)]))
    b = draw(st.sampled_from([(k,), (*batch_b, k, m)]))
    return a, b


@st.composite
def layers(draw: st.DrawFn) -> Shapes:
    """Input, weight and bias of a linear layer."""
    k, m = draw(size), draw(size)
    return (*draw(st.lists(size, max_size=2)), k), (m, k), (m,)


@st.composite
def parts(draw: st.DrawFn) -> Shapes:
    """Two matrices with equally many columns."""
    columns = draw(size)
    return (draw(size), columns), (draw(size), columns)


@st.composite
def attentions(draw: st.DrawFn) -> Shapes:
    """Queries, keys and values, batched or not; there may be more keys than queries, or fewer."""
    *batch, heads, steps, keys, width, columns = draw(st.lists(size, min_size=5, max_size=6))
    return (*batch, heads, steps, width), (*batch, heads, keys, width), (*batch, heads, keys, columns)


@st.composite
def convolutions(draw: st.DrawFn, axes: int, groups: int = 1) -> Shapes:
    """Input (batched or not), weight and bias of a convolution; the kernel fits after padding by 1."""
    channels, filters = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    image = draw(st.lists(st.integers(3, 5), min_size=axes, max_size=axes))
    kernel = draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    batch = draw(st.lists(st.integers(1, 2), max_size=1))
    return (*batch, channels, *image), (filters, channels // groups, *kernel), (filters,)


@st.composite
def images(draw: st.DrawFn) -> Shapes:
    """A batch of images, or one."""
    height, width = draw(st.integers(3, 6)), draw(st.integers(3, 6))
    return ((*draw(st.lists(st.integers(1, 2), max_size=1)), draw(st.integers(1, 2)), height, width),)


@st.composite
def batches(draw: st.DrawFn) -> Shapes:
    """Input of two or more rows with axes or none behind the channels, weight and bias."""
    channels = draw(size)
    return (draw(st.integers(3, 5)), channels, *draw(st.lists(size, max_size=2))), (channels,), (channels,)


same = shapes_of(3, 1).map(lambda s: s * 2)
any_shape, matrix, cube = shapes_of(3, 0), shapes_of(2), shapes_of(3)
target = np.array([2, 0, 1])

OPERATIONS = [
    # binary
    Operation("add", lambda f, a, b: f.add(a, b), broadcast()),
    Operation("sub", lambda f, a, b: f.sub(a, b), broadcast()),
    Operation("mul", lambda f, a, b: f.mul(a, b), broadcast(), magnitude=200),
    Operation("mul with itself", lambda f, a: f.mul(a, a), any_shape),
    Operation("div", lambda f, a, b: f.div(a, b), broadcast(), low=0.5, magnitude=500),
    Operation("pow", lambda f, a, b: f.pow(a, b), broadcast(), low=0.5, magnitude=2000),
    Operation("pow of a number", lambda f, a: f.pow(a, 3), any_shape, magnitude=100),
    Operation("a number to the power", lambda f, a: 2.0**a, any_shape, magnitude=50),
    Operation("square", lambda f, a: f.pow(a, 2), any_shape),
    Operation("arithmetic with numbers", lambda f, a: 1 - 2 * (3 + a) / 0.7 + (-a) / 2 - 1 / (a + 5), any_shape),
    Operation("where", lambda f, a, b: f.where(a > 0.1, a, b), broadcast(), kinks=(0.1,)),
    Operation("matmul", lambda f, a, b: f.matmul(a, b), products(), magnitude=600),
    # unary
    Operation("neg", lambda f, x: f.neg(x), any_shape),
    Operation("abs", lambda f, x: f.abs(x), any_shape, kinks=(0.0,)),
    Operation("exp", lambda f, x: f.exp(x), any_shape),
    Operation("log", lambda f, x: f.log(x), any_shape, low=0.5),
    Operation("sqrt", lambda f, x: f.sqrt(x), any_shape, low=0.5),
    Operation("clip", lambda f, x: f.clip(x, -1, 1.5), any_shape, kinks=(-1.0, 1.5)),
    Operation("clip below", lambda f, x: f.clip(x, min=0.5), any_shape, kinks=(0.5,)),
    Operation("clip above", lambda f, x: f.clip(x, max=0.5), any_shape, kinks=(0.5,)),
    Operation("clone", lambda f, x: f.clone(x), any_shape),
    Operation("relu", lambda f, x: f.relu(x), any_shape, kinks=(0.0,)),
    Operation("sigmoid", lambda f, x: f.sigmoid(x), any_shape, low=-6, high=6),
    Operation("tanh", lambda f, x: f.tanh(x), any_shape),
    Operation("silu", lambda f, x: f.silu(x), any_shape, low=-6, high=6),
    Operation("gelu", lambda f, x: f.gelu(x), any_shape, low=-6, high=6),
    Operation("gelu by tanh", lambda f, x: f.gelu(x, approximate="tanh"), any_shape, low=-6, high=6),
    # reductions
    Operation("sum", lambda f, x: f.sum(x), any_shape, magnitude=200),
    Operation("sum of rows", lambda f, x: f.sum(x, 1), cube),
    Operation("sum of two axes", lambda f, x: f.sum(x, (0, -1), keepdim=True), cube),
    Operation("mean", lambda f, x: f.mean(x), any_shape, magnitude=200),
    Operation("mean of columns", lambda f, x: f.mean(x, 0, keepdim=True), matrix),
    Operation("var", lambda f, x: f.var(x, (0, 1), correction=0), matrix, magnitude=200),
    Operation("var, corrected", lambda f, x: f.var(x, 1), st.just(((3, 4),)), magnitude=200),
    Operation("max", lambda f, x: f.max(x), any_shape, distinct=True),
    Operation("min", lambda f, x: f.min(x), any_shape, distinct=True),
    Operation("max of rows", lambda f, x: f.max(x, 1)[0], cube, distinct=True),
    Operation("min of columns", lambda f, x: f.min(x, -3, keepdim=True)[0], cube, distinct=True),
    # movement
    Operation("reshape", lambda f, x: f.reshape(x, (-1, x.shape[0])), cube),
    Operation("permute", lambda f, x: f.permute(x, (2, 0, 1)), cube),
    Operation("permute backwards", lambda f, x: f.permute(x, (-1, 0, -2)), cube),
    Operation("transpose", lambda f, x: f.transpose(x, 0, -1), cube),
    Operation("T", lambda f, x: x.T, matrix),
    Operation("flatten", lambda f, x: f.flatten(x), any_shape),
    Operation("flatten from", lambda f, x: f.flatten(x, 1), cube),
    Operation("squeeze", lambda f, x: f.squeeze(x), any_shape),
    Operation("squeeze one", lambda f, x: f.squeeze(x, 1), cube),
    Operation("unsqueeze", lambda f, x: f.unsqueeze(x, -2), matrix),
    Operation("expand", lambda f, x: f.expand(x[:1], (3, -1, -1)), matrix.map(lambda s: ((1, *s[0]),))),
    Operation("expand in front", lambda f, x: f.expand(x, (2, 3, -1)), shapes_of(1)),
    Operation("index: one", lambda f, x: x[-1], cube),
    Operation("index: slices", lambda f, x: x[:2, ..., 1:], st.just(((3, 2, 4),))),
    Operation("index: stepped", lambda f, x: x[::2, None, 1], st.just(((3, 2, 4),))),
    Operation("index: repeated integers", lambda f, x: x[[0, 2, 0, 0]], st.just(((3, 2),))),
    Operation("index: pairs", lambda f, x: x[[0, 2, 0], [1, 1, 1]], st.just(((3, 2),))),
    Operation("index: column of integers", lambda f, x: x[:, [1, 1, 0]], st.just(((3, 2),))),
    Operation("index: bools", lambda f, x: x[x > 0], shapes_of(2), kinks=(0.0,)),
    Operation("cat", lambda f, a, b: f.cat([a, b, a]), parts()),
    Operation("cat along columns", lambda f, a, b: f.cat([a, b], dim=-1), same.map(lambda s: s)),
    Operation("stack", lambda f, a, b: f.stack([a, b], dim=1), same),
    Operation("split", lambda f, x: f.mul(f.split(x, 2, dim=1)[0], 3), st.just(((2, 5),))),
    Operation("split by sizes", lambda f, x: f.split(x, [1, 4], dim=-1)[1], st.just(((2, 5),))),
    # neural networks
    Operation("softmax", lambda f, x: f.softmax(x, -1), cube),
    Operation("softmax of columns", lambda f, x: f.softmax(x, 0), matrix),
    Operation("log_softmax", lambda f, x: f.log_softmax(x, 1), cube),
    Operation("linear", lambda f, x, w, b: f.linear(x, w, b), layers(), magnitude=600),
    Operation("linear without bias", lambda f, x, w, b: f.linear(x, w), layers(), magnitude=600),
    # attention: a share's gradient is at most 2 · 4 · 3 · 1.5 = 36; times 4 keys or queries of 3 it stays below 450
    Operation(
        "scaled_dot_product_attention",
        lambda f, q, k, v: f.scaled_dot_product_attention(q, k, v),
        attentions(),
        magnitude=450,
    ),
    Operation(
        "scaled_dot_product_attention, causal",
        lambda f, q, k, v: f.scaled_dot_product_attention(q, k, v, is_causal=True),
        attentions(),
        magnitude=450,
    ),
    Operation(
        "scaled_dot_product_attention, grouped",
        lambda f, q, k, v: f.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        st.just(((2, 4, 3, 2), (2, 2, 3, 2), (2, 2, 3, 3))),
        magnitude=450,
    ),
    # convolution and pooling: in a weight's gradient at most 2 · 25 products up to 3 · 1.5 are added
    Operation("conv1d", lambda f, x, w, b: f.conv1d(x, w, b, padding=1), convolutions(1), magnitude=250),
    Operation("conv1d, strided", lambda f, x, w, b: f.conv1d(x, w, None, 2, 1), convolutions(1), magnitude=250),
    Operation("conv2d", lambda f, x, w, b: f.conv2d(x, w, b), convolutions(2), magnitude=250),
    Operation(
        "conv2d, all options",
        lambda f, x, w, b: f.conv2d(x, w, b, (2, 1), (1, 2), (1, 2), groups=2),
        convolutions(2, groups=2),
        magnitude=250,
    ),
    Operation("max_pool2d", lambda f, x: f.max_pool2d(x, 2), images(), distinct=True),
    Operation("max_pool2d, overlapping", lambda f, x: f.max_pool2d(x, 3, (1, 2), 1), images(), distinct=True),
    Operation("max_pool2d, dilated", lambda f, x: f.max_pool2d(x, (2, 1), 1, 0, 2), images(), distinct=True),
    Operation("avg_pool2d", lambda f, x: f.avg_pool2d(x, (3, 2)), images()),
    Operation("avg_pool2d, overlapping", lambda f, x: f.avg_pool2d(x, 3, 2, 1), images()),
    Operation("adaptive_avg_pool2d", lambda f, x: f.adaptive_avg_pool2d(x, 1), images()),
    Operation("adaptive_avg_pool2d, overlapping", lambda f, x: f.adaptive_avg_pool2d(x, (2, None)), images()),
    # normalization: 1 / std < 3.2 with this eps, and a row's largest |y| is below √80, so gradients stay below
    # 3.2 · (4.5 + 4.5 + √80 · 4.5) < 160
    Operation(
        "batch_norm",
        lambda f, x, w, b: f.batch_norm(x, None, None, w, b, training=True, eps=0.1),
        batches(),
        magnitude=160,
    ),
    Operation(
        "layer_norm",
        lambda f, x, w, b: f.layer_norm(x, w.shape, w, b, eps=0.1),
        shapes_of(3, 1).map(lambda s: (s[0], s[0][-2:], s[0][-2:])),
        magnitude=160,
    ),
    Operation("layer_norm without weight", lambda f, x: f.layer_norm(x, x.shape[-1:], eps=0.1), matrix, magnitude=160),
    Operation(
        "rms_norm",
        lambda f, x, w: f.rms_norm(x, w.shape, w, eps=0.1),
        shapes_of(3, 1).map(lambda s: (s[0], s[0][-2:])),
        magnitude=160,
    ),
    Operation("mse_loss", lambda f, a, b: f.mse_loss(a, b), same, magnitude=200),
    Operation("mse_loss, summed", lambda f, a, b: f.mse_loss(a, b, reduction="sum"), same, magnitude=3000),
    Operation("mse_loss, each", lambda f, a, b: f.mse_loss(a, b, reduction="none"), same, magnitude=200),
]
CLASSES = [
    Operation(f"cross_entropy, {how}", lambda f, x, t, how=how: f.cross_entropy(x, t, reduction=how), shapes)
    for how in ("mean", "sum", "none")
    for shapes in [st.just(((3, 4),))]
]
