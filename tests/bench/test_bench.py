"""What `minquant bench` is made of: right results before fast ones, fair turns, honest limits."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from minquant.bench import limits, operation, run, table, timing
from minquant.bench.job import Job, WrongResultError, checked
from minquant.bench.operation import Case, Operation, Peer, Work, present, select
from minquant.bench.operations import every_operation
from minquant.bench.roofline import check_drawable, spread
from minquant.bench.threads import limited
from minquant.kernels import isa
from tests.kernels.test_isa import TARGETS

RIGHT = np.arange(21).reshape(3, 7)


def job(factor=1, delay=0.0):
    """A contestant whose result is `factor` times the right one, after `delay` seconds."""

    def call():
        time.sleep(delay)
        return factor * RIGHT

    return Job(call, np.asarray, RIGHT)


def peer(name, factor=1, variant=None, delay=0.0):
    return Peer(name, name, (), lambda data, threads: job(factor, delay), variant)


def work(shape):
    return Work(shape[0], 2 * shape[0])


def doing(*peers, variants=("mine",), ours=lambda data, variant: job(), work=work):
    """An operation whose shapes are numbers of operations."""
    shapes = {"small": ((1000,),), "large": ((2_000_000,), (1_000_000_000,))}
    return Operation("nothing much", "n", shapes, lambda shape: shape, variants, ours, peers, work)


def bench(operation, seconds=0.02):
    return run.Bench(operation.peers, seconds)


def case(operation, *shape, threads=1):
    return Case(operation, "small", shape or (1000,), threads)


# ---- one case --------------------------------------------------------------------------------------------------------


def test_wrong_results_are_refused():
    off = Job(lambda: RIGHT + np.eye(3, 7), np.asarray, RIGHT)
    with pytest.raises(WrongResultError, match="somebody: 3 of 21 values are wrong; none was timed"):
        checked("somebody", off)
    checked("somebody", replace(off, bound=1.0))
    with pytest.raises(WrongResultError, match="21 of 21"):  # NaN is no answer
        checked("somebody", replace(off, call=lambda: RIGHT * np.nan, bound=np.inf))
    with pytest.raises(WrongResultError, match=r"must be of shape \(3, 7\), got \(7, 3\)"):
        checked("somebody", replace(off, call=lambda: RIGHT.T))


def test_rows_of_a_case():
    op = doing(peer("one", variant="this"), peer("another"), variants=("this", "that"))
    rows = bench(op).run(case(op))
    assert [(row["variant"], row["peer"]) for row in rows] == [
        ("this", "one"),
        ("this", "another"),
        ("that", "another"),
    ]
    for row in rows:
        assert (row["op"], row["shape"], row["threads"]) == ("nothing much", [1000], 1)
        assert row["seconds"] > 0 and row["peer_seconds"] > 0 and row["speedup"] > 0
        assert row["gops"] == pytest.approx(1000 / row["seconds"] / 1e9)


def test_work_without_a_limit():
    op = doing(peer("one"), work=None)
    (row,) = bench(op).run(case(op))
    assert row["speedup"] > 0 and row["gops"] is row["share"] is row["operations"] is None


def test_a_variant_without_peers_has_a_row_too():
    op = doing(peer("one", variant="this"), variants=("this", "that"))
    _, row = bench(op).run(case(op))
    assert row["variant"] == "that" and row["seconds"] > 0
    assert row["peer"] is row["peer_seconds"] is row["speedup"] is None


def test_a_peer_that_is_wrong_or_fails_is_left_out_and_named():
    def prepare(data, threads):
        raise RuntimeError("not for such a shape")

    op = doing(peer("wrong", factor=2), Peer("failing", "failing", (), prepare), peer("right"))
    found = bench(op)
    assert [row["peer"] for row in found.run(case(op))] == ["right"]
    assert [(entry["peer"], entry["op"], entry["shape"]) for entry in found.left_out] == [
        ("wrong", "nothing much", [1000]),
        ("failing", "nothing much", [1000]),
    ]
    assert "20 of 21 values are wrong" in found.left_out[0]["why"]
    assert found.left_out[1]["why"] == "RuntimeError: not for such a shape"


def test_minquant_itself_wrong_is_an_error():
    op = doing(variants=("right", "wrong"), ours=lambda data, variant: job(1 + (variant == "wrong")))
    with pytest.raises(WrongResultError, match="minquant's nothing much 1000, wrong: 20 of 21 values are wrong"):
        bench(op).run(case(op))


def test_peers_take_part_in_their_own_operations_only():
    op, other = doing(peer("one")), doing(peer("another"))
    found = run.Bench([*op.peers, *other.peers], 0.02)
    assert [row["peer"] for row in found.run(case(op))] == ["one"]


def test_a_call_that_would_take_too_long_is_not_begun():
    op = doing(peer("slow", delay=0.02))
    found = bench(op, 0.05)
    assert [row["peer"] for row in found.run(case(op, 2_000_000))] == ["slow"]
    assert [row["peer"] for row in found.run(case(op, 1_000_000_000))] == [None]
    assert found.left_out[0]["why"].startswith("a call would take some ")


def test_what_is_missing_is_listed(monkeypatch):
    peers = [peer for op in every_operation() for peer in op.peers]
    monkeypatch.setattr(operation.importlib.util, "find_spec", lambda name: None)
    there, missing = present(peers)
    assert there == [] and set(missing) == {peer.name for peer in peers}
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


class Clock:
    """Time that passes in sleep alone, during which this process works until it is `busy` no more."""

    def __init__(self, busy):
        self.now, self.busy = 0.0, busy

    def perf_counter(self):
        return self.now

    def process_time(self):
        return min(self.now, self.busy)

    def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize(("busy", "until"), [(0.0, timing.LOOK), (0.1, 0.1), (math.inf, timing.PATIENCE)])
def test_a_turn_begins_when_the_last_ones_threads_are_done(monkeypatch, busy, until):
    """As with libraries whose threads spin for their next work; but there is an end to patience."""
    clock = Clock(busy)
    monkeypatch.setattr(timing, "time", clock)
    timing.settle()
    assert until - 1e-9 <= clock.now <= until + 2 * timing.LOOK


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
    todo, probe = Work(2000, 500), limits.Probe(print, 100)
    mine = timing.Runner(print, [1.0] * 3)
    runners = {
        run.DOTS: timing.Runner(print, [0.25 * 100 / todo.operations] * 3),
        run.READING: timing.Runner(print, [0.5 * 100 / todo.moved] * 3),
    }
    found = run._limit(todo, mine, runners, {run.DOTS: probe, run.READING: probe})
    assert found == {
        "operations": 2000,
        "moved": 500,
        "gops": pytest.approx(2e-6),
        "share": pytest.approx(0.5),
        "limit": run.READING,
    }


# ---- cases, tables, pictures -----------------------------------------------------------------------------------------


def test_cases_are_chosen_by_operation_and_shape():
    op = doing()
    assert [(found.shape, found.threads) for found in select([op], "much 1000", [1, 2])] == [
        ((1000,), 1), ((1000,), 2), ((1000000000,), 1), ((1000000000,), 2)
    ]  # fmt: skip
    assert [found.shape for found in select([op], "much 2*0", [1])] == [(2_000_000,)]
    assert {found.threads for found in select([replace(op, threads=(1,))], None, [1, 2])} == {1}
    with pytest.raises(ValueError, match="--only 7x7: no case has such a name; .* as in 'nothing much 1000'; the oper"):
        select([op], "7x7", [1])


def test_no_two_cases_have_the_same_name():
    cases = select(every_operation(), None, [1])
    assert len({found.name for found in cases}) == len(cases)


def row(peer_name, speedup, shape=(1024, 1024, 1024), **more):
    return {
        "op": "int8_matmul packed", "shape": list(shape), "threads": 1, "seconds": 0.01, "peer": peer_name,
        "peer_seconds": 0.01 * speedup, "speedup": speedup, "group": "square", "family": peer_name.split(",")[0],
        "integers": "float" not in peer_name, "variant": "uint8", "rounds": 3, "gops": 80.0, "share": 0.5,
        "operations": 2 * 1024**3, "moved": 6 * 1024**2, "limit": run.DOTS, **more,
    }  # fmt: skip


ROWS = [row("lib linear, slow", 3.0), row("lib linear, fast", 2.0), row("numpy float32", 1.5)]


def test_of_several_engines_the_fastest_is_shown_the_fastest_peer_first():
    assert [found["peer"] for found in table.best_engines(ROWS)] == ["numpy float32", "lib linear, fast"]


def test_variants_are_shown_in_the_order_in_which_they_were_measured():
    rows = [row("one", 1.0, variant="this"), row("one", 0.5, variant="that"), row("two", 0.1, variant="this")]
    found = [(found["variant"], found["peer"]) for found in table.best_engines(rows)]
    assert found == [("this", "two"), ("this", "one"), ("that", "one")]


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


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([], []),
        ([1.0, 5.0], [1, 5]),
        ([1.0, 1.0], [0.5, 1.5]),
        ([1.0, 1.5, 5.0], [0.75, 1.75, 5]),
        ([1.0, 1.5, 2.0, 2.0], [0.125, 1.125, 2.125, 3.125]),
    ],
)
def test_names_that_are_too_near_are_spread(places, expected):
    np.testing.assert_allclose(spread(np.array(places), 1.0), expected)


def test_what_cannot_be_drawn_is_refused_before_it_is_measured(monkeypatch):
    cases = select(every_operation(), "packed", [1])
    with pytest.raises(ValueError, match="--plots: the roofline shows 'int8_matmul packed' of at least 1,000,000"):
        check_drawable([found for found in cases if found.shape == (3, 5, 7)])
    monkeypatch.setenv("MINQUANT_ISA", "plain")
    with pytest.raises(ValueError, match="--plots: plain loops have no dot-product instruction"):
        check_drawable(cases)
