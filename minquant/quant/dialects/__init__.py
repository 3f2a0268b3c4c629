"""One grammar, ``x ≈ (q - zero_point) · scale``, and the engines that speak it, each with its own dialect.

They disagree on how a range becomes a scale, in which order they multiply, add and round, whether the bias is an
integer, and how int32 becomes uint8. ``"reference"`` is minquant's own; the others equal an engine of PyTorch
2.13 to the last bit, ONNX's operators as onnx 1.23 or onnxruntime 1.32 compute them, or torchao 0.18.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from .base import Dialect

__all__ = ["Dialect", "get_dialect"]

_CLASSES = {
    "reference": "reference.Reference",
    "fbgemm": "fbgemm.FBGEMM",
    "x86": "x86.X86",
    "fbgemm_avx2": "fbgemm_avx2.FBGEMMWithoutVNNI",
    "qnnpack": "qnnpack.QNNPACK",
    "onednn": "onednn.ONEDNN",
    "onednn_avx2": "onednn_avx2.ONEDNNWithoutVNNI",
    "onnx": "onnx.ONNX",
    "onnxruntime": "onnx.ONNXRuntime",
    "torchao": "torchao.Torchao",
    "intx": "intx.Intx",
}
"""Where each dialect is; its file is imported when somebody first speaks it."""


def get_dialect(backend: str) -> Dialect:
    """The dialect of that name.

    Raises:
        ValueError: no such dialect; the message lists those that there are.
    """
    if backend not in _CLASSES:
        raise ValueError(f"backend: expected one of {', '.join(_CLASSES)}; got {backend!r}")
    return _speak(_CLASSES[backend])


@cache
def _speak(where: str) -> Dialect:
    module, _, name = where.partition(".")
    return getattr(import_module(f"{__name__}.{module}"), name)()
