"""How a prepared layer's output is watched: the observer or fake quantizer behind it, and the hook that feeds it."""

from __future__ import annotations

from typing import Any

from minquant.nn import Module
from minquant.tensor import Tensor

from .fake_quant import FakeQuantize
from .grid import check_finite, float_array
from .observers import Observer
from .qconfig import QConfig
from .spec import PerTensor, QSpec

__all__ = ["check_calibrated", "watch_output"]


def watch_output(module: Module, path: str, config: QConfig, kind: type, flow: str) -> None:
    """Gives a layer what watches its output, and the hook that shows it every output."""
    watcher = None if isinstance(config.activation, QSpec) else config.activation()
    if not isinstance(watcher, kind):
        raise TypeError(
            f"{flow}: expected a QConfig whose activation makes an object of class {kind.__name__}, got "
            f"{config.activation!r}; get_default_qconfig() is for prepare, get_default_qat_qconfig() for prepare_qat"
        )
    module.qconfig = config
    module.path = path
    module.activation_post_process = watcher
    if not isinstance(_observer(module).granularity, PerTensor):
        raise ValueError(
            f"{flow}: the output of '{path}' needs one scale for all values, got {_observer(module).spec}; use an "
            "observer per tensor"
        )
    module.register_forward_hook(_observe_output)


def _observe_output(module: Any, inputs: Any, output: Tensor) -> Tensor:
    what = f"the output of {type(module).__name__} '{module.path}'"
    check_finite(float_array(output, what), what, "Mend the data or the layers before it")
    return module.activation_post_process(output)


def check_calibrated(watched: dict[str, Any]) -> None:
    """Refuses to convert layers whose observers have seen nothing; all are named.

    Raises:
        ValueError: there is one.
    """
    blind = [path or "the model itself" for path, m in watched.items() if not m.activation_post_process.saw_data]
    if blind:
        raise ValueError(
            f"convert: the observers of {', '.join(blind)} have seen no data; run calibration data through the "
            "prepared model (or train it) first"
        )


def _observer(module: Any) -> Observer:
    watcher = module.activation_post_process
    return watcher.activation_post_process if isinstance(watcher, FakeQuantize) else watcher
