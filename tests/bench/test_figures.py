"""The figures that minquant sets itself: what counts for each, and whether it is met."""

from __future__ import annotations

import pytest

from minquant.bench.figures import AVX2, FIGURES, PACKED, UNPACKED, reached
from minquant.bench.operation import select
from minquant.bench.operations import every_operation

CASES = select(every_operation(), None, [1, 2])
INT8, FLOAT = "torch quantized::linear, x86", "numpy float32"


def row(shape, speedup, peer=INT8, op=PACKED, threads=1, **more):
    values = {"variant": "uint8", "seconds": 1.0, "share": 0.5, "rounds": 9} | more
    return {"op": op, "shape": list(shape), "threads": threads, "peer": peer, "speedup": speedup, **values}


def lines(rows, work, against="", cases=CASES, saturating=()):
    return [
        line
        for line in reached(rows, cases, saturating)
        if line["work"].startswith(work) and against in line["against"]
    ]


def test_every_figure_has_its_cases_and_its_rivals():
    for figure in FIGURES:
        due = [case for case in CASES if figure.is_about(case.operation.name, case.shape, case.threads)]
        assert due, figure.work
        assert {case.operation.name for case in due} == set(figure.ops)
        for case in due if figure.measure == "speedup" else []:
            assert any(peer.name.startswith(figure.rivals) for peer in case.operation.peers)


@pytest.mark.parametrize(
    ("work", "shapes"),
    [
        ("packed weights", 4 + 1 + 1 + 3 + 1),  # squares, 64 rows, a batch, a transformer's, and 255×1023×513
        ("M = 1, 4, 16", 3),
        ("odd shapes", 4),
        ("packing inside", 16 - 1),
        ("1024³ on one core", 1),
    ],
)
def test_how_many_shapes_each_is_about(work, shapes):
    figure = next(figure for figure in FIGURES if figure.work.startswith(work))
    found = {case.shape for case in CASES if figure.is_about(case.operation.name, case.shape, 1)}
    assert len(found) == shapes + (work == "packing inside")


def test_the_fastest_rival_counts():
    rows = [row((1, 4096, 4096), 3.0), row((1, 4096, 4096), 1.2), row((1, 4096, 4096), 9.0, FLOAT)]
    ints, floats = lines(rows, "M = 1")
    assert (ints["reached"], ints["against"]) == (1.2, "fastest int8 peer")
    assert (floats["reached"], floats["against"]) == (9.0, "NumPy, float32")
    assert ints["met"] is None and (ints["cases"], ints["due"]) == (1, 3)


def test_each_and_the_geometric_mean():
    cases = [case for case in CASES if case.shape in ((512, 512, 512), (2048, 2048, 2048))]
    rows = [row((512, 512, 512), 0.9), row((2048, 2048, 2048), 1.6)]
    each, mean = lines(rows, "packed weights", cases=cases)
    assert (each["over"], each["reached"], each["met"]) == ("each", 0.9, False)
    assert (mean["over"], mean["reached"], mean["met"]) == ("geometric mean", pytest.approx(1.2), True)
    assert mean["least"] == 0.9 and mean["least_of"] == "512×512×512"


def test_numbers_of_threads_are_apart():
    rows = [row((1, 1, 1), 2.0), row((1, 1, 1), 3.0, threads=2)]
    assert [(line["threads"], line["reached"]) for line in lines(rows, "odd")] == [
        (1, pytest.approx(2.0)),
        (2, pytest.approx(3.0)),
    ]


def test_the_share_of_the_peak_is_that_of_one_thread():
    cube = (1024, 1024, 1024)
    rows = [row(cube, 1.0, share=0.95), row(cube, 1.0, share=0.7, variant="int8"), row(cube, 1.0, threads=2)]
    (line,) = lines(rows, "1024³ on one core")
    assert (line["reached"], line["met"], line["threads"]) == (0.95, True, 1)
    assert lines([row(cube, 1.0, share=None)], "1024³ on one core") == []


def test_what_a_second_thread_brings():
    cube = (1024, 1024, 1024)
    rows = [row(cube, 1.0), row(cube, None, None, threads=2, seconds=0.6), row(cube, 1.0, variant="int8", threads=2)]
    (line,) = lines(rows, "two threads")
    assert (line["reached"], line["met"], line["threads"]) == (pytest.approx(1 / 0.6), False, 2)
    assert lines(rows[1:], "two threads") == []
    slow_peer = [row(cube, 9.0, seconds=0.5, rounds=1), row(cube, 9.0, threads=2, seconds=0.9, rounds=1)]
    assert lines([*rows, *slow_peer], "two threads") == [line]  # medians of few rounds are not compared


def test_where_sums_saturate_the_exact_rivals_have_a_line_of_their_own():
    odd = (3, 5, 7)
    rows = [row(odd, 0.5), row(odd, 1.5, "torch quantized::linear, qnnpack"), row((1, 1, 1), 2.0)]
    cases = [case for case in CASES if case.shape in (odd, (1, 1, 1))]
    every, exact = lines(rows, "odd", cases=cases, saturating=[INT8])
    assert (every["against"], every["reached"], every["met"]) == ("fastest int8 peer", pytest.approx(1.0), True)
    assert (exact["against"], exact["reached"], exact["cases"], exact["due"], exact["met"]) == (
        "fastest int8 peer that is exact", pytest.approx(1.5), 1, 2, True
    )  # fmt: skip


def test_a_case_without_rivals_was_run_all_the_same():
    """Those that would have taken too long are no reason to say that the figure is open."""
    cases = [case for case in CASES if case.shape in ((3, 5, 7), (1, 1, 1))]
    (line,) = lines([row((3, 5, 7), 1.5), row((1, 1, 1), None, None)], "odd", cases=cases)
    assert (line["cases"], line["due"], line["met"]) == (1, 2, True)


def test_dialects_are_apart():
    rows = [row((1, 4096, 4096), speedup, op="dynamic Linear", variant=variant)
            for variant, speedup in (("reference", 2.0), ("fbgemm", 0.5))]  # fmt: skip
    found = {line["work"]: line["reached"] for line in lines(rows, "dynamic Linear")}
    assert found == {"dynamic Linear, reference": pytest.approx(2.0), "dynamic Linear, fbgemm": pytest.approx(0.5)}


def test_without_peers_there_is_nothing_to_compare_with():
    assert reached([row((1, 1, 1), None, None, op=op) for op in (UNPACKED, AVX2)], CASES) == []
