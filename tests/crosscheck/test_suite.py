"""The suite's own logic, on checks made up for it: what is counted, what fails, and what a failure tells."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest

from minquant import cli
from minquant.crosscheck import checks, suite
from minquant.crosscheck.inputs import ENGINES, KINDS, draw, values
from minquant.crosscheck.suite import Check, difference, differing, reproducer, run_check, select

NAN, INF = np.nan, np.inf


def check(cases, bound=0.0, name="made up/rule", oracle="torch.rule"):
    """Cases are (inputs, ours, theirs)."""

    def draw(rng, quick):
        for case in cases:
            yield {"case": case}

    return Check(name, oracle, draw, lambda inputs: inputs["case"][1], lambda inputs: inputs["case"][2], bound)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1, 2, 3], [1, 2, 5], [0, 0, 2]),
        ([0.0, NAN, INF, -INF], [-0.0, NAN, INF, -INF], [0, 0, 0, 0]),
        ([NAN, 1.0, INF], [1.0, NAN, -INF], [INF, INF, INF]),
        (np.uint8([0, 255]), np.int64([255, 0]), [255, 255]),
        (np.uint8([0, 255]), np.uint8([255, 0]), [255, 255]),
        (np.float32(1), np.nextafter(np.float32(1), np.float32(2)), [2.0**-23]),
        (np.float32(1), np.array([1.0]), [0]),
        ([], [], []),
        ([[1, 2]], [1, 2], [INF, INF]),
        ([], [1.0], [INF]),
        (np.zeros((0, 3)), np.zeros((3, 0)), [INF]),
        (2**31 - 1, -(2**31), [2**32 - 1]),
    ],
)
def test_difference(ours, theirs, expected):
    assert difference(ours, theirs).tolist() == expected


def test_differing_names_what_differs():
    ours = {"a": np.array([1, 2]), "b": np.array([3, 4])}
    assert differing(ours, {"a": np.array([1, 2]), "b": np.array([5, 6])}) == {"b": 2}


def test_cases_elements_and_mismatches_are_counted():
    cases = [
        ({}, np.array([1, 2]), np.array([1, 2])),
        ({}, {"q": np.array([1, 2, 3]), "s": np.array(1.0)}, {"q": np.array([1, 0, 0]), "s": np.array([1.0])}),
    ]
    result = run_check(check(cases), 0, False)
    assert (result.cases, result.elements, result.mismatches, result.max_abs_diff) == (2, 6, 2, 3)
    assert not result.ok and (result.failure.case, result.failure.output, result.failure.mismatches) == (1, "q", 2)


@pytest.mark.parametrize(("gap", "ok"), [(0.0, True), (0.5, True), (0.75, False), (NAN, False), (INF, False)])
def test_a_bound_is_the_largest_difference_allowed(gap, ok):
    result = run_check(check([({}, np.array([1.0 + gap]), np.array([1.0]))], bound=0.5), 0, False)
    assert result.ok == ok and result.mismatches == (not ok)
    json.dumps(result.as_json(), allow_nan=False)


def test_what_compares_nothing_is_not_ok():
    assert not run_check(check([]), 0, False).ok
    assert not run_check(check([({}, np.zeros(0), np.zeros(0))]), 0, False).ok


def out_of_order(inputs):
    raise RuntimeError("the engine is out of order")


@pytest.mark.parametrize("side", ["draw", "ours", "theirs"])
def test_a_check_that_raises_fails_and_says_why(side):
    def draw(rng, quick):
        yield {"x": 1}
        yield {"x": out_of_order({}) if side == "draw" else 2}

    def answer(named):
        return lambda inputs: out_of_order(inputs) if side == named and inputs["x"] == 2 else np.ones(1)

    made_up = Check("made up/rule", "torch.rule", draw, answer("ours"), answer("theirs"))
    result = run_check(made_up, 3, True)
    assert not result.ok and result.cases == 1
    told = reproducer(result, 3, True)
    assert "RuntimeError: the engine is out of order" in told
    assert "minquant crosscheck --only 'made up/rule' --seed 3 --quick" in told


def test_other_names_on_the_other_side_are_an_error():
    result = run_check(check([({}, {"a": np.ones(1)}, {"b": np.ones(1)})]), 0, False)
    assert not result.ok and "['a']" in result.error and "['b']" in result.error


def test_inputs_follow_from_the_seed_and_the_name_alone():
    def drawn(seed, name, quick=False):
        def draw(rng, quick):
            yield {"x": rng.random(2 if quick else 4)}

        seen = []
        run_check(Check(name, "torch.rule", draw, lambda inputs: seen.append(inputs["x"].tolist()), None), seed, quick)
        return seen[0]

    assert drawn(0, "a") == drawn(0, "a")
    assert drawn(0, "a") != drawn(1, "a")
    assert drawn(0, "a") != drawn(0, "b")
    assert len(drawn(0, "a", quick=True)) == 2


def fixed(inputs, ours, theirs):
    return Check("made up/rule", "torch.rule", lambda rng, quick: iter([inputs]), lambda _: ours, lambda _: theirs)


def test_a_reproducer_has_what_is_needed_to_see_it_again():
    x = np.array([0.5, 1.5], np.float32)
    small = run_check(fixed({"kind": "ties", "x": x}, np.array([0, 2]), np.array([1, 2])), 7, False)
    told = reproducer(small, 7, False)
    assert len(told.splitlines()) == 5
    assert told.startswith("made up/rule, seed 7, case 0: 1 of 2 values of 'output' differ, by up to 1")
    assert "kind='ties', x=array([0.5, 1.5], dtype=float32)" in told
    assert "ours:   array([0, 2])" in told and "theirs: array([1, 2])" in told

    zeros, wrong = np.zeros((20, 30)), np.zeros((20, 30))
    wrong[1, 2] = 3
    told = reproducer(run_check(fixed({"x": zeros}, zeros, wrong), 0, False), 0, False)
    assert len(told.splitlines()) == 5 and "x=float64[20, 30] in 0 … 0" in told
    assert "theirs: 3 at [32] of [20, 30]" in told


def test_a_reproducer_of_other_shapes():
    told = reproducer(run_check(fixed({"n": 0}, np.zeros((3, 5)), np.zeros(20)), 0, False), 0, False)
    assert "float64[3, 5]" in told and "float64[20]" in told
    told = reproducer(run_check(fixed({"n": 0}, np.zeros((0, 3)), np.zeros(0)), 0, False), 0, False)
    assert "array([], shape=(0, 3)" in told


# ---- the checks that there are ---------------------------------------------------------------------------------------


def test_every_check_has_a_name_of_its_own_and_an_oracle():
    names = [c.name for c in checks.CHECKS]
    assert len(set(names)) == len(names) >= 60
    assert {"torch", "torchao"} <= {c.needs for c in checks.CHECKS} <= {"torch", "torchao", "onnx", "onnxruntime"}
    for engine in ENGINES:
        for subject in ("static Linear", "dynamic Linear", "flow"):
            assert any(c.name.startswith(subject) and c.engine == engine for c in checks.CHECKS)


def test_select():
    assert select(checks.CHECKS, None) == list(checks.CHECKS)
    chosen = select(checks.CHECKS, "static Linear*qnnpack")
    assert {c.engine for c in chosen} == {"qnnpack"} and len(chosen) == 4
    with pytest.raises(ValueError, match="no check has such a name"):
        select(checks.CHECKS, "no such thing")


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_finite_and_of_their_kind(kind):
    x = values(np.random.default_rng(0), (50, 3), kind)
    assert x.dtype == np.float32 and x.shape == (50, 3) and np.isfinite(x).all()
    if kind == "denormal":
        assert (np.abs(x) < 2.0**-126).all() and x.any()
    if kind in ("positive", "negative"):
        assert (np.sign(x) == (1 if kind == "positive" else -1)).all()


def test_sizes_bound_a_case():
    rng = np.random.default_rng(0)
    shapes = [draw(rng, sizes=(3, 4, 5))["qw"].shape for _ in range(100)]
    assert {n for n, _ in shapes} == {1, 2, 3, 4} and {k for _, k in shapes} == {1, 2, 3}


# ---- the command, without torch --------------------------------------------------------------------------------------


@pytest.fixture
def without(monkeypatch):
    find_spec = importlib.util.find_spec

    def hide(*names):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else find_spec(name))

    return hide


def crosscheck(tmp_path, *arguments):
    path = tmp_path / "out.json"
    status = cli.main(["crosscheck", "--quick", "--json", str(path), *arguments])
    return status, json.loads(path.read_text())


def test_without_any_oracle_it_says_what_it_could_not_check(capsys, tmp_path, without):
    without("torch", "torchao", "onnx", "onnxruntime")
    status, report = crosscheck(tmp_path)
    error = capsys.readouterr().err
    assert status == 1 and "torch is not installed" in error and "  static Linear (16 checks)" in error
    assert "pip install 'minquant[torch,onnx,demo]'" in error and "pytest tests/golden" in error
    assert report["ok"] is False and report["checks"] == []
    assert {report["versions"][name] for name in ("torch", "torchao", "onnx", "onnxruntime")} == {None}
    assert set(report["unchecked"]) == {c.name for c in checks.CHECKS}


def test_without_torch_the_others_are_checked(capsys, tmp_path, without, monkeypatch):
    without("torch", "torchao")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(
        checks, "CHECKS", (check([({}, np.ones(1), np.ones(1))], oracle="json.dumps"), check([], name="not here/rule"))
    )
    status, report = crosscheck(tmp_path)
    printed = capsys.readouterr().out
    assert status == 1 and report["ok"] is False
    assert [c["name"] for c in report["checks"]] == ["made up/rule"] and report["checks"][0]["ok"]
    assert list(report["unchecked"]) == ["not here/rule"]
    assert "no torch, no torchao" in printed and "not here (1 check)" in printed and "pytest tests/golden" in printed


def test_list_needs_no_torch(capsys, tmp_path, without):
    without("torch", "torchao", "onnx", "onnxruntime", "rich")
    report = tmp_path / "out.json"
    assert cli.main(["crosscheck", "--list", "--only", "flow/qat", "--json", str(report)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all("torch.ao.quantization.convert" in line for line in lines)
    assert len(json.loads(report.read_text())["checks"]) == 4


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--only", "no such thing"], "--list"), (["--json", "nowhere/at/all.json"], "create it first")],
)
def test_mistakes_are_refused_before_the_work(capsys, monkeypatch, arguments, expected):
    monkeypatch.setattr(suite, "run_check", None)
    assert cli.main(["crosscheck", *arguments]) == 1
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", "one", "1.5"])
def test_a_seed_is_a_whole_number(capsys, seed):
    with pytest.raises(SystemExit):
        cli.main(["crosscheck", f"--seed={seed}"])
    assert "expected a whole number from 0" in capsys.readouterr().err
