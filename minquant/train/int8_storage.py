"""Weights stored as int8 and trained in float32: integers on a grid that is chosen once and kept.

To save means to quantize again. On a grid that is *kept* that is harmless: a weight that lies on it comes back as it
was, so that save → load → save changes nothing. On a grid that is *observed again* each time, weights shrink without
any integer telling: amax is clipped by half a step, the next scale is chosen for the smaller amax, and so on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np

from minquant.nn import Module, Parameter
from minquant.quant import PerChannel, QParams, QSpec, QTensor, choose_qparams
from minquant.quant.grid import range_of, to_codes
from minquant.quant.weighted import check_weight_values
from minquant.savable import savable
from minquant.tensor import Tensor, no_grad

__all__ = ["Int8Storage"]

SPEC = QSpec(8, symmetric=True, granularity=PerChannel(0))


@savable
class Int8Storage(Module):
    """What is kept of a float model: int8 integers and float32 scales of its weights, the rest in float32.

    Weights are the parameters of two or more axes. Each index of axis 0 has a scale, ``amax / 127.5`` of the model
    given here, and keeps it. A tied weight is stored once. ::

        storage = Int8Storage(model)  # chooses the scales, and compresses
        minquant.save(storage, path)

        storage = minquant.load(path)
        storage.decompress_(model)  # float32 masters, to train
        storage.compress(model)  # integers again, on the same grids

    Args:
        model: a float model.

    Raises:
        ValueError: NaN or infinity in a weight.
    """

    def __init__(self, model: Module) -> None:
        super().__init__()
        for key, path, tensor in _tensors(model):
            if _is_weight(tensor):
                check_weight_values(tensor, f"Int8Storage, '{path}'")
                scale = choose_qparams(*range_of(tensor.data, SPEC.granularity), SPEC).scale
                self.register_buffer(_scale_of(key), Tensor(scale))
                self.register_buffer(key, Tensor(np.zeros(tensor.shape, np.int8)))
            else:
                self.register_buffer(key, Tensor(np.zeros_like(tensor.data)))
        self.compress(model)

    def compress(self, model: Module) -> None:
        """Takes the model's values: weights as integers on the grids that are kept, the rest as it is.

        ``q = clip(rint(w · f(1/scale)), -128, 127)``. Weights that have outgrown their grid are clipped, and a warning
        says so: ``Int8Storage(model)`` chooses new grids.

        Raises:
            ValueError: a model whose tensors differ from those stored in name or shape; NaN or infinity in a weight.
        """
        for key, path, tensor in self._fitting(model):
            if _is_weight(tensor):
                check_weight_values(tensor, f"Int8Storage, '{path}'")
                getattr(self, key).data = self._integers(key, path, tensor.data)
            else:
                getattr(self, key).data = tensor.data.copy()

    @no_grad()
    def decompress_(self, model: Module) -> None:
        """Writes what is stored into the model: ``w = f(q · scale)``.

        Raises:
            ValueError: a model whose tensors differ from those stored in name or shape; nothing is written then.
        """
        for key, _, tensor in self._fitting(model):
            stored = getattr(self, key)
            tensor.copy_(QTensor(stored.data, self._grid(key)).dequantize() if _is_weight(tensor) else stored)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        return sum(buffer.data.nbytes for buffer in self.buffers())

    def extra_repr(self) -> str:
        return f"{len(self._buffers)} tensors, {self.nbytes:,} bytes"

    def _grid(self, key: str) -> QParams:
        scale = getattr(self, _scale_of(key)).data
        return QParams(scale, np.zeros(scale.shape, np.int32), SPEC)

    def _integers(self, key: str, path: str, weight: np.ndarray) -> np.ndarray:
        codes = to_codes(weight, *self._grid(key).expand(weight.shape))
        clipped = int(((codes < SPEC.qmin) | (codes > SPEC.qmax + 1)).sum())  # amax itself may round to 128
        if clipped:
            warnings.warn(
                f"Int8Storage: {clipped} of {codes.size} values of '{path}' have outgrown the grid that is kept and "
                "are clipped to its ends; Int8Storage(model) chooses new grids",
                stacklevel=3,
            )
        return np.clip(codes, SPEC.qmin, SPEC.qmax).astype(np.int8)

    def _fitting(self, model: Module) -> list[tuple[str, str, Tensor]]:
        """The model's tensors, if they are those stored."""
        found = list(_tensors(model))
        stored = {key: buffer.shape for key, buffer in self._buffers.items() if buffer is not None}
        wanted = {key: tensor.shape for key, _, tensor in found}
        wanted |= {_scale_of(key): tensor.shape[:1] for key, _, tensor in found if _is_weight(tensor)}
        differing = sorted(key for key in stored.keys() | wanted.keys() if stored.get(key) != wanted.get(key))
        if differing:
            lines = "\n  ".join(f"{key}: stored {stored.get(key)}, the model's {wanted.get(key)}" for key in differing)
            raise ValueError(f"Int8Storage does not fit this {type(model).__name__}; shapes:\n  {lines}")
        return found


def _tensors(model: Module) -> Iterator[tuple[str, str, Tensor]]:
    """(name of the buffer that stores it, path, tensor): parameters and buffers, each once."""
    for named in (model.named_parameters(), model.named_buffers()):
        for path, tensor in named:
            yield path.replace(".", "/"), path, tensor  # a buffer's name has no dots


def _is_weight(tensor: Tensor) -> bool:
    return isinstance(tensor, Parameter) and tensor.ndim >= 2


def _scale_of(key: str) -> str:
    return f"{key}/scale"
