"""`prove`: 0 differences in the reference dialect for every kind of layer; torch's differences and their causes."""

from __future__ import annotations

import numpy as np
import pytest

from minquant import manual_seed, nn, optim
from minquant.crosscheck import prove
from minquant.demos.networks import Attention, Operation
from minquant.quant import (
    ConvBn1d,
    ConvBn2d,
    ConvBnReLU1d,
    ConvBnReLU2d,
    ConvReLU1d,
    ConvReLU2d,
    LinearBn1d,
    LinearReLU,
    QuantWrapper,
    get_default_qat_qconfig,
    prepare_qat,
)

LINEAR, SIGNAL, IMAGE = (6,), (3, 10), (3, 6, 6)
KINDS = {
    "Linear": (LINEAR, lambda: [nn.Linear(6, 5)]),
    "LinearReLU": (LINEAR, lambda: [LinearReLU(nn.Linear(6, 5), nn.ReLU())]),
    "LinearBn1d": (LINEAR, lambda: [LinearBn1d(nn.Linear(6, 5), nn.BatchNorm1d(5))]),
    "Conv1d": (SIGNAL, lambda: [nn.Conv1d(3, 4, 3, 2, 1)]),
    "ConvReLU1d": (SIGNAL, lambda: [ConvReLU1d(nn.Conv1d(3, 4, 3), nn.ReLU())]),
    "ConvBn1d": (SIGNAL, lambda: [ConvBn1d(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4))]),
    "ConvBnReLU1d": (SIGNAL, lambda: [ConvBnReLU1d(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU())]),
    "Conv2d": (IMAGE, lambda: [nn.Conv2d(3, 6, 3, padding=1, groups=3)]),
    "ConvReLU2d": (IMAGE, lambda: [ConvReLU2d(nn.Conv2d(3, 4, 3, dilation=2), nn.ReLU())]),
    "ConvBn2d": (IMAGE, lambda: [ConvBn2d(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))]),
    "ConvBnReLU2d": (IMAGE, lambda: [ConvBnReLU2d(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())]),
    "MaxPool2d": (IMAGE, lambda: [nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)]),
    "AvgPool2d": (IMAGE, lambda: [nn.Conv2d(3, 4, 3), nn.AvgPool2d(2)]),
    "AdaptiveAvgPool2d": (IMAGE, lambda: [nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)]),
    "BatchNorm2d": (IMAGE, lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)]),
    "BatchNorm1d": (LINEAR, lambda: [nn.Linear(6, 5), nn.BatchNorm1d(5)]),
    "Flatten": (IMAGE, lambda: [nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 3)]),
    "Dropout": (LINEAR, lambda: [nn.Linear(6, 5), nn.Dropout(0.3), nn.Linear(5, 5)]),
    **{
        type(module).__name__: (LINEAR, lambda module=module: [nn.Linear(6, 5), module])
        for module in (nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.Softmax(-1), nn.GELU(), nn.SiLU())
    },
    "LayerNorm": (LINEAR, lambda: [nn.Linear(6, 5), nn.LayerNorm(5)]),
    "RMSNorm": (LINEAR, lambda: [nn.Linear(6, 5), nn.RMSNorm(5)]),
}


def trained(model, shape, engine="reference", steps=4, seed=0, **bits):
    """Prepared and trained a little."""
    rng = np.random.default_rng(seed)
    prepared = prepare_qat(model.train(), get_default_qat_qconfig(engine, **bits))
    optimizer = optim.Adam(prepared.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        (prepared(rng.standard_normal((16, *shape)).astype(np.float32)) ** 2).mean().backward()
        optimizer.step()
    return prepared


def proof_of(model, shape, **bits):
    manual_seed(0)
    x = 2 * np.random.default_rng(1).standard_normal((60, *shape)).astype(np.float32)
    return prove(trained(model, shape, **bits), [x[:25], x[25:]])


@pytest.mark.parametrize("bits", [8, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_no_value_differs_in_the_reference_dialect(kind, bits):
    shape, make = KINDS[kind]
    proof = proof_of(QuantWrapper(nn.Sequential(*make())), shape, weight_bits=bits, act_bits=bits)
    assert proof.mismatches == 0, proof
    assert proof.values >= 60 * 5
    assert proof.causes == []
    assert f"0 of {proof.values:,} values differ in any bit" in str(proof)


@pytest.mark.parametrize("name", ["add", "add_relu", "mul", "add_scalar", "mul_scalar", "cat"])
def test_no_result_of_a_float_functional_differs(name):
    operation = Operation(np.random.default_rng(0))
    operation.name = name
    proof = proof_of(QuantWrapper(nn.Sequential(nn.Linear(6, 4), operation)), LINEAR)
    assert proof.mismatches == 0, proof
    assert any(row["kind"] == "FloatFunctional" for row in proof.layers)


def test_no_value_of_attention_on_an_embedding_differs():
    manual_seed(0)
    rng = np.random.default_rng(0)
    prepared = prepare_qat(Attention(6, 3).train(), get_default_qat_qconfig())
    prepared(rng.integers(0, 12, (30, 4)))
    proof = prove(prepared, rng.integers(0, 12, (50, 4)))
    assert proof.mismatches == 0, proof
    assert {"QATEmbedding", "FloatFunctional", "Softmax"} <= {row["kind"] for row in proof.layers}


# ---- torch's dialects ------------------------------------------------------------------------------------------------


def chain():
    manual_seed(0)
    layers = [LinearReLU(nn.Linear(32, 32), nn.ReLU()), LinearReLU(nn.Linear(32, 32), nn.ReLU()), nn.Linear(32, 8)]
    return QuantWrapper(nn.Sequential(*layers))


@pytest.fixture(scope="module")
def proofs():
    x = 3 * np.random.default_rng(9).standard_normal((400, 32)).astype(np.float32)
    return {
        engine: prove(trained(chain(), (32,), engine, steps=20), [x[:200], x[200:]])
        for engine in ("x86", "onednn", "qnnpack")
    }


@pytest.mark.parametrize("engine", ["x86", "onednn", "qnnpack"])
def test_torchs_trained_model_is_not_its_converted_self(proofs, engine):
    proof = proofs[engine]
    differing = {row["cause"]: row["differing"] for row in proof.causes}
    assert differing["none"] > 0.1 * proof.values
    lag = differing.pop("averaging constant")  # moves both sides' grids alike, and so explains nothing by itself
    assert 0.9 * differing["none"] < lag < 1.1 * differing["none"]
    assert all(count <= differing["none"] for count in differing.values()), proof
    assert differing["all"] < 0.005 * proof.values, "the causes do not explain the difference"


def test_each_engine_has_its_own_largest_cause(proofs):
    def of(engine):
        return {row["cause"]: row["differing"] for row in proofs[engine].causes}

    x86, onednn = of("x86"), of("onednn")
    alone = ("observers move in eval", "weights are observed again", "averaging constant", "fused scale", "clamp")
    assert min(alone, key=x86.get) == "clamp"
    assert min(alone, key=onednn.get) == "observers move in eval"
    assert onednn["clamp"] == onednn["none"], "onednn has no reduce_range, so there is no narrower clamp"


def test_the_table(proofs):
    lines = str(proofs["x86"]).splitlines()
    assert max(map(len, lines)) <= 110
    assert any("one of torch's habits switched off" in line for line in lines)


def test_the_model_stays_as_it_is():
    prepared = trained(chain(), (32,), "x86")
    low = prepared.quant.activation_post_process.activation_post_process.min_val.data.copy()
    prove(prepared, 9 * np.ones((4, 32), np.float32))
    assert prepared.training
    assert prepared.quant.activation_post_process.activation_post_process.min_val.data == low


def test_errors():
    with pytest.raises(TypeError, match=r"compare\(prepared, converted, inputs\)"):
        prove("model", np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="no fake quantizers; call prepare_qat"):
        prove(nn.Linear(3, 3), np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="have seen no data"):
        prove(prepare_qat(chain().train(), get_default_qat_qconfig()), np.ones((2, 32), np.float32))
