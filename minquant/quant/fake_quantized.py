"""Linear and Embedding between `QATConfig`'s two steps: float parameters, rounded at every call.

A layer's input and weight each have a fake quantizer of their own (`minquant.quant.fake_quantizer`). In eval the
prepared layer and the converted one compute the same values to the last bit: the same integers, by the same dialect.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant import functional
from minquant.nn import Embedding, Linear, Module, Parameter
from minquant.tensor import Tensor, as_tensor

from .dialects import get_dialect
from .embedding import QuantizedEmbedding, check_table_spec, named, padding
from .fake_quant import FakeQuantize
from .fake_quantizer import FakeQuantizeConfigBase, IntxFakeQuantizer, make_fake_quantizer
from .linear import DynamicQuantizedLinear, IntegerLinear
from .qtensor import QTensor
from .spec import PerTensor, PerToken
from .weight_only import StaticActivationLinear, WeightOnlyQuantizedLinear
from .weighted import at, check_features, check_weight_spec, check_weight_values, finite_input, real_input

__all__ = ["FakeQuantizedEmbedding", "FakeQuantizedLinear"]


class FakeQuantizedLinear(Module):
    """``y = x̂ ŵᵀ + b``, x̂ and ŵ rounded at every call; without an activation config x̂ is x.

    With both, the product is the dialect's, of the integers behind x̂ and ŵ; with a weight alone it is float32's. The
    gradient is that of the float product, straight through the rounding.

    Args:
        linear: the float layer whose Parameters are trained on; they are shared, not copied.
        activation_config: how the input is rounded, or None.
        weight_config: how the weight is rounded.
        backend: the dialect.

    Attributes:
        activation_fake_quantizer: module, or None.
        weight_fake_quantizer: module.

    Raises:
        ValueError: a weight grid that a Linear has no arithmetic for, a group size that does not divide in_features
            among them; in forward, NaN or infinity in input or weight.

    Source: torchao.quantization.qat.FakeQuantizedLinear, torchao 0.18, which multiplies in float.
    """

    activation_fake_quantizer: Any
    weight_fake_quantizer: Any

    def __init__(
        self,
        linear: Linear,
        activation_config: FakeQuantizeConfigBase | None,
        weight_config: FakeQuantizeConfigBase,
        backend: str,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight: Parameter = linear.weight
        self.bias: Parameter | None = linear.bias
        activation = None if activation_config is None else make_fake_quantizer(activation_config)
        self.add_module("activation_fake_quantizer", activation)
        self.weight_fake_quantizer = make_fake_quantizer(weight_config)
        self.backend = backend
        self.path = ""

    def forward(self, x: Tensor | np.ndarray) -> Tensor:
        """(…, in_features) -> (…, out_features)."""
        array, weight = real_input(x, self), self.fake_quantized()
        check_features(array.shape, self)
        if self.activation_fake_quantizer is None:
            return functional.linear(x, weight, self.bias)
        with finite_input(array, self):
            rounded = self.activation_fake_quantizer(as_tensor(x))
        return get_dialect(self.backend).qat_linear(rounded, weight, self.bias)

    def fake_quantized(self) -> Tensor:
        """The weight on its grid."""
        return self.weight_fake_quantizer(self.checked_weight())

    def real_weight(self) -> Tensor:
        """The weight before it is rounded: what a subclass may compute."""
        return self.weight

    def checked_weight(self) -> Tensor:
        """`real_weight`; ValueError for NaN or infinity in it."""
        weight = self.real_weight()
        check_weight_values(weight, f"{type(self).__name__}{at(self)}")
        return weight

    def converted(self) -> IntegerLinear:
        """The layer on integers.

        Raises:
            ValueError: NaN or infinity in the weight; an input whose range was never observed.
        """
        weight = self.weight_fake_quantizer.quantized(self.checked_weight())
        bias = None if self.bias is None else self.bias.data.copy()
        activation = self.activation_fake_quantizer
        new: IntegerLinear
        if activation is None:
            new = WeightOnlyQuantizedLinear(weight, bias)
        elif isinstance(activation, FakeQuantize):
            new = StaticActivationLinear(weight, bias, self._observed(activation), self.backend)
        else:
            new = DynamicQuantizedLinear(weight, bias, activation.config.spec, self.backend)
        new.path = self.path
        return new

    def _observed(self, activation: FakeQuantize) -> Any:
        if not activation.saw_data:
            raise ValueError(
                f"quantize_: the input of {type(self).__name__}{at(self)} has no scale yet: run data through the model "
                'in train() after QATConfig(config, step="prepare"), or give act_quant_scale'
            )
        return activation.qparams()

    def check(self) -> None:
        """Refuses grids that no Linear of this shape can have, before anything is trained."""
        check_weight_spec(self.weight_fake_quantizer.quantized(self.real_weight()).qparams.spec)
        activation = self.activation_fake_quantizer
        if not (activation is None or isinstance(activation, FakeQuantize) or self._is_dynamic(activation)):
            raise ValueError(
                f"{activation.config} cannot be had at run time in the dialect {self.backend!r}: an input takes "
                "IntxFakeQuantizeConfig with PerToken() or PerTensor() and the dialect's own eps, or a fake quantizer "
                "that is a FakeQuantize, whose grid stands still in eval"
            )

    def _is_dynamic(self, activation: Any) -> bool:
        """Whether the dialect chooses, for every input, the grid that this fake quantizer chooses."""
        if not isinstance(activation, IntxFakeQuantizer):
            return False
        spec, config = activation.config.spec, activation.config
        eps = get_dialect(self.backend).run_time_eps(spec)
        named = isinstance(spec.granularity, PerToken | PerTensor)
        return named and config.mapping_type != "symmetric_no_clipping_error" and config.eps == float(eps)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, backend={self.backend!r}"


class FakeQuantizedEmbedding(Module):
    """Embedding whose table is rounded at every call.

    Args:
        embedding: the Embedding whose table is trained on; it is shared, not copied.
        weight_config: how the table is rounded.

    Raises:
        ValueError: a grid that a table has no rule for; in forward, NaN or infinity in the table.
        IndexError, TypeError: in forward, as `minquant.functional.embedding`.

    Source: torchao.quantization.qat.FakeQuantizedEmbedding, torchao 0.18.
    """

    weight_fake_quantizer: Any

    def __init__(self, embedding: Embedding, weight_config: FakeQuantizeConfigBase) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.padding_idx = embedding.padding_idx
        self.weight: Parameter = embedding.weight
        self.weight_fake_quantizer = make_fake_quantizer(weight_config)
        self.path = ""

    def forward(self, input: Any) -> Tensor:
        """(…) integers -> (…, embedding_dim)."""
        check_weight_values(self.weight, f"{type(self).__name__}{at(self)}")
        with named(self, input):
            return functional.embedding(input, self.weight_fake_quantizer(self.weight), self.padding_idx)

    def converted(self) -> QuantizedEmbedding:
        """The layer on integers; ValueError for NaN or infinity in the table."""
        check_weight_values(self.weight, f"{type(self).__name__}{at(self)}")
        new = QuantizedEmbedding(self.weight_fake_quantizer.quantized(self.weight))
        new.path = self.path
        return new

    def check(self) -> None:
        """Refuses grids that no table of this shape can have, before anything is trained."""
        table = self.weight_fake_quantizer.quantized(self.weight)
        if not isinstance(table, QTensor):
            raise ValueError(
                "the table of an Embedding has no tinygemm form; use IntxWeightOnlyConfig"
                '(weight_dtype="int4", granularity=PerGroup(32))'
            )
        check_table_spec(table.qparams.spec)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}{padding(self.padding_idx)}"
