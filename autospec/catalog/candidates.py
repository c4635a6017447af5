"""Decide which drafts fit a main model, and say why the others do not."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from autospec.catalog.model import Model
from autospec.catalog.vocabulary import bos_eos_note, vocabulary_mismatch
from autospec.drafting import Mode
from autospec.errors import ModelFileError
from autospec.formats import gigabytes
from autospec.hardware import identify
from autospec.hardware.gpu import model_memory_bytes, shared_limit_bytes

__all__ = [
    "MAX_RELATIVE_COST",
    "Candidate",
    "candidates",
    "candidates_here",
    "count_fits",
    "format_mismatch",
    "undraftable",
]

# Decoding is bound by memory, so a model's cost per token is the bytes of weights that it reads. With the draft's relative
# cost r and the acceptance rate a, one proposal per cycle gives (1 + a) / (1 + r) times the speed if verifying is free, and
# more proposals give less if a is small: a gain needs a > r. Real acceptance rates are seldom above 0.75. (Bytes and not
# parameters count: a model's own Q4 is a possible draft for its Q8, though seldom a good one.)
MAX_RELATIVE_COST: Final = 0.75
# Typical of pairs that pay: 1.7B for 32B, 3B for 70B, 0.6B for 8B. It only orders the drafts.
_TYPICAL_RELATIVE_COST: Final = 1 / 12
# Compute buffers, graphs and the program itself, on top of weights and caches.
_OVERHEAD: Final = 1.10
# The system needs the rest.
_USABLE_MEMORY: Final = 0.90

_MODES: Final = {
    "": Mode.DRAFT_MODEL,
    "eagle3": Mode.EAGLE3,
    "dflash": Mode.DFLASH,
    "dspark": Mode.DSPARK,
    "mtp": Mode.MTP,
}
# Architectures whose MTP layers llama.cpp b11434 runs (LLM_GRAPH_TYPE_DECODER_MTP in src/models); it ignores those of
# others.
_MTP_ARCHITECTURES: Final = frozenset(
    {"bailingmoe3", "cohere2moe", "deepseek2", "deepseek32", "deepseek4", "glm-dsa", "glm4moe", "glm5-next"}
    | {"hy-v3", "mimo2", "nemotron_h_moe", "qwen35", "qwen35moe", "qwen3next", "qwen4exp", "step35"}
)
_SIZE: Final = re.compile(r"\d+(?:\.\d+)?[bm]|\d+x\d+b|a\d+b|e\d+b")
_VENDORS: Final = frozenset({"meta", "google", "mistralai", "ai", "the", "unsloth", "microsoft", "nvidia"})


@dataclass(frozen=True, slots=True)
class Candidate:
    """A draft for a main model, and whether a study may try it; `reason` is one sentence in both cases.

    `own_layers`: the main model's own MTP layers, without a draft file. `n_max` is 0 without a limit. `takes_p_min` is False if the draft
    must not get a p-min above 0.
    """

    model: Model
    mode: Mode
    fits: bool
    reason: str
    own_layers: bool = False
    n_max: int = 0
    takes_p_min: bool = True

    @property
    def draft(self) -> str | None:
        """The draft's path for a `Drafting`; ``None`` for the main model's own layers."""
        return None if self.own_layers else str(self.model.path)

    def to_json(self) -> dict[str, Any]:
        """The form of ``autospec drafts --json``."""
        model = self.model
        return {
            "name": model.name,
            "path": str(model.path),
            "mode": str(self.mode),
            "fits": self.fits,
            "reason": self.reason,
            "format": model.format,
            "architecture": model.architecture,
            "quantization": model.quantization,
            "parameters": model.parameters,
            "active_parameters": model.active_parameters,
            "size_bytes": model.size_bytes,
            "bytes_per_token": model.bytes_per_token,
            "source": model.source,
            "own_layers": self.own_layers,
            "n_max": self.n_max or None,
            "takes_p_min": self.takes_p_min,
            "fingerprint": model.fingerprint,
        }


def candidates(
    main: Model,
    models: Iterable[Model],
    *,
    memory_bytes: int,
    context_tokens: int,
    extra: Iterable[Model] = (),
    gpu_limit_bytes: int = 0,
) -> list[Candidate]:
    """Judge every model as a draft for a main model; `extra` are models that the user named, the main model included.

    Args:
        main: The main model.
        models: The catalogue; the main model itself is skipped.
        memory_bytes: Installed memory, with that of graphics cards; 0 if unknown, and then every size fits.
        context_tokens: Context length for the size of the KV caches.
        extra: Judged like the others.
        gpu_limit_bytes: What a GPU that shares this memory may use of it; 0 without a limit.

    Returns:
        Fitting drafts first. Among them: same family first; further quantizations of the same draft after other drafts; then
        by distance of the cost from a twelfth of the main model's. A study with little time takes the first ones.
    """
    found: list[Candidate] = []
    memory = _Memory(memory_bytes, gpu_limit_bytes)
    if main.mtp_layers and main.head is None:
        found.append(_own_mtp(main))
    pool = {m.fingerprint: m for m in reversed([m for m in models if m.fingerprint != main.fingerprint])}
    pool |= {m.fingerprint: m for m in extra}
    for draft in pool.values():
        refusal = _refusal(main, draft, memory, context_tokens)
        fits = refusal is None
        reason = _praise(main, draft, context_tokens) if refusal is None else f"{draft.name} {refusal()}."
        head = draft.head
        found.append(
            Candidate(
                model=draft,
                mode=_MODES[draft.draft_kind],
                fits=fits,
                reason=reason,
                n_max=head.n_max if head else 0,
                takes_p_min=head.takes_p_min if head else True,
            )
        )
    return _ranked(main, found)


def candidates_here(main: Model, models: Iterable[Model], context_tokens: int) -> list[Candidate]:
    """`candidates` with the memory of this machine."""
    here = identify()
    return candidates(
        main,
        models,
        memory_bytes=model_memory_bytes(here),
        gpu_limit_bytes=shared_limit_bytes(here),
        context_tokens=context_tokens,
    )


def undraftable(main: Model) -> str:
    """Say why no draft can work with this main model, by its metadata; empty if one can.

    mlx_lm removes rejected tokens from the caches. A recurrent state cannot be rolled back. A sliding-window cache can, until the
    window is full; after that, 0.32.2 leaves the rejected tokens in it, and the text is wrong.
    """
    if main.format != "mlx":
        return ""
    if main.has_recurrent_state:
        return "has layers with a recurrent state, which mlx_lm cannot roll back"
    if main.sliding_window:
        return f"has layers with a window of {main.sliding_window} tokens, which mlx_lm cannot roll back once it is full"
    return ""


def format_mismatch(main: Model, draft: Model) -> str:
    """The end of the sentence that refuses a draft of another format; empty if the formats are equal."""
    if draft.format == main.format:
        return ""
    names = {"gguf": "a GGUF file", "mlx": "an MLX folder"}
    return f"is {names[draft.format]} and the main model {names[main.format]}: no backend runs both together"


def count_fits(
    main: Model, models: Iterable[Model], *, memory_bytes: int, context_tokens: int, gpu_limit_bytes: int = 0
) -> int:
    """Count the fitting `candidates` without building a sentence for each of the others."""
    memory = _Memory(memory_bytes, gpu_limit_bytes)
    seen = {main.fingerprint}
    count = 1 if main.mtp_layers and main.head is None and main.format == "gguf" else 0
    for draft in models:
        # The cheapest test comes first and decides most pairs.
        if (
            draft.bytes_per_token <= main.bytes_per_token * MAX_RELATIVE_COST
            and draft.fingerprint not in seen
        ):
            seen.add(draft.fingerprint)
            count += _refusal(main, draft, memory, context_tokens) is None
    return count


@dataclass(frozen=True, slots=True)
class _Memory:
    """The installed memory, with that of cards (0 if unknown), and the limit of a GPU that shares it (0 without one)."""

    installed_bytes: int
    gpu_limit_bytes: int

    @property
    def usable_bytes(self) -> float:
        """What models may take together."""
        usable = self.installed_bytes * _USABLE_MEMORY
        return min(usable, self.gpu_limit_bytes) if self.gpu_limit_bytes else usable


def _refusal(main: Model, draft: Model, memory: _Memory, context_tokens: int) -> Callable[[], str] | None:
    """A function that words the end of the refusal, or ``None``; most refusals are never shown."""
    if draft.fingerprint == main.fingerprint:
        return lambda: "is the main model itself"
    if draft.format != main.format:
        return lambda: format_mismatch(main, draft)
    if stuck := _cache_mismatch(main, draft):
        return lambda: stuck
    if draft.bytes_per_token > main.bytes_per_token * MAX_RELATIVE_COST:
        return lambda: _too_large(main, draft)
    if draft.head is not None and (why := _head_mismatch(main, draft)):
        return lambda: why
    try:
        mismatch = vocabulary_mismatch(main, draft)
    except ModelFileError as error:
        mismatch = f"cannot be checked: {error.message.rstrip('.')}"
    if mismatch:
        return lambda: mismatch
    if memory.installed_bytes and _needed(context_tokens, main, draft) > memory.usable_bytes:
        return lambda: _does_not_fit(main, draft, memory, context_tokens)
    return None


def _cache_mismatch(main: Model, draft: Model) -> str:
    if why := undraftable(main):
        return f"cannot be used: the main model {why}"
    if why := undraftable(draft):
        # The text would be right, but rejected tokens in the draft's cache would spoil its later proposals.
        return f"cannot be used: it {why}"
    if main.format == "gguf" and draft.has_recurrent_state and not main.has_recurrent_state:
        # Seen with b11434: it tries to cut the state after rejected tokens, and aborts with "failed to remove sequence".
        return "keeps a recurrent state and the main model does not: llama-server b11434 crashes with such a pair"
    return ""


def _too_large(main: Model, draft: Model) -> str:
    ours, theirs = main.bytes_per_token, draft.bytes_per_token
    if theirs >= ours:
        return f"is not smaller than the main model: it reads {gigabytes(theirs)} per token, the main model {gigabytes(ours)}"
    return (
        f"is not much smaller than the main model: it reads {gigabytes(theirs)} per token, the main model {gigabytes(ours)}, "
        f"and a draft cannot pay if it reads more than {MAX_RELATIVE_COST:.0%} of that"
    )


def _head_mismatch(main: Model, draft: Model) -> str:
    head = draft.head
    assert head is not None
    if main.head is not None:
        return "is a draft head, and the main model is a draft head too"
    if head.hidden_size and main.embedding_length and head.hidden_size != main.embedding_length:
        return (
            f"is a draft head for a main model with hidden size {head.hidden_size}, "
            f"and this main model has {main.embedding_length}"
        )
    if head.target_layers and main.layers and max(head.target_layers) > main.layers:
        return (
            f"is a draft head that reads layer {max(head.target_layers)}, "
            f"and the main model has {main.layers} layers"
        )
    same = draft.architecture.removesuffix("-assistant") == main.architecture
    if head.kind == "mtp" and not same:
        return f"is the MTP head of a {draft.architecture} model, and the main model is {main.architecture}"
    return ""


def _needed(context_tokens: int, *models: Model) -> float:
    return _OVERHEAD * sum(m.size_bytes + m.kv_bytes(context_tokens) for m in models)


def _does_not_fit(main: Model, draft: Model, memory: _Memory, context_tokens: int) -> str:
    alone = _needed(context_tokens, main)
    usable = memory.usable_bytes
    both = _needed(context_tokens, main, draft)
    room = f"{gigabytes(usable)} of this machine's {gigabytes(memory.installed_bytes)} of memory can be used"
    if alone > usable:
        return (
            f"does not fit in memory: the main model alone needs {gigabytes(alone)} with its KV cache for "
            f"{context_tokens} tokens, and {room}"
        )
    return (
        f"does not fit in memory beside the main model: together they need {gigabytes(both)} with KV caches for "
        f"{context_tokens} tokens, and {room}"
    )


def _own_mtp(main: Model) -> Candidate:
    if main.format == "mlx":
        return Candidate(
            main, Mode.MTP, fits=False, own_layers=True,
            reason=f"{main.name} has MTP layers, and mlx_lm does not draft with them.",
        )  # fmt: skip
    layers = f"{main.mtp_layers} MTP layer{'s' if main.mtp_layers > 1 else ''}"
    note = "" if main.architecture in _MTP_ARCHITECTURES else (
        f"; llama.cpp up to b11434 is not known to run the MTP layers of {main.architecture}"
    )  # fmt: skip
    return Candidate(
        main, Mode.MTP, fits=True, own_layers=True,
        reason=f"{main.name} has {layers} of its own and needs no draft file{note}.",
        # Several heads are chained, one per proposal; a single head runs repeatedly.
        n_max=main.mtp_layers if main.mtp_layers > 1 else 0,
    )  # fmt: skip


def _praise(main: Model, draft: Model, context_tokens: int) -> str:
    family = "same family" if _kinship(main, draft) else "another family"
    what = {"": "Same vocabulary"}.get(
        draft.draft_kind, f"{draft.draft_kind.upper()} head for this hidden size"
    )
    ratio = main.bytes_per_token / max(draft.bytes_per_token, 1)
    notes = [n for n in (bos_eos_note(main, draft), _context_note(main, draft, context_tokens)) if n]
    return (
        f"{what}, reads {ratio:.1f} times less per token ({gigabytes(draft.bytes_per_token)} of {gigabytes(main.bytes_per_token)}), "
        f"{'; '.join([family, *notes])}."
    )


def _context_note(main: Model, draft: Model, context_tokens: int) -> str:
    """Say if the draft was trained for less context than the launch has."""
    # llama.cpp b11434 gives the draft as many tokens as the main model, caps them by the main model's training alone, and only logs
    # "possible training context overflow"; mlx_lm does not look either.
    used = min(context_tokens, main.context_length or context_tokens)
    if not 0 < draft.context_length < used:
        return ""
    return (
        f"it was trained for {draft.context_length} tokens and the context has {used}: after {draft.context_length} tokens its "
        "proposals may get worse; the text stays the same"
    )


def _ranked(main: Model, found: Iterable[Candidate]) -> list[Candidate]:
    def likely(candidate: Candidate) -> tuple[float, str, str]:
        draft = candidate.model
        ratio = max(draft.bytes_per_token, 1) / max(main.bytes_per_token, 1)
        return abs(math.log(ratio / _TYPICAL_RELATIVE_COST)), draft.name.casefold(), str(draft.path)

    twins: Counter[tuple[str, int, Mode]] = Counter()
    keyed = []
    for candidate in sorted(found, key=likely):
        draft = candidate.model
        same = (draft.architecture, draft.parameters, candidate.mode)
        kinship = 3 if candidate.own_layers else _kinship(main, draft)
        keyed.append(((not candidate.fits, -kinship, twins[same]), candidate))
        twins[same] += candidate.fits
    # The sort is stable: within equal keys the likelier draft stays first.
    return [candidate for _, candidate in sorted(keyed, key=lambda pair: pair[0])]


def _kinship(main: Model, draft: Model) -> int:
    """0 for unrelated models; 1 if architecture or first word of the name agree; 2 if both do."""
    same_architecture = _base(main.architecture) == _base(draft.architecture)
    ours, theirs = _words(main), _words(draft)
    return same_architecture + bool(ours and theirs and ours[0] == theirs[0])


def _base(architecture: str) -> str:
    """``qwen3`` for ``qwen3moe``: dense and sparse models of a family share the vocabulary."""
    return architecture.replace("_", "").replace("-", "").removesuffix("moe").removesuffix("assistant")


def _words(model: Model) -> list[str]:
    """The words of a model's name before its size: ``qwen3 coder`` of Qwen3-Coder-30B-A3B-Instruct-Q6_K."""
    text = (model.basename or model.name.rpartition("/")[2]).casefold()
    words: list[str] = []
    for word in re.split(r"[-_\s:]+", text):
        if _SIZE.fullmatch(word):
            break
        if word and word not in _VENDORS:
            words.append(word)
    return words
