"""The three regressions of a well-known article on quantization: as published, mended, and beside PyTorch.

A 3-3-2 network learns ``y = x @ target`` in 100 full-batch steps of Adam and is then quantized dynamically,
statically, or trained with quantization in the loop. Each run is described by the same flat dictionary of arrays
on both sides (integers, scales, zero points, outputs), so that comparing is comparing dictionaries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minquant import Tensor, manual_seed, nn, no_grad, optim, rand
from minquant.quant import (
    DeQuantStub,
    QuantStub,
    convert,
    default_dynamic_qconfig,
    fuse_modules,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize_dynamic,
)
from minquant.quant.dialects import get_dialect

__all__ = ["ENGINES", "Demo", "EngineRun", "TorchRun", "run_demo"]

ENGINES = ("x86", "fbgemm", "qnnpack", "onednn")
TARGET = np.array([[1.12, 1.6], [2.24, 2.5], [3.6, 3.9]], np.float32)
STEPS, LEARNING_RATE, SEED = 100, 0.1, 42
WHAT_THE_SCRIPT_DID = {
    "dynamic": "The published script does what it says.",
    "static": "The published script sets model.config, not model.qconfig: nothing was quantized, so the same float "
    "loss is printed twice (and its last line crashes).",
    "qat": "The published script trains nothing: its optimizer holds the parameters of the model before prepare() "
    "copied it, and model.config again quantizes nothing. Both losses are the untrained float model's.",
}


Losses = tuple[float, float]
"""Before and after quantization."""


@dataclass
class Data:
    """Inputs and targets, made from torch's random numbers."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    calibration_x: Tensor | None


@dataclass
class EngineRun:
    """One quantized model: its loss on the test set, and everything about it that can be compared exactly."""

    loss: float
    arrays: dict[str, np.ndarray]
    prepared_loss: float | None = None
    """QAT only: the loss before conversion."""


@dataclass
class TorchRun:
    """What torch does in one demo: live (`minquant.crosscheck.article`) or read from recorded values."""

    float_loss: float
    engines: dict[str, EngineRun]
    states: dict[str, dict[str, np.ndarray]]
    """Weights (and, for QAT, observed ranges) that each engine quantized, under torch's names."""
    version: str
    live: bool
    dialects: dict[str, str] = field(default_factory=dict)
    """What an engine speaks on this processor, where that is not the dialect of its name."""

    def dialect(self, engine: str) -> str:
        """The dialect that equals the engine; what stands behind a "+" in the engine's name stays there."""
        name, plus, fused = engine.partition("+")
        return self.dialects.get(name, name) + plus + fused


@dataclass
class Demo:
    """One demo, both sides, ready to be printed: ``result`` is the JSON contract."""

    name: str
    result: dict[str, Any]
    arrays: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    """engine -> key -> (minquant's, torch's) on the same weights."""
    note: str = ""
    torch_version: str = ""
    live: bool = True
    """Whether torch ran just now; otherwise its values are recorded ones."""


class Net(nn.Module):
    """fc1 (3→3), relu, fc2 (3→2), with the places marked where integers begin and end."""

    def __init__(self) -> None:
        super().__init__()
        self.quant = QuantStub()
        self.fc1 = nn.Linear(3, 3)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(3, 2)
        self.dequant = DeQuantStub()

    def body(self, x: Any) -> Any:
        """Everything but the last step back to real values."""
        return self.fc2(self.relu(self.fc1(self.quant(x))))

    def forward(self, x: Any) -> Any:
        return self.dequant(self.body(x))


def make_data(calibration: bool) -> Data:
    """The article's data; the model comes after it from the same stream of random numbers."""
    manual_seed(SEED)
    train_x, test_x = rand(10000, 3), rand(5000, 3)
    calibration_x = rand(5000, 3) if calibration else None
    return Data(train_x, Tensor(train_x.data @ TARGET), test_x, Tensor(test_x.data @ TARGET), calibration_x)


def train(model: nn.Module, data: Data) -> None:
    """100 full-batch steps of Adam on the mean squared error."""
    criterion = nn.MSELoss()
    optimizer = optim.Adam(model.parameters(), lr=LEARNING_RATE)
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        criterion(model(data.train_x), data.train_y).backward()
        optimizer.step()
    model.eval()


@no_grad()
def test_loss(model: nn.Module, data: Data) -> float:
    """Mean squared error on the test set."""
    return nn.MSELoss()(model(data.test_x), data.test_y).item()


# ---- what is compared ------------------------------------------------------------------------------------------------


def _weights(model: Any) -> dict[str, np.ndarray]:
    arrays = {}
    for name in ("fc1", "fc2"):
        weight = getattr(model, name).weight
        arrays[f"{name}.weight"] = weight.int_repr()
        arrays[f"{name}.weight_scale"] = weight.qparams.scale
    return arrays


def describe_dynamic(model: Any, data: Data, engine: str) -> EngineRun:
    """Integer weights, the first layer's run-time grid, and the float outputs."""
    _, scale, zero_point = get_dialect(engine).quantize_at_run_time(data.test_x.data, model.fc1.input_spec)
    run_time = {"fc1.input_scale": scale, "fc1.input_zero_point": zero_point}
    return EngineRun(test_loss(model, data), {**_weights(model), **run_time, "output": model(data.test_x).data})


def describe_static(model: Any, data: Data) -> EngineRun:
    """Integer weights, calibrated grids, and the integer outputs."""
    grids = {"quant": model.quant.qparams, "fc1": model.fc1.output, "fc2": model.fc2.output}
    arrays = _weights(model)
    for name, grid in grids.items():
        arrays[f"{name}.scale"], arrays[f"{name}.zero_point"] = grid.scale, grid.zero_point
    return EngineRun(test_loss(model, data), {**arrays, "output": model.body(data.test_x).int_repr()})


# ---- the three flows -------------------------------------------------------------------------------------------------


def dynamic(net: nn.Module, data: Data, engine: str) -> EngineRun:
    """Float weights → dynamically quantized."""
    return describe_dynamic(quantize_dynamic(net, default_dynamic_qconfig(engine)), data, engine)


def static(net: nn.Module, data: Data, engine: str) -> EngineRun:
    """Float weights → calibrated → integer; the ReLU fused in where the engine's name says so."""
    backend, _, fused = engine.partition("+")
    prepared = prepare(fuse_modules(net, ["fc1", "relu"]) if fused else net, get_default_qconfig(backend))
    prepared(data.calibration_x)
    return describe_static(convert(prepared), data)


QUANTIZE = {"dynamic": dynamic, "static": static}
"""How a trained float network is quantized, in the demos that begin with one."""


def trained_qat(engine: str) -> tuple[float, float]:
    """Losses of a network trained from scratch with quantization in the loop: prepared, and converted."""
    data = make_data(calibration=False)
    prepared = prepare_qat(Net(), get_default_qat_qconfig(engine))
    train(prepared, data)
    prepared_loss = test_loss(prepared, data)
    return prepared_loss, test_loss(convert(prepared), data)


def converted_qat(state: Mapping[str, np.ndarray], data: Data, engine: str) -> EngineRun:
    """Torch's trained weights and observed ranges → integer."""
    prepared = prepare_qat(Net(), get_default_qat_qconfig(engine))
    take_state(prepared, state)
    return describe_static(convert(prepared.eval()), data)


def take_state(prepared: nn.Module, state: Mapping[str, np.ndarray]) -> None:
    """Gives a prepared model the weights and observed ranges of torch's, where a range per tensor may be ``(1,)``."""
    tensors = {**dict(prepared.named_parameters()), **dict(prepared.named_buffers())}
    for name, value in state.items():
        tensor = tensors[name]
        tensor.data = value.reshape(tensor.shape) if value.size == tensor.data.size else value


# ---- both sides ------------------------------------------------------------------------------------------------------


def _both(name: str, engine: str, torch_run: TorchRun, data: Data) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Minquant's and torch's arrays, both sides having quantized torch's trained weights."""
    state, dialect = torch_run.states[engine], torch_run.dialect(engine)
    if name == "qat":
        ours = converted_qat(state, data, dialect)
    else:
        net: nn.Module = Net().eval()
        net.load_state_dict(state)
        ours = QUANTIZE[name](net, data, dialect)
    theirs = torch_run.engines[engine].arrays
    return {
        key: (ours.arrays[key][: len(value)] if value.ndim else ours.arrays[key], value)
        for key, value in theirs.items()
    }


def _equal(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], weights: bool) -> bool:
    chosen = [pair for key, pair in pairs.items() if (".weight" in key) == weights]
    return all(np.array_equal(ours, theirs) for ours, theirs in chosen)


def _result(ours: Losses, theirs: Losses | tuple[None, None], pairs: Any = None) -> dict[str, Any]:
    return {
        "float_loss": ours[0],
        "quantized_loss": ours[1],
        "torch_float_loss": theirs[0],
        "torch_quantized_loss": theirs[1],
        "weight_int_equal": None if pairs is None else _equal(pairs, weights=True),
        "output_int_equal": None if pairs is None else _equal(pairs, weights=False),
    }


def run_demo(name: str, torch_run: TorchRun, progress: Callable[[str], None] = lambda text: None) -> Demo:
    """Runs one of the article's demos on both sides.

    Args:
        name: "dynamic", "static" or "qat".
        torch_run: torch's side.
        progress: called with the name of each step.

    Returns:
        Demo, whose `result` has the keys of ``minquant demo --json``.
    """
    demo = Demo(name, {}, {}, WHAT_THE_SCRIPT_DID[name], torch_run.version, torch_run.live)
    data = make_data(calibration=name == "static")
    net = Net()
    if name != "qat":  # QAT trains a network of its own for each engine; as published, it leaves this one untrained
        train(net, data)
    float_loss = test_loss(net, data)

    def own_losses(engine: str) -> Losses:
        dialect = torch_run.dialect(engine)
        return trained_qat(dialect) if name == "qat" else (float_loss, QUANTIZE[name](net, data, dialect).loss)

    engines = {}
    for engine in ENGINES:
        progress(f"{name}, {engine}")
        losses = own_losses(engine)
        demo.arrays[engine] = _both(name, engine, torch_run, data)
        engines[engine] = _result(losses, _torch_losses(name, torch_run, engine), demo.arrays[engine])
        if name == "static":
            engines[engine] |= _fused(net, data, engine, torch_run, demo)
    progress(f"{name}, reference")
    own = own_losses("reference")
    engines["reference"] = _result(own, (None, None))
    corrected = _result(own, _torch_losses(name, torch_run, "x86")) if name == "qat" else engines["x86"]
    published = engines["x86"] if name == "dynamic" else _twice(float_loss, torch_run.float_loss)
    demo.result = {**corrected, "published": published, "engines": engines}
    return demo


def _twice(ours: float, theirs: float) -> dict[str, Any]:
    """What a script prints that quantizes nothing."""
    return _result((ours, ours), (theirs, theirs))


def _torch_losses(name: str, torch_run: TorchRun, engine: str) -> tuple[float, float]:
    run = torch_run.engines[engine]
    return (torch_run.float_loss if run.prepared_loss is None else run.prepared_loss), run.loss


def _fused(net: nn.Module, data: Data, engine: str, torch_run: TorchRun, demo: Demo) -> dict[str, Any]:
    """The same flow with the ReLU fused into fc1."""
    fused = f"{engine}+relu"
    pairs = demo.arrays[fused] = _both("static", fused, torch_run, data)
    return {
        "fused_quantized_loss": static(net, data, torch_run.dialect(fused)).loss,
        "torch_fused_quantized_loss": torch_run.engines[fused].loss,
        "fused_output_int_equal": _equal(pairs, weights=False),
    }
