"""``minquant crosscheck`` against the installed torch: all is well, and a planted fault is found and named."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from minquant import cli
from minquant.commands import output
from minquant.crosscheck import checks, ours
from minquant.crosscheck.processor import dialect_of
from minquant.crosscheck.suite import Check, select
from minquant.quant import fake_quant, fake_quantizer, grid
from minquant.quant.dialects import fbgemm, qnnpack, torchao
from minquant.quant.dialects.base import codes_on


def run(tmp_path, *arguments):
    path = tmp_path / "out.json"
    status = cli.main(["crosscheck", "--quick", "--json", str(path), *arguments])
    return status, json.loads(path.read_text())


def failed(report):
    return {c["name"] for c in report["checks"] if not c["ok"]}


def test_quick(tmp_path, capfd):
    engine, threads = torch.backends.quantized.engine, torch.get_num_threads()
    status, report = run(tmp_path)
    printed = capfd.readouterr()
    assert status == 0 and report["ok"] and failed(report) == set()
    assert report["unchecked"] == {} and len(report["checks"]) == len(checks.CHECKS)
    assert sum(c["elements"] for c in report["checks"]) > 1_000_000
    for c in report["checks"]:
        assert {"name", "oracle", "cases", "elements", "mismatches", "max_abs_diff", "bound", "ok"} <= set(c)
        assert c["cases"] > 0 and c["elements"] > 0 and c["mismatches"] == 0 and c["max_abs_diff"] <= c["bound"]
    for name in ("torch", "torchao", "numpy", "python", "minquant", "cpu_capability", "engines"):
        assert report["versions"][name]
    assert max(map(len, printed.out.splitlines())) <= output.WIDTH
    assert torch.backends.cpu.get_cpu_capability() in printed.out and torch.__version__ in printed.out
    assert printed.err == ""
    assert torch.backends.quantized.engine == engine and torch.get_num_threads() == threads


def test_another_seed(tmp_path):
    status, report = run(tmp_path, "--seed", "2013", "--only", "Linear/")
    assert (
        status == 0 and len(report["checks"]) + len(report["unchecked"]) == len(select(checks.CHECKS, "Linear/")) > 32
    )


QNNPACK_STATIC = {f"static Linear/qnnpack per {w}{r}" for w in ("tensor", "channel") for r in ("", " relu")}


def half_away(acc, x_scale, w_scale, bias, out_scale, zero_point):
    real = np.float32(acc) * (w_scale * x_scale) + bias
    return np.trunc(real / out_scale + np.copysign(np.float32(0.5), real)) + zero_point


def rounds_half_away(self, x_scale, w_scale, bias, output, relu):
    terms = x_scale, w_scale, bias, output.scale
    return codes_on(output, relu, half_away, terms, np.float32(output.zero_point))


def test_a_fault_in_one_engine_is_found_there_and_nowhere_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(qnnpack.QNNPACK, "to_codes", rounds_half_away)
    status, report = run(tmp_path, "--only", "Linear/")
    assert status == 1 and not report["ok"] and failed(report) == QNNPACK_STATIC
    printed = capsys.readouterr().out
    assert "FAILED" in printed and "4 checks failed" in printed
    for name in QNNPACK_STATIC:
        assert f"minquant crosscheck --only '{name}' --seed 0 --quick" in printed


FAULTS = {
    "a bias that is added in two roundings": (
        (fbgemm, "fma", lambda a, b, c: a * b + c),
        "Linear/fbgemm per tensor",
        {"static Linear/fbgemm per tensor", "dynamic Linear/fbgemm per tensor"},
    ),
    "an integer product that loses its zero point": (
        (grid, "to_real", lambda q, qparams: q.astype(np.float32) * qparams.expand(q.shape)[0]),
        "fake_quantize/forward",
        {"fake_quantize/forward per tensor", "fake_quantize/forward per channel"},
    ),
    "a gradient that passes everywhere": (
        (grid.RoundToGrid, "backward", lambda self, gradient: gradient),
        "fake_quantize/",
        {"fake_quantize/backward per tensor", "fake_quantize/backward per channel"},
    ),
    "a range that is not averaged": (
        (fake_quant.FakeQuantize, "observe", lambda self, x: None),
        "fake quantizer/plain",
        None,
    ),
    "a mapping that is not looked at": (
        (
            fake_quantizer,
            "choose_qparams_with_min_max",
            lambda low, high, spec, mapping, eps: torchao.choose_qparams_with_min_max(low, high, spec, None, eps),
        ),
        "torchao/quantize_ *intx *only",  # a third of its cases names the mapping that clips nothing
        None,
    ),
    "integers in another shape": (
        (ours, "static_linear", lambda engine, case: {"qx": np.zeros(1), "static": np.zeros(1)}),
        "static Linear/x86",
        None,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(tmp_path, monkeypatch, fault):
    (place, name, wrong), pattern, expected = FAULTS[fault]
    monkeypatch.setenv("MINQUANT_BACKEND", "numpy")  # the specification; kernels were compiled of what was right
    monkeypatch.setattr(place, name, wrong)
    status, report = run(tmp_path, "--only", pattern)
    ran = {c["name"] for c in report["checks"]}
    assert status == 1 and not report["ok"]
    if expected is None:
        assert failed(report) == ran
    else:
        assert expected - set(report["unchecked"]) <= failed(report) != set()
        assert {n for n in failed(report) if "forward" in n} == {n for n in expected if "forward" in n}


def test_without_torchao_the_rest_is_checked_and_the_gap_named(tmp_path, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchao" else find_spec(name))
    status, report = run(tmp_path, "--only", "quantize* per channel")
    assert status == 1 and failed(report) == set() and report["checks"] and not report["ok"]
    assert "torchao/quantize per channel" in report["unchecked"] and report["versions"]["torchao"] is None
    assert "not checked, since torchao is not installed" in capsys.readouterr().out


def made_up(engine):
    def draw(rng, quick):
        yield {"x": 1}

    return Check(f"made up/{engine}", "torch.rule", draw, lambda _: np.ones(1), lambda _: np.ones(1), 0.0, engine)


def test_an_engine_that_torch_lacks_is_named_and_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "CHECKS", (made_up("x86"), made_up("abacus")))
    status, report = run(tmp_path)
    assert status == 0 and report["ok"] and [c["name"] for c in report["checks"]] == ["made up/x86"]
    assert report["unchecked"] == {"made up/abacus": "this torch was built without abacus"}


@pytest.mark.parametrize("vnni", [True, False])
def test_the_processor_is_named_and_decides_what_torchs_engines_speak(tmp_path, monkeypatch, capsys, vnni):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.setattr(checks, "CHECKS", (made_up("x86"),))
    run(tmp_path)
    assert ("without VNNI" in capsys.readouterr().out) != vnni
    spoken = [dialect_of(engine) for engine in ("fbgemm", "x86", "qnnpack", "onednn")]
    without = ["fbgemm_avx2", "fbgemm_avx2", "qnnpack", "onednn_avx2"]
    assert spoken == (["fbgemm", "x86", "qnnpack", "onednn"] if vnni else without)
