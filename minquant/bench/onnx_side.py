"""How onnxruntime is called at its best: one graph, its weights constants, which it packs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["session"]


def session(text: str, constants: Mapping[str, np.ndarray], threads: int) -> Any:
    """An onnxruntime session of a graph in onnx's text form, which names its constants and does not declare them."""
    import onnxruntime
    from onnx import numpy_helper, parser

    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    # Its threads spin for their next work; those of one contestant must not during the next one's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
