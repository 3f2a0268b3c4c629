"""What Linear and Conv share in each of their quantized lives, and what all of them refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minquant import functional
from minquant.nn import Module, Parameter
from minquant.tensor import Tensor, as_tensor

from .dialects import get_dialect
from .fake_quant import FakeQuantize
from .grid import check_finite, float_array
from .qtensor import QTensor, quantize
from .spec import PerChannel, PerGroup, PerTensor, PerToken, QParams, QSpec

__all__ = [
    "IntegerWeight",
    "QATWeighted",
    "at",
    "check_features",
    "check_input_spec",
    "check_integer_spec",
    "check_output_grid",
    "check_weight_spec",
    "check_weight_values",
    "finite_input",
    "integer_input",
    "no_quant_stub",
    "quantize_weight",
    "real_input",
]


class QATWeighted(Module):
    """A layer whose weight is fake-quantized at every step.

    In the reference dialect the product is that of the integers (see `minquant.quant.dialects.reference`), so that
    in `eval` the converted layer computes the same values to the last bit.

    Args:
        layer: the float layer whose Parameters are trained on; they are shared, not copied.
        weight_fake_quant: fake quantizer of the weight.
        backend: the dialect.

    Raises:
        ValueError: a weight grid that the layer has no arithmetic for; in forward, an input that lies on no grid
            (there is no QuantStub before the layer) or on one that does not serve, and NaN in the weight.

    Source: torch.ao.nn.qat, torch 2.13; Jacob et al. 2018, section 3.
    """

    activation_post_process: FakeQuantize
    product: Callable[..., Tensor]
    """The layer's linear map of x, weight and bias: what a subclass defines."""
    relu = False

    def __init__(self, layer: Any, weight_fake_quant: FakeQuantize, backend: str) -> None:
        super().__init__()
        check_weight_spec(weight_fake_quant.activation_post_process.spec, layer.weight.ndim)
        self.weight: Parameter = layer.weight
        self.bias: Parameter | None = layer.bias
        self.weight_fake_quant = weight_fake_quant
        self.backend = backend
        self.path = ""

    def forward(self, x: Tensor) -> Tensor:
        x = self.checked_input(x)
        weight, bias = self.folded()
        y = self.product(x, self.fake_quantized(weight), bias)
        return functional.relu(y) if self.relu else y

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the converted layer, before they are quantized."""
        return self.weight, self.bias

    def checked_input(self, x: Any) -> Tensor:
        """The input as a Tensor on a grid that serves."""
        x = as_tensor(x)
        if x.qparams is None and self.activation_post_process.fake_quant_enabled:
            raise ValueError(no_quant_stub(self))
        if x.qparams is not None:
            check_input_spec(x.qparams.spec, self)
        return x

    def fake_quantized(self, weight: Tensor) -> Tensor:
        """The weight on its grid."""
        check_weight_values(weight, f"{type(self).__name__}{at(self)}")
        return self.weight_fake_quant(weight)


class IntegerWeight(Module):
    """What the integer layers share: a quantized weight, a float32 bias, a dialect.

    Args:
        weight: QTensor of 2 to 8 bits, output channels on axis 0.
        bias: float32 array ``(weight.shape[0],)`` or None.
        backend: the dialect.

    Raises:
        ValueError: a weight grid that the dialect has no arithmetic for; a bias of another shape, or one that holds NaN
            or infinity.
        TypeError: a bias that is not float32.
    """

    relu = False

    def __init__(self, weight: QTensor, bias: np.ndarray | None, backend: str) -> None:
        super().__init__()
        check_weight_spec(weight.qparams.spec, weight.ndim)
        get_dialect(backend).check_weight(weight.qparams.spec)
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"{self._kind}: expected a bias of shape ({weight.shape[0]},), got {bias.shape}")
        if bias is not None and bias.dtype != np.float32:
            raise TypeError(
                f"{self._kind}: expected a float32 bias, got {bias.dtype}; an integer bias means nothing without its "
                "scale: give its real values, bias · scale"
            )
        if bias is not None:
            check_finite(bias, f"the bias of {self._kind}", "Did training diverge, or is the file damaged?")
        self.weight = weight
        self.bias = bias
        self.backend = backend
        self.path = ""

    @property
    def _kind(self) -> str:
        return type(self).__name__

    def _bias_or_zeros(self) -> np.ndarray:
        return np.zeros(self.weight.shape[0], np.float32) if self.bias is None else self.bias

    def extra_repr(self) -> str:
        return f"bias={self.bias is not None}, weight={self.weight.qparams.spec}, backend={self.backend!r}"


def integer_input(x: Any, module: Any) -> QTensor:
    """The input of a static layer.

    Raises:
        TypeError: real values instead of integers.
        ValueError: integers on a grid that does not serve.
    """
    if not isinstance(x, QTensor):
        raise TypeError(no_quant_stub(module))
    check_input_spec(x.qparams.spec, module)
    return x


def real_input(x: Any, module: Any) -> np.ndarray:
    """The input of a dynamic layer, float32.

    Raises:
        TypeError: integers instead of real values.
    """
    where = f"{type(module).__name__}{at(module)}"
    if isinstance(x, QTensor):
        raise TypeError(f"{where}: expected real values, got a QTensor; put a DeQuantStub before it")
    return float_array(x, where)


def check_features(shape: tuple[int, ...], module: Any) -> None:
    """Refuses an input of a Linear with another number of features.

    Raises:
        ValueError: there are others.
    """
    if not shape or shape[-1] != module.in_features:
        raise ValueError(
            f"{type(module).__name__}{at(module)}: the last axis must have {module.in_features} features, got shape "
            f"{shape}"
        )


@contextmanager
def finite_input(array: np.ndarray, module: Any) -> Iterator[None]:
    """While a dynamic layer computes: an input for which its dialect finds no grid is refused with the layer's path.

    Raises:
        ValueError: NaN or infinity in the input.
    """
    try:
        yield
    except ValueError:
        what_to_do = "Mend the data or the layers before it"
        check_finite(array, f"the input of {type(module).__name__}{at(module)}", what_to_do)
        raise


def quantize_weight(weight: Tensor, qparams: QParams, path: str) -> QTensor:
    """The integers of a weight, with the layer's path in the message where that fails."""
    try:
        check_weight_spec(qparams.spec, weight.ndim)
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


def check_weight_spec(spec: QSpec, ndim: int = 2) -> None:
    """Refuses a weight grid that no layer with a weight of `ndim` axes has an arithmetic for.

    Raises:
        ValueError: more than 8 bits; one scale a token; channels that are not on axis 0; groups, of a Conv.
    """
    check_integer_spec(spec, "weight")
    of, is_linear = spec.granularity, ndim == 2
    wrong_axis = isinstance(of, PerChannel) and of.axis not in (0, -ndim)
    if isinstance(of, PerToken) or wrong_axis or (isinstance(of, PerGroup) and not is_linear):
        what = "Linear (out_features, in_features)" if is_linear else "Conv (out_channels, in_channels / groups, …)"
        groups = ", or one a group, PerGroup(size)" if is_linear else ""
        raise ValueError(
            f"the weight of a {what} takes one scale in all, one for each output channel, PerChannel(0){groups}; "
            f"got {of}"
        )


def check_weight_values(weight: Tensor, where: str) -> None:
    """Refuses a weight that holds NaN or infinity.

    Raises:
        ValueError: see above.
    """
    what_to_do = "Did training diverge, or is the file that it was loaded from damaged?"
    check_finite(weight.data, f"the weight of {where}", what_to_do)


def check_input_spec(spec: QSpec, module: Any) -> None:
    """Refuses an input grid that no layer has an arithmetic for.

    Raises:
        ValueError: more than 8 bits; more than one scale.
    """
    check_integer_spec(spec, "input")
    if not isinstance(spec.granularity, PerTensor):
        raise ValueError(
            f"{type(module).__name__}{at(module)}: the input needs one scale for all values, got {spec}; observe it "
            "per tensor"
        )


def check_output_grid(output: QParams, kind: str) -> None:
    """Refuses an output grid that no layer can write to.

    Raises:
        ValueError: more than 8 bits; more than one scale.
    """
    check_integer_spec(output.spec, "output")
    if not isinstance(output.spec.granularity, PerTensor):
        raise ValueError(f"{kind}: the output needs one scale for all values, got {output.spec}")
