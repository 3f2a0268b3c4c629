"""What lies between two grids: as tables, which minquant itself fills.

An operation on integers of one grid that looks at one of them at a time is a table of at most 256 entries, and one of
two operands a table of 65,536. Both are filled by running minquant's own layer, in NumPy, on every integer that there
is; on the device they are looked up. So nothing is computed twice, and nothing can differ.

torch's engines compute whole vectors and what is left over by different rules
(`minquant.quant.dialects.torch_rounding`); there are two tables then, and the element's place decides which.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minquant import nn
from minquant.quant import QParams, QTensor
from minquant.quant.dialects import Dialect, get_dialect
from minquant.quant.dialects.torch_pooling import lies_channels_last
from minquant.quant.dialects.torch_rounding import in_vectors, whole_channels

from .quantized import Grid, QuantizedTensor, integers_of

__all__ = [
    "BetweenGrids",
    "Functional",
    "PerChannelUnary",
    "Table",
    "Unary",
    "WithOutput",
    "every_integer",
    "index_of",
    "tables",
]

ALL_WHOLE, NONE_WHOLE = 4, 1 << 40
"""Bytes of a vector register: so few that every element lies in a whole vector, and so many that none does."""


@dataclass(frozen=True)
class Table:
    """What becomes of integers: of those in whole vectors, and of those left over where that is another.

    Attributes:
        whole: for every integer (or pair of integers) its result, flat.
        rest: likewise; None where there is no difference.
        output: the grid of the results.
        places: by the shapes of operands, which elements of the result lie in whole vectors.
    """

    whole: Tensor
    rest: Tensor | None
    output: QParams
    places: dict[Any, Tensor] = field(default_factory=dict)

    def look_up(self, index: Tensor, shapes: Any, places: Callable[..., np.ndarray]) -> QuantizedTensor:
        """The results; ``places(shapes)`` says which elements lie in whole vectors, and is asked once if it matters."""
        if self.rest is None:
            return QuantizedTensor(self.whole[index], self.output)
        if shapes not in self.places:
            self.places.clear()  # of the last ones: a model's shapes seldom change
            self.places[shapes] = torch.tensor(np.array(places(shapes))).to(index.device)
        return QuantizedTensor(torch.where(self.places[shapes], self.whole[index], self.rest[index]), self.output)


def tables(dialect: Dialect, run: Callable[[Any], QTensor], device: torch.device) -> Table:
    """Fills a table.

    Args:
        dialect: minquant's.
        run: called with a copy of the dialect, runs the operation on every integer.
        device: where the table is to lie.
    """
    done = [run(_with_lanes(dialect, lanes)) for lanes in (ALL_WHOLE, NONE_WHOLE)]
    whole, rest = (np.array(q.int_repr().reshape(-1)) for q in done)
    alike = np.array_equal(whole, rest)
    flat = (torch.tensor(q, device=device) for q in (whole, rest))
    return Table(next(flat), None if alike else next(flat), done[0].qparams)


def _with_lanes(dialect: Dialect, lanes: int) -> Any:
    """A copy for vector registers of that many bytes; dialects without vectors do not look."""
    other: Any = copy.copy(dialect)
    other.lanes = lanes
    return other


def every_integer(grid: QParams) -> QTensor:
    """The grid's integers, ascending."""
    return QTensor(np.arange(grid.spec.qmin, grid.spec.qmax + 1).astype(grid.spec.dtype), grid)


def index_of(x: QuantizedTensor) -> Tensor:
    """Where each integer stands in `every_integer`, int32."""
    return x.integers.int() - x.qparams.spec.qmin


class WithOutput(torch.nn.Module):
    """What has a grid for its results, a dialect, and tables.

    Args:
        module: minquant's.
        path: where it stands in the model.
    """

    def __init__(self, module: Any, path: str) -> None:
        super().__init__()
        self.path, self.backend = path, module.backend
        self.output = None if module.output is None else Grid(module.output)
        self._tables: dict[Any, tuple[tuple[QParams, ...], Table]] = {}

    @property
    def dialect(self) -> Any:
        """The dialect of that name."""
        return get_dialect(self.backend)

    def output_of(self, x: QuantizedTensor) -> QParams:
        """The grid of the result: x's own, if the module has none."""
        return x.qparams if self.output is None else self.output.qparams

    def table(self, key: Any, operands: Sequence[QuantizedTensor], run: Callable[..., QTensor]) -> Table:
        """The table of an operation on operands of these grids; filled by ``run(dialect, every integer …, output)``."""
        output = self.output_of(operands[0])
        grids = (*(x.qparams for x in operands), output)
        if key not in self._tables or any(a is not b for a, b in zip(self._tables[key][0], grids, strict=True)):
            every = [every_integer(x.qparams) for x in operands]
            device = operands[0].integers.device
            self._tables[key] = grids, tables(self.dialect, lambda d: run(d, *every, output), device)
        return self._tables[key][1]

    def in_vectors(self, shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Which elements of the result of operands of these shapes lie in whole vectors."""
        return in_vectors(list(map(tuple, shapes)), self.dialect.lanes, self.dialect.channels_last)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._tables.clear()
        return super()._apply(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"backend={self.backend!r}"


class BetweenGrids(WithOutput):
    """What stands for a `BetweenGrids` of minquant's; `on_integers` is what a subclass defines.

    Args:
        module: minquant's.
        path: where it stands in the model.
        real: what it is outside the quantized part of a model, where real values come.
    """

    on_integers: Callable[[QuantizedTensor], QuantizedTensor]

    def __init__(self, module: Any, path: str, real: torch.nn.Module) -> None:
        super().__init__(module, path)
        self.module = real
        self.of_minquant = module.module

    def forward(self, x: Any) -> Any:
        return self.on_integers(x) if isinstance(x, QuantizedTensor) else self.module(x)


class Unary(BetweenGrids):
    """Of an operation that looks at one element at a time."""

    def on_integers(self, x: QuantizedTensor) -> QuantizedTensor:
        """Looked up."""
        table = self.table(None, (x,), self.run)
        return table.look_up(index_of(x), (x.shape,), self.in_vectors)

    def run(self, dialect: Any, every: QTensor, output: QParams) -> QTensor:
        """The layer on every integer."""
        from minquant.quant.between import RULES

        rule = RULES.get(type(self.of_minquant))
        if rule is None:
            return dialect.in_real_values(self.of_minquant, (every,), output)
        return rule(dialect, self.of_minquant, every, output)


class PerChannelUnary(BetweenGrids):
    """Of a batch norm in eval: a table for each channel."""

    def on_integers(self, x: QuantizedTensor) -> QuantizedTensor:
        """Looked up."""
        table = self.table(None, (x,), self.run)
        steps = x.qparams.spec.qmax - x.qparams.spec.qmin + 1
        channel = torch.arange(x.shape[1], dtype=torch.int32, device=x.integers.device)
        index = index_of(x) + steps * channel.reshape(-1, *[1] * (x.ndim - 2))
        return table.look_up(index, (x.shape,), self.in_vectors)

    def run(self, dialect: Any, every: QTensor, output: QParams) -> QTensor:
        """The layer on every integer in every channel, (C, integers)."""
        channels, axes = self.of_minquant.num_features, {nn.BatchNorm1d: 0, nn.BatchNorm2d: 2}[type(self.of_minquant)]
        rows = np.repeat(every.int_repr()[:, np.newaxis], channels, axis=1).reshape(len(every), channels, *[1] * axes)
        y = dialect.in_real_values(self.of_minquant, (QTensor(rows, every.qparams),), output)
        return QTensor(y.int_repr().reshape(len(every), channels).T, output)


class Functional(WithOutput):
    """minquant's `QFunctional`: sums, products and joins of quantized tensors, on one grid.

    Args:
        module: minquant's.
        path: where it stands in the model.
    """

    output: Grid

    def add(self, x: QuantizedTensor, y: QuantizedTensor) -> QuantizedTensor:
        """X + y."""
        return self._pair("add", x, y, lambda d, a, b, output: d.add(a, b, output, False))

    def add_relu(self, x: QuantizedTensor, y: QuantizedTensor) -> QuantizedTensor:
        """max(x + y, 0)."""
        return self._pair("add_relu", x, y, lambda d, a, b, output: d.add(a, b, output, True))

    def mul(self, x: QuantizedTensor, y: QuantizedTensor) -> QuantizedTensor:
        """X · y."""
        return self._pair("mul", x, y, lambda d, a, b, output: d.mul(a, b, output, False))

    def add_scalar(self, x: QuantizedTensor, y: float) -> QuantizedTensor:
        """X + y of a number y."""
        return self._each(("add_scalar", y), x, lambda d, a, output: d.add_scalar(a, y, output))

    def mul_scalar(self, x: QuantizedTensor, y: float) -> QuantizedTensor:
        """X · y of a number y."""
        return self._each(("mul_scalar", y), x, lambda d, a, output: d.mul_scalar(a, y, output))

    def cat(self, x: Sequence[QuantizedTensor], dim: int = 0) -> QuantizedTensor:
        """The tensors of x joined along axis dim."""
        parts = [integers_of(part, self) for part in x]
        dialect = self.dialect
        by_channel = dim == 1 and all(lies_channels_last(tuple(p.shape), True) for p in parts)
        done = []
        for i, part in enumerate(parts):
            table = self.table(("cat", i, by_channel), (part,), lambda d, a, output: _joined(d, a, by_channel, output))
            done.append(table.look_up(index_of(part), part.shape, lambda s: whole_channels(s, dialect.lanes)).integers)
        return QuantizedTensor(torch.cat(done, dim), self.output.qparams)

    def matmul(self, x: QuantizedTensor, y: QuantizedTensor) -> QuantizedTensor:
        """X @ y: not covered.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"QFunctional '{self.path}': matmul of two activations adds real values, in an order that each device "
            "chooses, so its integers could differ; put it between a DeQuantStub and a QuantStub"
        )

    def _pair(self, name: str, x: Any, y: Any, run: Callable[..., QTensor]) -> QuantizedTensor:
        x, y = integers_of(x, self), integers_of(y, self)
        alike = x.shape == y.shape  # qnnpack has another kernel for operands that broadcast
        table = self.table((name, alike), (x, y), lambda d, a, b, output: run(d, *_pairs(a, b, alike), output))
        steps = y.qparams.spec.qmax - y.qparams.spec.qmin + 1
        return table.look_up(index_of(x) * steps + index_of(y), (x.shape, y.shape), self.in_vectors)

    def _each(self, key: Any, x: Any, run: Callable[..., QTensor]) -> QuantizedTensor:
        x = integers_of(x, self)
        return self.table(key, (x,), run).look_up(index_of(x), (x.shape,), self.in_vectors)


def _pairs(a: QTensor, b: QTensor, alike: bool) -> tuple[QTensor, QTensor]:
    """Every integer of the one with every integer of the other."""
    rows, columns = a.int_repr()[:, None], b.int_repr()[None, :]
    if alike:
        rows, columns = np.broadcast_arrays(rows, columns)
    return QTensor(np.ascontiguousarray(rows), a.qparams), QTensor(np.ascontiguousarray(columns), b.qparams)


def _joined(dialect: Any, every: QTensor, by_channel: bool, output: QParams) -> QTensor:
    """Each integer a channel of an image of one pixel, or an element."""
    one = every.reshape(1, len(every), 1, 1) if by_channel else every
    return dialect.cat([one], 1 if by_channel else 0, output)
