"""A minquant module that is one module in torch, too: what the two share."""

from __future__ import annotations

from typing import Any

import torch

from minquant.interop.shell import shell_of

__all__ = ["Twin"]


class Twin(torch.nn.Module):
    """Base of torch modules that stand for one of minquant's, and that `from_torch` turns into it again.

    Parameters, buffers and children have minquant's names; `minquant.interop.torch_modules.build` fills them in.

    Args:
        own: minquant's module.
        path: where it stands in the model.

    Attributes:
        shell: its class, settings and hooks.
    """

    def __init__(self, own: Any, path: str) -> None:
        super().__init__()
        self.shell = shell_of(own)
        self.path = path

    @property
    def where(self) -> str:
        """Its kind and path, for messages."""
        return f"{type(self).__name__} '{self.path}'"

    def extra_repr(self) -> str:
        return str(self.shell.extra_repr())
