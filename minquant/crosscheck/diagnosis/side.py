"""One model of the two: which of its modules compute, what flows through them, and how to run one again."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minquant.quant import QTensor

from .values import Facts, Value, leaves, map_leaves, refuse_nan

__all__ = ["FUNCTIONAL_METHODS", "Call", "Side"]

FUNCTIONAL_METHODS = ("add", "add_relu", "add_scalar", "mul", "mul_relu", "mul_scalar", "matmul", "cat")
"""Of a FloatFunctional, and of what it becomes: they are called by name, not by calling the module."""


@dataclass
class Call:
    """One call of one module.

    Attributes:
        name: the module's path; "#2" and so on if it is called again.
        module: it.
        function: what to call to run it again.
        arguments: its ``(args, kwargs)`` as the model gave them.
        output: what it returned.
        inputs: the values in its arguments.
        value: its output as one value.
    """

    name: str
    module: Any
    function: Callable[..., Any]
    arguments: tuple[Any, Any]
    output: Any
    inputs: list[Value]
    value: Value


class Side(ABC):
    """A copy of a model, in eval mode.

    Args:
        model: it; left as it is.
        which: "first" or "second", for messages.
    """

    def __init__(self, model: Any, which: str) -> None:
        self.which = which
        self.model = copy.deepcopy(model).eval()
        self.modules: dict[str, Any] = dict(self._computing())
        self.facts: dict[str, Facts] = {path: self.facts_of(module) for path, module in self.modules.items()}

    # ---- what each library has its own way for -----------------------------------------------------------------------

    @abstractmethod
    def _computing(self) -> Iterator[tuple[str, Any]]:
        """Every module that computes something, by path."""

    @abstractmethod
    def facts_of(self, module: Any) -> Facts:
        """What a module knows of itself."""

    @abstractmethod
    def is_value(self, raw: Any) -> bool:
        """Whether this is a value, and not a structure of values or an option."""

    @abstractmethod
    def value_of(self, raw: Any) -> Value:
        """The library's own tensor -> a value."""

    @abstractmethod
    def like(self, template: Any, value: Value) -> Any:
        """A value -> the library's own tensor, of the kind that the template is: integers, fake-quantized or real."""

    @abstractmethod
    def quantized(self, value: Value) -> Any:
        """A value on a grid -> the library's own quantized tensor."""

    @abstractmethod
    def input(self, batch: Any) -> Any:
        """A batch as the model takes it."""

    @abstractmethod
    def without_gradients(self) -> Any:
        """A context in which nothing is recorded for gradients."""

    @abstractmethod
    def folded(self, layer: Any, bn: Any) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of a float layer with the batch norm behind it folded in."""

    @abstractmethod
    def kind_of(self, module: Any) -> str:
        """Either "call", of a module that is called, or "functional", of one whose methods are."""

    def engines(self, facts: Facts) -> tuple[str, ...]:
        """The dialects that a layer may speak: its own first."""
        return (str(facts.dialect),)

    # ---- running -----------------------------------------------------------------------------------------------------

    @property
    def has_integers(self) -> bool:
        """Whether any layer works on integers."""
        return any(facts.integers for facts in self.facts.values())

    def trace(self, batch: Any) -> list[Call]:
        """Runs the model on its own inputs.

        Raises:
            ValueError: it cannot run them; a layer returns NaN. The message names the layer.
        """
        calls: list[Call] = []
        at = [""]
        try:
            with self._recording(calls, at), self.without_gradients():
                self.model(self.input(batch))
        except Exception as error:
            where = f"in layer {at[0]!r}" if at[0] else "between its layers"
            raise ValueError(
                f"compare: the {self.which} model cannot run the inputs, {where}: {type(error).__name__}: {error}"
            ) from error
        for call in calls:
            refuse_nan(call.value, f"the output of {call.name!r} in the {self.which} model")
        return calls

    def run(self, calls: list[Call], inputs: list[Value]) -> Value:
        """The calls, one after the other, with other values in the place of the first one's inputs."""
        first, *rest = calls
        given = iter(inputs)
        args, kwargs = map_leaves(first.arguments, self.is_value, lambda raw: self.like(raw, next(given)))
        with self.without_gradients():
            output = first.function(*args, **kwargs)
            for call in rest:
                output = call.function(output)
        return self.output_value(output)

    def output_of(self, module: Any, output: Any, inputs: list[Value]) -> Value:
        """The value that a module has just returned."""
        return self.output_value(output)

    def facts_of_calls(self, calls: list[Call]) -> Facts:
        """What the layer that these calls make up knows of itself: batch norm folded, ReLU fused."""
        facts = self.facts_of(calls[0].module)
        for call in calls[1:]:
            if type(call.module).__name__ == "ReLU":
                facts = facts.with_(relu=True)
            elif not isinstance(facts.weight, QTensor):
                weight, bias = self.folded(calls[0].module, call.module)
                facts = facts.with_(weight=weight, bias=bias)
        value = calls[-1].value
        return facts.with_(output=value.qparams) if isinstance(value, QTensor) and not facts.output else facts

    def output_value(self, output: Any) -> Value:
        """The (first) value of an output."""
        return self.value_of(leaves(output, self.is_value)[0])

    @contextmanager
    def _recording(self, calls: list[Call], at: list[str]) -> Iterator[None]:
        seen: Counter[str] = Counter()

        def record(path: str, module: Any, function: Any, args: Any, kwargs: Any) -> Any:
            at[0] = path
            output = function(*args, **kwargs)
            seen[path] += 1
            if leaves(output, self.is_value):
                name = path if seen[path] == 1 else f"{path}#{seen[path]}"
                inputs = [self.value_of(raw) for raw in leaves((args, kwargs), self.is_value)]
                value = self.output_of(module, output, inputs)
                calls.append(Call(name, module, function, (args, kwargs), output, inputs, value))
            at[0] = ""
            return output

        self._wrap(record)
        try:
            yield
        finally:
            self._unwrap()

    def _wrap(self, record: Any) -> None:
        """Puts `record` around every computing module, by giving the copy's modules classes of their own."""
        self._classes = [(module, type(module)) for module in self.modules.values()]
        for path, module in self.modules.items():
            names = FUNCTIONAL_METHODS if self.kind_of(module) == "functional" else ("__call__",)
            kind = type(module)
            methods = {name: _recorded(path, getattr(kind, name), record) for name in names if hasattr(kind, name)}
            module.__class__ = type(kind.__name__, (kind,), methods)

    def _unwrap(self) -> None:
        for module, kind in self._classes:
            module.__class__ = kind


def _recorded(path: str, method: Any, record: Any) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return record(path, self, lambda *a, **k: method(self, *a, **k), args, kwargs)

    return call
