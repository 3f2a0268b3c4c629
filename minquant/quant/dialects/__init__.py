"""One grammar, ``x ≈ (q - zero_point) · scale``, and the engines that speak it, each with its own dialect.

They disagree on how a range becomes a scale, in which order they multiply, add and round, whether the bias is an
integer, and how int32 becomes uint8. ``"reference"`` is minquant's own; the others equal an engine of PyTorch
2.13 to the last bit, ONNX's operators as onnx 1.23 or onnxruntime 1.32 compute them, or torchao 0.18.
"""

from __future__ import annotations

from .base import Dialect
from .fbgemm import FBGEMM
from .fbgemm_avx2 import FBGEMMWithoutVNNI
from .fused_fake_quant import FusedMovingAvgObsFakeQuantize
from .onednn import ONEDNN
from .onednn_avx2 import ONEDNNWithoutVNNI
from .onnx import ONNX, ONNXRuntime
from .qnnpack import QNNPACK
from .reference import Reference
from .torchao import Torchao
from .x86 import X86

__all__ = ["Dialect", "FusedMovingAvgObsFakeQuantize", "get_dialect"]

_DIALECTS: dict[str, Dialect] = {
    "reference": Reference(),
    "fbgemm": FBGEMM(),
    "x86": X86(),
    "fbgemm_avx2": FBGEMMWithoutVNNI(),
    "qnnpack": QNNPACK(),
    "onednn": ONEDNN(),
    "onednn_avx2": ONEDNNWithoutVNNI(),
    "onnx": ONNX(),
    "onnxruntime": ONNXRuntime(),
    "torchao": Torchao(),
}


def get_dialect(backend: str) -> Dialect:
    """The dialect of that name.

    Raises:
        ValueError: no such dialect; the message lists those that there are.
    """
    if backend not in _DIALECTS:
        raise ValueError(f"backend: expected one of {', '.join(_DIALECTS)}; got {backend!r}")
    return _DIALECTS[backend]
