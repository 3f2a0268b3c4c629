"""The article's three demos, with torch's side recorded: no torch is needed here."""

from __future__ import annotations

import numpy as np
import pytest

from minquant.demos import recorded
from minquant.demos.article import ENGINES, Demo, run_demo
from minquant.demos.chains import prepared_vs_converted

NAMES = ("dynamic", "static", "qat")
PUBLISHED_WEIGHTS = [[-4, -14, -58], [-29, -45, 5], [44, 79, 127]]

# before → after, to four decimals: what torch prints for the mended scripts
LOSSES = {
    "dynamic": {
        "x86": (0.0037, 0.0049),
        "fbgemm": (0.0037, 0.0049),
        "qnnpack": (0.0037, 0.0047),
        "onednn": (0.0037, 0.0049),
    },
    "static": {
        "x86": (0.0062, 0.0068),
        "fbgemm": (0.0062, 0.0068),
        "qnnpack": (0.0062, 0.0064),
        "onednn": (0.0062, 0.0061),
    },
}
FUSED = {"x86": 0.0064, "fbgemm": 0.0064, "qnnpack": 0.0063, "onednn": 0.0060}


@pytest.fixture(scope="module")
def demos() -> dict[str, Demo]:
    return {name: run_demo(name, recorded.load(name)) for name in NAMES}


def four(*losses: float) -> tuple[float, ...]:
    return tuple(round(loss, 4) for loss in losses)


@pytest.mark.parametrize("name", ["dynamic", "static"])
@pytest.mark.parametrize("engine", ENGINES)
def test_losses_to_four_decimals(demos, name, engine):
    r = demos[name].result["engines"][engine]
    assert four(r["float_loss"], r["quantized_loss"]) == LOSSES[name][engine]
    assert four(r["torch_float_loss"], r["torch_quantized_loss"]) == LOSSES[name][engine]


@pytest.mark.parametrize("engine", ENGINES)
def test_static_losses_with_the_relu_fused(demos, engine):
    r = demos["static"].result["engines"][engine]
    assert four(r["fused_quantized_loss"], r["torch_fused_quantized_loss"]) == (FUSED[engine], FUSED[engine])


def test_the_published_figures(demos):
    published = {name: demo.result["published"] for name, demo in demos.items()}
    assert four(*list(published["dynamic"].values())[:4]) == (0.0037, 0.0049, 0.0037, 0.0049)
    assert four(*list(published["static"].values())[:4]) == (0.0062,) * 4
    assert four(*list(published["qat"].values())[:4]) == (18.4320,) * 4


def test_the_published_integer_matrix(demos):
    for side in demos["dynamic"].arrays["x86"]["fc1.weight"]:
        assert side.tolist() == PUBLISHED_WEIGHTS
    scale, _ = demos["dynamic"].arrays["x86"]["fc1.weight_scale"]
    assert round(float(scale), 7) == 0.0195496


@pytest.mark.parametrize("name", NAMES)
def test_every_integer_scale_and_zero_point_equals_torch(demos, name):
    for engine, arrays in demos[name].arrays.items():
        assert "fc1.weight" in arrays and "output" in arrays
        for key, (ours, theirs) in arrays.items():
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{name}, {engine}, {key}")
    for engine in ENGINES:
        r = demos[name].result["engines"][engine]
        assert r["weight_int_equal"] is True and r["output_int_equal"] is True


def test_a_single_wrong_integer_is_reported(monkeypatch):
    torch_run = recorded.load("dynamic")
    torch_run.engines["x86"].arrays["fc1.weight"] = torch_run.engines["x86"].arrays["fc1.weight"] + np.eye(
        3, dtype=np.int8
    )
    r = run_demo("dynamic", torch_run).result["engines"]
    assert r["x86"]["weight_int_equal"] is False and r["x86"]["output_int_equal"] is True
    assert r["onednn"]["weight_int_equal"] is True


def test_qat_in_the_reference_dialect_beats_torchs_preset(demos):
    r = demos["qat"].result
    assert r["quantized_loss"] <= 0.0050
    assert r["quantized_loss"] == r["float_loss"], "prepared and converted are the same function"
    assert four(r["torch_float_loss"], r["torch_quantized_loss"]) == (4.7411, 1.2000)


def test_result_has_the_keys_of_the_json(demos):
    keys = {
        "float_loss",
        "quantized_loss",
        "torch_float_loss",
        "torch_quantized_loss",
        "weight_int_equal",
        "output_int_equal",
    }
    for demo in demos.values():
        r = demo.result
        for part in (r, r["published"], *r["engines"].values()):
            assert keys <= set(part)
        assert set(r["engines"]) == {*ENGINES, "reference"}
    assert demos["static"].result["published"]["weight_int_equal"] is None


def test_prepared_equals_converted_on_random_chains():
    counted = prepared_vs_converted(models=18, seed=1)
    assert counted["mismatches"] == 0
    assert counted["values"] > 18 * 200
