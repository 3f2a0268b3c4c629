"""A reader's own torch module in minquant: its `forward`, run on minquant's modules and tensors.

That works where `forward` only calls submodules and uses what torch's tensors and minquant's both have: operators,
methods such as `reshape`, Python itself. Whether it calls a function of torch's, which could not read minquant's
tensors, is found by looking at its code when the model is brought over; a method that minquant's tensors lack shows
only when it runs.
"""

from __future__ import annotations

from typing import Any

from minquant.nn import Module

from .forward_code import members_of, own_tensors, plain_values

__all__ = ["Borrowed", "borrow"]

ADVICE = "write it with modules and tensor methods, or pass a minquant Module of yours as into="
OVERRIDES = ("__call__", "__getattr__", "__getattribute__", "train", "eval")
"""Methods that would change what a module does without being named in its forward."""


class ForwardError(TypeError):
    """A borrowed forward asked for something that minquant lacks."""


class Borrowed(Module):
    """Base of the classes that `borrow` makes."""

    torch_class: str
    path = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The output; with an explanation where forward asks for something that only torch has.

        Raises:
            TypeError: see above.
        """
        try:
            return super().__call__(*args, **kwargs)
        except (AttributeError, TypeError) as error:
            if isinstance(error, ForwardError) or not _raised_by_forward(error):
                raise
            where = f" '{self.path}'" if self.path else ""
            raise ForwardError(
                f"the forward of {self.torch_class}{where}, brought over by from_torch, does not work on minquant's "
                f"modules and tensors ({error}): {ADVICE}"
            ) from error


def borrow(module: Any, torch_class: type) -> tuple[Borrowed, list[str]]:
    """A minquant module without children, whose forward is the torch module's, and what is wrong with that.

    Args:
        module: an object of a subclass of torch.nn.Module.
        torch_class: torch.nn.Module.

    Returns:
        The new module, and the problems found; with problems it must not be used.
    """
    kind = type(module)
    own = {name for c in kind.__mro__ if c not in torch_class.__mro__ for name in vars(c)}
    problems = [f"overrides {name}, which would be lost" for name in OVERRIDES if name in own]
    problems += own_tensors(module)
    if "forward" not in own or "forward" in vars(module):
        return Borrowed(), [*problems, "has no forward in its class that could be borrowed"]
    members, used, foreign = members_of(kind, own, ("torch",), "minquant")
    new = type(kind.__name__, (Borrowed,), {**members, "torch_class": kind.__name__})()
    values, lost = plain_values(module, {*vars(torch_class()), "qconfig"}, used)
    for name, value in values.items():
        setattr(new, name, value)
    problems += [*foreign, *lost]
    return new, [f"{problem}: {ADVICE}" for problem in problems]


def _raised_by_forward(error: BaseException) -> bool:
    """Whether no operation or layer of minquant's was at work, only the call of forward."""
    last = ""
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        last = name if name.split(".")[0] == "minquant" else last
        trace = trace.tb_next
    return last in (__name__, Module.__module__)
