"""Module: a tree of layers, with their parameters and buffers by name, as torch.nn.Module is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from minquant.tensor import Tensor

if TYPE_CHECKING:
    from minquant.tensor import TensorLike

Hook = Callable[["Module", tuple[Any, ...], Any], Any]


class Parameter(Tensor):
    """A tensor that a Module lists among its parameters, and an optimizer trains."""

    def __init__(self, data: TensorLike, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)


class RemovableHandle:
    """What registering a hook returns: `remove()` unregisters it."""

    def __init__(self, hooks: dict[int, Hook], key: int) -> None:
        self._hooks, self._key = hooks, key

    def remove(self) -> None:
        """Unregister the hook."""
        self._hooks.pop(self._key, None)


class Module:
    """Base of all layers and models: assign Parameters and Modules to attributes, and write `forward`.

    Attributes:
        training: True after `train()`, False after `eval()`.
    """

    training: bool
    forward: Callable[..., Any]
    resizable: ClassVar[tuple[str, ...]] = ()
    """Buffers and parameters whose shape follows from data seen, so that a fresh module does not know it yet."""

    def __init__(self) -> None:
        for name, value in (
            ("training", True),
            ("_parameters", {}),
            ("_buffers", {}),
            ("_modules", {}),
            ("_forward_hooks", OrderedDict()),
        ):
            object.__setattr__(self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """forward(*args, **kwargs), then the forward hooks, each of which may replace the output."""
        output = self.forward(*args, **kwargs)
        for hook in tuple(self._forward_hooks.values()):
            replacement = hook(self, args, output)
            output = output if replacement is None else replacement
        return output

    # ---- attributes ----------------------------------------------------------------------------------------

    def _tables(self) -> tuple[dict[str, Any], ...]:
        try:
            return self.__dict__["_parameters"], self.__dict__["_buffers"], self.__dict__["_modules"]
        except KeyError:
            raise AttributeError(
                f"{type(self).__name__}: call super().__init__() before assigning attributes"
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        parameters, buffers, modules = self._tables()
        if isinstance(value, Parameter):
            self._register(name, value, parameters)
        elif isinstance(value, Module):
            self._register(name, value, modules)
        elif name in parameters or name in modules:
            if value is not None:
                kind = "a Parameter" if name in parameters else "a Module"
                raise TypeError(f"{type(self).__name__}.{name} is {kind}, it cannot become {value!r}")
            (parameters if name in parameters else modules)[name] = None
        elif name in buffers:
            buffers[name] = _buffer(name, value)
        else:
            object.__setattr__(self, name, value)

    def _register(self, name: str, value: Any, table: dict[str, Any]) -> None:
        for other in (*self._tables(), self.__dict__):
            if other is not table:
                other.pop(name, None)
        table[name] = value

    def __getattr__(self, name: str) -> Any:  # only for names that are not ordinary attributes
        own = self.__dict__
        if "_modules" in own:
            for table in (own["_modules"], own["_parameters"], own["_buffers"]):
                if name in table:
                    return table[name]
        self._tables()
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __delattr__(self, name: str) -> None:
        for table in self._tables():
            if name in table:
                del table[name]
                return
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(name for table in self._tables() for name in table)]

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter, or None as a place for one."""
        self._check_name(name)
        self._register(name, param, self._parameters)

    def register_buffer(self, name: str, tensor: TensorLike | None) -> None:
        """Add a tensor that is saved with the parameters but not trained."""
        self._check_name(name)
        self._register(name, _buffer(name, tensor), self._buffers)

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a child."""
        self._check_name(name)
        self._register(name, module, self._modules)

    def _check_name(self, name: str) -> None:
        if not name or "." in name:
            raise ValueError(f"{type(self).__name__}: a name must be non-empty and without dots, got {name!r}")

    def register_forward_hook(self, hook: Hook) -> RemovableHandle:
        """Call hook(module, inputs, output) after forward; its result, unless None, replaces the output."""
        key = max(self._forward_hooks, default=-1) + 1
        self._forward_hooks[key] = hook
        return RemovableHandle(self._forward_hooks, key)

    # ---- the tree ------------------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Direct children by attribute name, each once."""
        seen: set[Module] = set()
        for name, child in self._modules.items():
            if child is not None and child not in seen:
                seen.add(child)
                yield name, child

    def children(self) -> Iterator[Module]:
        """Direct children."""
        return (child for _, child in self.named_children())

    def named_modules(self, prefix: str = "", memo: set[Module] | None = None) -> Iterator[tuple[str, Module]]:
        """This module ("") and all below it by path, parents first, each once."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        memo.add(self)
        yield prefix, self
        for name, child in self._modules.items():
            if child is not None:
                yield from child.named_modules(_join(prefix, name), memo)

    def modules(self) -> Iterator[Module]:
        """This module and all below it."""
        return (module for _, module in self.named_modules())

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Parameter]]:
        """Parameters by path, each once."""
        return self._named("_parameters", prefix, recurse)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Parameters, each once."""
        return (parameter for _, parameter in self.named_parameters(recurse=recurse))

    def named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Buffers by path, each once."""
        return self._named("_buffers", prefix, recurse)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Buffers, each once."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    def _named(self, table: str, prefix: str, recurse: bool) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for path, module in self.named_modules(prefix) if recurse else [(prefix, self)]:
            for name, tensor in getattr(module, table).items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield _join(path, name), tensor

    def get_submodule(self, target: str) -> Module:
        """The module at a path such as "encoder.0.fc1" ("" is this one); AttributeError if there is none."""
        module: Any = self
        for i, name in enumerate(target.split(".") if target else ()):
            child = module._modules.get(name)
            if child is None:
                where = ".".join(target.split(".")[:i]) or type(self).__name__
                names = ", ".join(module._modules) or "no modules"
                raise AttributeError(f"no module {target!r}: {where} has {names}, not {name!r}")
            module = child
        return module

    # ---- on the whole tree ---------------------------------------------------------------------------------

    def apply(self, fn: Callable[[Module], Any]) -> Module:
        """Call fn on every module, children first; returns self."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    def train(self, mode: bool = True) -> Module:
        """Set `training` everywhere; returns self."""
        self.training = mode
        for child in self.children():
            child.train(mode)
        return self

    def eval(self) -> Module:
        """train(False)."""
        return self.train(False)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            clear_grad(parameter, set_to_none)

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Freeze (False) or thaw all parameters; returns self."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    # ---- state ---------------------------------------------------------------------------------------------

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and buffers by path, detached, memory shared."""
        state = {
            prefix + name: tensor.detach()
            for table in (self._parameters, self._buffers)
            for name, tensor in table.items()
            if tensor is not None
        }
        for name, child in self._modules.items():
            if child is not None:
                state.update(child.state_dict(f"{prefix}{name}."))
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Copy values into the parameters and buffers.

        Args:
            state_dict: path -> anything that np.asarray takes, torch tensors included.
            strict: refuse missing and unexpected names (shapes must fit in any case; a range
                that a fresh observer has yet to see takes any).

        Raises:
            ValueError: names that are missing or unexpected, shapes or kinds of dtype that differ; all are
                listed, and nothing has been changed.
        """
        own = self.state_dict()
        given = {name: _value(value) for name, value in state_dict.items()}
        problems = []
        if strict:
            problems += [f"missing: {name}" for name in own if name not in given]
            problems += [f"unexpected: {name}" for name in given if name not in own]
        resizable = self._resizable()
        for name in own.keys() & given.keys():
            problems += _misfit(name, own[name], given[name], name in resizable)
        if problems:
            lines = "\n  ".join(sorted(problems))
            raise ValueError(f"load_state_dict does not fit {type(self).__name__}:\n  {lines}")
        for name in own.keys() & given.keys():
            value = given[name].astype(own[name].dtype)
            if value.shape == own[name].shape:
                own[name].copy_(value)
            else:
                resizable[name].data = value

    def _resizable(self) -> dict[str, Tensor]:
        """By path, the tensors that take the shape of what is loaded into them."""
        return {
            _join(path, name): getattr(module, name)
            for path, module in self.named_modules()
            for name in module.resizable
            if getattr(module, name) is not None
        }

    # ---- as text -------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What stands between the parentheses of the repr."""
        return ""

    def __repr__(self) -> str:
        lines = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self._modules.items()]
        extra = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({extra})"
        body = "\n  ".join([extra] * bool(extra) + lines)
        return f"{type(self).__name__}(\n  {body}\n)"


def clear_grad(parameter: Tensor, set_to_none: bool) -> None:
    """Set a gradient to None, or to zeros."""
    if set_to_none:
        parameter.grad = None
    elif parameter.grad is not None:
        parameter.grad.zero_()


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _buffer(name: str, value: TensorLike | None) -> Tensor | None:
    return value if value is None or isinstance(value, Tensor) else Tensor(value)


def _value(value: Any) -> np.ndarray:
    return np.asarray(value.detach() if hasattr(value, "detach") else value)


def _misfit(name: str, own: Tensor, given: np.ndarray, resizable: bool) -> list[str]:
    if own.shape != given.shape and not resizable:
        return [f"shape of {name}: expected {own.shape}, got {given.shape}"]
    if not np.can_cast(given.dtype, own.dtype, "same_kind"):
        return [f"dtype of {name}: expected {own.dtype}, got {given.dtype}"]
    return []
