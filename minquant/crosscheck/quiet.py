"""torch's known notices, silenced one by one; everything else that it has to say comes through."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]

PYTHON_NOTICES = (
    "torch.ao.quantization is deprecated",
    "Please use quant_min and quant_max to specify the range",
    "torch.quantize_per_tensor, torch.quantize_per_channel and other quantized tensor",
)
NATIVE_NOTICES = (b"qnnpack incorrectly ignores reduce_range",)
"""Written by compiled code straight to file descriptor 2, where no Python filter sees them."""


@contextmanager
def quiet() -> Iterator[None]:
    """While it lasts, torch's deprecation notices and qnnpack's remark on reduce_range are not shown."""
    with warnings.catch_warnings(), _native_notices_removed():
        for text in PYTHON_NOTICES:
            warnings.filterwarnings("ignore", message=text)
        yield


@contextmanager
def _native_notices_removed() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            log.seek(0)
            for line in log:
                if not any(notice in line for notice in NATIVE_NOTICES):
                    os.write(2, line)
