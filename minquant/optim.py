"""Optimizers: SGD, Adam, AdamW, with torch's arguments, defaults and float32 order of operations."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from minquant.kernels.choice import compiled
from minquant.nn.module import clear_grad
from minquant.tensor import Tensor, no_grad


class Optimizer:
    """Base class: parameters in groups, each with its own options, and a state for each parameter.

    Subclasses give `defaults` and write `_update(value, grad, state, group)`, which changes one parameter's values in
    place.

    Args:
        params: Tensors that require a gradient, or dicts {"params": …, option: value …}, one a group.
        defaults: the options of groups that do not give them.

    Raises:
        TypeError: one bare Tensor, or something that is not a Tensor.
        ValueError: no parameter, a parameter twice, one that is not a leaf, an unknown or impossible option.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor):
            raise TypeError("params must be an iterable of Tensors or of dicts, got one Tensor: put it in a list")
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[Tensor, dict[str, Any]] = {}
        groups = list(params)
        if not groups:
            raise ValueError(f"{type(self).__name__} got no parameters: pass model.parameters(), and pass it once only")
        for group in groups if isinstance(groups[0], dict) else [{"params": groups}]:
            self.add_param_group(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters: {"params": …, option: value …}."""
        params = param_group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        group = {**self.defaults, **param_group, "params": params}
        unknown = sorted(param_group.keys() - self.defaults.keys() - {"params"})
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no option {', '.join(unknown)}: its options are {', '.join(self.defaults)}"
            )
        self._check_options(group)
        known = {p for g in self.param_groups for p in g["params"]}
        for p in params:
            _check_parameter(p)
            if p in known:
                raise ValueError(f"{type(self).__name__}: a parameter of shape {p.shape} is given twice")
            known.add(p)
        self.param_groups.append(group)

    def _check_options(self, group: dict[str, Any]) -> None:
        for name in ("lr", "momentum", "weight_decay", "eps"):
            if not group.get(name, 0) >= 0:
                raise ValueError(f"{type(self).__name__}: {name} must not be negative, got {group[name]}")
        for beta in group.get("betas", ()):
            if not 0 <= beta < 1:
                raise ValueError(f"{type(self).__name__}: betas must lie in [0, 1), got {group['betas']}")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                clear_grad(p, set_to_none)

    @no_grad()
    def step(self) -> None:
        """Update, in place, every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p.data, p.grad.data, self.state.setdefault(p, {}), group)
                    p.mark_changed()

    def _update(self, value: np.ndarray, grad: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise NotImplementedError

    # ---- state ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """{"state": {parameter's number: its state}, "param_groups": [options, and numbers as "params"]}."""
        numbers = {p: i for i, p in enumerate(self._all())}
        return {
            "state": {numbers[p]: _copied(state) for p, state in self.state.items()},
            "param_groups": [{**g, "params": [numbers[p] for p in g["params"]]} for g in self.param_groups],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over options and state; ValueError unless the groups hold as many parameters."""
        given = [len(g["params"]) for g in state_dict["param_groups"]]
        own = [len(g["params"]) for g in self.param_groups]
        if given != own:
            raise ValueError(f"load_state_dict: groups of {given} parameters do not fit groups of {own}")
        for group, new in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({**new, "params": group["params"]})
        params = self._all()
        self.state = {params[i]: _copied(state) for i, state in state_dict["state"].items()}

    def _all(self) -> list[Tensor]:
        return [p for g in self.param_groups for p in g["params"]]

    def __repr__(self) -> str:
        groups = [
            {k: v for k, v in g.items() if k != "params"} | {"params": len(g["params"])} for g in self.param_groups
        ]
        return f"{type(self).__name__}({', '.join(map(str, groups))})"


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """With arrays of its own, since those of a parameter change in place."""
    return {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in state.items()}


def _check_parameter(p: Any) -> None:
    if not isinstance(p, Tensor):
        raise TypeError(f"an optimizer trains Tensors, got {type(p).__name__}")
    if not p.is_leaf:
        raise ValueError(f"an optimizer trains leaves, this tensor was made by {p.grad_fn}")


class SGD(Optimizer):
    """Stochastic gradient descent.

    g += λ θ (weight decay); v = μ v + (1 − dampening) g, at first g; θ −= lr · v, Nesterov: lr (g + μ v).
    Source: torch.optim.SGD 2.13.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
    ) -> None:
        options = dict(lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov)
        super().__init__(params, options)

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("SGD: nesterov needs a momentum above 0 and no dampening")

    def _update(self, value: np.ndarray, grad: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * value
        if momentum:
            velocity = state.get("momentum_buffer")
            velocity = grad.copy() if velocity is None else velocity * momentum + (1 - group["dampening"]) * grad
            state["momentum_buffer"] = velocity
            grad = grad + momentum * velocity if group["nesterov"] else velocity
        value -= group["lr"] * grad


class Adam(Optimizer):
    """Steps of about lr, by the running mean of the gradient over the root of that of its square.

    m += (1 − β₁)(g − m); v = β₂ v + (1 − β₂) g²; θ −= lr/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + ε).
    Weight decay is added to g.
    Source: Kingma and Ba 2015, algorithm 1; torch.optim.Adam 2.13.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    def _update(self, value: np.ndarray, grad: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * value
        _adam_step(value, grad, state, group)


class AdamW(Optimizer):
    """Adam whose weight decay shrinks θ itself by lr · λ and stays out of the gradient's statistics.

    Source: Loshchilov and Hutter 2019, algorithm 2; torch.optim.AdamW 2.13.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    def _update(self, value: np.ndarray, grad: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> None:
        value *= 1 - group["lr"] * group["weight_decay"]
        _adam_step(value, grad, state, group)


def _adam_step(value: np.ndarray, grad: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    if not state:
        state.update(step=0, exp_avg=np.zeros_like(value), exp_avg_sq=np.zeros_like(value))
    state["step"] += 1
    factors = 1 - beta1, beta2, 1 - beta2
    divisors = math.sqrt(1 - beta2 ** state["step"]), group["eps"], -(group["lr"] / (1 - beta1 ** state["step"]))
    arrays = value, grad, state["exp_avg"], state["exp_avg_sq"]
    kernels = compiled("optimizers", value.size)
    if kernels and all([a.dtype == np.float32 and a.flags.c_contiguous for a in arrays]):
        kernels.adam(*arrays, factors, divisors)
    else:
        _adam(*arrays, factors, divisors)


def _adam(
    value: np.ndarray,
    grad: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    factors: tuple[float, float, float],
    divisors: tuple[float, float, float],
) -> None:
    """What the kernel computes, in NumPy and for any dtype."""
    c1, beta2, c2 = factors
    root, eps, step = divisors
    mean += c1 * (grad - mean)
    square[...] = square * beta2 + c2 * grad * grad
    value += step * mean / (np.sqrt(square) / root + eps)
