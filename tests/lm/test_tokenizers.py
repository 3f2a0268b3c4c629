from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minquant.lm import BPETokenizer, ByteTokenizer, load_tokenizer

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # without halves of surrogate pairs, which UTF-8 has not
TEXT = "the cat sat on the mat; the cat ate. The theme: thé, 猫, cats\n\tand  more cats\r\n" * 3
BPE = BPETokenizer.train(TEXT, 285)


@given(ANY_TEXT)
@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPE], ids=["bytes", "pairs"])
def test_any_text_comes_back_as_it_was(tokenizer: ByteTokenizer | BPETokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_pairs_are_merged_by_how_common_they_are() -> None:
    tokenizer = BPETokenizer.train("aaab aaab aac", 259)
    # a a: 5 times (words aaab, " aaab" and " aac": 2 + 2 + 1); then a b and " aa": 2 each, of which " aa" is lower
    assert tokenizer.merges[0] == (97, 97)
    assert tokenizer.tokens[256:] == [b"aa", b" aa", b"ab"]
    assert tokenizer.encode("aaab") == [256, 258]
    assert tokenizer.vocab_size == 259


def test_training_counts_as_if_it_counted_anew_each_time() -> None:
    merges: list[tuple[int, int]] = []
    for _ in range(25):
        known = BPETokenizer(merges)
        counts: dict[tuple[int, int], int] = {}
        for word in words(TEXT):
            tokens = known.encode(word)
            for pair in zip(tokens, tokens[1:], strict=False):
                counts[pair] = counts.get(pair, 0) + 1
        merges.append(min(counts, key=lambda pair: (-counts[pair], pair)))
    assert BPE.merges[:25] == merges


def words(text: str) -> list[str]:
    from minquant.lm.tokenizers import WORDS

    assert "".join(WORDS.findall(text)) == text
    return WORDS.findall(text)


def test_common_words_become_one_token() -> None:
    assert len(BPE.encode(" the")) == len(BPE.encode(" cat")) == 1
    assert len(BPE.encode(TEXT)) < len(TEXT.encode()) / 2


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    assert ByteTokenizer().decode([0xC3, 0x28]) == "\ufffd("
    with pytest.raises(UnicodeEncodeError):
        ByteTokenizer().encode("\ud800")


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match="at least 256"):
        BPETokenizer.train(TEXT, 255)
    with pytest.raises(ValueError, match="for 258 tokens only, not for 300"):
        BPETokenizer.train("aa aa", 300)
    with pytest.raises(ValueError, match=r"pair \(97, 300\)"):
        BPETokenizer([(97, 300)])


# ---- tokenizer.json --------------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<unk>"],
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tokenizer, tmp_path


def test_a_published_tokenizer_gives_its_tokens(published) -> None:
    theirs, folder = published
    for path in (folder, str(folder / "tokenizer.json")):
        ours = load_tokenizer(path)
        assert ours.vocab_size == theirs.get_vocab_size()
        assert ours.encode("the cats") == theirs.encode("the cats").ids[1:]  # <s> is left to the caller
        assert ours.decode([0, *ours.encode("the 猫")]) == "<s>the 猫"


def test_tokenizers_that_cannot_be_read_are_named(published, monkeypatch) -> None:
    _, folder = published
    assert isinstance(load_tokenizer("bytes"), ByteTokenizer)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_tokenizer(folder / "nowhere")
    (folder / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="other.json"):
        load_tokenizer(folder / "other.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"minquant\[lm\]"):
        load_tokenizer(folder)
