"""Linear in its three lives: observed (an ordinary Linear), fake-quantized in training, and on integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant import functional
from minquant.nn import Linear, Module, Parameter, ReLU, Sequential
from minquant.tensor import Tensor, as_tensor

from .dialects import get_dialect
from .fake_quant import FakeQuantize
from .grid import check_finite, float_array
from .qtensor import QTensor, quantize
from .spec import PerChannel, PerTensor, PerToken, QParams, QSpec

__all__ = [
    "DynamicQuantizedLinear",
    "DynamicQuantizedLinearReLU",
    "LinearReLU",
    "QATLinear",
    "QATLinearReLU",
    "QuantizedLinear",
    "QuantizedLinearReLU",
    "quantize_weight",
]


class LinearReLU(Sequential):
    """A Linear and the ReLU after it, fused: one layer with one output grid.

    The grid then need not cover the negative values, which the ReLU would throw away.

    Args:
        linear: the Linear.
        relu: the ReLU.

    Raises:
        TypeError: something else in one of the two places.

    Source: torch.ao.nn.intrinsic.LinearReLU, torch 2.13.
    """

    def __init__(self, linear: Linear, relu: ReLU) -> None:
        if not (isinstance(linear, Linear) and isinstance(relu, ReLU)):
            kinds = f"{type(linear).__name__} and {type(relu).__name__}"
            raise TypeError(f"LinearReLU: expected a Linear and a ReLU, got {kinds}")
        super().__init__(linear, relu)

    @property
    def linear(self) -> Linear:
        """The Linear in it."""
        return self[0]


class QATLinear(Module):
    """Linear whose weight is fake-quantized at every step.

    In the reference dialect the product is that of the integers (see `minquant.quant.dialects.reference`), so that
    in `eval` the converted layer computes the same values to the last bit.

    Args:
        linear: the Linear whose Parameters are trained on; they are shared, not copied.
        weight_fake_quant: fake quantizer of the weight.
        backend: the dialect.

    Raises:
        ValueError: a weight grid that a Linear has no arithmetic for; in forward, an input that lies on no grid
            (there is no QuantStub before the layer) or on one that does not serve, and NaN in the weight.

    Source: torch.ao.nn.qat.Linear, torch 2.13; Jacob et al. 2018, section 3.
    """

    activation_post_process: FakeQuantize
    relu = False

    def __init__(self, linear: Linear, weight_fake_quant: FakeQuantize, backend: str) -> None:
        super().__init__()
        check_weight_spec(weight_fake_quant.activation_post_process.spec)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight: Parameter = linear.weight
        self.bias: Parameter | None = linear.bias
        self.weight_fake_quant = weight_fake_quant
        self.backend = backend
        self.path = ""

    def forward(self, x: Tensor) -> Tensor:
        x = as_tensor(x)
        if x.qparams is None and self.activation_post_process.fake_quant_enabled:
            raise ValueError(no_quant_stub(self))
        if x.qparams is not None:
            check_input_spec(x.qparams.spec, self)
        check_weight_values(self.weight, f"{type(self).__name__}{at(self)}")
        y = get_dialect(self.backend).qat_linear(x, self.weight_fake_quant(self.weight), self.bias)
        return functional.relu(y) if self.relu else y

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, backend={self.backend!r}"


class QATLinearReLU(QATLinear):
    """`QATLinear` with the ReLU fused in."""

    relu = True


class IntegerWeight(Module):
    """What the integer layers share: a quantized weight (N, K), a float32 bias (N,), a dialect.

    Args:
        weight: QTensor of 2 to 8 bits, shape ``(out_features, in_features)``.
        bias: float32 array ``(out_features,)`` or None.
        backend: the dialect.

    Raises:
        ValueError: a weight grid that the dialect has no arithmetic for; a bias of another shape.
    """

    relu = False

    def __init__(self, weight: QTensor, bias: np.ndarray | None, backend: str) -> None:
        super().__init__()
        check_weight_spec(weight.qparams.spec)
        get_dialect(backend).check_weight(weight.qparams.spec)
        self.out_features, self.in_features = weight.shape
        if bias is not None and bias.shape != (self.out_features,):
            raise ValueError(f"{self._kind}: expected a bias of shape ({self.out_features},), got {bias.shape}")
        self.weight = weight
        self.bias = bias
        self.backend = backend
        self.path = ""

    @property
    def _kind(self) -> str:
        return type(self).__name__

    def _bias_or_zeros(self) -> np.ndarray:
        return np.zeros(self.out_features, np.float32) if self.bias is None else self.bias

    def _check_features(self, shape: tuple[int, ...]) -> None:
        if not shape or shape[-1] != self.in_features:
            raise ValueError(
                f"{self._kind}{at(self)}: the last axis must have {self.in_features} features, got shape {shape}"
            )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"weight={self.weight.qparams.spec}, backend={self.backend!r}"
        )


class QuantizedLinear(IntegerWeight):
    """Static quantized Linear: integers in, integers out, one pass in the dialect's arithmetic.

    Args:
        weight: QTensor ``(out_features, in_features)``.
        bias: float32 array ``(out_features,)`` or None.
        output: the grid of the result.
        backend: the dialect.

    Raises (in forward):
        TypeError: real values instead of integers: there is no QuantStub before the layer.
        ValueError: another number of features; an input with more than one scale, or of 16 bits.

    Source: torch.ao.nn.quantized.Linear, torch 2.13; Jacob et al. 2018, section 2.
    """

    def __init__(self, weight: QTensor, bias: np.ndarray | None, output: QParams, backend: str) -> None:
        super().__init__(weight, bias, backend)
        check_integer_spec(output.spec, "output")
        if not isinstance(output.spec.granularity, PerTensor):
            raise ValueError(f"{self._kind}: the output needs one scale for all values, got {output.spec}")
        self.output = output

    def forward(self, x: QTensor) -> QTensor:
        """(…, in_features) integers -> (…, out_features) integers on the grid `output`."""
        if not isinstance(x, QTensor):
            raise TypeError(no_quant_stub(self))
        check_input_spec(x.qparams.spec, self)
        self._check_features(x.shape)
        return get_dialect(self.backend).linear(x, self.weight, self._bias_or_zeros(), self.output, self.relu)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, output={self.output}"


class QuantizedLinearReLU(QuantizedLinear):
    """`QuantizedLinear` with the ReLU fused in. Source: torch.ao.nn.intrinsic.quantized.LinearReLU, torch 2.13."""

    relu = True


class DynamicQuantizedLinear(IntegerWeight):
    """Dynamic quantized Linear: float32 in and out; the input's grid is chosen from the input itself.

    Args:
        weight: QTensor ``(out_features, in_features)``.
        bias: float32 array ``(out_features,)`` or None.
        input_spec: the kind of grid for the input, per tensor or per token.
        backend: the dialect.

    Raises (in forward):
        TypeError: integers instead of real values.
        ValueError: another number of features; NaN or infinity in the input.

    Source: torch.ao.nn.quantized.dynamic.Linear, torch 2.13.
    """

    def __init__(self, weight: QTensor, bias: np.ndarray | None, input_spec: QSpec, backend: str) -> None:
        super().__init__(weight, bias, backend)
        check_integer_spec(input_spec, "input")
        if not isinstance(input_spec.granularity, PerTensor | PerToken):
            raise ValueError(f"{self._kind}: the input's grid is per tensor or per token, got {input_spec}")
        self.input_spec = input_spec

    def forward(self, x: Tensor | np.ndarray) -> Tensor:
        """(…, in_features) float32 -> (…, out_features) float32."""
        if isinstance(x, QTensor):
            raise TypeError(f"{self._kind}{at(self)}: expected real values, got a QTensor; put a DeQuantStub before it")
        array = float_array(x, f"{self._kind}{at(self)}")
        self._check_features(array.shape)
        what_to_do = "Mend the data or the layers before it"
        check_finite(array, f"the input of {self._kind}{at(self)}", what_to_do)
        dialect = get_dialect(self.backend)
        return Tensor(dialect.dynamic_linear(array, self.weight, self._bias_or_zeros(), self.relu, self.input_spec))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, input={self.input_spec}"


class DynamicQuantizedLinearReLU(DynamicQuantizedLinear):
    """`DynamicQuantizedLinear` with a ReLU behind it."""

    relu = True


def quantize_weight(weight: Parameter, qparams: QParams, path: str) -> QTensor:
    """The integers of a weight, with the layer's path in the message where that fails."""
    try:
        check_weight_spec(qparams.spec)
        return quantize(weight, qparams)
    except ValueError as error:
        raise ValueError(f"the weight of '{path}': {error}") from error


def at(module: Any) -> str:
    """The quoted path of a layer inside a model, after a space, for messages."""
    return f" '{module.path}'" if module.path else ""


def no_quant_stub(module: Any) -> str:
    """What to say to somebody whose model has no QuantStub where one belongs."""
    return (
        f"{type(module).__name__}{at(module)}: expected values on a quantization grid, got plain real values: there "
        "is no QuantStub between the model's input and this layer, or an operation between the two left the grid. "
        "Put a QuantStub before it, or wrap the model in QuantWrapper(model) before prepare"
    )


def check_integer_spec(spec: QSpec, role: str) -> None:
    """Refuses a grid of 16 bits: products of such integers do not fit the int32 accumulator.

    Raises:
        ValueError: more than 8 bits.
    """
    if spec.bits > 8:
        raise ValueError(
            f"integer layers take 2 to 8 bits, got {spec} for the {role}; 16 bits are for fake_quantize only"
        )


def check_weight_spec(spec: QSpec) -> None:
    """Refuses a weight grid that no Linear has an arithmetic for.

    Raises:
        ValueError: more than 8 bits; one scale a token; channels that are not the rows of the weight.
    """
    check_integer_spec(spec, "weight")
    of = spec.granularity
    if isinstance(of, PerToken) or (isinstance(of, PerChannel) and of.axis not in (0, -2)):
        raise ValueError(
            f"the weight of a Linear (out_features, in_features) takes one scale in all, one for each output channel, "
            f"PerChannel(0), or one a group, PerGroup(size); got {of}"
        )


def check_weight_values(weight: Parameter, where: str) -> None:
    """Refuses a weight that holds NaN or infinity.

    Raises:
        ValueError: see above.
    """
    what_to_do = "Did training diverge, or is the file that it was loaded from damaged?"
    check_finite(weight.data, f"the weight of {where}", what_to_do)


def check_input_spec(spec: QSpec, module: Any) -> None:
    """Refuses an input grid that a Linear has no arithmetic for.

    Raises:
        ValueError: more than 8 bits; more than one scale.
    """
    check_integer_spec(spec, "input")
    if not isinstance(spec.granularity, PerTensor):
        raise ValueError(
            f"{type(module).__name__}{at(module)}: the input needs one scale for all values, got {spec}; observe it "
            "per tensor"
        )
