"""The vocabulary of a GGUF file, with the defaults that llama.cpp puts where keys are missing.

The source of every default is ``llama_vocab::impl::load`` in ``src/llama-vocab.cpp`` of b11434.
"""

from __future__ import annotations

from typing import Final

from autospec.catalog.gguf_header import Header
from autospec.catalog.model import Vocabulary

__all__ = ["vocabulary_of"]

_NONE = -1
# Type of tokenizer → id of BOS, id of EOS, add BOS, add EOS.
_DEFAULTS: Final[dict[str, tuple[int, int, bool, bool]]] = {
    "llama": (1, 2, True, False),
    "bert": (101, _NONE, True, False),
    "gpt2": (11, 11, False, False),
    "hybriddna": (11, 11, False, False),
    "whitespace": (11, 11, False, False),
    "t5": (_NONE, 1, False, True),
    "plamo2": (1, 2, False, False),
    # llama.cpp overrides a False in the file for this one (pull request 21500).
    "gemma4": (_NONE, _NONE, True, False),
}
# BPE pre-tokenizers that add BOS unless the file says otherwise.
_BPE_ADDING_BOS: Final = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}
    | {"jina-v5-nano", "tekken", "chameleon"}
)
_BPE_WITHOUT_BOS: Final = frozenset({"chatglm-bpe", "glm4", "glm5"})


def vocabulary_of(header: Header) -> Vocabulary | None:
    """The vocabulary as llama.cpp would load it.

    Args:
        header: The (first) file's header.

    Returns:
        ``None`` where the file has no tokens.
    """
    if header.tokens is None:
        return None
    values = header.values
    kind = str(values.get("tokenizer.ggml.model", ""))
    pre = str(values.get("tokenizer.ggml.pre", ""))
    bos, eos, add_bos, add_eos = _DEFAULTS.get(kind, (_NONE, _NONE, False, False))
    if kind == "gpt2":
        add_bos = pre in _BPE_ADDING_BOS
        bos = _NONE if pre in _BPE_WITHOUT_BOS else bos
    size = header.tokens.size
    adds = values.get("tokenizer.ggml.add_bos_token", add_bos)
    ends = values.get("tokenizer.ggml.add_eos_token", add_eos)
    return Vocabulary(
        kind=kind,
        size=size,
        digest=header.tokens.digest,
        blocks=header.tokens.blocks,
        bos=_token_id(values.get("tokenizer.ggml.bos_token_id"), size, bos),
        eos=_token_id(values.get("tokenizer.ggml.eos_token_id"), size, eos),
        add_bos=True if kind == "gemma4" or (kind == "gpt2" and pre == "gemma4") else bool(adds),
        add_eos=bool(ends),
    )


def _token_id(value: object, size: int, default: int) -> int:
    """The id in the file, unless it is none of the vocabulary's."""
    default = default if default < size else _NONE
    return value if isinstance(value, int) and 0 <= value < size else default
