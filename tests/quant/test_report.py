"""report: what became of each layer, in bytes that are really kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from minquant import nn
from minquant.quant import (
    FakeQuantizeConfigBase,
    FakeQuantizerBase,
    Int4WeightOnlyConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8StaticActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    LinearReLU,
    PerChannel,
    PerGroup,
    QATConfig,
    QSpec,
    QuantWrapper,
    choose_qparams,
    convert,
    default_dynamic_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize_,
    quantize_dynamic,
    register_fake_quantizer,
    report,
)

X = np.random.default_rng(0).random((10, 3), dtype=np.float32)
KEYS = {
    "layer", "kind", "weight", "activation", "bytes_before", "bytes_after", "activation_bytes_before",
    "activation_bytes_after", "note",
}  # fmt: skip


def demo() -> QuantWrapper:
    return QuantWrapper(nn.Sequential({"fc1": nn.Linear(3, 3), "relu": nn.ReLU(), "fc2": nn.Linear(3, 2)}))


def row(model: nn.Module, layer: str) -> dict:
    (found,) = [r for r in report(model).rows if r["layer"] == layer]
    assert set(found) == KEYS
    return found


def converted(qconfig=None) -> nn.Module:
    prepared = prepare(demo(), qconfig or get_default_qconfig())
    prepared(X)
    return convert(prepared)


def test_the_demo():
    fc1 = row(converted(), "module.fc1")
    assert fc1 == {
        "layer": "module.fc1",
        "kind": "QuantizedLinear",
        "weight": "int8 symmetric per channel",
        "activation": "uint8 affine per tensor",
        "bytes_before": 4 * 9 + 4 * 3,
        "bytes_after": 9 + 4 * 3 + 4 * 3,  # integers, scales, bias
        "activation_bytes_before": 12,
        "activation_bytes_after": 3,
        "note": "",
    }
    assert report(converted()).totals == {
        "bytes_before": 80,
        "bytes_after": 55,
        "activation_bytes_before": 20,
        "activation_bytes_after": 5,
    }


def test_float_model_is_what_it_is():
    result = report(demo())
    assert result.flow == "float"
    assert row(demo(), "module.fc1")["weight"] == row(demo(), "module.fc1")["activation"] == "float32"
    assert all(r["bytes_before"] == r["bytes_after"] and r["note"] == "" for r in result.rows)
    assert result.totals["bytes_before"] == sum(4 * p.numel() for p in demo().parameters())


@pytest.mark.parametrize("backend", ["reference", "x86", "qnnpack"])
@pytest.mark.parametrize("train", [False, True])
def test_a_prepared_model_promises_the_bytes_that_convert_keeps(backend, train):
    model = QuantWrapper(nn.Sequential(LinearReLU(nn.Linear(3, 5), nn.ReLU()), nn.Linear(5, 2, bias=False)))
    if train:
        prepared = prepare_qat(model.train(), get_default_qat_qconfig(backend))
    else:
        prepared = prepare(model, get_default_qconfig(backend))
    before = report(prepared)
    assert before.flow == ("prepared for training" if train else "prepared")
    prepared(X)
    after = report(convert(prepared))
    assert after.flow == "static"
    assert before.totals == after.totals
    assert [r["weight"] for r in before.rows] == [r["weight"] for r in after.rows]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_packed_bytes(bits):
    model = QuantWrapper(nn.Linear(7, 3))
    prepared = prepare_qat(model.train(), get_default_qat_qconfig(weight_bits=bits, act_bits=bits))
    promised = row(prepared, "module")
    prepared(np.ones((1, 7), np.float32))
    layer = convert(prepared)
    kept = row(layer, "module")
    integers, output = (-(-n * bits // 8) if bits <= 4 else n for n in (21, 3))
    assert kept["bytes_after"] == promised["bytes_after"] == integers + 4 * 3 + 4 * 3
    assert kept["bytes_after"] == layer.module.weight.nbytes + layer.module.bias.nbytes
    assert (
        kept["activation_bytes_after"] == promised["activation_bytes_after"] == (-(-3 * bits // 8) if bits <= 4 else 3)
    )


def test_dynamic_layers_hand_on_float32():
    model = quantize_dynamic(demo())
    fc1 = row(model, "module.fc1")
    assert (fc1["kind"], fc1["activation"]) == ("DynamicQuantizedLinear", "uint8 affine per tensor")
    assert (fc1["activation_bytes_before"], fc1["activation_bytes_after"]) == (12, 12)
    assert fc1["note"] == "the input's grid is chosen at run time"
    assert row(model, "module.relu")["note"] == "stays in float: no weight to quantize"
    assert report(model).flow == "dynamic"


def test_why_a_layer_stayed_in_float():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 3))
    partly = quantize_dynamic(model, {"0": default_dynamic_qconfig(), "2": None})
    assert row(partly, "0")["note"] == "the input's grid is chosen at run time"
    assert row(partly, "2")["note"] == "stays in float: its qconfig is None (under '2')"
    assert row(partly, "4")["note"] == "stays in float: not named in the qconfig"
    static = converted()
    assert row(static, "module.relu")["note"] == "works on integers as they are"
    assert row(static, "quant")["note"] == row(static, "module.fc1")["note"] == ""
    with_gelu = QuantWrapper(nn.Sequential(nn.Linear(3, 3), nn.Flatten(), nn.GELU()))
    prepared = prepare(with_gelu, get_default_qconfig())
    assert row(prepared, "module.1")["note"] == "works on integers as they are"
    assert row(prepared, "module.2")["note"] == "in real values between its input's grid and its own"


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(np.ones(3, np.float32))
        self.inner = nn.Linear(3, 4)

    def forward(self, x):
        return self.inner(x * self.gain)


def test_own_classes_with_parameters_have_a_row():
    model = quantize_dynamic(nn.Sequential(Own()))
    assert row(model, "0") == {
        "layer": "0", "kind": "Own", "weight": "float32", "activation": "", "bytes_before": 12, "bytes_after": 12,
        "activation_bytes_before": None, "activation_bytes_after": None, "note": "stays in float: no integer form",
    }  # fmt: skip
    assert row(model, "0.inner")["kind"] == "DynamicQuantizedLinear"
    assert report(model).totals["bytes_before"] == 4 * (3 + 12 + 4)


def test_single_layers_and_shared_ones():
    assert row(nn.Linear(3, 2), "(model)")["bytes_before"] == 32
    shared = nn.Linear(3, 3)
    assert len(report(nn.Sequential(shared, nn.ReLU(), shared)).rows) == 2
    assert report(nn.Sequential()).rows == []


def test_the_table():
    table = str(report(converted()))
    assert repr(report(converted())) == table
    lines = table.split("\n")
    assert lines[0] == "statically quantized model; parameters 1.45 times smaller (sizes in bytes)"
    assert lines[-1].split() == ["total", "80", "→", "55", "20", "→", "5"]
    assert "* module.relu: works on integers as they are" in lines
    (fc1,) = [line for line in lines if line.startswith("module.fc1")]
    assert fc1.split("  ")[-1].strip() == "12 → 3"
    for column in ("weight", "activation"):
        assert fc1[lines[1].index(column) - 1] == " " != fc1[lines[1].index(column)]


def test_the_table_fits_in_110_columns():
    model = nn.Sequential({"a_layer_with_a_name_that_says_everything": LinearReLU(nn.Linear(4096, 4096), nn.ReLU())})
    table = str(report(quantize_dynamic(model, default_dynamic_qconfig("x86"))))
    assert max(map(len, table.split("\n"))) <= 110
    assert "DynamicQuantizedLinearReLU" in table and "67,125,248 → 16,793,604" in table
    joined = "".join(line[:30].split(" ")[0] for line in table.split("\n"))
    assert "a_layer_with_a_name_that_says_everything" in joined


def test_not_a_model():
    with pytest.raises(TypeError, match="report: expected a Module, got ndarray"):
        report(X)


# ---- quantized in place ----------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """An embedding whose table is the head's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.up = nn.Embedding(12, 8), nn.RMSNorm(8), nn.Linear(8, 8)
        self.act, self.head = nn.SiLU(), nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.act(self.up(self.norm(self.embed(tokens)))))


def everything(module: nn.Module, path: str) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding)


IN_PLACE = {
    "weight only": (IntxWeightOnlyConfig("int4", PerGroup(4)), everything, "int4 symmetric per group of 4", "float32"),
    "tinygemm": (Int4WeightOnlyConfig(4), None, "uint4 affine per group of 4, real z", "float32"),
    "dynamic": (
        Int8DynamicActivationIntxWeightConfig("int3", PerChannel(0)), None, "int3 symmetric per channel",
        "int8 affine per token",
    ),
    "static": (
        Int8StaticActivationInt8WeightConfig(), None, "int8 symmetric per channel", "int8 symmetric per tensor"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_is_prepared_in_place_is_what_conversion_makes(name):
    config, wanted, weight, activation = IN_PLACE[name]
    model = Tied()
    quantize_(model, QATConfig(config, step="prepare"), wanted)
    model(np.array([[1, 2, 3]]))
    prepared = report(model)
    quantize_(model, QATConfig(step="convert"))
    converted = report(model)
    assert prepared.flow == "prepared in place"
    assert converted.flow == {"tinygemm": "weight only", "static": "static inputs"}.get(name, name)
    for before, after in zip(prepared.rows, converted.rows, strict=True):
        assert before["layer"] == after["layer"]
        for key in KEYS - {"kind", "note"}:
            assert before[key] == after[key], (before["layer"], key)
    up, was = row(model, "up"), next(r for r in prepared.rows if r["layer"] == "up")
    assert (was["kind"], was["weight"], was["activation"], was["note"]) == (
        "FakeQuantizedLinear", weight, activation, ""
    )  # fmt: skip
    assert up["bytes_before"] == 4 * (64 + 8) and up["bytes_after"] == model.up.weight.nbytes + 4 * 8
    assert str(prepared).startswith("model prepared for training, as quantize_ will make it; parameters ")


def test_weights_that_are_shared_count_once():
    model = Tied()
    assert row(model, "head")["bytes_before"] == row(model, "head")["bytes_after"] == 0
    assert row(model, "head")["note"] == "its weight is that of embed"
    assert report(model).totals["bytes_before"] == 4 * sum(p.numel() for p in model.parameters())
    quantize_(model, IntxWeightOnlyConfig("int4", PerGroup(4)), everything)
    assert model.head.weight is model.embed.weight
    assert row(model, "embed")["bytes_after"] == model.embed.weight.nbytes == 48 + 4 * 24
    assert row(model, "head")["bytes_after"] == 0
    assert row(model, "head")["note"].endswith("; its weight is that of embed")
    apart = Tied()
    quantize_(apart, QATConfig(IntxWeightOnlyConfig("int4", PerGroup(4)), step="prepare"))
    assert row(apart, "embed")["bytes_after"] == row(apart, "head")["bytes_before"] == 4 * 96
    assert row(apart, "head")["bytes_after"] == 48 + 4 * 24


def test_what_quantize_left_in_float():
    model = Tied()
    quantize_(model, Int8WeightOnlyConfig(), lambda module, path: path == "up")
    notes = {r["layer"]: r["note"] for r in report(model).rows}
    assert notes == {
        "embed": "stays in float: quantize_ was not asked for it",
        "norm": "stays in float: no integer form",
        "up": "its product is float32's, with the real values behind the weight's integers",
        "act": "stays in float: no weight to quantize",
        "head": "stays in float: quantize_ was not asked for it; its weight is that of embed",
    }


@dataclass(frozen=True)
class RowsConfig(FakeQuantizeConfigBase):
    bits: int


@register_fake_quantizer(RowsConfig)
class RowsFakeQuantizer(FakeQuantizerBase):
    def grid(self, x):
        spec = QSpec(self.config.bits, symmetric=True, granularity=PerChannel())
        return choose_qparams(x.min(axis=1), x.max(axis=1), spec)


def test_a_fake_quantizer_of_ones_own_is_reported_by_the_grid_it_chooses():
    model = Tied()
    quantize_(model, QATConfig(weight_config=RowsConfig(3), step="prepare"))
    assert row(model, "up")["weight"] == "int3 symmetric per channel"
    assert [r["layer"] for r in report(model).rows] == ["embed", "norm", "up", "act", "head"]
