"""Tokenizers: text to integers and back, exactly. Bytes; pairs of bytes, merged; and what a tokenizer.json says."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["BPETokenizer", "ByteTokenizer", "PublishedTokenizer", "load_tokenizer"]

WORDS = re.compile(r"\s?\w+|\s?[^\w\s]+|\s+")
"""Within these, which together are the whole text, pairs are merged: a space goes with the word behind it."""


class ByteTokenizer:
    """A token is a byte of the text's UTF-8."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        """The bytes; UnicodeEncodeError if half of a surrogate pair stands alone."""
        return list(text.encode())

    def decode(self, ids: Iterable[int]) -> str:
        """The text; U+FFFD where bytes are no UTF-8. ValueError for an id above 255."""
        return bytes(ids).decode(errors="replace")


class BPETokenizer:
    """Byte pair encoding: tokens are bytes, and pairs of earlier tokens, in the order in which they were found.

    Args:
        merges: token 256 + i stands for the pair of tokens merges[i].

    Raises:
        ValueError: a pair with a token that does not exist yet.

    Source: Gage 1994; Sennrich et al. 2016, algorithm 1; on bytes as in GPT-2.
    """

    def __init__(self, merges: Sequence[tuple[int, int]]) -> None:
        self.merges = [(int(a), int(b)) for a, b in merges]
        self.tokens = [bytes([i]) for i in range(256)]
        for a, b in self.merges:
            if not (0 <= a < len(self.tokens) and 0 <= b < len(self.tokens)):
                raise ValueError(f"BPETokenizer: pair ({a}, {b}) comes when there are only {len(self.tokens)} tokens")
            self.tokens.append(self.tokens[a] + self.tokens[b])
        self._ranks = {pair: 256 + i for i, pair in enumerate(self.merges)}
        self._words: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @classmethod
    def train(cls, text: str, vocab_size: int) -> BPETokenizer:
        """Merge the commonest pair (of equally common ones the lowest tokens) until there are vocab_size tokens.

        Raises:
            ValueError: a vocab_size below 256, or more than the text has pairs for.
        """
        if vocab_size < 256:
            raise ValueError(f"BPETokenizer.train: vocab_size must be at least 256, the bytes; got {vocab_size}")
        pairs = _Pairs(Counter(WORDS.findall(text)))
        merges: list[tuple[int, int]] = []
        while 256 + len(merges) < vocab_size:
            if not pairs.counts:
                raise ValueError(
                    f"BPETokenizer.train: the text has pairs for {256 + len(merges)} tokens only, not for {vocab_size}"
                )
            pair = max(pairs.counts, key=lambda p: (pairs.counts[p], -p[0], -p[1]))
            pairs.merge(pair, 256 + len(merges))
            merges.append(pair)
        return cls(merges)

    def encode(self, text: str) -> list[int]:
        """The tokens; UnicodeEncodeError if half of a surrogate pair stands alone."""
        return [token for word in WORDS.findall(text) for token in self._word(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text; U+FFFD where bytes are no UTF-8. IndexError for an id that is no token."""
        return b"".join(self.tokens[i] for i in ids).decode(errors="replace")

    def _word(self, word: str) -> list[int]:
        tokens = self._words.get(word)
        if tokens is None:
            tokens = list(word.encode())
            while len(tokens) > 1:
                token, pair = min((self._ranks.get(pair, self.vocab_size), pair) for pair in _neighbours(tokens))
                if token == self.vocab_size:
                    break
                tokens = _merged(tokens, pair, token)
            self._words[word] = tokens
        return tokens


class _Pairs:
    """How often each pair of neighbours stands in the words, kept up to date while pairs become tokens."""

    def __init__(self, words: Counter[str]) -> None:
        self.words = [(list(word.encode()), n) for word, n in words.items()]
        self.counts: Counter[tuple[int, int]] = Counter()
        self.places: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
        for i in range(len(self.words)):
            self._count(i, 1)

    def _count(self, i: int, sign: int) -> None:
        tokens, n = self.words[i]
        for pair in _neighbours(tokens):
            self.counts[pair] += sign * n
            self.places[pair].add(i)

    def merge(self, pair: tuple[int, int], token: int) -> None:
        for i in sorted(self.places.pop(pair)):
            self._count(i, -1)
            tokens, n = self.words[i]
            self.words[i] = _merged(tokens, pair, token), n
            self._count(i, 1)
        self.counts = +self.counts  # without those that are gone


def _neighbours(tokens: list[int]) -> list[tuple[int, int]]:
    return list(zip(tokens, tokens[1:], strict=False))


def _merged(tokens: list[int], pair: tuple[int, int], token: int) -> list[int]:
    out: list[int] = []
    i = 0
    while i < len(tokens):
        found = tuple(tokens[i : i + 2]) == pair
        out.append(token if found else tokens[i])
        i += 2 if found else 1
    return out


class PublishedTokenizer:
    """What a tokenizer.json describes, run by the tokenizers library; no special tokens are added to a text.

    Args:
        tokenizer: a tokenizers.Tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text, special tokens included."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)


def load_tokenizer(path: str | os.PathLike[str]) -> ByteTokenizer | PublishedTokenizer:
    """The tokenizer that "bytes" names, or that a tokenizer.json, or the folder that holds one, describes.

    Raises:
        FileNotFoundError: no such file or folder, or no tokenizer.json in it.
        ValueError: a file that the tokenizers library cannot read.
        ImportError: the tokenizers library is not installed.
    """
    if path == "bytes":
        return ByteTokenizer()
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f'load_tokenizer: there is no file {file}; give a tokenizer.json, its folder, or "bytes"'
        )
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            'load_tokenizer reads tokenizer.json with the tokenizers library: pip install "minquant[lm]"'
        ) from error
    try:
        return PublishedTokenizer(tokenizers.Tokenizer.from_file(str(file)))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"load_tokenizer: {file} is no tokenizer.json that tokenizers can read: {error}") from error
