"""`from_torch`: a float torch model, or one that minquant prepared for training, as a minquant model, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant.nn import Identity, Module, Parameter
from minquant.tensor import Tensor

from .borrowed import borrow
from .by_name import fill
from .shell import shell_of
from .torch_layers import KINDS, Kind, class_name, foreign_options, kind_of
from .torch_tensors import array_of, tensor_problem

__all__ = ["from_torch"]


def from_torch(module: Any, into: Module | None = None) -> Module:
    """A float torch module as a minquant Module with the same parameters and buffers.

    So is one that `to_torch` made of a minquant model in quantization-aware training, and that was trained on in torch:
    it comes back as that model, with the weights and ranges that it has now, to be converted.

    Layers that minquant has become minquant's, containers and fused layers (`torch.ao.nn.intrinsic`) too. Of a
    module class of your own, minquant borrows the `forward`, if that only calls submodules and uses operators and
    methods that minquant's tensors have; otherwise write the class for minquant and hand an object of it in `into`.

    Args:
        module: torch.nn.Module in float32, not quantized, and not prepared by torch or torchao.
        into: a minquant Module whose parameters and buffers have the same names; it is filled and returned.

    Returns:
        A minquant Module that shares no memory with `module`. Values are equal bit for bit; `training` and
        `requires_grad` are the same; modules and parameters that were shared are shared. Hooks are refused, a
        `qconfig` attribute is left behind, and so are gradients. ``inplace=True`` changes nothing in a model of known
        containers, where no tensor is read twice, and is refused where a forward is borrowed.

    Raises:
        ImportError: torch is not installed.
        TypeError: `module` is no torch module, or `into` no minquant module.
        ValueError: something that cannot be brought over; the message lists everything, by path.

    Outputs differ only in the order in which sums are added: a layer of K products by at most
    ``2·(K + 2)·2⁻²⁴·(Σ|x·w| + |b|)``.
    Source: torch.nn, torch 2.13.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError("from_torch needs torch: pip install 'minquant[torch]'") from error
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"from_torch: expected a torch.nn.Module, got {module!r}")
    if into is not None:
        return fill(into, module)
    building = _Building(torch)
    new = building.module("", module)
    if building.borrowed:
        building.problems += building.inplace
    if building.problems:
        lines = "\n  ".join(building.problems)
        raise ValueError(f"from_torch cannot bring {type(module).__name__} over:\n  {lines}")
    return new


class _Building:
    """Builds the new model from the bottom, and collects what is wrong on the way."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.modules: dict[int, Module] = {}
        self.tensors: dict[int, Tensor] = {}
        self.problems: list[str] = []
        self.inplace: list[str] = []
        self.borrowed = False

    def module(self, path: str, theirs: Any) -> Module:
        """The counterpart of a module; shared modules stay shared."""
        if id(theirs) not in self.modules:
            self._check_hooks(path, theirs)
            kind, shell = kind_of(theirs), vars(theirs).get("shell")
            if isinstance(shell, Module):
                new = self._back(path, theirs, shell)
            else:
                new = self._borrow(path, theirs) if kind is None else self._layer(path, theirs, kind)
            self.modules[id(theirs)] = new
            new.training = theirs.training
        return self.modules[id(theirs)]

    def _back(self, path: str, theirs: Any, shell: Module) -> Module:
        """What `to_torch` once made this of, with the tensors and modules that it has now."""
        new = shell_of(shell)
        self._tensors(path, theirs, new)
        self._children(path, theirs, new)
        return new

    def _layer(self, path: str, theirs: Any, kind: Kind) -> Module:
        new = kind.ours.__new__(kind.ours)
        Module.__init__(new)
        for name in kind.settings:
            setattr(new, name, getattr(theirs, name))
        for option in foreign_options(theirs, kind):
            self._problem(path, theirs, option)
        if getattr(theirs, "inplace", False):
            self.inplace.append(
                f"{self._name(path, theirs)}: inplace=True, which a borrowed forward could notice; minquant writes "
                "into no input: set inplace=False on the torch modules first"
            )
        if self._check_parts(path, theirs, kind):
            self._tensors(path, theirs, new)
            if kind.container:
                self._children(path, theirs, new)
        return new

    def _check_parts(self, path: str, theirs: Any, kind: Kind) -> bool:
        """Whether the layer holds what its class holds, and nothing that a tool has put there."""
        names = [*theirs._parameters, *theirs._buffers]
        foreign = [name for name in names if name not in kind.tensors]
        for name, child in theirs._modules.items():
            is_place = name in kind.places and kind_of(child) == KINDS["torch.nn.modules.linear.Identity"]
            foreign += [] if kind.container or is_place else [name]
        missing = [name for name in kind.tensors if name not in names]
        for what, found in (("holds", foreign), ("lacks", missing)):
            if found:
                self._problem(path, theirs, f"{what} {', '.join(found)}: is it prepared, or parametrized? Pass the "
                              "plain float model")  # fmt: skip
        return not (foreign or missing)

    def _borrow(self, path: str, theirs: Any) -> Module:
        if class_name(theirs).split(".")[0] in ("torch", "torchao"):
            self._problem(path, theirs, f"minquant has no counterpart of {class_name(theirs)}")
            return Identity()
        if class_name(theirs).startswith("minquant."):
            self._problem(path, theirs, "is on integers; float models and those in training come back")
            return Identity()
        new, problems = borrow(theirs, self.torch.nn.Module)
        new.path = path
        self.borrowed = True
        for problem in problems:
            self._problem(path, theirs, problem)
        self._children(path, theirs, new)
        return new

    def _children(self, path: str, theirs: Any, new: Module) -> None:
        for name, child in theirs._modules.items():
            new.add_module(name, None if child is None else self.module(f"{path}.{name}" if path else name, child))

    def _tensors(self, path: str, theirs: Any, new: Module) -> None:
        for name, parameter in theirs._parameters.items():
            new.register_parameter(name, self._tensor(f"{path}.{name}" if path else name, parameter, Parameter))
        for name, buffer in theirs._buffers.items():
            if name not in theirs._non_persistent_buffers_set:
                new.register_buffer(name, self._tensor(f"{path}.{name}" if path else name, buffer, Tensor))

    def _tensor(self, path: str, theirs: Any, kind: type[Tensor]) -> Any:
        """The counterpart of a parameter or buffer; tied ones stay tied."""
        if theirs is None:
            return None
        problem = tensor_problem(theirs)
        if problem:
            self.problems.append(f"{path}: {problem}")
            return kind(np.zeros(()), requires_grad=False)
        if id(theirs) not in self.tensors:
            self.tensors[id(theirs)] = kind(array_of(theirs), requires_grad=theirs.requires_grad)
        return self.tensors[id(theirs)]

    def _check_hooks(self, path: str, theirs: Any) -> None:
        hooks = [name for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
                 if getattr(theirs, name)]  # fmt: skip
        if hooks:
            self._problem(path, theirs, f"has hooks ({', '.join(hooks)}), which would be lost: remove them first")

    def _name(self, path: str, theirs: Any) -> str:
        return f"{path or 'the model itself'} ({type(theirs).__name__})"

    def _problem(self, path: str, theirs: Any, what: str) -> None:
        self.problems.append(f"{self._name(path, theirs)}: {what}")
