"""Text: nothing on both sides, every token predicted once, batches that depend on the seed and the step alone."""

from __future__ import annotations

import re

import numpy as np
import pytest

from minquant.lm.text import RandomWindows, encode, load_text, load_topics, rolling_windows, split_pages


class Bytes:
    vocab_size = 256

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode()


def paragraphs(pages):
    parts = (re.sub(r"\s+", " ", p).strip() for page in pages for p in re.split(r"\n\s*\n", page))
    return {p for p in parts if len(p) >= 60}


def test_no_paragraph_of_the_topics_is_on_both_sides():
    corpus = load_topics()
    assert not paragraphs(corpus.train) & paragraphs(corpus.heldout)
    sizes = [sum(map(len, side)) for side in (corpus.train, corpus.heldout)]
    assert 0.15 < sizes[1] / sum(sizes) <= 0.2 and min(sizes) > 50_000
    assert corpus == load_topics()


def test_the_topics_themselves_do_share_paragraphs():
    from pydoc_data.topics import topics

    names = sorted(topics)
    assert paragraphs([topics[n] for n in names[::2]]) & paragraphs([topics[n] for n in names[1::2]])


LONG = {letter: " ".join([letter * 9] * 8) for letter in "abcdefgh"}


def test_pages_that_share_a_paragraph_stay_together_also_through_a_third():
    pages = {
        "one": f"{LONG['a']}\n\n{LONG['b']}", "two": f"{LONG['b']}\n\n{LONG['c']}",
        "three": f"{LONG['c']}\n\n{LONG['d']}", "four": LONG["e"], "five": LONG["f"],
        "part of one": f"  {LONG['a']}", "copy": LONG["e"],
    }  # fmt: skip
    corpus = split_pages(pages, heldout=0.5)
    sides = sorted([set(corpus.train), set(corpus.heldout)], key=len)
    assert sides[1] >= {pages["one"], pages["two"], pages["three"]}
    assert pages["part of one"] not in corpus.train + corpus.heldout
    assert (corpus.train + corpus.heldout).count(LONG["e"]) == 1


def test_pages_that_cannot_be_parted_are_refused():
    with pytest.raises(ValueError, match="do not fall into two sides"):
        split_pages({"one": LONG["a"] + "\n\n" + LONG["b"], "two": LONG["b"] + "\n\n" + LONG["c"]})


def test_a_text_file_is_cut_at_a_line_break(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i} ä\n" for i in range(100)), encoding="utf-8")
    corpus = load_text(path)
    assert corpus.train[0] + corpus.heldout[0] == path.read_text(encoding="utf-8")
    assert corpus.heldout[0].startswith("line ") and 15 < corpus.heldout[0].count("\n") <= 20
    path.write_text("a single line")
    with pytest.raises(ValueError, match="no line break in its last fifth"):
        load_text(path)
    path.write_bytes(b"\xff\xfe\n\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_text(path)


def test_batches_depend_on_the_seed_and_the_step_alone():
    windows = RandomWindows(np.arange(1000), context=16, batch_size=32, seed=3)
    late, early = windows.batch(7), windows.batch(0)
    again = RandomWindows(np.arange(1000), context=16, batch_size=32, seed=3).batch(7)
    assert (late[0] == again[0]).all() and (late[0] != early[0]).any()
    assert late[0].shape == late[1].shape == (32, 16)
    assert (late[1] == late[0] + 1).all() and (np.diff(late[0], axis=1) == 1).all()
    assert (RandomWindows(np.arange(1000), 16, 32, seed=4).batch(7)[0] != late[0]).any()


def test_windows_reach_the_whole_text_and_no_further():
    starts = np.concatenate([RandomWindows(np.arange(20), 16, 64, 0).batch(i)[0][:, 0] for i in range(4)])
    assert set(starts) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="16 tokens is shorter than a window of 16 and the token after it"):
        RandomWindows(np.arange(16), 16, 1, 0)


def test_rolling_windows_are_the_harness_own():
    """The example of lm-evaluation-harness's tests/test_utils.py."""
    windows = [(i.tolist(), t.tolist()) for i, t in rolling_windows(np.arange(34), 10, -100)]
    assert windows == [
        ([-100, *range(9)], list(range(10))),
        (list(range(9, 19)), list(range(10, 20))),
        (list(range(19, 29)), list(range(20, 30))),
        (list(range(23, 33)), list(range(30, 34))),
    ]


@pytest.mark.parametrize("n", [0, 1, 9, 10, 11, 25])
def test_every_token_is_predicted_once(n):
    windows = list(rolling_windows(np.arange(n), 10, -1))
    assert [t for _, targets in windows for t in targets] == list(range(n))
    for inputs, targets in windows:
        assert len(targets) <= len(inputs) <= 10 and (inputs[-len(targets) :] == targets - 1).all()


def test_a_vocabulary_that_does_not_fit_is_refused():
    assert encode("aä", Bytes(), 256).tolist() == [97, 195, 164]
    with pytest.raises(ValueError, match="the tokenizer has 256 tokens, the model only 255"):
        encode("a", Bytes(), 255)
