"""The digits demo: its figures, and that they depend on the seeds alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("sklearn")

from threadpoolctl import threadpool_limits

from minquant import nn
from minquant.data import load_digits
from minquant.demos import digits
from minquant.demos.digits import Schedule, float_run, mlp, run, sqnr_db, tuned_run
from minquant.quant import QuantizedLinear

SHORT = {"float_schedule": Schedule(1, 256, False), "further_schedule": Schedule(1, 256, True)}


@pytest.fixture(scope="module")
def data():
    return load_digits()


@pytest.fixture(scope="module")
def demo():
    told = []
    result = run(progress=lambda *step: told.append(step))
    return result, told


# ---- the demo as it is run -------------------------------------------------------------------------------------------


def test_qat_at_two_bits_keeps_what_rounding_loses(demo):
    result, _ = demo
    control, qat, rounded = result.mean("control", 32), result.mean("qat", 2), result.mean("static", 2)
    assert qat >= control - 1.5
    assert qat >= rounded + 8
    assert 95.5 <= result.mean("float", 32) <= 98


def test_four_bits_and_more_cost_little(demo):
    result, _ = demo
    for flow in ("dynamic", "static", "qat"):
        assert result.mean(flow, 8) >= result.mean("float", 32) - 0.5
        assert result.mean(flow, 4) >= result.mean("float", 32) - 1


def test_trained_models_equal_converted_ones(demo):
    result, _ = demo
    assert result.prepared_vs_converted == {"values": 5 * 3 * 360 * 10, "mismatches": 0}


def test_rows(demo):
    rows = demo[0].rows
    flows = [(row["flow"], row["weight_bits"], row["act_bits"]) for row in rows]
    quantized = [(flow, bits, 8) for flow in ("dynamic", "static", "qat") for bits in (8, 4, 2)]
    assert flows == [("float", 32, 32), ("control", 32, 32), *quantized]
    for row in rows:
        assert list(row) == ["model", "flow", "weight_bits", "act_bits", "mean", "std", "seeds"]
        assert row["model"] == "mlp-64-64-64-64-10" and row["seeds"] == 5
        values = demo[0].accuracies[row["flow"], row["weight_bits"]]
        assert row["mean"] == pytest.approx(sum(values) / 5, abs=1e-9)
        assert row["std"] ** 2 == pytest.approx(sum((v - row["mean"]) ** 2 for v in values) / 4, abs=1e-9)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_fewer_bits_more_noise_in_every_layer(demo):
    noise = demo[0].sqnr_db
    assert all(noise[bits].shape == (5, 4) for bits in (8, 4, 2))
    assert np.all(noise[8] > noise[4] + 10) and np.all(noise[4] > noise[2] + 5)


def test_progress_counts_every_step(demo):
    _, told = demo
    assert [done for done, _, _ in told] == list(range(1, 26))
    assert {total for _, total, _ in told} == {25}
    assert told[0][2] == "float, seed 1 of 5" and told[-1][2] == "QAT at 2 bits, seed 5 of 5"


# ---- one piece at a time ---------------------------------------------------------------------------------------------


def test_results_do_not_depend_on_the_workers(data):
    alone, together = (run(2, workers=workers, **SHORT) for workers in (1, 2))
    assert alone.accuracies == together.accuracies
    np.testing.assert_array_equal(alone.weight, together.weight)
    for bits in (8, 4, 2):
        np.testing.assert_array_equal(alone.sqnr_db[bits], together.sqnr_db[bits])
    with threadpool_limits(1):
        first = float_run(data, 0, digits.FLOWS, SHORT["float_schedule"])
    assert {key: values[0] for key, values in alone.accuracies.items() if key in first.accuracies} == first.accuracies


def test_further_training_starts_from_the_float_weights(data):
    state = float_run(data, 0, (), SHORT["float_schedule"]).state
    copies = {name: array.copy() for name, array in state.items()}
    none = Schedule(0, 64, True)
    control = tuned_run(data, 0, state, 32, none)
    assert control.values == control.mismatches == 0
    assert control.accuracies["control", 32] == float_run(data, 0, (), SHORT["float_schedule"]).accuracies["float", 32]
    trained = tuned_run(data, 0, state, 2, SHORT["further_schedule"])
    assert list(trained.accuracies) == [("qat", 2)] and trained.values == 3600
    for name, array in state.items():
        np.testing.assert_array_equal(array, copies[name])


def test_flows_that_are_not_asked_for_are_not_run():
    result = run(2, flows=("dynamic",), **SHORT)
    assert [key for key in result.accuracies if key[0] in ("control", "qat")] == []
    assert result.prepared_vs_converted == {"values": 0, "mismatches": 0}


def test_noise_of_each_layer(data):
    model = mlp().eval()
    quantized = digits.calibrated(model, data, 4)
    assert sum(isinstance(layer, QuantizedLinear) for layer in quantized.module) == 4
    first = nn.Sequential(model.quant, model.module[0])(data.x_test)
    noisy = quantized.module[0](quantized.quant(data.x_test)).dequantize()
    power = [np.sum(np.float64(values) ** 2) for values in (first.data, first.data - noisy)]
    ratios = sqnr_db(model, quantized, data)
    assert len(ratios) == 4 and ratios[0] == pytest.approx(10 * np.log10(power[0] / power[1]), abs=1e-6)


def test_bad_arguments():
    with pytest.raises(ValueError, match="seeds must be 2 or more .* got 1"):
        run(seeds=1)
    with pytest.raises(ValueError, match="flows are dynamic, static, qat; got quantum"):
        run(flows=("qat", "quantum"))
