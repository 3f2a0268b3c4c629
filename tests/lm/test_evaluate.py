"""Perplexities and accuracies against models whose probabilities are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minquant import Tensor, nn
from minquant.lm.evaluate import Question, accuracy, ask, perplexity


class Bytes:
    vocab_size = 256

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode()


def uniform(tokens):
    return Tensor(np.zeros((*tokens.shape, 256), np.float32))


def successor(tokens):
    """Half of the probability to the byte that is one larger, the rest spread over the 255 others."""
    logits = np.zeros((*tokens.shape, 256), np.float32)
    np.put_along_axis(logits, (tokens[..., None] + 1) % 256, np.float32(math.log(255)), axis=-1)
    return Tensor(logits)


def test_a_uniform_model_has_eight_bits_per_byte():
    pages = ["some words\nin a page", "ä and more "]
    result = perplexity(uniform, Bytes(), pages, context=7, batch_size=3)
    n = sum(len(page.encode()) for page in pages)
    assert result.losses.shape == (n,) and result.bytes == n
    assert result.words == 5 + 4  # the last page ends in white space: re.split leaves an empty word
    assert result.nll == pytest.approx(math.log(256), abs=1e-12)
    assert result.byte_perplexity == pytest.approx(256, rel=1e-12)
    assert result.bits_per_byte == pytest.approx(8, rel=1e-12)
    assert result.word_perplexity == pytest.approx(256 ** (n / 9), rel=1e-9)


@pytest.mark.parametrize("context", [1, 3, 10, 11, 64])
def test_every_token_is_scored_once_whatever_the_windows(context):
    """Of "bcd…" each byte but the first follows its predecessor, across the windows' borders too."""
    page = "bcdefghijk"
    result = perplexity(successor, Bytes(), [page], context, batch_size=2)
    right, wrong = math.log(2), math.log(2 * 255)
    assert result.losses == pytest.approx([wrong] + [right] * 9, abs=1e-6)
    after_newline = perplexity(successor, Bytes(), ["\x0b" + page], context)
    assert after_newline.losses[0] == pytest.approx(right, abs=1e-6)


def test_the_largest_log_likelihood_and_the_largest_per_byte_can_differ():
    """Each right byte costs ln 2 = 0.69, each other one ln 510 = 6.2."""
    questions = [
        Question("a", ("x", "bc", "yy", "zz"), 1),
        Question("a", ("bcdef!", "x", "yy", "zz"), 0),  # 5 ln 2 + ln 510 = 9.7 against 6.2; per byte 1.6 against 6.2
    ]
    acc, acc_norm = accuracy(successor, Bytes(), questions, context=16, batch_size=3)
    assert acc.tolist() == [True, False] and acc_norm.tolist() == [True, True]


def test_bytes_count_not_characters():
    """ "ää" is four bytes long: −ln p per byte 6.2, as of "x"; per character it would be 12.5."""
    assert len("ää".encode()) == 4
    question = Question("a", ("ää", "bx", "yyy", "zzz"), 1)
    _, acc_norm = accuracy(successor, Bytes(), [question], context=16)
    assert acc_norm.tolist() == [True]


def test_a_long_passage_loses_its_beginning():
    question = Question("...a", ("bcd", "xyz", "uvw", "rst"), 0)
    seen = []

    def watching(tokens):
        seen.append(tokens.shape[1])
        return successor(tokens)

    acc, _ = accuracy(watching, Bytes(), [question], context=3)
    assert acc.tolist() == [True] and max(seen) == 3
    with pytest.raises(ValueError, match="an ending has 3 tokens, the context only 2"):
        accuracy(successor, Bytes(), [question], context=2)


class Watched(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(256, 256)
        self.frozen = nn.Dropout().eval()
        self.modes = set()

    def forward(self, tokens):
        self.modes.add((self.training, self.frozen.training))
        out = self.table(tokens)
        assert not out.requires_grad
        return out


def test_a_module_is_evaluated_without_gradients_and_left_as_it_was():
    model = Watched()
    perplexity(model, Bytes(), ["some text"], context=8)
    assert model.modes == {(False, False)}
    assert model.training and not model.frozen.training


def test_scores_do_not_depend_on_the_batch():
    model = Watched()
    questions = ask(["one two three four five six seven eight nine ten " * 3], 12, passage=2, words=1)
    losses = [perplexity(model, Bytes(), ["abc", "a longer page"], 4, batch_size=b).losses for b in (1, 32)]
    assert (losses[0] == losses[1]).all()
    answers = [accuracy(model, Bytes(), questions, 32, batch_size=b) for b in (1, 5)]
    assert np.array_equal(answers[0], answers[1])


def test_questions_are_made_of_the_text():
    page = " ".join(f"word {chr(97 + i // 20)}{chr(97 + i % 20)}" for i in range(200)) + "\n"
    pages = [page, " +----+ " * 70]
    questions = ask(pages, 30, passage=9, words=2, seed=1)
    assert questions == ask(pages, 30, passage=9, words=2, seed=1) != ask(pages, 30, passage=9, words=2, seed=2)
    assert len({q.passage for q in questions}) == 30 and {q.answer for q in questions} == {0, 1, 2, 3}
    for q in questions:
        assert len(q.endings) == len(set(q.endings)) == 4 and len(q.passage) == 9
        assert all(len(ending.split()) == 2 for ending in q.endings)
        assert q.passage + q.endings[q.answer] in page
        assert not any(q.passage + e in page for i, e in enumerate(q.endings) if i != q.answer)
        assert q.passage[-1].isalpha() and q.endings[q.answer][0].isalpha()


def test_too_little_text_is_refused():
    with pytest.raises(ValueError, match="four different endings need more text"):
        ask(["a word or two"], 9, passage=2, words=1)
    with pytest.raises(ValueError, match="got none"):
        perplexity(uniform, Bytes(), [], 4)
    with pytest.raises(ValueError, match="an empty page"):
        perplexity(uniform, Bytes(), ["text", ""], 4)
    with pytest.raises(ValueError, match="no questions"):
        accuracy(uniform, Bytes(), [], 4)
