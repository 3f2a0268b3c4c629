"""What `minquant bench` is made of: right results before fast ones, fair turns, honest limits."""

from __future__ import annotations

import os
import threading
import time

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from minquant.bench import limits, peers, run, table, timing
from minquant.bench.operands import Job, Operands, WrongResultError, checked, ends, operands
from minquant.bench.roofline import check_drawable
from minquant.bench.shapes import OPS, PACKED, SHAPES, UNPACKED, Case, select
from minquant.bench.threads import limited
from minquant.kernels import isa, reference
from minquant.kernels.saturating import saturating_matmul
from tests.kernels.test_isa import TARGETS

TINY = Case(PACKED, "odd", (3, 5, 7), 1)


def peer(name, factor=1, keeps=True, left="uint8", delay=0.0):
    """A peer that computes the product `factor` times, in `delay` seconds more."""

    def prepare(given, threads):
        def call():
            time.sleep(delay)
            return factor * reference.matmul(given.a, given.b)

        return Job(call, np.asarray, given.product)

    return peers.Peer(name, name, (), left, prepare, keeps, integers=True)


# ---- what is computed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 4096, 9)])
@pytest.mark.parametrize("left", ["uint8", "int8"])
def test_the_answer_is_the_references(shape, left):
    given = operands(shape, left)
    assert given.a.dtype == left and given.b.dtype == np.int8
    np.testing.assert_array_equal(given.product, reference.matmul(given.a, given.b))
    assert (np.abs(given.product) <= given.columns).all()


def test_both_left_operands_are_the_same_bytes():
    np.testing.assert_array_equal(operands((3, 5, 7), "uint8").a, operands((3, 5, 7), "int8").a.view(np.uint8))


def test_the_operands_saturate_nowhere_and_the_ends_do():
    given = operands((40, 512, 40), "uint8")
    np.testing.assert_array_equal(saturating_matmul(given.a, given.b), given.product)
    extreme = Operands(np.array([[255, 255]], np.uint8), np.array([[64], [64]], np.int8))
    assert saturating_matmul(extreme.a, extreme.b) == extreme.product
    assert (saturating_matmul(ends("uint8").a, ends("uint8").b) != ends("uint8").product).all()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("left", ["uint8", "int8"])
def test_minquants_side_is_right(op, left):
    checked("minquant", run._ours(op, operands((13, 70, 35), left)))


def test_wrong_results_are_refused():
    given = operands((3, 5, 7), "uint8")
    off = Job(lambda: given.product + np.eye(3, 7), np.asarray, given.product)
    with pytest.raises(WrongResultError, match="somebody: 3 of 21 values are wrong; none was timed"):
        checked("somebody", off)
    checked("somebody", Job(off.call, np.asarray, given.product, bound=1.0))
    with pytest.raises(WrongResultError, match="21 of 21"):  # NaN is no answer
        checked("somebody", Job(lambda: given.product * np.nan, np.asarray, given.product, bound=np.inf))
    with pytest.raises(WrongResultError, match=r"must be of shape \(3, 7\), got \(7, 3\)"):
        checked("somebody", Job(lambda: given.product.T, np.asarray, given.product))


# ---- one case --------------------------------------------------------------------------------------------------------


def test_rows_of_a_case():
    rows = run.Bench([peer("one"), peer("another", left="int8")], 0.02).run(TINY)
    assert [(row["peer"], row["left"]) for row in rows] == [("one", "uint8"), ("another", "int8")]
    for row in rows:
        assert (row["op"], row["shape"], row["threads"]) == (PACKED, [3, 5, 7], 1)
        assert row["seconds"] > 0 and row["peer_seconds"] > 0 and row["speedup"] > 0
        assert row["gops"] == pytest.approx(2 * 3 * 5 * 7 / row["seconds"] / 1e9)


def test_without_peers_there_is_one_row():
    (row,) = run.Bench([], 0.02).run(TINY)
    assert row["seconds"] > 0 and row["peer"] is row["peer_seconds"] is row["speedup"] is None


def test_a_peer_that_is_wrong_or_fails_is_left_out_and_named():
    def prepare(given, threads):
        raise RuntimeError("not for such a shape")

    failing = peers.Peer("failing", "failing", (), "uint8", prepare, True, True)
    bench = run.Bench([peer("wrong", factor=2), failing, peer("right")], 0.02)
    assert [row["peer"] for row in bench.run(TINY)] == ["right"]
    assert [(entry["peer"], entry["shape"]) for entry in bench.left_out] == [
        ("wrong", [3, 5, 7]),
        ("failing", [3, 5, 7]),
    ]
    assert "21 values are wrong" in bench.left_out[0]["why"]
    assert bench.left_out[1]["why"] == "RuntimeError: not for such a shape"


def test_minquant_itself_wrong_is_an_error(monkeypatch):
    monkeypatch.setattr(run.cpu, "matmul", lambda a, b: np.zeros((3, 7), np.int32))
    with pytest.raises(WrongResultError, match="minquant's int8_matmul packed 3x5x7: "):
        run.Bench([], 0.02).run(TINY)


def test_packing_inside_the_call_is_compared_with_peers_that_keep_nothing():
    bench = run.Bench([peer("keeps"), peer("keeps nothing", keeps=False)], 0.02)
    assert [row["peer"] for row in bench.run(Case(UNPACKED, "odd", (3, 5, 7), 1))] == ["keeps nothing"]


def test_a_call_that_would_take_too_long_is_not_begun():
    bench = run.Bench([peer("slow", delay=0.02)], 0.05)
    small, large = (Case(PACKED, "square", (n, n, n), 1) for n in (80, 200))
    assert [row["peer"] for row in bench.run(small)] == ["slow"]
    assert [row["peer"] for row in bench.run(large)] == [None]
    assert bench.left_out[0]["why"].startswith("a call would take some ")


def test_who_saturates_is_found_out():
    def prepare(given, threads):
        return Job(lambda: saturating_matmul(given.a, given.b), np.asarray, given.product)

    saturating = peers.Peer("pairs", "pairs", (), "uint8", prepare, True, True)
    assert run.saturating([peer("exact"), saturating]) == ["pairs"]


def test_what_is_missing_is_listed(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    there, missing = peers.present()
    assert there == [] and set(missing) == {peer.name for peer in peers.PEERS}
    assert missing["torch._int_mm"] == "torch not installed"
    assert missing["onnxruntime MatMulInteger"] == "onnxruntime and onnx not installed"


# ---- timing ----------------------------------------------------------------------------------------------------------


def test_contestants_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "SAMPLE", 0.0)
    monkeypatch.setattr(timing, "SHORT", 0.0)
    order = []
    found = timing.in_turn({name: lambda name=name: order.append(name) for name in "abc"}, 1.0, always="abc")
    assert order == list("abc") * (1 + timing.MOST)
    assert all(len(runner.seconds) == timing.MOST for runner in found.values())


def test_the_slow_stay_out_once_their_share_is_spent():
    calls = {"ours": lambda: time.sleep(0.001), "slow": lambda: time.sleep(0.05), "very slow": lambda: time.sleep(0.2)}
    found = timing.in_turn(calls, 0.1, always=("ours",))
    taken = {name: sum(sample is not None for sample in runner.seconds) for name, runner in found.items()}
    assert taken["ours"] >= timing.LEAST > taken["slow"] == taken["very slow"] == 1
    assert len({len(runner.seconds) for runner in found.values()}) == 1


def test_a_turn_begins_when_the_last_ones_threads_are_done():
    """As with libraries whose threads spin for their next work."""
    until = time.perf_counter() + 0.1
    spinning = threading.Thread(target=lambda: [None for _ in iter(lambda: time.perf_counter() < until, False)])
    spinning.start()
    timing.settle()
    assert time.perf_counter() >= until - timing.LOOK
    spinning.join()


def test_ratios_are_of_the_same_round():
    """A disturbance that slows a round by a hundred changes no ratio; one of a single contestant is no median."""
    ours = timing.Runner(print, [1.0, 100.0, 1.0, 1.0, 50.0])
    theirs = timing.Runner(print, [2.0, 200.0, 2.0, None, 2.0])
    assert timing.paired(ours, theirs) == (25.5, 2.0, 2.0, 4)


def test_threads_are_limited_and_given_back(monkeypatch):
    monkeypatch.setenv("MINQUANT_NUM_THREADS", "7")
    with limited(1):
        assert os.environ["MINQUANT_NUM_THREADS"] == "1"
    assert os.environ["MINQUANT_NUM_THREADS"] == "7"
    monkeypatch.delenv("MINQUANT_NUM_THREADS")
    with pytest.raises(ZeroDivisionError), limited(2):
        raise ZeroDivisionError
    assert "MINQUANT_NUM_THREADS" not in os.environ


# ---- the processor's limits ------------------------------------------------------------------------------------------


def assembly_of_loop(name):
    """The probe's loop as its processor would run it, with the tile in registers from step to step."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    kind = next(kind for kind in isa.ISAS if kind.name == name)
    triple, features, _ = TARGETS[name]
    module = ir.Module()
    module.triple = triple
    vector, count = ir.VectorType(ir.IntType(32), kind.lanes), kind.rows * kind.vectors
    function = ir.Function(module, ir.FunctionType(vector, [vector, vector, ir.IntType(64)]), "loop")
    entry, body, end = (function.append_basic_block(label) for label in ("entry", "body", "end"))
    ir.IRBuilder(entry).branch(body)
    builder = ir.IRBuilder(body)
    phis = [builder.phi(part) for part in [vector] * count + [ir.IntType(64)]]
    new = limits.dot_each(builder, kind, phis[:-1], *function.args[:2])
    left = builder.sub(phis[-1], ir.Constant(ir.IntType(64), 1))
    for phi, after in zip(phis, [*new, left], strict=True):
        phi.add_incoming(function.args[2] if phi is phis[-1] else ir.Constant(vector, None), entry)
        phi.add_incoming(after, body)
    builder.cbranch(builder.icmp_unsigned("==", left, ir.Constant(ir.IntType(64), 0)), end, body)
    builder = ir.IRBuilder(end)
    total = new[0]
    for part in new[1:]:
        total = builder.xor(total, part)
    builder.ret(total)
    machine = llvm.Target.from_triple(triple).create_target_machine(features=features, opt=3)
    return machine.emit_assembly(llvm.parse_assembly(str(module))), count


@pytest.mark.parametrize("name", TARGETS)
def test_the_loop_holds_one_instruction_for_each_vector_of_the_tile(name):
    text, count = assembly_of_loop(name)
    assert text.split().count(TARGETS[name][2]) == count


@pytest.mark.parametrize("kind", isa.available(), ids=lambda kind: kind.name)
def test_the_dot_probe_counts_what_it_does(kind):
    probe = limits.dot_probe(kind)
    if kind.name == "plain":
        assert probe is None
        return
    probe.call()
    with limited(1):
        one = limits.dot_probe(kind).amount
    with limited(2):
        assert limits.dot_probe(kind).amount == 2 * one == 2 * 2 * kind.rows * kind.columns * kind.group * limits.STEPS


def test_the_dot_loop_computes_dot_products():
    """Each vector of the tile grows by x·y in every step: what the compiler left out would be missing."""
    kind = isa.available()[0]
    if kind.name == "plain":
        pytest.skip("this processor has no dot-product instruction")
    values = np.random.default_rng(0).integers(0, 100, kind.columns * 4, np.int8)
    words, out = values.view(np.int32), np.empty((kind.rows, kind.columns), np.int32)
    limits._dot_loop(isa.ISAS.index(kind), kind.rows)(5, words, out)
    parts = words[: 2 * kind.lanes].view(np.int16 if kind.group == 2 else np.int8).astype(np.int64)
    x, y = parts.reshape(2, kind.lanes, kind.group)
    start = np.broadcast_to(words[: kind.columns], out.shape)
    np.testing.assert_array_equal(out, (start + np.tile(5 * (x * y).sum(axis=1), kind.vectors)).astype(np.int32))


@pytest.mark.parametrize("size", [1, 8, 1000, 2**20])
def test_the_read_probe_reads_enough(size):
    probe = limits.read_probe(size)
    probe.call()
    assert probe.amount >= limits.READ and probe.amount % (-(-size // 8) * 8) == 0


def test_every_word_is_read():
    words = np.arange(1000, dtype=np.int64)
    assert limits._read(words, 3) == sum(int((words ^ i).sum()) for i in range(3))


def test_the_share_is_of_the_tighter_limit():
    """Half of the time goes by reading; a quarter would do for the dot products."""
    case, probe = Case(PACKED, "odd", (10, 10, 10), 1), limits.Probe(print, 100)
    mine = timing.Runner(print, [1.0] * 3)
    runners = {
        run.DOTS: timing.Runner(print, [0.25 * 100 / case.operations] * 3),
        run.READING: timing.Runner(print, [0.5 * 100 / case.moved] * 3),
    }
    found = run._limit(case, mine, runners, {run.DOTS: probe, run.READING: probe})
    assert found == {"share": pytest.approx(0.5), "limit": run.READING}


# ---- cases, tables, pictures -----------------------------------------------------------------------------------------


def test_the_cases():
    cases = select(None, [1, 2])
    assert len(cases) == len(set(cases)) == len(OPS) * 2 * sum(map(len, SHAPES.values()))
    assert [case.shape for case in select("packed 1x4096x*", [1])] == [(1, 4096, 4096)]
    assert (TINY.operations, TINY.moved) == (210, 15 + 35 + 4 * 21)


def row(peer_name, speedup, shape=(1024, 1024, 1024), **more):
    return {
        "op": PACKED, "shape": list(shape), "threads": 1, "seconds": 0.01, "peer": peer_name,
        "peer_seconds": 0.01 * speedup, "speedup": speedup, "group": "square", "family": peer_name.split(",")[0],
        "integers": "float" not in peer_name, "left": "uint8", "rounds": 3, "gops": 80.0, "share": 0.5,
        "limit": run.DOTS, **more,
    }  # fmt: skip


ROWS = [
    row("lib linear, slow", 3.0), row("lib linear, fast", 2.0), row("numpy float32", 1.5),
    row("lib linear, fast", 0.5, (512, 512, 512)), row("numpy float32", 6.0, (512, 512, 512)),
]  # fmt: skip


def test_the_summary_tells_what_another_thread_brings():
    rows = [row("lib", 1.0), row("lib", 1.0, threads=2, seconds=0.004)]
    (line,) = (line for line in table.summary(rows) if line["against"] == "minquant, one thread")
    assert (line["threads"], line["least"]) == (2, 2.5)


def test_the_summary_is_of_the_fastest():
    ints, floats = sorted(table.summary(ROWS), key=lambda line: line["against"] == table.FLOAT)
    assert (ints["geometric_mean"], ints["least"]) == (pytest.approx(1.0), 0.5)
    assert (floats["geometric_mean"], floats["least"]) == (pytest.approx(3.0), 1.5)


def test_of_several_engines_the_fastest_is_shown_the_fastest_peer_first():
    assert [r["peer"] for r in table.best_engines(ROWS[:3])] == ["numpy float32", "lib linear, fast"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.34, "12.3 s"), (0.00123, "1.23 ms"), (0.2, "200 ms"), (4.5e-5, "45.0 µs"), (2e-7, "200 ns")],
)
def test_durations(seconds, text):
    assert table.duration(seconds) == text


def test_the_roofline_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from minquant.bench.roofline import roofline

    limits_of = {"peak_int8_gops": 160.0, "bandwidth_gb_s": 20.0}
    machine = {"isa": "avx2", "by_threads": {"1": limits_of}}
    path = roofline(machine, ROWS, tmp_path / "roofline.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_refused_before_it_is_measured(monkeypatch):
    with pytest.raises(ValueError, match="--plots: the roofline shows 'int8_matmul packed' of at least 1,000,000"):
        check_drawable([TINY])
    monkeypatch.setenv("MINQUANT_ISA", "plain")
    with pytest.raises(ValueError, match="--plots: plain loops have no dot-product instruction"):
        check_drawable([Case(PACKED, "square", (256, 256, 256), 1)])
