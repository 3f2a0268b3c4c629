"""torch's models, as `compare` sees them: float ones, torch.ao's and torchao's. Importing this needs torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.ao.nn.intrinsic as nni
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq

from minquant.functional.geometry import Geometry
from minquant.quant import PerChannel, PerTensor, QParams, QSpec, QTensor, quantize

from .side import Side
from .values import Facts, Value

__all__ = ["TorchSide"]

WATCHERS = (tq.ObserverBase, tq.FakeQuantizeBase)
PASSES_ON = (torch.nn.Sequential, torch.nn.ModuleList, tq.QuantWrapper, torch.nn.Identity, torch.nn.Dropout,
             torch.nn.Flatten, tq.DeQuantStub, nnq.DeQuantize)  # fmt: skip
KEEPS_GRID = (torch.nn.ReLU, torch.nn.MaxPool1d, torch.nn.MaxPool2d)
FLOAT_FUNCTIONAL = (nnq.FloatFunctional, nnq.FXFloatFunctional)
FUNCTIONAL = (*FLOAT_FUNCTIONAL, nnq.QFunctional)
SIGNED = {torch.quint8: False, torch.qint8: True}


class TorchSide(Side):
    """A torch model."""

    def __init__(self, model: Any, which: str) -> None:
        self._grids: dict[int, QParams] = {}
        self._alive: list[Any] = []  # so that no id is used twice
        super().__init__(model, which)
        if any(p.device.type != "cpu" for p in self.model.parameters()):
            self.model.cpu()

    def _computing(self) -> Iterator[tuple[str, Any]]:
        inside: set[Any] = set()
        for path, module in self.model.named_modules():
            if module in inside or isinstance(module, WATCHERS):
                continue
            leaf = isinstance(module, (nni._FusedModule, *FUNCTIONAL)) or _has_weight_quantizer(module)
            if leaf or _is_packed(module):
                inside.update(module.modules())
                yield path, module
                continue
            if _computes(module):
                yield path, module

    def kind_of(self, module: Any) -> str:
        return "functional" if isinstance(module, FUNCTIONAL) else "call"

    def is_value(self, raw: Any) -> bool:
        return isinstance(raw, torch.Tensor)

    def value_of(self, raw: Any) -> Value:
        if raw.is_quantized:
            return from_quantized(raw)
        array = (raw.float() if raw.is_floating_point() else raw).detach().numpy()
        grid = self._grids.get(id(raw), self._grids.get(id(raw._base)))  # a view, as Flatten makes it, keeps the grid
        return quantize(array, grid) if grid is not None else array

    def output_of(self, module: Any, output: Any, inputs: list[Value]) -> Value:
        grid = _fake_quantized_grid(module)
        if grid is None and isinstance(module, KEEPS_GRID) and isinstance(inputs[0], QTensor):
            grid = inputs[0].qparams
        if grid is not None and isinstance(output, torch.Tensor) and not output.is_quantized:
            self._grids[id(output)] = grid
            self._alive.append(output)
        return self.output_value(output)

    def like(self, template: Any, value: Value) -> Any:
        if template.is_quantized:
            grid = from_quantized(template[:0] if template.ndim else template).qparams
            return to_quantized(value if isinstance(value, QTensor) else quantize(value, grid))
        real = value.dequantize() if isinstance(value, QTensor) else value
        return torch.from_numpy(np.array(real)).to(template.dtype)

    def quantized(self, value: Value) -> Any:
        return to_quantized(value)  # type: ignore[arg-type]

    def input(self, batch: Any) -> Any:
        return torch.from_numpy(np.array(batch))

    def without_gradients(self) -> Any:
        return torch.no_grad()

    def engines(self, facts: Facts) -> tuple[str, ...]:
        """A layer keeps the engine that it was packed by, and does not tell which that was."""
        return tuple(dict.fromkeys((str(facts.dialect), "fbgemm", "x86", "onednn", "qnnpack")))

    def folded(self, layer: Any, bn: Any) -> tuple[np.ndarray, np.ndarray]:
        fuse = torch.nn.utils.fuse_linear_bn_weights if layer.weight.ndim == 2 else torch.nn.utils.fuse_conv_bn_weights
        weight, bias = fuse(layer.weight, layer.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
        return weight.detach().numpy(), bias.detach().numpy()

    def facts_of(self, module: Any) -> Facts:
        kind = type(module).__name__
        if _is_packed(module):
            return _packed_facts(module)
        if _has_weight_quantizer(module):
            return _qat_facts(module)
        if isinstance(module, nnq.Quantize):
            grid = _grid(module.scale.item(), module.zero_point.item(), module.dtype)
            return Facts(kind, "quantize", output=grid, dialect=engine(), integers=True)
        if isinstance(module, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d):
            return _float_facts(module, kind)
        if isinstance(module, nni._FusedModule):
            return _float_facts(module[0], kind).with_(relu=isinstance(module[-1], torch.nn.ReLU))
        if type(module).__module__.startswith("torch.ao.nn.quantized") and not isinstance(module, FLOAT_FUNCTIONAL):
            return Facts(kind, dialect=engine(), integers=True)
        role = "quantize" if isinstance(module, tq.QuantStub) else "relu" if kind == "ReLU" else "other"
        return Facts(kind, role)


# ---- tensors ---------------------------------------------------------------------------------------------------------


def from_quantized(tensor: Any) -> QTensor:
    """A torch quantized tensor -> the same integers on the same grid."""
    integers = tensor.int_repr().numpy()
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return QTensor(integers, _grid(tensor.q_scale(), tensor.q_zero_point(), tensor.dtype))
    scale, zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    spec = QSpec(signed=SIGNED[tensor.dtype], granularity=PerChannel(tensor.q_per_channel_axis()))
    return QTensor(integers, QParams(scale.numpy().astype(np.float32), zeros.numpy().astype(np.int32), spec))


def to_quantized(value: QTensor) -> Any:
    """Integers on a grid -> torch's quantized tensor of them."""
    grid, integers = value.qparams, torch.from_numpy(np.array(value.int_repr()))
    return torch._make_per_tensor_quantized_tensor(integers, float(grid.scale), int(grid.zero_point))


def _grid(scale: float, zero_point: int, dtype: Any, qmin: int | None = None, qmax: int | None = None) -> QParams:
    signed = SIGNED.get(dtype, dtype in (torch.int8, torch.qint32))
    spec = QSpec(signed=signed, granularity=PerTensor(), qmin=qmin, qmax=qmax)  # type: ignore[arg-type]
    return QParams(np.asarray(scale, np.float32), np.asarray(zero_point, np.int32), spec)


# ---- layers ----------------------------------------------------------------------------------------------------------


def engine() -> str:
    """The dialect of torch's present engine."""
    return "x86" if torch.backends.quantized.engine in ("none", "") else torch.backends.quantized.engine


def _computes(module: Any) -> bool:
    """Whether a module does more than hold others or pass values on."""
    children = [child for child in module.children() if not isinstance(child, WATCHERS)]
    owns = any(True for _ in module.parameters(recurse=False))
    return not isinstance(module, PASSES_ON) and (owns or not children)


def _is_packed(module: Any) -> bool:
    """Whether it is a quantized Linear or Conv, static or dynamic."""
    is_layer = type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized"))
    return is_layer and callable(getattr(module, "weight", None)) and "Embedding" not in type(module).__name__


def _has_weight_quantizer(module: Any) -> bool:
    return hasattr(module, "weight_fake_quant")


def _packed_facts(module: Any) -> Facts:
    weight, bias = from_quantized(module.weight()), module.bias()
    dynamic = "dynamic" in type(module).__module__
    return Facts(
        type(module).__name__,
        "linear" if weight.ndim == 2 else "conv",
        weight=weight,
        bias=None if bias is None else bias.detach().numpy(),
        output=None if dynamic else _grid(float(module.scale), int(module.zero_point), torch.quint8),
        relu="ReLU" in type(module).__name__,
        dialect=engine(),
        geometry=_slide(module, weight),
        dynamic=dynamic,
        integers=True,
        input_range=(0, 255 if engine() == "qnnpack" else 127) if dynamic else None,
    )


def _qat_facts(module: Any) -> Facts:
    with torch.no_grad():
        weight, bias = module.weight, module.bias
        if hasattr(module, "bn"):
            fuse = torch.nn.utils.fuse_linear_bn_weights if weight.ndim == 2 else torch.nn.utils.fuse_conv_bn_weights
            bn = module.bn
            weight, bias = fuse(weight, bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
    watcher, real = module.weight_fake_quant, weight.detach().numpy()
    per_channel = watcher.scale.numel() > 1 or watcher.ch_axis != -1
    zeros = watcher.zero_point.detach().numpy().astype(np.int32)
    spec = QSpec(granularity=PerChannel(0) if per_channel else PerTensor())
    shape: Any = -1 if per_channel else ()
    grid = QParams(watcher.scale.detach().numpy().reshape(shape), zeros.reshape(shape), spec)
    return Facts(
        type(module).__name__,
        "linear" if real.ndim == 2 else "conv",
        weight=quantize(real, grid),
        bias=None if bias is None else bias.detach().numpy(),
        relu="ReLU" in type(module).__name__,
        dialect=engine(),
        geometry=_slide(module, real),
    )


def _float_facts(module: Any, kind: str) -> Facts:
    weight = module.weight.detach()
    real = (weight.dequantize() if type(weight).__module__.startswith("torchao") else weight).float().numpy()
    bias = None if module.bias is None else module.bias.detach().numpy()
    return Facts(kind, "linear" if real.ndim == 2 else "conv", real, bias, geometry=_slide(module, real))


def _slide(module: Any, weight: Any) -> Geometry | None:
    if weight.ndim == 2:
        return None
    own = (getattr(module, name) for name in ("stride", "padding", "dilation"))
    # a quantized Conv1d keeps its options for two axes
    stride, padding, dilation = (o if isinstance(o, str) or np.ndim(o) == 0 else o[2 - weight.ndim :] for o in own)
    return Geometry.of(type(module).__name__, weight.shape[2:], stride, padding, dilation, module.groups)


def _fake_quantized_grid(module: Any) -> QParams | None:
    """The grid that the fake quantizer behind a module has just rounded to."""
    watcher = getattr(module, "activation_post_process", None)
    if not isinstance(watcher, tq.FakeQuantizeBase) or not bool(watcher.fake_quant_enabled):
        return None
    inner = watcher.activation_post_process
    return _grid(watcher.scale.item(), int(watcher.zero_point.item()), inner.dtype, inner.quant_min, inner.quant_max)
