"""From a drafting to the arguments of the build at hand. Pure: a `HelpText` in, arguments out.

The eras of llama.cpp, each rule tried on a server of its era (b4372, May 2025, b9093, b11434), except early 2026,
whose rules were read in its documentation and in the forks that still have them:

- 2025: ``-md`` alone drafts; ``--draft-max``, ``--draft-min``, ``--draft-p-min``; no n-gram modes.
- early 2026: the same, and ``--spec-type`` for the n-gram modes only, with generic sizes ``--spec-ngram-size-n``;
  ``--draft-max`` cuts their proposals too.
- about b9093: ``--spec-draft-n-max`` and its kin, sizes per n-gram mode; ``-md`` alone still drafts.
- b9246 on: draft models are types as well (``draft-simple``), and from b9496 they draft only when named.

Every parameter is pinned, because defaults move between builds. `off` is the absence of all of this: a
``--spec-draft-n-max 0`` ends b11434 with an assertion at the first request.
"""

from __future__ import annotations

from autospec.backends.help_text import HelpText
from autospec.drafting import Drafting, Mode
from autospec.errors import UnsupportedError

__all__ = ["NGRAM_CACHE_NOTE", "NGRAM_CACHE_N_MAX", "WHOLE_BATCHES", "drafting_args", "modes"]

# What `--spec-type` calls a mode, newest name first.
_TYPES: dict[Mode, tuple[str, ...]] = {
    Mode.DRAFT_MODEL: ("draft-simple", "draft"),
    Mode.MTP: ("draft-mtp",),
    Mode.EAGLE3: ("draft-eagle3",),
    Mode.DFLASH: ("draft-dflash",),
    Mode.DSPARK: ("draft-dspark",),
    Mode.NGRAM_SIMPLE: ("ngram-simple",),
    Mode.NGRAM_MAP_K: ("ngram-map-k",),
    Mode.NGRAM_MAP_K4V: ("ngram-map-k4v",),
    Mode.NGRAM_MOD: ("ngram-mod",),
    Mode.NGRAM_CACHE: ("ngram-cache",),
}
_DRAFT_FILE = ("--spec-draft-model", "--model-draft", "-md")
_N_MAX = ("--spec-draft-n-max", "--draft-max")
_N_MIN = ("--spec-draft-n-min", "--draft-min")
_P_MIN = ("--spec-draft-p-min", "--draft-p-min")
_GENERIC_N, _GENERIC_M, _GENERIC_HITS = "--spec-ngram-size-n", "--spec-ngram-size-m", "--spec-ngram-min-hits"
# In the era of generic sizes this one cut the proposals of n-gram modes as well; later builds removed it.
_CUT_MAX, _CUT_MIN = "--draft-max", "--draft-min"
WHOLE_BATCHES: tuple[tuple[str, ...], ...] = (("--swa-full",), ("--ctx-checkpoints", "0"))
"""With what batches are computed whole, wherever the build has it: a sliding-window cache can then be cut, and no prompt is
split for a checkpoint four tokens before its end (b11434, `checkpoint_offsets` in tools/server/server-context.cpp)."""
# `create_state_ngram_cache` in common/speculative.cpp: "uint16_t n_draft = 8; // TODO get from config?"
NGRAM_CACHE_N_MAX = 8
# Tried on b9093, b11434 and xllamacpp 2026.10.11549: a prompt that drafts 8 to 256 tokens as the first request drafts
# none as the second. `begin` is a no-op there and `cache_size` only grows, so that a later request is read only from
# where the longest one so far ended.
NGRAM_CACHE_NOTE = "ngram-cache is left out: these servers never empty its cache, so that it drafts from the first request's text only."


def modes(text: HelpText) -> frozenset[Mode]:
    """The modes that a build's flags can express; `off` always, without any flag.

    A type's name in the help does not prove that it works: a launch is checked before it is used.
    """
    found = {Mode.OFF}
    listed = text.spec_types
    if _type_of(text, Mode.DRAFT_MODEL) or _drafts_without_type(text):
        found.add(Mode.DRAFT_MODEL)
    found |= {mode for mode, names in _TYPES.items() if set(names) & set(listed)}
    return frozenset(found)


def drafting_args(text: HelpText, build: str, drafting: Drafting) -> tuple[str, ...]:
    """The arguments that put one drafting in force, every parameter pinned.

    Args:
        text: The build's help.
        build: The build's name, for error messages.
        drafting: What is wanted. An unset ``n_min`` or ``p_min`` is pinned to 0.

    Returns:
        Arguments in a fixed order; empty for `off`.

    Raises:
        UnsupportedError: The build lacks the mode, or a flag to pin one of its parameters.
    """
    flags = _Flags(text, build, drafting)
    match drafting.mode:
        case Mode.OFF:
            return ()
        case Mode.DRAFT_MODEL | Mode.EAGLE3 | Mode.DFLASH | Mode.DSPARK | Mode.MTP:
            return _with_model(flags)
        case Mode.NGRAM_SIMPLE | Mode.NGRAM_MAP_K | Mode.NGRAM_MAP_K4V:
            return _ngram_map(flags)
        case Mode.NGRAM_MOD:
            return _ngram_mod(flags)
        case Mode.NGRAM_CACHE:
            return _ngram_cache(flags)
    raise flags.lacks_mode()


class _Flags:
    """One build's flags with the errors that name it."""

    def __init__(self, text: HelpText, build: str, drafting: Drafting) -> None:
        self.text = text
        self.build = build
        self.drafting = drafting

    def pin(self, value: object, *names: str) -> tuple[str, str]:
        """A flag with its value, by the newest spelling that the build takes."""
        name = self.text.first(*names)
        if name is None:
            raise UnsupportedError(
                f"llama-server {self.build} has no {names[0]}, which {self.drafting.mode} needs.",
                "Choose another mode, or install a newer llama-server.",
            )
        return name, str(value)

    def type(self) -> tuple[str, ...]:
        """``--spec-type NAME``, or nothing for a draft model where ``-md`` alone drafts."""
        name = _type_of(self.text, self.drafting.mode)
        if name is not None:
            return ("--spec-type", name)
        if self.drafting.mode is Mode.DRAFT_MODEL and _drafts_without_type(self.text):
            return ()
        raise self.lacks_mode()

    def lacks_mode(self) -> UnsupportedError:
        offered = ", ".join(sorted(modes(self.text)))
        return UnsupportedError(
            f"llama-server {self.build} has no mode {self.drafting.mode}.", f"It offers: {offered}."
        )


def _type_of(text: HelpText, mode: Mode) -> str | None:
    return next((name for name in _TYPES.get(mode, ()) if name in text.spec_types), None)


def _drafts_without_type(text: HelpText) -> bool:
    """True in the eras where `--spec-type` is missing or speaks of draftless modes only."""
    return text.first(*_DRAFT_FILE) is not None and not any(t.startswith("draft") for t in text.spec_types)


def _with_model(flags: _Flags) -> tuple[str, ...]:
    drafting = flags.drafting
    file = () if drafting.draft is None else flags.pin(drafting.draft, *_DRAFT_FILE)
    return (
        *flags.type(),
        *file,
        *flags.pin(drafting.n_max, *_N_MAX),
        *flags.pin(drafting.n_min or 0, *_N_MIN),
        *flags.pin(drafting.p_min or 0.0, *_P_MIN),
    )


def _ngram_map(flags: _Flags) -> tuple[str, ...]:
    drafting = flags.drafting
    own = f"--spec-{drafting.mode}"
    return (
        *flags.type(),
        *flags.pin(drafting.ngram_n, f"{own}-size-n", _GENERIC_N),
        *flags.pin(drafting.ngram_m, f"{own}-size-m", _GENERIC_M),
        *flags.pin(drafting.min_hits, f"{own}-min-hits", _GENERIC_HITS),
        *_cut(flags, drafting.ngram_m, 0),
    )


def _ngram_mod(flags: _Flags) -> tuple[str, ...]:
    drafting = flags.drafting
    return (
        *flags.type(),
        *flags.pin(drafting.ngram_n, "--spec-ngram-mod-n-match", _GENERIC_N),
        *flags.pin(drafting.n_max, "--spec-ngram-mod-n-max", _CUT_MAX),
        *flags.pin(drafting.n_min or 0, "--spec-ngram-mod-n-min", _CUT_MIN),
    )


def _ngram_cache(flags: _Flags) -> tuple[str, ...]:
    drafting = flags.drafting
    kind = flags.type()
    cut = _cut(flags, drafting.n_max, drafting.n_min or 0)
    settable = range(1, NGRAM_CACHE_N_MAX + 1) if cut else (NGRAM_CACHE_N_MAX,)
    if drafting.n_max not in settable or (drafting.n_min and not cut):
        raise UnsupportedError(
            f"llama-server {flags.build} cannot set n_max={drafting.n_max} and n_min={drafting.n_min or 0} "
            f"for ngram-cache.",
            f"It always proposes up to {NGRAM_CACHE_N_MAX} tokens: ask for n_max={NGRAM_CACHE_N_MAX}.",
        )
    return (*kind, *cut)


def _cut(flags: _Flags, most: int | None, least: int) -> tuple[str, ...]:
    if not flags.text.has(_CUT_MAX):
        return ()
    return (*flags.pin(most, _CUT_MAX), *flags.pin(least, _CUT_MIN))
