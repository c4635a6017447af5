"""llama.cpp's rule for vocabularies: types, BOS and EOS, 128 tokens of tolerance, ids below 5 ignored."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from autospec.catalog.gguf import read_gguf
from autospec.catalog.model import BLOCK, Head, Model
from autospec.catalog.vocabulary import bos_eos_note, vocabulary_mismatch
from autospec.errors import ModelFileError
from tests.catalog.making import TOKENS, make_model, write_gguf


@pytest.fixture
def model(tmp_path: Path):
    """Makes a model with a vocabulary of its own."""
    made = iter(range(100))

    def make(tokens: list[str] | None = TOKENS, **keys: object) -> Model:
        values = {f"tokenizer.ggml.{k}": v for k, v in keys.items()}
        return read_gguf(write_gguf(tmp_path / f"{next(made)}.gguf", tokens=tokens, keys=values))

    return make


def test_equal_vocabularies_fit_without_reading(model) -> None:
    """Equal digests settle it, even when the files are gone."""
    one, two = model(), model()
    one.path.unlink()
    two.path.unlink()
    assert vocabulary_mismatch(one, two) == ""


@pytest.mark.parametrize(("more", "fits"), [(1, True), (127, True), (128, True), (129, False)])
def test_128_tokens_of_tolerance(model, more: int, fits: bool) -> None:
    """A draft may have 128 tokens more or fewer, and not 129."""
    small, large = model(), model([*TOKENS, *(f"extra{i}" for i in range(more))])
    for main, draft in ((small, large), (large, small)):
        mismatch = vocabulary_mismatch(main, draft)
        assert (mismatch == "") is fits
        assert fits or "a difference of at most 128" in mismatch


def test_ids_below_five_are_ignored(model) -> None:
    """The texts of the first five tokens may differ; the sixth may not."""
    first = ["other"] * 5
    assert vocabulary_mismatch(model(), model([*first, *TOKENS[5:]])) == ""
    assert "from id 5 on" in vocabulary_mismatch(model(), model([*TOKENS[:5], "other", *TOKENS[6:]]))


def test_the_last_shared_token_counts(model) -> None:
    """Texts are compared up to the end of the smaller vocabulary."""
    assert "from id 299 on" in vocabulary_mismatch(model(), model([*TOKENS[:-1], "other"]))


def test_large_vocabularies_are_told_apart_without_reading(model) -> None:
    """A difference within a whole block is known from the digests alone."""
    tokens = [str(i) for i in range(2 * BLOCK + 10)]
    one, two = model(tokens), model([*tokens[:BLOCK], "x", *tokens[BLOCK + 1 :]])
    one.path.unlink()
    two.path.unlink()
    assert f"between ids {BLOCK} and {2 * BLOCK - 1}" in vocabulary_mismatch(one, two)


def test_large_vocabularies_with_a_different_end_are_read(model) -> None:
    """A difference behind the last whole block is found as well."""
    tokens = [str(i) for i in range(BLOCK + 100)]
    one, two = model(tokens), model([*tokens[:-1], "x"])
    assert f"from id {BLOCK + 99} on" in vocabulary_mismatch(one, two)


def test_another_type_of_tokenizer(model) -> None:
    """SentencePiece and BPE do not mix, whatever the texts."""
    mismatch = vocabulary_mismatch(model(), model(model="llama", add_bos_token=False))
    assert mismatch == "has another type of tokenizer (llama, the main model has gpt2)"


def test_adding_bos_must_agree(model) -> None:
    """One adds BOS and the other does not: refused."""
    assert "does add BOS" in vocabulary_mismatch(model(), model(add_bos_token=True))
    assert "does not add BOS" in vocabulary_mismatch(model(add_bos_token=True), model())


def test_bos_ids_must_agree_where_it_is_added(model) -> None:
    """Both add BOS, with other ids: refused."""
    one = model(add_bos_token=True)
    two = model(add_bos_token=True, bos_token_id=np.uint32(9))
    assert vocabulary_mismatch(one, two) == "has another BOS token (id 9, the main model has 1)"


def test_eos_ids_must_agree_where_it_is_added(model) -> None:
    """Both add EOS, with other ids: refused."""
    one = model(add_eos_token=True)
    two = model(add_eos_token=True, eos_token_id=np.uint32(9))
    assert "has another EOS token" in vocabulary_mismatch(one, two)


def test_ids_that_nobody_adds_are_a_note(model) -> None:
    """A base model's other EOS is no matter to b11434; builds of 2025 refuse, which is worth a word."""
    one, two = model(), model(eos_token_id=np.uint32(9))
    assert vocabulary_mismatch(one, two) == ""
    assert bos_eos_note(one, two) == "its EOS differs, which builds of 2025 refuse"
    assert bos_eos_note(one, one) == ""


def test_no_vocabulary_cannot_be_checked() -> None:
    """A model without tokens in its file fits nothing."""
    one = make_model()
    assert "it has no vocabulary" in vocabulary_mismatch(one, dataclasses.replace(one, vocab=None))
    assert "the main model has no vocabulary" in vocabulary_mismatch(
        dataclasses.replace(one, vocab=None), one
    )


class TestHeads:
    """llama.cpp compares the vocabulary of a draft model; of a draft head it needs that the file loads and the ids exist."""

    def head(self, kind: str, model: Model) -> Model:
        """The model as a draft head."""
        return dataclasses.replace(model, head=Head(kind, 32))

    @pytest.mark.parametrize("kind", ["eagle3", "dflash", "dspark", "mtp"])
    def test_bos_and_eos_are_not_compared(self, model, kind: str) -> None:
        """A head reads no text, so how it would begin one is no matter."""
        main, other = model(), model(add_bos_token=True, bos_token_id=np.uint32(9))
        assert vocabulary_mismatch(main, other)
        assert vocabulary_mismatch(main, self.head(kind, other)) == ""
        assert bos_eos_note(main, self.head(kind, other)) == ""

    def test_other_texts_are_refused(self, model) -> None:
        """Such a head was trained for another model."""
        other = model([*TOKENS[:9], "x", *TOKENS[10:]])
        assert "differ from id 9 on" in vocabulary_mismatch(model(), self.head("eagle3", other))

    @pytest.mark.parametrize("kind", ["eagle3", "dflash", "dspark", "mtp"])
    def test_a_file_without_tokens_does_not_load(self, model, kind: str) -> None:
        """`llama_vocab::load` requires the tokenizer's keys of every file."""
        why = vocabulary_mismatch(model(), self.head(kind, model(None)))
        assert "no tokenizer in its file" in why

    @pytest.mark.parametrize(
        ("kind", "size", "says"),
        [
            ("eagle3", 300, ""),
            ("mtp", 320, ""),
            ("eagle3", 200, "below 200 only, and the main model has 300"),
            ("dflash", 300, "no mask token"),
            ("dspark", 300, "no mask token"),
        ],
    )
    def test_the_tokenizer_none(self, tmp_path: Path, model, kind: str, size: int, says: str) -> None:
        """llama.cpp then makes as many ids as ``vocab_size`` says, and no mask token."""
        keys = {"tokenizer.ggml.model": "none", "llama.vocab_size": np.uint32(size)}
        other = read_gguf(write_gguf(tmp_path / "none.gguf", tokens=None, keys=keys))
        why = vocabulary_mismatch(model(), self.head(kind, other))
        assert says in why
        assert bool(why) is bool(says)
        assert 'the tokenizer "none"' in vocabulary_mismatch(model(), other)
        assert "the main model has no vocabulary" in vocabulary_mismatch(other, model())


def test_a_file_that_vanished_is_a_model_file_error(model) -> None:
    """Where texts must be read and cannot be, the error says which file."""
    one, two = model(), model([*TOKENS, "vanished"])
    two.path.unlink()
    with pytest.raises(ModelFileError, match=str(two.path)):
        vocabulary_mismatch(one, two)
