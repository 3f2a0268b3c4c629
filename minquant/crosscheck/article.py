"""torch's side of ``minquant demo``: the article's three regressions with torch.ao.quantization 2.13, eager mode.

Importing this needs torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.ao.quantization as tq

from minquant.demos.article import ENGINES, LEARNING_RATE, SEED, STEPS, TARGET, EngineRun, TorchRun

from .processor import WITHOUT_VNNI, has_vnni
from .quiet import one_thread, quiet
from .theirs import observed_state, weight_integers

__all__ = ["run_torch"]


def run_torch(name: str, progress: Callable[[str], None] = lambda text: None) -> TorchRun:
    """Trains and quantizes in torch.

    Args:
        name: "dynamic", "static" or "qat".
        progress: called with the name of each step.

    Returns:
        TorchRun with the losses of torch's own training, the state that each engine quantized, and its integers.
    """
    with quiet(torch), one_thread(torch):
        return {"dynamic": _dynamic, "static": _static, "qat": _qat}[name](progress)


def _dialects() -> dict[str, str]:
    """What torch's engines speak on this processor, where that is not the dialect of their name."""
    return {} if has_vnni() else WITHOUT_VNNI


class Net(torch.nn.Module):
    """The network of `minquant.demos.article`."""

    def __init__(self) -> None:
        super().__init__()
        self.quant = tq.QuantStub()
        self.fc1 = torch.nn.Linear(3, 3)
        self.relu = torch.nn.ReLU()
        self.fc2 = torch.nn.Linear(3, 2)
        self.dequant = tq.DeQuantStub()

    def body(self, x: Any) -> Any:
        """Everything but the last step back to real values."""
        return self.fc2(self.relu(self.fc1(self.quant(x))))

    def forward(self, x: Any) -> Any:
        return self.dequant(self.body(x))


def _data(calibration: bool) -> tuple[Any, Any, Any]:
    torch.manual_seed(SEED)
    train_x, test_x = torch.rand(10000, 3), torch.rand(5000, 3)
    return train_x, test_x, torch.rand(5000, 3) if calibration else None


def _train(model: Any, x: Any) -> Any:
    target = x @ torch.tensor(TARGET)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()
    return model.eval()


def _loss(model: Any, x: Any) -> float:
    with torch.no_grad():
        return torch.nn.functional.mse_loss(model(x), x @ torch.tensor(TARGET)).item()


def _weights(model: Any) -> dict[str, np.ndarray]:
    arrays = {}
    for name in ("fc1", "fc2"):
        arrays[f"{name}.weight"], arrays[f"{name}.weight_scale"] = weight_integers(getattr(model, name))
    return arrays


def _static_arrays(model: Any, x: Any) -> dict[str, np.ndarray]:
    arrays = _weights(model)
    for name in ("quant", "fc1", "fc2"):
        layer = getattr(model, name)
        arrays[f"{name}.scale"] = np.asarray(layer.scale, np.float32).reshape(())
        arrays[f"{name}.zero_point"] = np.asarray(layer.zero_point, np.int32).reshape(())
    return {**arrays, "output": model.body(x).int_repr().numpy()}


def _dynamic(progress: Callable[[str], None]) -> TorchRun:
    train_x, test_x, _ = _data(calibration=False)
    model = _train(Net(), train_x)
    run = TorchRun(_loss(model, test_x), {}, {}, torch.__version__, True, _dialects())
    for engine in ENGINES:
        progress(f"dynamic, torch {engine}")
        torch.backends.quantized.engine = engine
        quantized = tq.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
        # The grid that the operator chooses inside; qnnpack ignores the module's request for a reduced range.
        scale, zero_point = torch._choose_qparams_per_tensor(test_x, engine != "qnnpack")
        arrays = {
            **_weights(quantized),
            "fc1.input_scale": _seen_by(engine, scale),
            "fc1.input_zero_point": np.int32(zero_point),
            "output": quantized(test_x).detach().numpy(),
        }
        run.engines[engine] = EngineRun(_loss(quantized, test_x), _as_arrays(arrays))
        run.states[engine] = _state(model)
    return run


def _seen_by(engine: str, scale: float) -> np.ndarray:
    """Onednn is handed the reciprocal of the scale and takes it back."""
    if engine == "onednn":
        return np.asarray(np.float32(1) / np.float32(1.0 / scale))
    return np.asarray(scale, np.float32)


def _as_arrays(arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    return {key: np.asarray(value) for key, value in arrays.items()}


def _state(model: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def _static(progress: Callable[[str], None]) -> TorchRun:
    train_x, test_x, calibration_x = _data(calibration=True)
    model = _train(Net(), train_x)
    run = TorchRun(_loss(model, test_x), {}, {}, torch.__version__, True, _dialects())
    for engine in ENGINES:
        for key in (engine, f"{engine}+relu"):
            progress(f"static, torch {key}")
            torch.backends.quantized.engine = engine
            copied = copy.deepcopy(model)
            if key != engine:
                copied = tq.fuse_modules(copied, [["fc1", "relu"]])
            copied.qconfig = tq.get_default_qconfig(engine)
            prepared = tq.prepare(copied)
            prepared(calibration_x)
            converted = tq.convert(prepared)
            arrays = _static_arrays(converted, test_x)
            run.engines[key] = EngineRun(_loss(converted, test_x), arrays)
            run.states[key] = _state(model)
    return run


def _qat(progress: Callable[[str], None]) -> TorchRun:
    _, test_x, _ = _data(calibration=False)
    run = TorchRun(_loss(Net(), test_x), {}, {}, torch.__version__, True, _dialects())
    for engine in ENGINES:
        progress(f"qat, torch {engine}")
        torch.backends.quantized.engine = engine
        train_x, test_x, _ = _data(calibration=False)
        model = Net().train()
        model.qconfig = tq.get_default_qat_qconfig(engine)
        prepared = _train(tq.prepare_qat(model), train_x)
        prepared_loss = _loss(prepared, test_x)
        state = observed_state(prepared)
        converted = tq.convert(prepared)
        arrays = _static_arrays(converted, test_x)
        run.engines[engine] = EngineRun(_loss(converted, test_x), arrays, prepared_loss)
        run.states[engine] = state
    return run
