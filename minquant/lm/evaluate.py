"""How well a language model predicts held-out text, in the definitions of EleutherAI's lm-evaluation-harness.

With −ln p summed over every token of every page:

    word perplexity = exp(Σ −ln p / words)      byte perplexity = exp(Σ −ln p / bytes)
    bits per byte = log2(byte perplexity)       nll = Σ −ln p / tokens, in nats

Words are what is left when a page is split at white space, and bytes are UTF-8's, so that models with different tokens
compare. Multiple choice: a passage and four endings; `acc` is the share of questions where the true ending has the
largest log-likelihood, `acc_norm` where it has the largest log-likelihood per byte.

Source: lm-evaluation-harness 0.4, tasks/wikitext (`process_results`), api/metrics.py (`weighted_perplexity`,
`bits_per_byte`), api/task.py (`acc`, `acc_norm`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minquant.lm.text import Tokenizer, rolling_windows
from minquant.nn import Module
from minquant.tensor import no_grad

__all__ = ["Perplexity", "Question", "accuracy", "ask", "perplexity"]

PREFIX = "\n"
"""What a page is read after: its first token, too, has something before it."""

LONGEST = 12
"""Characters per word of an ending, white space included: no drawings, and no examples of code."""

Model = Module | Callable[[np.ndarray], Any]
Window = tuple[np.ndarray, np.ndarray]


# ---- perplexity ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Perplexity:
    """What a model makes of held-out pages.

    Attributes:
        losses: (n,) float64, −ln p of each token, page after page.
        words: of the text.
        bytes: of the text, in UTF-8.
    """

    losses: np.ndarray
    words: int
    bytes: int

    @property
    def nll(self) -> float:
        """Σ −ln p / tokens, in nats."""
        return float(self.losses.mean())

    @property
    def word_perplexity(self) -> float:
        """exp(Σ −ln p / words)."""
        return math.exp(self.losses.sum() / self.words)

    @property
    def byte_perplexity(self) -> float:
        """exp(Σ −ln p / bytes)."""
        return math.exp(self.losses.sum() / self.bytes)

    @property
    def bits_per_byte(self) -> float:
        """Σ −log2 p / bytes."""
        return float(self.losses.sum() / self.bytes / math.log(2))


def perplexity(
    model: Model, tokenizer: Tokenizer, pages: Sequence[str], context: int, batch_size: int = 32
) -> Perplexity:
    """Scores every token of every page exactly once, in windows of `context` tokens (`rolling_windows`).

    Args:
        model: tokens (B, T) -> logits (B, T, vocab). A Module is evaluated in eval(), and left as it was.
        tokenizer: that of the model.
        pages: texts, each read from its beginning after a line break.
        context: the most tokens that the model reads at once.
        batch_size: windows scored together.

    Raises:
        ValueError: no pages, or one without tokens.
    """
    if not pages or not all(pages):
        raise ValueError("perplexity: expected pages with text in them, got " + ("an empty page" if pages else "none"))
    prefix = tokenizer.encode(PREFIX)[-1]
    windows: list[Window] = []
    for page in pages:
        windows += rolling_windows(np.asarray(tokenizer.encode(page), np.int64), context, prefix)
    words = sum(len(re.split(r"\s+", page)) for page in pages)
    losses = np.concatenate(_losses(model, windows, batch_size))
    return Perplexity(losses, words, sum(len(page.encode()) for page in pages))


# ---- multiple choice -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A passage, four endings, and the number of the one that follows it in the text."""

    passage: str
    endings: tuple[str, ...]
    answer: int


def ask(pages: Sequence[str], count: int, passage: int = 64, words: int = 3, seed: int = 0) -> list[Question]:
    """Questions made of held-out pages: how does this passage, cut off in the middle of a word, go on?

    The endings are the rest of the word and the words after it, and as much from three other places, in random order;
    equal for equal seeds. A small model, too, knows how words end, and loses some of that when it is rounded.

    Args:
        pages: texts.
        count: of questions.
        passage: characters in a passage.
        words: in an ending, the cut one included.
        seed: of the draws.

    Raises:
        ValueError: the pages have fewer than `count` places to cut, or fewer than four different endings.
    """
    places = [place for page in pages for place in _places(page, passage, words)]
    if len(places) < count or len({end for _, end in places}) < 4:
        raise ValueError(
            f"ask: {len(pages)} pages have {len(places)} places to cut, after {passage} characters and before "
            f"{words} words; {count} questions with four different endings need more text"
        )
    draws = np.random.default_rng(seed)
    questions = []
    for i in draws.permutation(len(places))[:count]:
        text, end = places[i]
        endings = [end]
        while len(endings) < 4:
            other = places[draws.integers(len(places))][1]
            if other not in endings:
                endings.append(other)
        order = draws.permutation(4)
        questions.append(Question(text, tuple(endings[j] for j in order), int(np.argmin(order))))
    return questions


def _places(page: str, passage: int, words: int) -> list[tuple[str, str]]:
    """Wherever a word can be cut in two: what stands before, and the rest of it with the words that follow."""
    letter = r"[^\W\d_]"
    ending = re.compile(rf"(?<={letter}){letter}\S*(?:\s+\S*{letter}\S*){{{words - 1}}}")
    found = (ending.match(page, cut) for cut in range(passage, len(page)))
    return [
        (page[match.start() - passage : match.start()], match.group())
        for match in found
        if match and len(match.group()) <= LONGEST * words
    ]


def accuracy(
    model: Model, tokenizer: Tokenizer, questions: Sequence[Question], context: int, batch_size: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Which questions are answered right.

    Args:
        model: tokens (B, T) -> logits (B, T, vocab). A Module is evaluated in eval(), and left as it was.
        tokenizer: that of the model.
        questions: see `ask`.
        context: the most tokens that the model reads at once; a longer passage loses its beginning.
        batch_size: endings scored together.

    Returns:
        Two (len(questions),) arrays of bools, by the largest log-likelihood (`acc` is its mean) and by the largest
        log-likelihood per byte of the ending (`acc_norm`).

    Raises:
        ValueError: no questions, or an ending longer than the context.
    """
    if not questions:
        raise ValueError("accuracy: got no questions")
    windows = [_continuation(q.passage, end, tokenizer, context) for q in questions for end in q.endings]
    order = sorted(range(len(windows)), key=lambda i: len(windows[i][0]))  # neighbours of one length need no padding
    scores = np.empty(len(windows))
    scores[order] = [-losses.sum() for losses in _losses(model, [windows[i] for i in order], batch_size)]
    lengths = np.array([len(end.encode()) for q in questions for end in q.endings])
    answers = [q.answer for q in questions]
    right = [s.reshape(len(questions), -1).argmax(axis=1) == answers for s in (scores, scores / lengths)]
    return right[0], right[1]


def _continuation(passage: str, ending: str, tokenizer: Tokenizer, context: int) -> Window:
    """An ending's tokens as targets, and all that is read before each."""
    targets = np.asarray(tokenizer.encode(ending), np.int64)
    if len(targets) > context:
        raise ValueError(f"accuracy: an ending has {len(targets)} tokens, the context only {context}: {ending!r}")
    tokens = np.concatenate([np.asarray(tokenizer.encode(passage), np.int64), targets])
    return tokens[:-1][-context:], targets


# ---- log-likelihood --------------------------------------------------------------------------------------------------


def _losses(model: Model, windows: Sequence[Window], batch_size: int) -> list[np.ndarray]:
    """−ln p of each window's targets, float64."""
    with _in_eval(model), no_grad():
        batches = (windows[i : i + batch_size] for i in range(0, len(windows), batch_size))
        return [losses for batch in batches for losses in _batch_losses(model, batch)]


@contextmanager
def _in_eval(model: Model) -> Iterator[None]:
    """A Module in eval(), and afterwards each of its modules as it was: some may be frozen."""
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, Module) else []
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _batch_losses(model: Model, batch: Sequence[Window]) -> Iterable[np.ndarray]:
    width = max(len(inputs) for inputs, _ in batch)
    tokens = np.zeros((len(batch), width), np.int64)
    for row, (inputs, _) in zip(tokens, batch, strict=True):
        row[: len(inputs)] = inputs  # what pads a row stands behind its tokens, which do not look ahead
    logits = model(tokens).data
    for row, (inputs, targets) in zip(logits, batch, strict=True):
        yield _token_losses(row[len(inputs) - len(targets) : len(inputs)], targets)


def _token_losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """−log softmax(logits)[target]: (T, vocab), (T,) -> (T,)."""
    wide = logits.astype(np.float64)
    peak = wide.max(axis=1)
    return np.log(np.exp(wide - peak[:, None]).sum(axis=1)) + peak - wide[np.arange(len(targets)), targets]
