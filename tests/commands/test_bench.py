"""`minquant bench`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("rich")

from minquant import cli
from minquant.bench import machine, operation, run
from minquant.bench.operations import int8_matmul
from minquant.kernels.isa import available

NUMPY = "numpy float32"
KEYS = {"op", "shape", "threads", "seconds", "peer", "peer_seconds", "speedup"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A small memory, and no libraries."""
    monkeypatch.setattr(machine, "FAR", 2**20)
    monkeypatch.setattr(machine, "SECONDS", 0.01)
    obstacle = operation._obstacle
    hidden = "hidden by the test"
    monkeypatch.setattr(operation, "_obstacle", lambda peer: obstacle(peer) if peer.name == NUMPY else hidden)


def bench(*arguments):
    return cli.main(["bench", "--seconds-per-case", "0.02", *map(str, arguments)])


def test_a_run_on_tiny_shapes(tmp_path, capsys):
    assert bench("--only", "3x5x7", "--threads", "1", "--json", tmp_path / "out.json") == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out.json").read_text())
    assert [(row["op"], row["shape"], row["threads"], row["variant"], row["peer"]) for row in report["results"]] == [
        (op, [3, 5, 7], 1, variant, peer)
        for op in ("int8_matmul packed", "int8_matmul")
        for variant, peer in (("uint8", NUMPY), ("int8", None))
    ]
    assert all(set(row) >= KEYS for row in report["results"])
    assert "3×5×7" in printed and NUMPY in printed and " GOP/s" in printed


def test_figures_are_told_apart_from_what_was_not_measured(tmp_path, capsys):
    assert bench("--only", "packed 1x4096", "--threads", "1", "--json", tmp_path / "out.json") == 0
    (line,) = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert (line["work"], line["against"], line["cases"], line["due"]) == (
        "M = 1, 4, 16 × 4096²",
        "NumPy, float32",
        1,
        3,
    )
    assert line["reached"] > 0 and line["met"] is None
    assert "in part" in capsys.readouterr().out


@pytest.mark.parametrize("only", ["dynamic Linear 64", "static Linear 64", "FakeQuantize 1024", "step 64x64x128"])
def test_other_operations_run_too(only, tmp_path, capsys):
    assert bench("--only", only, "--threads", "1", "--json", tmp_path / "out.json") == 0
    rows = json.loads((tmp_path / "out.json").read_text())["results"]
    assert rows and all(row["seconds"] > 0 for row in rows)
    assert rows[0]["op"] in capsys.readouterr().out


def test_an_operation_that_cannot_be_measured_here_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(int8_matmul, "available", lambda: ())
    assert bench("--only", "packed 1x1x1", "--threads", "1", "--json", tmp_path / "out.json") == 0
    missing = json.loads((tmp_path / "out.json").read_text())["missing"]
    assert missing["int8_matmul MINQUANT_ISA=avx2"] == "this processor has no AVX2"
    assert "missing: int8_matmul MINQUANT_ISA=avx2: this processor has no AVX2" in capsys.readouterr().out


def test_the_machine_is_described(tmp_path):
    assert bench("--only", "packed 1x1x1", "--threads", "1", "--json", tmp_path / "out.json") == 0
    described = json.loads((tmp_path / "out.json").read_text())["machine"]
    assert set(described) >= {"processor", "isa", "available", "peak_int8_gops", "bandwidth_gb_s", "cores", "versions"}
    assert described["isa"] == available()[0].name and described["cores"] == machine.cores()
    assert described["bandwidth_gb_s"] > 0 and (described["peak_int8_gops"] or described["isa"] == "plain")
    assert set(described["versions"]) >= {"minquant", "numpy", "numba", "torch", "onnxruntime"}


def test_without_any_library(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(operation, "_obstacle", lambda peer: "not here")
    assert bench("--only", "packed 3x5x7", "--threads", "1", "--json", tmp_path / "out.json") == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["missing"][NUMPY] == "not here"
    assert [row["variant"] for row in report["results"]] == ["uint8", "int8"]
    for row in report["results"]:
        assert row["seconds"] > 0 and row["peer"] is row["peer_seconds"] is row["speedup"] is None
    assert "missing: numpy float32: not here" in capsys.readouterr().out


def test_plain_loops_have_no_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("MINQUANT_ISA", "plain")
    assert bench("--only", "packed 3x5x7", "--threads", "1", "--json", tmp_path / "out.json") == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["machine"]["peak_int8_gops"] is report["results"][0]["share"] is None


def test_threads_that_share_their_cores_are_remarked_on():
    from minquant.commands.bench import _crowded

    peaks = {"1": 100.0, "2": 150.0, "3": 290.0}
    assert _crowded({"by_threads": {t: {"peak_int8_gops": peak} for t, peak in peaks.items()}}) == ["2"]
    assert _crowded({"by_threads": {t: {"peak_int8_gops": None} for t in peaks}}) == []


def test_which_instruction(tmp_path, capsys):
    assert bench("--isa", "--json", tmp_path / "out.json") == 0
    names = [isa.name for isa in available()]
    assert capsys.readouterr().out.startswith(f"{names[0]} is used; ")
    described = json.loads((tmp_path / "out.json").read_text())["machine"]
    assert (described["isa"], described["available"]) == (names[0], names)


def test_an_instruction_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setenv("MINQUANT_ISA", "mmx")
    for arguments in (["--isa"], ["--only", "1x1x1"]):
        assert bench(*arguments) == 1
        assert "minquant bench: MINQUANT_ISA=mmx does not exist; choose one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "7x9"], "minquant bench: --only 7x9: no case has such a name; a name is an operation and"),
        (["--json", "nowhere/out.json"], "minquant bench: --json nowhere/out.json: there is no folder"),
        (["--threads", "1,4096"], "minquant bench: --threads 1,4096: this process can run"),
        (["--only", "3x5x7", "--plots", "drawn"], "minquant bench: --plots: the roofline shows"),
    ],
)
def test_what_is_refused_before_anything_is_measured(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run.Bench, "run", lambda self, case: pytest.fail("something was measured"))
    assert bench(*arguments) == 1
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "expected positive whole numbers with commas between, got '0'"),
        (["--threads", "1,,2"], "expected positive whole numbers with commas between, got '1,,2'"),
        (["--seconds-per-case", "0"], "expected a positive number of seconds, got '0'"),
        (["--seconds-per-case", "nan"], "expected a positive number of seconds, got 'nan'"),
        (["--seconds-per-case", "soon"], "expected a positive number of seconds, got 'soon'"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", *arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_minquant_itself_wrong_ends_the_run(monkeypatch, capsys):
    monkeypatch.setattr(int8_matmul.cpu, "matmul", lambda a, b: a[:, :1].astype("int32") * 0 + 99)
    assert bench("--only", "packed 3x5x7", "--threads", "1") == 1
    assert "minquant bench: minquant's int8_matmul packed 3x5x7, uint8: " in capsys.readouterr().err
