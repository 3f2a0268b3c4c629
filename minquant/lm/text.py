"""Text to train on and text held out: pages kept apart, random windows to learn from, rolling windows to measure by."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

__all__ = [
    "Corpus",
    "RandomWindows",
    "Tokenizer",
    "encode",
    "load_text",
    "load_topics",
    "rolling_windows",
    "split_pages",
]

HELDOUT = 0.2
PARAGRAPH = 60
"""Characters from which on two pages with the same paragraph are taken to share text, and not a phrase."""


class Tokenizer(Protocol):
    """What turns text into numbers from 0 to vocab_size − 1, and back."""

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""

    def encode(self, text: str) -> list[int]:
        """The text's tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """The tokens' text."""


# ---- which text ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """Pages to train on, and pages that are held out."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]


def load_topics() -> Corpus:
    """The language reference inside CPython (`pydoc_data.topics`: what `help("while")` prints), split by topic.

    Topics quote each other: "compound" repeats "while" word for word. What another topic repeats is left out, and
    topics that still share a paragraph stay together, so that no text is on both sides (`split_pages`).
    """
    from pydoc_data.topics import topics

    return split_pages(topics)


def load_text(path: str | os.PathLike[str]) -> Corpus:
    """A text file: its last fifth, from a line break on, is held out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, or a single line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"load_text: {path} is not UTF-8 ({error}); convert it first") from error
    cut = text.find("\n", int(len(text) * (1 - HELDOUT))) + 1
    if not cut or not text[cut:].strip():
        raise ValueError(f"load_text: {path} has no line break in its last fifth, where the held-out text would begin")
    return Corpus((text[:cut],), (text[cut:],))


def split_pages(pages: Mapping[str, str], heldout: float = HELDOUT) -> Corpus:
    """Pages by name, split so that no paragraph is on both sides.

    1. A page all of whose paragraphs stand in another page is left out.
    2. Pages that share a paragraph form one group.
    3. Groups are held out whole, in the order of their names' sha256, each that still fits into the share.

    Args:
        pages: name -> text.
        heldout: the largest share of the characters to hold out.

    Returns:
        The pages of either side in the order of their names.

    Raises:
        ValueError: one side would be empty.
    """
    paragraphs = _kept_paragraphs(pages)
    room = heldout * sum(len(pages[name]) for name in paragraphs)
    chosen: list[str] = []
    for group in sorted(_groups(paragraphs), key=lambda names: hashlib.sha256(names[0].encode()).digest()):
        size = sum(len(pages[name]) for name in group)
        if size <= room:
            room -= size
            chosen += group
    train = tuple(pages[name] for name in sorted(paragraphs) if name not in chosen)
    if not train or not chosen:
        raise ValueError(
            f"split_pages: {len(pages)} pages do not fall into two sides without shared paragraphs; "
            "give more pages, or another share"
        )
    return Corpus(train, tuple(pages[name] for name in sorted(chosen)))


def _kept_paragraphs(pages: Mapping[str, str]) -> dict[str, set[str]]:
    """The paragraphs of every page that is not repeated by a longer one, or by an equal one before it."""
    found = {name: _paragraphs(text) for name, text in pages.items()}
    names = sorted(found, key=lambda name: (-len(pages[name]), name))
    kept: dict[str, set[str]] = {}
    for name in names:
        if not found[name] or not any(found[name] <= other for other in kept.values()):
            kept[name] = found[name]
    return kept


def _paragraphs(text: str) -> set[str]:
    parts = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text))
    return {part for part in parts if len(part) >= PARAGRAPH}


def _groups(paragraphs: Mapping[str, set[str]]) -> list[list[str]]:
    """Names joined where their pages share a paragraph, directly or through others."""
    groups: list[tuple[list[str], set[str]]] = []
    for name, own in paragraphs.items():
        near = [group for group in groups if group[1] & own]
        groups = [group for group in groups if not group[1] & own]
        groups.append(([name, *(n for names, _ in near for n in names)], own.union(*(text for _, text in near))))
    return [sorted(names) for names, _ in groups]


# ---- as tokens -------------------------------------------------------------------------------------------------------


def encode(text: str, tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """The text's tokens, (n,) int64, for a model with that many.

    Raises:
        ValueError: the tokenizer has tokens that the model does not know.
    """
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {vocab_size}: "
            "use the tokenizer that the model was trained with, or a model with a larger vocab_size"
        )
    return np.asarray(tokenizer.encode(text), np.int64)


class RandomWindows:
    """Batches of windows drawn at random from a text.

    Batch number `step` is a function of the seed and `step` alone: whoever resumes a run at step 300, or works on a
    part of each batch, sees what the whole run would have seen.

    Args:
        tokens: (n,) integers.
        context: the tokens in a window.
        batch_size: the windows in a batch.
        seed: of the draws.

    Raises:
        ValueError: a text without a window: n ≤ context.
    """

    def __init__(self, tokens: np.ndarray, context: int, batch_size: int, seed: int) -> None:
        if len(tokens) <= context:
            raise ValueError(
                f"RandomWindows: a text of {len(tokens)} tokens is shorter than a window of {context} and the token "
                "after it; give a longer text, or a smaller context"
            )
        self.tokens, self.context, self.batch_size, self.seed = np.asarray(tokens), context, batch_size, seed

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets) of a step, each (batch_size, context): targets[:, i] follows inputs[:, i]."""
        draws = np.random.default_rng([self.seed, step])
        starts = draws.integers(0, len(self.tokens) - self.context, self.batch_size)
        windows = self.tokens[starts[:, None] + np.arange(self.context + 1)]  # (batch_size, context + 1)
        return windows[:, :-1], windows[:, 1:]


def rolling_windows(tokens: np.ndarray, context: int, prefix: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows in which every token of a text is predicted exactly once, the first from `prefix` alone.

    The last window begins earlier where it can, so that its tokens see as much as those of the others: then it has
    more inputs than targets, and the targets belong to its last inputs.

    Args:
        tokens: (n,) integers.
        context: the most tokens that the model reads at once.
        prefix: the token before the text.

    Yields:
        inputs (≤ context,) and targets (≤ len(inputs),).

    Source: lm-evaluation-harness 0.4, `get_rolling_token_windows` with context_len=1 and `make_disjoint_window`.
    """
    given = np.concatenate([[prefix], tokens])
    for start in range(0, len(tokens), context):
        end = min(start + context, len(tokens))
        yield given[max(end - context, 0) : end], tokens[start:end]
