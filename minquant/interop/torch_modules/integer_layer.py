"""What Linear and Conv on integers share, as torch modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minquant.quant import QParams, QSpec
from minquant.quant.dialects import Dialect, get_dialect
from minquant.quant.integer import check_room

from .quantized import Weight

__all__ = ["IntegerLayer", "real_tensor"]


class IntegerLayer(torch.nn.Module):
    """What they share: integer weights, a float32 bias, a dialect.

    Args:
        layer: minquant's.
        path: where it stands in the model.
    """

    def __init__(self, layer: Any, path: str) -> None:
        super().__init__()
        self.path, self.backend, self.relu = path, layer.backend, layer.relu
        self.weight = Weight(layer.weight)
        self.register_buffer("bias", None if layer.bias is None else torch.tensor(np.array(layer.bias)))
        self._kept: tuple[tuple[QParams, ...], Any] | None = None

    @property
    def dialect(self) -> Dialect:
        """The dialect of that name."""
        return get_dialect(self.backend)

    def host_bias(self) -> np.ndarray:
        """As minquant's layers have it."""
        return np.zeros(self.weight.shape[0], np.float32) if self.bias is None else self.bias.cpu().numpy()

    def once(self, make: Callable[[], Any], *grids: QParams) -> Any:
        """What `make` returns, made anew when one of the grids that it depends on is another."""
        if self._kept is None or any(a is not b for a, b in zip(self._kept[0], grids, strict=True)):
            self._kept = grids, make()
        return self._kept[1]

    def check_room(self, zero_point: np.ndarray, spec: QSpec) -> None:
        """ValueError where the sums could leave int32."""
        K = int(np.prod(self.weight.shape[1:]))
        check_room(K, spec.dtype, zero_point, self.weight.spec.dtype, self.weight.qparams.zero_point)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._kept = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*args, **kwargs)

    @property
    def where(self) -> str:
        """Its kind and path, for messages."""
        return f"{type(self).__name__} '{self.path}'"

    def extra_repr(self) -> str:
        return f"backend={self.backend!r}, relu={self.relu}"


def real_tensor(x: Any, layer: Any) -> Tensor:
    """The input of a layer whose weight is integers, float32; as in minquant, no gradient comes back to it.

    Raises:
        TypeError: integers.
    """
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        what = f"a tensor of {x.dtype}" if isinstance(x, torch.Tensor) else f"a {type(x).__name__}"
        raise TypeError(f"{layer.where}: expected real values, got {what}")
    return x.detach().float()
