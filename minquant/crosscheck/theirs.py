"""torch's side of what `ours.py` computes. Importing this needs torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.ao.quantization as tq

__all__ = [
    "dynamic_conv",
    "dynamic_flow",
    "dynamic_linear",
    "fused_steps",
    "qat_flow",
    "qat_state",
    "static_conv",
    "static_flow",
    "static_linear",
    "tensor",
]

Case = dict[str, np.ndarray]


def tensor(array: np.ndarray) -> torch.Tensor:
    """A torch tensor with memory of its own."""
    return torch.from_numpy(np.array(array))


def static_linear(engine: str, case: Case) -> Case:
    """The quantized input, and the integers of the static output."""
    torch.backends.quantized.engine = engine
    operator = torch.ops.quantized.linear_relu if case["relu"] else torch.ops.quantized.linear
    x = torch.quantize_per_tensor(tensor(case["x"]), float(case["x_scale"]), int(case["x_zero_point"]), torch.quint8)
    y = operator(x, packed(case), float(case["out_scale"]), int(case["out_zero_point"]))
    return {"qx": x.int_repr().numpy(), "static": y.int_repr().numpy()}


def dynamic_linear(engine: str, case: Case) -> Case:
    """The real values of the dynamic output."""
    torch.backends.quantized.engine = engine
    operator = torch.ops.quantized.linear_relu_dynamic if case["relu"] else torch.ops.quantized.linear_dynamic
    return {"dynamic": operator(tensor(case["x"]), packed(case), True).numpy()}  # reduce_range, as the modules ask


def static_conv(engine: str, case: Case) -> np.ndarray:
    """The integers of the static output."""
    torch.backends.quantized.engine = engine
    operator = getattr(torch.ops.quantized, f"conv{case['qx'].ndim - 2}d{'_relu' if case['relu'] else ''}")
    x = torch._make_per_tensor_quantized_tensor(tensor(case["qx"]), float(case["x_scale"]), int(case["x_zero_point"]))
    return operator(x, conv_packed(case), float(case["out_scale"]), int(case["out_zero_point"])).int_repr().numpy()


def dynamic_conv(engine: str, case: Case) -> np.ndarray:
    """The real values of the dynamic output."""
    torch.backends.quantized.engine = engine
    operator = getattr(torch.ops.quantized, f"conv{case['x'].ndim - 2}d_dynamic")
    # reduce_range, as the modules ask; qnnpack ignores it, and says so on stderr at every call
    return operator(tensor(case["x"]), conv_packed(case), engine != "qnnpack").numpy()


def conv_packed(case: Case) -> Any:
    """Weight, bias and geometry for one call.

    qnnpack's remember the first: while the input's scale stays as it was, a call with another output scale is computed
    with the old one, and with another zero point of the input the padding keeps the old one (torch 2.13).
    """
    qw, scale = tensor(case["qw"]), case["w_scale"]
    if scale.ndim:
        zeros = torch.zeros(len(scale), dtype=torch.int64)
        weight = torch._make_per_channel_quantized_tensor(qw, tensor(scale), zeros, 0)
    else:
        weight = torch._make_per_tensor_quantized_tensor(qw, float(scale), 0)
    prepack = getattr(torch.ops.quantized, f"conv{qw.ndim - 2}d_prepack")
    bias = tensor(case["bias"]) if case["bias"].size else None
    slides = (np.asarray(case[name]).tolist() for name in ("stride", "padding", "dilation"))
    return prepack(weight, bias, *slides, int(case["groups"]))


def packed(case: Case) -> Any:
    """Weight and bias for one operator: onednn crashes where a static and a dynamic one share them."""
    weight = quantized_weight(case["qw"], case["w_scale"])
    return torch.ops.quantized.linear_prepack(weight, tensor(case["bias"]) if case["bias"].size else None)


def quantized_weight(qw: np.ndarray, scale: np.ndarray) -> torch.Tensor:
    """A quantized weight of exactly these integers."""
    real = tensor(qw.astype(np.float32) * (scale[:, None] if scale.ndim else scale))
    if scale.ndim:
        zeros = torch.zeros(len(scale), dtype=torch.int64)
        weight = torch.quantize_per_channel(real, tensor(scale), zeros, 0, torch.qint8)
    else:
        weight = torch.quantize_per_tensor(real, float(scale), 0, torch.qint8)
    if not np.array_equal(weight.int_repr().numpy(), qw):
        raise RuntimeError("torch did not quantize the weight to the integers asked for")
    return weight


def fused_steps(options: dict[str, Any], batches: np.ndarray, gradient: np.ndarray) -> list[Case]:
    """Three steps of FusedMovingAvgObsFakeQuantize: output, gradient, range and grid after each."""
    kind = "PerChannelMinMax" if "channel" in options["qscheme"] else "MinMax"
    fused = tq.FusedMovingAvgObsFakeQuantize(
        observer=getattr(tq, f"MovingAverage{kind}Observer"),
        **options | {"dtype": getattr(torch, options["dtype"]), "qscheme": getattr(torch, options["qscheme"])},
    )
    states = []
    for batch in batches:
        x = tensor(batch).requires_grad_()
        y = fused(x)
        y.backward(tensor(gradient))
        observer = fused.activation_post_process
        states.append({
            "y": y.detach().numpy().copy(),
            "grad": x.grad.numpy().copy(),
            "min_val": observer.min_val.numpy().copy(),
            "max_val": observer.max_val.numpy().copy(),
            "scale": fused.scale.numpy().copy(),
            "zero_point": fused.zero_point.numpy().copy(),
        })  # fmt: skip
    return states


# ---- whole flows -----------------------------------------------------------------------------------------------------


def float_model(data: Case) -> torch.nn.Module:
    """The model of `ours.float_model`."""
    layers = [torch.nn.Linear(*data[f"w{i}"].shape[::-1]) for i in (1, 2, 3)]
    for i, layer in enumerate(layers, start=1):
        layer.weight.data[:], layer.bias.data[:] = tensor(data[f"w{i}"]), tensor(data[f"b{i}"])
    fused = torch.ao.nn.intrinsic.LinearReLU(layers[2], torch.nn.ReLU())
    return torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], fused)


def static_flow(engine: str, data: Case) -> Case:
    """prepare, calibrate, convert, run: every integer and every grid."""
    torch.backends.quantized.engine = engine
    model = tq.QuantWrapper(float_model(data)).eval()
    model.qconfig = tq.get_default_qconfig(engine)
    prepared = tq.prepare(model)
    for batch in data["batches"]:
        prepared(tensor(batch))
    return _describe_static(tq.convert(prepared), data)


def _describe_static(model: Any, data: Case) -> Case:
    found = {"in_scale": model.quant.scale.numpy(), "in_zero_point": model.quant.zero_point.numpy()}
    for i, layer in zip((1, 2, 3), (model.module[0], model.module[2], model.module[3]), strict=True):
        found |= weight_of(i, layer)
        found |= {f"scale{i}": np.asarray(layer.scale, np.float32), f"zero_point{i}": np.asarray(layer.zero_point)}
    return found | {"y": model(tensor(data["x"])).numpy()}


def dynamic_flow(engine: str, data: Case) -> Case:
    """quantize_dynamic, run."""
    torch.backends.quantized.engine = engine
    model = float_model(data).eval()
    kinds = {torch.nn.Linear, torch.ao.nn.intrinsic.LinearReLU}
    model = tq.quantize_dynamic(model, dict.fromkeys(kinds, tq.default_dynamic_qconfig))
    found = weight_of(1, model[0]) | weight_of(2, model[2]) | weight_of(3, model[3])
    return found | {"y": model(tensor(data["x"])).numpy()}


def weight_of(i: int, layer: Any) -> Case:
    """The weight of the i-th layer, under the names of `ours`."""
    integers, scale = weight_integers(layer)
    return {f"qw{i}": integers, f"w_scale{i}": scale}


def weight_integers(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Integers and float32 scales of a quantized layer's weight."""
    weight = layer.weight()
    per_channel = weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
    scale = weight.q_per_channel_scales().numpy() if per_channel else weight.q_scale()
    return weight.int_repr().numpy(), np.asarray(scale, np.float32)


def observed_state(prepared: Any) -> Case:
    """Copies of a prepared model's weights and observed ranges."""
    wanted = ("weight", "bias", "min_val", "max_val")
    return {name: value.numpy().copy() for name, value in prepared.state_dict().items() if name.endswith(wanted)}


def qat_state(engine: str, data: Case, steps: int = 3) -> Case:
    """prepare_qat and a few steps of training: the trained weights and the observed ranges."""
    return observed_state(_trained_qat(engine, data, steps, lr=0.05)[0])


def qat_flow(engine: str, data: Case, state: Case) -> Case:
    """The weights and ranges of `qat_state`, converted and run: every integer and every grid."""
    prepared = _prepared_qat(engine, data)
    prepared(tensor(data["x"]))  # gives the buffers of each channel their shape
    prepared.load_state_dict({name: tensor(value) for name, value in state.items()}, strict=False)
    return _describe_static(tq.convert(prepared.eval()), data)


def qat_losses(engine: str, data: Case, steps: int, lr: float) -> list[float]:
    """Losses of the first steps of quantization-aware training, plain SGD towards 0."""
    return _trained_qat(engine, data, steps, lr)[1]


def _prepared_qat(engine: str, data: Case) -> Any:
    torch.backends.quantized.engine = engine
    model = tq.QuantWrapper(float_model(data)).train()
    model.qconfig = tq.get_default_qat_qconfig(engine)
    return tq.prepare_qat(model)


def _trained_qat(engine: str, data: Case, steps: int, lr: float) -> tuple[Any, list[float]]:
    prepared = _prepared_qat(engine, data)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (prepared(tensor(data["x"])) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return prepared, losses
