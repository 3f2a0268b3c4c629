"""Layers: containers, Linear, activations. Names, arguments and defaults are torch.nn's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from minquant import functional as F  # noqa: N812 (torch's name)
from minquant.nn import init
from minquant.nn.module import Module, Parameter
from minquant.tensor import Tensor

if TYPE_CHECKING:
    from minquant.tensor import TensorLike

# ---- containers --------------------------------------------------------------------------------------------


class _Indexed(Module):
    """Children named 0, 1, 2 …, with a list's access."""

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self._of(list(self)[index])
        return self._modules[self._name(index)]

    def __setitem__(self, index: int, module: Module) -> None:
        self.add_module(self._name(index), module)

    def append(self, module: Module) -> Any:
        """Add a child at the end; returns self."""
        self.add_module(str(len(self)), module)
        return self

    def _of(self, modules: list[Module]) -> _Indexed:
        raise NotImplementedError

    def _name(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a {type(self).__name__} of {len(self)} modules")
        return list(self._modules)[index]


class Sequential(_Indexed):
    """Modules one after the other: Sequential(a, b)(x) = b(a(x)). A dict of modules gives them names."""

    def __init__(self, *args: Module | dict[str, Module]) -> None:
        super().__init__()
        named = args[0] if len(args) == 1 and isinstance(args[0], dict) else {str(i): m for i, m in enumerate(args)}
        for name, module in named.items():
            self.add_module(name, module)  # type: ignore[arg-type]

    def forward(self, input: Any) -> Any:
        for module in self:
            input = module(input)
        return input

    def _of(self, modules: list[Module]) -> Sequential:
        return Sequential(*modules)


class ModuleList(_Indexed):
    """A list of modules, whose parameters are found; it has no forward of its own."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        for module in modules:
            self.append(module)

    def _of(self, modules: list[Module]) -> ModuleList:
        return ModuleList(modules)


class Identity(Module):
    """x."""

    def forward(self, input: Any) -> Any:
        return input


class Flatten(Module):
    """The axes from start_dim to end_dim as one: (N, …) -> (N, ·)."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: TensorLike) -> Tensor:
        return F.flatten(input, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


# ---- linear ------------------------------------------------------------------------------------------------


class Linear(Module):
    """y = x wᵀ + b: (…, in_features) -> (…, out_features).

    Initial values, uniform within ±1/√in_features, are bit-equal to torch's after the same `manual_seed`.

    Raises:
        ValueError: an input whose last axis is not in_features; sizes below 1.
        TypeError: an input that is not float32, like the weight.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"Linear: sizes must be positive, got {in_features=}, {out_features=}")
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(np.empty((out_features, in_features), np.float32))
        self.register_parameter("bias", Parameter(np.empty(out_features, np.float32)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new initial values."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: TensorLike) -> Tensor:
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


# ---- activations -------------------------------------------------------------------------------------------


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, input: TensorLike) -> Tensor:
        return F.relu(input)


class GELU(Module):
    """x Φ(x); approximate="tanh" for the approximation without the error function."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, input: TensorLike) -> Tensor:
        return F.gelu(input, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class SiLU(Module):
    """x σ(x)."""

    def forward(self, input: TensorLike) -> Tensor:
        return F.silu(input)


class Sigmoid(Module):
    """1 / (1 + e⁻ˣ)."""

    def forward(self, input: TensorLike) -> Tensor:
        return F.sigmoid(input)


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, input: TensorLike) -> Tensor:
        return F.tanh(input)


class Softmax(Module):
    """exp(x) / Σ exp(x) along dim."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: TensorLike) -> Tensor:
        return F.softmax(input, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Dropout(Module):
    """In training, zero elements with probability p and scale the others by 1/(1 − p); in eval, x itself."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout: p must lie between 0 and 1, got {p}")
        self.p = p

    def forward(self, input: TensorLike) -> Tensor:
        return F.dropout(input, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
