"""Which dialect torch's engines speak on the processor at hand."""

from __future__ import annotations

__all__ = ["WITHOUT_VNNI", "dialect_of", "has_vnni"]

WITHOUT_VNNI = {"fbgemm": "fbgemm_avx2", "x86": "fbgemm_avx2", "onednn": "onednn_avx2"}
"""What they speak where int8 products are added in pairs in int16. qnnpack is the same everywhere."""


def has_vnni() -> bool:
    """Whether torch sees the processor's instruction for exact sums of int8 products (AVX512-VNNI)."""
    import torch

    return torch.cpu._is_vnni_supported()


def dialect_of(engine: str) -> str:
    """The dialect of minquant that equals torch's engine on this processor."""
    return engine if has_vnni() else WITHOUT_VNNI.get(engine, engine)
