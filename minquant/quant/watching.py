"""How a prepared layer's output is watched: the observer or fake quantizer behind it, and the hook that feeds it."""

from __future__ import annotations

from typing import Any

from minquant.nn import FloatFunctional, Module
from minquant.tensor import Tensor

from .between import BETWEEN_GRIDS, POOLS, fixed_output
from .dialects import get_dialect
from .fake_quant import FakeQuantize
from .fixed_observer import FixedQParamsObserver
from .grid import check_finite, float_array
from .observers import Observer
from .qconfig import QConfig
from .spec import PerTensor, QSpec

__all__ = ["HOOKS", "check_calibrated", "keeps_the_grid", "watch_output"]


def keeps_the_grid(module: Module, config: QConfig) -> bool:
    """Whether the converted module writes to its input's grid, so that there is nothing to watch."""
    return isinstance(module, POOLS) and get_dialect(config.backend).pooling_keeps_the_grid


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
    if keeps_the_grid(module, config):
        module.register_forward_hook(stay_on_grid)
        return
    module.activation_post_process = _watcher_of_fixed_range(module, watcher, config) or watcher
    if not isinstance(_observer(module).granularity, PerTensor):
        raise ValueError(
            f"{flow}: the output of '{path}' needs one scale for all values, got {_observer(module).spec}; use an "
            "observer per tensor"
        )
    module.register_forward_hook(observe_output)


def _watcher_of_fixed_range(module: Module, watcher: Any, config: QConfig) -> Any:
    """An observer or fake quantizer like `watcher` for an output whose range is known; None for all others."""
    observer = watcher.activation_post_process if isinstance(watcher, FakeQuantize) else watcher
    fixed = fixed_output(module, get_dialect(config.backend).full_spec(observer.spec))
    if fixed is None:
        return None
    if isinstance(watcher, FakeQuantize):
        return FakeQuantize(FixedQParamsObserver, **fixed)
    return FixedQParamsObserver(**fixed)


def observe_output(module: Any, inputs: Any, output: Tensor) -> Tensor:
    what = f"the output of {type(module).__name__} '{module.path}'"
    check_finite(float_array(output, what), what, "Mend the data or the layers before it")
    watcher = module.activation_post_process
    if isinstance(watcher, FakeQuantize) and watcher.fake_quant_enabled and not _comes_from_grid(module, inputs):
        watcher.observe(output)
        return output
    return watcher(output)


def _comes_from_grid(module: Any, inputs: Any) -> bool:
    """Whether the converted module will get integers. Activations and norms may stand outside the quantized part.

    Raises:
        ValueError: a FloatFunctional whose operands do not all lie on grids.
    """
    if isinstance(module, FloatFunctional):
        if any(isinstance(x, Tensor) and x.qparams is None for x in inputs):
            raise ValueError(
                f"FloatFunctional '{module.path}': every operand must lie on a quantization grid, and one does not; "
                f"put a QuantStub before it, or keep this layer in float: {{{module.path!r}: None}} in the qconfig"
            )
        return True
    return not isinstance(module, BETWEEN_GRIDS) or inputs[0].qparams is not None


def stay_on_grid(module: Any, inputs: Any, output: Tensor) -> Tensor:
    """Torch's engines average on the input's grid; in training the average is not even rounded."""
    output.qparams = getattr(inputs[0], "qparams", None)
    return output


HOOKS = {"observe_output": observe_output, "stay_on_grid": stay_on_grid}
"""The hooks of a prepared layer, by the names that a saved file has for them."""


def check_calibrated(watched: dict[str, Any]) -> None:
    """Refuses to convert layers whose observers have seen nothing; all are named.

    Raises:
        ValueError: there is one.
    """
    watching = {path: m for path, m in watched.items() if hasattr(m, "activation_post_process")}
    blind = [path or "the model itself" for path, m in watching.items() if not m.activation_post_process.saw_data]
    if blind:
        raise ValueError(
            f"convert: the observers of {', '.join(blind)} have seen no data; run calibration data through the "
            "prepared model (or train it) first"
        )


def _observer(module: Any) -> Observer:
    watcher = module.activation_post_process
    return watcher.activation_post_process if isinstance(watcher, FakeQuantize) else watcher
