"""A convolutional network on handwritten digits, quantized on both sides: every layer's integers are compared.

conv - bn - relu three times, pooling, linear; 8×8 pixels. Both sides start from one float state (trained by minquant),
and convert the same observed ranges (watched by torch): float convolutions add in another order on each side, so that
two calibrations would part at the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant import Tensor, manual_seed, nn, no_grad, optim
from minquant.data import batches, load_digits
from minquant.demos.article import take_state
from minquant.quant import (
    QTensor,
    convert,
    fuse_modules,
    fuse_modules_qat,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
)

__all__ = ["FLOWS", "draw_inputs", "our_flow", "their_flow", "their_ranges"]

FUSED = [[f"conv{i}", f"bn{i}", f"relu{i}"] for i in (1, 2, 3)]
LAYERS = ("quant", "conv1", "conv2", "conv3", "pool", "fc")
STATE, WATCHED, BUFFERS = "state ", "watched ", "buffers "
FLOWS = ("static", "qat")
Arrays = dict[str, np.ndarray]


class ConvNet(nn.Module):
    """See the module's text."""

    def __init__(self, channels: tuple[int, int, int], pool: str) -> None:
        super().__init__()
        self.quant, self.dequant = nn.QuantStub(), nn.DeQuantStub()
        for i, (before, after) in enumerate(zip((1, *channels), channels, strict=False), start=1):
            setattr(self, f"conv{i}", nn.Conv2d(before, after, 3, padding=1, bias=i == 2))
            setattr(self, f"bn{i}", nn.BatchNorm2d(after))
            setattr(self, f"relu{i}", nn.ReLU())
        self.pool = nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels[2] * 16, 10)

    def forward(self, x: Any) -> Any:
        x = self.quant(x)
        for i in (1, 2, 3):
            x = getattr(self, f"relu{i}")(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        return self.dequant(self.fc(self.flatten(self.pool(x))))


def draw_inputs(seed: int, channels: tuple[int, int, int], epochs: int, images: int) -> dict[str, Any]:
    """A trained float state, calibration and test images, and which pooling."""
    pool = "max" if seed % 2 else "average"
    manual_seed(seed)
    model, digits = ConvNet(channels, pool), load_digits(seed % 100)
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for x, y in batches(digits.x_train.reshape(-1, 1, 8, 8), digits.y_train, 128):
            optimizer.zero_grad()
            nn.CrossEntropyLoss()(model(x), Tensor(y)).backward()
            optimizer.step()
    state = {f"{STATE}{name}": tensor.data.copy() for name, tensor in model.state_dict().items()}
    rows = {"calibration": digits.x_train[:images], "x": digits.x_test[:images], "y": digits.y_test[:images]}
    return {"channels": channels, "pool": pool, **state, **{k: v.reshape(-1, 1, 8, 8) if k != "y" else v
                                                           for k, v in rows.items()}}  # fmt: skip


def _below(prefix: str, inputs: Any) -> Arrays:
    return {key.removeprefix(prefix): value for key, value in inputs.items() if key.startswith(prefix)}


# ---- minquant --------------------------------------------------------------------------------------------------------


def our_flow(flow: str, inputs: Any) -> Arrays:
    """Fuse, prepare, take the ranges, convert, run: weights, grids and integers of every layer."""
    model = ConvNet(tuple(inputs["channels"]), inputs["pool"])
    model.load_state_dict(_below(STATE, inputs))
    prepared = _prepared(model, flow, inputs["dialect"])
    take_state(prepared, _below(WATCHED, inputs))
    integers: Any = convert(prepared.eval())
    found: Arrays = {}
    for name in LAYERS:
        getattr(integers, name).register_forward_hook(lambda _, x, y, name=name: found.update(_describe(name, y)))
    with no_grad():
        found["logits"] = integers(inputs["x"]).data
    for name in ("conv1", "conv2", "conv3", "fc"):
        weight = getattr(integers, name).weight
        found |= {f"{name} qw": weight.int_repr(), f"{name} w_scale": weight.qparams.scale}
    return found


def _prepared(model: nn.Module, flow: str, dialect: str) -> nn.Module:
    if flow == "qat":
        return prepare_qat(fuse_modules_qat(model.train(), FUSED), get_default_qat_qconfig(dialect))
    return prepare(fuse_modules(model.eval(), FUSED), get_default_qconfig(dialect))


def _describe(name: str, y: QTensor) -> Arrays:
    return {name: y.int_repr(), f"{name} scale": y.qparams.scale, f"{name} zero_point": y.qparams.zero_point}


# ---- torch -----------------------------------------------------------------------------------------------------------


def their_ranges(flow: str, engine: str, inputs: Any) -> Arrays:
    """What torch's observers saw; in training also what its weights and statistics became."""
    import torch

    model = _their_prepared(flow, engine, inputs)
    x, y = torch.from_numpy(inputs["calibration"]), torch.from_numpy(inputs["y"])
    if flow == "static":
        model(x)
        wanted: tuple[str, ...] = ("min_val", "max_val", "histogram")
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        wanted = ("min_val", "max_val", "weight", "bias", "running_mean", "running_var")
    state = model.state_dict().items()
    return {
        (WATCHED if name.endswith(wanted) else BUFFERS) + name: value.numpy().copy()
        for name, value in state
        if name.endswith((*wanted, "fake_quant.scale", "process.scale", "zero_point"))
    }


def their_flow(flow: str, engine: str, inputs: Any) -> Arrays:
    """Fuse, prepare, take the ranges, convert, run: weights, grids and integers of every layer."""
    import torch
    import torch.ao.quantization as tq

    from .theirs import tensor, weight_integers

    prepared = _their_prepared(flow, engine, inputs)
    for name, value in (_below(WATCHED, inputs) | _below(BUFFERS, inputs)).items():
        _their_tensor(prepared, name).data = tensor(value)
    integers = tq.convert(prepared.eval())
    found: Arrays = {}
    for name in LAYERS:
        getattr(integers, name).register_forward_hook(lambda _, x, y, name=name: found.update(_their_output(name, y)))
    with torch.no_grad():
        found["logits"] = integers(tensor(inputs["x"])).numpy()
    for name in ("conv1", "conv2", "conv3", "fc"):
        found[f"{name} qw"], found[f"{name} w_scale"] = weight_integers(getattr(integers, name))
    return found


def _their_prepared(flow: str, engine: str, inputs: Any) -> Any:
    import torch
    import torch.ao.quantization as tq

    from .theirs import tensor

    torch.backends.quantized.engine = engine
    model = _their_model(tuple(inputs["channels"]), inputs["pool"])
    model.load_state_dict({name: tensor(value) for name, value in _below(STATE, inputs).items()})
    if flow == "qat":
        model = tq.fuse_modules_qat(model.train(), FUSED)
        model.qconfig = tq.get_default_qat_qconfig(engine)
        return tq.prepare_qat(model)
    model = tq.fuse_modules(model.eval(), FUSED)
    model.qconfig = tq.get_default_qconfig(engine)
    return tq.prepare(model)


def _their_model(channels: tuple[int, int, int], pool: str) -> Any:
    """`ConvNet` of torch's modules, under the same names."""
    import torch
    import torch.ao.quantization as tq

    model = torch.nn.Module()
    model.quant, model.dequant = tq.QuantStub(), tq.DeQuantStub()
    for i, (before, after) in enumerate(zip((1, *channels), channels, strict=False), start=1):
        setattr(model, f"conv{i}", torch.nn.Conv2d(before, after, 3, padding=1, bias=i == 2))
        setattr(model, f"bn{i}", torch.nn.BatchNorm2d(after))
        setattr(model, f"relu{i}", torch.nn.ReLU())
    model.pool = torch.nn.MaxPool2d(2) if pool == "max" else torch.nn.AvgPool2d(2)
    model.flatten = torch.nn.Flatten()
    model.fc = torch.nn.Linear(channels[2] * 16, 10)
    model.__class__ = type("TorchConvNet", (torch.nn.Module,), {"forward": ConvNet.forward})
    return model


def _their_tensor(model: Any, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _their_output(name: str, y: Any) -> Arrays:
    zero_point = np.asarray(y.q_zero_point(), np.int32)
    return {
        name: y.int_repr().numpy(),
        f"{name} scale": np.asarray(y.q_scale(), np.float32),
        f"{name} zero_point": zero_point,
    }
