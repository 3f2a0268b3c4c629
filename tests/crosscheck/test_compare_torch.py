"""`compare` with torch's models on one side or on both."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.ao.quantization as tq  # noqa: E402

from minquant import nn  # noqa: E402
from minquant.crosscheck import compare  # noqa: E402
from minquant.crosscheck.processor import dialect_of  # noqa: E402
from minquant.quant import QuantWrapper, convert, fuse_modules, get_default_qconfig, prepare  # noqa: E402


@pytest.fixture(autouse=True)
def engine():
    """torch's engine and thread count, put back afterwards; its notices of deprecation silenced."""
    was = torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.backends.quantized.engine = was


def torch_chain(kind="linear"):
    torch.manual_seed(0)
    if kind == "conv":
        layers = [torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
                  torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(128, 5)]  # fmt: skip
    else:
        layers = [torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU(),
                  torch.nn.Linear(32, 8)]  # fmt: skip
    return torch.nn.Sequential(*layers).eval()


def our_chain(theirs, kind="linear"):
    """The same layers with the same state, in minquant."""
    if kind == "conv":
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
                  nn.Flatten(), nn.Linear(128, 5)]  # fmt: skip
    else:
        layers = [nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)]
    ours = nn.Sequential(*layers).eval()
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    return ours


def data(kind="linear", rows=300):
    shape = (rows // 10, 3, 6, 6) if kind == "conv" else (rows, 32)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


FUSE = {"conv": [["0", "1", "2"], ["3", "4"]], "linear": [["0", "1"], ["2", "3"]]}


def converted_by_torch(model, name, x, kind, fuse=True):
    torch.backends.quantized.engine = name
    fused = tq.fuse_modules(copy.deepcopy(model), FUSE[kind]) if fuse else copy.deepcopy(model)
    wrapped = tq.QuantWrapper(fused).eval()
    wrapped.qconfig = tq.get_default_qconfig(name)
    prepared = tq.prepare(wrapped)
    prepared(torch.from_numpy(x))
    return tq.convert(prepared)


def converted_by_us(model, theirs, name, x, kind):
    """Converted by minquant with the grids that torch's observers chose, so that float sums have no say."""
    prepared = prepare(QuantWrapper(fuse_modules(model, FUSE[kind])), get_default_qconfig(dialect_of(name)))
    prepared(x)
    quantized = convert(prepared)
    for path, module in theirs.named_modules():
        ours = dict(quantized.named_modules()).get(path)
        if hasattr(ours, "output"):
            grid = ours.output
            ours.output = type(grid)(np.float32(module.scale), np.int32(module.zero_point), grid.spec)
        if path == "quant":
            grid = ours.qparams
            ours.qparams = type(grid)(np.float32(module.scale.item()), np.int32(module.zero_point.item()), grid.spec)
        if hasattr(ours, "bias") and ours.bias is not None:
            ours.bias = module.bias().detach().numpy()
    return quantized


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("name", ["x86", "fbgemm", "qnnpack", "onednn"])
def test_minquant_equals_torch(name, kind):
    model, x = torch_chain(kind), data(kind)
    theirs = converted_by_torch(model, name, x, kind)
    ours = converted_by_us(our_chain(model, kind), theirs, name, x, kind)
    for pair in ((ours, theirs), (theirs, ours)):
        comparison = compare(*pair, x)
        assert comparison.first_divergent is None, comparison
        assert len(comparison.layers) == 4
        assert all(row["differing"] == row["same_inputs"]["differing"] == 0 for row in comparison.layers)


def test_another_engine_is_told_by_its_rule():
    model, x = torch_chain(), data()
    theirs = converted_by_torch(model, "qnnpack", x, "linear")
    ours = converted_by_us(our_chain(model), theirs, "qnnpack", x, "linear")
    for module in ours.modules():
        if hasattr(module, "backend"):
            module.backend = "fbgemm"
    found = compare(ours, theirs, x).first_divergent
    assert found["cause"] == "bias", found
    assert "0 of" in found["evidence"]


def weight_edited(layer):
    weight = layer.weight()
    integers = weight.int_repr().clone()
    integers[1, 1] += 1 if integers[1, 1] < 127 else -1
    scale, zeros = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
    real = integers * scale.reshape(-1, 1).float()
    layer.set_weight_bias(torch.quantize_per_channel(real, scale, zeros, 0, torch.qint8), layer.bias())


def scale_edited(layer):
    layer.scale *= 1.01


def zero_point_edited(layer):
    layer.zero_point += 1


def bias_edited(layer):
    layer.set_weight_bias(layer.weight(), torch.zeros_like(layer.bias()))


EDITS = {"weight": weight_edited, "scale": scale_edited, "zero_point": zero_point_edited, "bias": bias_edited}


@pytest.mark.parametrize("first", ["torch", "minquant"])
@pytest.mark.parametrize("cause", EDITS)
def test_a_fault_in_torchs_model_is_named(first, cause):
    model, x = torch_chain(), data()
    theirs = converted_by_torch(model, "fbgemm", x, "linear")
    ours = converted_by_us(our_chain(model), theirs, "fbgemm", x, "linear")
    broken = copy.deepcopy(theirs)
    EDITS[cause](broken.module[2])
    found = compare(theirs if first == "torch" else ours, broken, x).first_divergent
    assert (found["layer"], found["cause"]) == ("module.2", cause), found


def test_a_torch_float_model_against_its_quantized_self():
    for kind in ("linear", "conv"):
        model, x = torch_chain(kind), data(kind)
        comparison = compare(model, converted_by_torch(model, "fbgemm", x, kind), x)
        assert comparison.first_divergent["cause"] in ("rounding", "clamp")
        assert "nothing is wrong" in comparison.first_divergent["evidence"], comparison
        assert [row["name"] for row in comparison.layers][-1].startswith("module.")
    broken = converted_by_torch(model, "fbgemm", x, "conv")
    broken.module[3].set_weight_bias(broken.module[3].weight(), None)
    found = compare(model, broken, x).first_divergent
    assert (found["layer"], found["cause"]) == ("module.3", "bias")


class Residual(torch.nn.Module):
    """Operations between layers, joins, pooling, activations and a norm."""

    def __init__(self):
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.first, self.second = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1)
        self.add, self.cat = torch.ao.nn.quantized.FloatFunctional(), torch.ao.nn.quantized.FloatFunctional()
        self.relu, self.sigmoid, self.pool = torch.nn.ReLU(), torch.nn.Sigmoid(), torch.nn.AdaptiveAvgPool2d(2)
        self.flatten, self.fc, self.norm = torch.nn.Flatten(), torch.nn.Linear(64, 5), torch.nn.LayerNorm(5)

    def forward(self, x):
        x = self.relu(self.first(self.quant(x)))
        x = self.add.add_relu(x, self.second(x))
        x = self.pool(self.cat.cat([x, self.sigmoid(x)], 1))
        return self.dequant(self.norm(self.fc(self.flatten(x))))


def test_whatever_torch_has_between_layers():
    torch.manual_seed(0)
    torch.backends.quantized.engine = "fbgemm"
    model, x = Residual().eval(), data("conv")
    model.qconfig = tq.get_default_qconfig("fbgemm")
    prepared = tq.prepare(model)
    prepared(torch.from_numpy(x))
    quantized = tq.convert(prepared)
    for first in (model, prepared):
        comparison = compare(first, quantized, x)
        assert "nothing is wrong" in comparison.first_divergent["evidence"], comparison
        assert [row["name"] for row in comparison.layers] == [
            "quant", "first", "relu", "second", "add", "sigmoid", "cat", "pool", "fc", "norm",
        ]  # fmt: skip
    assert compare(quantized, quantized, x).first_divergent is None
    broken = copy.deepcopy(quantized)
    broken.add.scale *= 1.05
    assert compare(quantized, broken, x).first_divergent["layer"] == "add"


def test_a_graph_that_torch_has_traced():
    torch.backends.quantized.engine = "fbgemm"
    from torch.ao.quantization import quantize_fx

    model, x = torch_chain(), data()
    prepared = quantize_fx.prepare_fx(copy.deepcopy(model), tq.get_default_qconfig_mapping("fbgemm"), (x,))
    prepared(torch.from_numpy(x))
    quantized = quantize_fx.convert_fx(prepared)
    comparison = compare(model, quantized, x)
    assert [row["name"] for row in comparison.layers] == ["0", "2", "4"]
    assert "nothing is wrong" in comparison.first_divergent["evidence"], comparison


def test_torchs_trained_model_is_not_its_converted_self():
    torch.backends.quantized.engine = "x86"
    model = tq.QuantWrapper(torch_chain()).train()
    model.qconfig = tq.get_default_qat_qconfig("x86")
    prepared = tq.prepare_qat(model)
    for seed in range(4):
        prepared(torch.from_numpy(np.random.default_rng(seed).standard_normal((64, 32)).astype(np.float32)))
    prepared.eval()
    comparison = compare(prepared, tq.convert(copy.deepcopy(prepared)), 3 * data())
    assert comparison.first_divergent["cause"] in ("scale", "clamp", "zero_point", "weight"), comparison
    assert comparison.layers[-1]["differing"] > 0.1


def test_torchao_against_float():
    torchao = pytest.importorskip("torchao.quantization")
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16)).eval()
    quantized = copy.deepcopy(model)
    torchao.quantize_(quantized, torchao.Int8WeightOnlyConfig())
    x = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32)
    comparison = compare(model, quantized, x)
    assert (comparison.first_divergent["layer"], comparison.first_divergent["cause"]) == ("0", "weight")
    assert comparison.layers[0]["unit"] == "float bound"
    assert comparison.layers[1]["same_inputs"]["differing"] == 0
    assert compare(quantized, quantized, x).first_divergent is None


def test_dynamic_torch_equals_dynamic_minquant():
    from minquant.quant import default_dynamic_qconfig, quantize_dynamic

    model, x = torch_chain(), data()
    torch.backends.quantized.engine = "qnnpack"
    theirs = tq.quantize_dynamic(model, {torch.nn.Linear})
    ours = quantize_dynamic(our_chain(model), default_dynamic_qconfig("qnnpack"))
    assert compare(ours, theirs, x).first_divergent is None
    wrong = quantize_dynamic(our_chain(model), default_dynamic_qconfig("reference"))
    assert compare(wrong, theirs, x).first_divergent["layer"] == "0"


def test_observed_ranges_of_the_callers_model_do_not_move():
    torch.backends.quantized.engine = "x86"
    model = tq.QuantWrapper(torch_chain()).train()
    model.qconfig = tq.get_default_qat_qconfig("x86")
    prepared = tq.prepare_qat(model)
    prepared(torch.from_numpy(data()))
    before = copy.deepcopy(prepared.state_dict())
    compare(prepared, prepared, 5 * data())
    assert prepared.training
    for name, value in prepared.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_no_torch_is_imported_for_minquants_models():
    import subprocess
    import sys

    code = (
        "import sys, numpy as np; from minquant import nn; from minquant.crosscheck import compare\n"
        "m = nn.Sequential(nn.Linear(2, 2)); compare(m, m, np.ones((1, 2), np.float32))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
