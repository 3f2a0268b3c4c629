"""torch as a comparison needs it: on one thread, its known notices silenced one by one and nothing else hidden."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["PYTHON_NOTICES", "import_torchao", "one_thread", "quiet", "spend_native_notice"]

PYTHON_NOTICES = (
    (DeprecationWarning, "torch.ao.quantization is deprecated"),
    (UserWarning, "Please use quant_min and quant_max to specify the range"),
    (UserWarning, "torch.quantize_per_tensor, torch.quantize_per_channel and other quantized tensor"),
    (UserWarning, "Default qconfig of oneDNN backend with reduce_range of false"),
    (UserWarning, "Deprecation: TorchAODType is deprecated"),
)
"""(category, beginning) of torch 2.13's and torchao's notices: deprecations, and that sums may saturate here.

The latter is what the dialects "fbgemm_avx2" and "onednn_avx2" compute (`minquant.crosscheck.processor`).
"""

NATIVE_NOTICE = b"qnnpack incorrectly ignores reduce_range"
"""Written by compiled code straight to file descriptor 2, where no Python filter sees it, once by each operator."""


@contextmanager
def quiet(torch: Any) -> Iterator[None]:
    """While it lasts, torch's deprecation notices and qnnpack's remark on reduce_range are not shown."""
    with warnings.catch_warnings():
        for category, text in PYTHON_NOTICES:
            warnings.filterwarnings("ignore", message=text, category=category)
        spend_native_notice(torch)
        yield


def spend_native_notice(torch: Any) -> None:
    """Has both of qnnpack's operators make their one remark on reduce_range where nobody reads it."""
    if "qnnpack" not in torch.backends.quantized.supported_engines:
        return
    with warnings.catch_warnings(), _native_notice_removed(), one_thread(torch):
        warnings.simplefilter("ignore", UserWarning)  # that quantized tensors are deprecated
        torch.backends.quantized.engine = "qnnpack"
        weight = torch.quantize_per_tensor(torch.zeros(1, 1), 1.0, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(weight, None)
        for operator in (torch.ops.quantized.linear_dynamic, torch.ops.quantized.linear_relu_dynamic):
            operator(torch.zeros(1, 1), packed, True)


@contextmanager
def _native_notice_removed() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            log.seek(0)
            for line in log:
                if NATIVE_NOTICE not in line:
                    os.write(2, line)


@contextmanager
def one_thread(torch: Any) -> Iterator[None]:
    """One thread, so that float sums have one order; the engine is restored too."""
    threads, engine = torch.get_num_threads(), torch.backends.quantized.engine
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.quantized.engine = engine


def import_torchao(name: str) -> Any:
    """A module of torchao's, imported without its remarks on compiled parts that are not for this machine."""
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module(name)
    finally:
        logging.disable(logging.NOTSET)
