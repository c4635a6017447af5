"""Read the flags of a llama-server build from its ``--help``, and make a drafting's arguments for that build. Pure.

The eras of llama.cpp. Each rule was tried on a server of its era (b4372, May 2025, b9093, b11434), except early 2026,
whose rules were read in its documentation and in the forks that still have them:

- 2025: ``-md`` alone drafts; ``--draft-max``, ``--draft-min``, ``--draft-p-min``; no n-gram modes.
- early 2026: the same, and ``--spec-type`` for the n-gram modes only, with generic sizes ``--spec-ngram-size-n``;
  ``--draft-max`` also limits their proposals.
- about b9093: ``--spec-draft-n-max`` and the like, sizes per n-gram mode; ``-md`` alone still drafts.
- since b9246: draft models are types as well (``draft-simple``); since b9496 they draft only if the type is named.
- ``--spec-type`` is a comma-separated list where its text says so (b11434); b9093 takes one type, for launches without
  a draft model.

How b11434 combines types (``common_speculative_init``, ``_draft`` and ``_accept`` in ``common/speculative.cpp``): the order on
the command line does not matter. In each cycle the types are asked in a fixed order, ngram-simple, ngram-map-k, ngram-map-k4v,
ngram-mod, then draft models, until one proposes something; the rest is not asked. Each has its own most tokens; only what
is left of the answer limits them all. An n-gram mode learns the outcome of its own proposals only. A draft model's cache
follows every verified batch, and does not depend on the mode that proposed it.

Every parameter is pinned, because defaults change between builds. `off` has no flag at all: a
``--spec-draft-n-max 0`` ends b11434 with an assertion at the first request.

The help's layout is llama.cpp's own (``common_arg::to_string`` in ``common/arg.cpp``), the same from 2024 to b11434:
names from the first column, the value's name after one space, the text from column 40, or on the following lines if the
names are too long.

ik_llama.cpp prints another layout (``gpt_params_print_usage`` in ``common/common.cpp``): names from the third column, the text from
column 34. Many of its options take a value that the help does not name. Each ``--spec-type`` adds a stage with its
numbers, ``--spec-type mtp:n_max=4,p_min=0.0``; an n-gram stage may come before one of MTP or a draft model, and is asked first
(``common_speculative_validate_chain``). Read at commit 8337e4c, August 2026; never run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from autospec.drafting import Drafting, Engine, Mode
from autospec.errors import UnsupportedError

__all__ = [
    "IK_NOTE",
    "NGRAM_CACHE_NOTE",
    "WHOLE_BATCHES",
    "HelpText",
    "Option",
    "drafting_args",
    "engines",
    "lists_types",
    "modes",
    "normalise",
    "parse",
]

_NAME = r"-{1,2}[A-Za-z0-9][\w.-]*"
# A comma and any number of spaces separate names; one space comes before the value, several before the text.
_HEADER = re.compile(
    rf"^(?P<names>{_NAME}(?:,\s+{_NAME})*)(?: (?P<value>\S+(?: \S+)*))?(?:\s{{2,}}(?P<text>\S.*))?\s*$"
)
_TEXT_COLUMN = 40
# "  %-32s", and the names alone on their line where they have more than 30 characters.
_IK_NAMES_WIDTH = 32
_IK_TEXT_COLUMN = 34
_IK_LINE = re.compile(r"^ {2,9}-\S", re.MULTILINE)
_IK_TYPES = re.compile(r"\btypes: (?P<values>none(?:, [\w-]+)*)")
_ALLOWED = re.compile(r"allowed values: (?P<values>[\w-]+(?:,\s*[\w-]+)*)")
_REMOVED = "argument has been removed"


@dataclass(frozen=True, slots=True)
class Option:
    """One entry of the help.

    Attributes:
        names: All spellings with their dashes, in the help's order.
        value: The value's name as printed, e.g. ``N`` or ``[on|off|auto]``; empty for a switch.
        text: The description, its lines joined by single spaces.
        choices: The values that the help lists, or empty.
    """

    names: tuple[str, ...]
    value: str = ""
    text: str = ""
    choices: tuple[str, ...] = ()

    @property
    def arity(self) -> int:
        """Number of arguments that follow the name: two for ``START END``, one for ``<tensor name>=<type>``."""
        return len(re.sub(r"<[^>]*>", "X", self.value).split())

    @property
    def removed(self) -> bool:
        """True for a name that the build lists only to say that it was removed."""
        return _REMOVED in self.text


@dataclass(frozen=True, slots=True)
class HelpText:
    """All options of one build.

    Attributes:
        options: Those that work.
        gone: Those that the build has removed and still lists.
    """

    options: tuple[Option, ...]
    gone: tuple[Option, ...] = ()

    @property
    def of_ik(self) -> bool:
        """True for ik_llama.cpp, whose ``--spec-type`` takes a mode with its numbers."""
        option = self.find("--spec-type")
        return option is not None and option.value.startswith("SPEC[:")

    def arity(self, option: Option, given: int) -> int:
        """Number of arguments that belong to an option with `given` words behind it."""
        if self.of_ik and not option.value:
            return min(given, 1)  # its help names few values
        return option.arity

    def find(self, name: str) -> Option | None:
        """The option with this spelling, or ``None`` if the build lacks it."""
        wanted = normalise(name)
        return next((option for option in self.options if wanted in option.names), None)

    def has(self, name: str) -> bool:
        """True if the build has this spelling."""
        return self.find(name) is not None

    def first(self, *names: str) -> str | None:
        """The first of these spellings, newest first, that the build has."""
        return next((name for name in names if self.has(name)), None)

    def removal(self, name: str) -> str:
        """The build's advice for a removed option (``use --spec-draft-n-max …``), or empty."""
        wanted = normalise(name)
        text = next((option.text for option in self.gone if wanted in option.names), "")
        return text.split(f"{_REMOVED}.")[-1].split("(env:")[0].strip()

    @property
    def spec_types(self) -> tuple[str, ...]:
        """The values of `--spec-type` without ``none``; empty for builds without it."""
        option = self.find("--spec-type")
        return () if option is None else tuple(c for c in option.choices if c != "none")


def normalise(name: str) -> str:
    """A spelling as llama.cpp compares it: with dashes for underscores in long names."""
    return name.replace("_", "-") if name.startswith("--") else name


def parse(text: str) -> HelpText:
    """Read the output of ``llama-server --help``; lines that make no sense are skipped."""
    entries = _entries(text) or _ik_entries(text)
    texts = [" ".join(" ".join(lines).split()) for _, _, lines in entries]
    options = [
        Option(names, value, text, _choices(value, text))
        for (names, value, _), text in zip(entries, texts, strict=True)
    ]
    return HelpText(
        options=tuple(o for o in options if not o.removed),
        gone=tuple(o for o in options if o.removed),
    )


# The names of an option, its value's name, and the lines of its text.
_Entry = tuple[tuple[str, ...], str, list[str]]


def _entries(text: str) -> list[_Entry]:
    entries: list[_Entry] = []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header is not None:
            names = tuple(re.split(r",\s+", header["names"]))
            entries.append((names, header["value"] or "", [header["text"] or ""]))
        elif entries and line.startswith(" " * _TEXT_COLUMN):
            entries[-1][2].append(line.strip())
    return entries


def _ik_entries(text: str) -> list[_Entry]:
    entries: list[_Entry] = []
    for line in text.splitlines():
        if _IK_LINE.match(line):
            alone = line[_IK_NAMES_WIDTH:_IK_TEXT_COLUMN].strip()
            header, words = (line, "") if alone else (line[:_IK_NAMES_WIDTH], line[_IK_TEXT_COLUMN:])
            # A value may stand behind each name: "-ctx-ckpt N, --ctx-checkpoints N".
            spellings = [part.partition(" ") for part in re.split(r",\s+(?=-)", header.strip())]
            entries.append((tuple(name for name, _, _ in spellings), spellings[-1][2].strip(), [words]))
        elif entries and line.startswith(" " * _IK_TEXT_COLUMN):
            entries[-1][2].append(line.strip())
    return entries


def _choices(value: str, text: str) -> tuple[str, ...]:
    """Values listed as ``{a,b}``, ``[a|b]``, ``<a|b>``, ``a,b,c``, after ``allowed values:``, or as ik_llama.cpp's ``types: none, …``."""
    allowed = _ALLOWED.search(text) or _IK_TYPES.search(text)
    if allowed is not None:
        return tuple(re.split(r",\s*", allowed["values"]))
    bare = value.strip("[]{}<>()")
    # ``N0,N1,N2,...`` and ``KEY=TYPE:VALUE,...`` describe a format; a list of words is a list of choices.
    if " " in value or "..." in bare or not re.search(r"[|,]", bare) or bare.isupper():
        return ()
    return tuple(re.split(r"[|,]", bare))


# Each mode's names in `--spec-type`, newest first.
_TYPES: dict[Mode, tuple[str, ...]] = {
    Mode.DRAFT_MODEL: ("draft-simple", "draft"),
    Mode.MTP: ("draft-mtp", "mtp"),
    Mode.EAGLE3: ("draft-eagle3",),
    Mode.DFLASH: ("draft-dflash", "dflash"),
    Mode.DSPARK: ("draft-dspark", "dspark"),
    Mode.NGRAM_SIMPLE: ("ngram-simple",),
    Mode.NGRAM_MAP_K: ("ngram-map-k",),
    Mode.NGRAM_MAP_K4V: ("ngram-map-k4v",),
    Mode.NGRAM_MOD: ("ngram-mod",),
}
_DRAFT_FILE = ("--spec-draft-model", "--model-draft", "-md")
_N_MAX = ("--spec-draft-n-max", "--draft-max")
_N_MIN = ("--spec-draft-n-min", "--draft-min")
_P_MIN = ("--spec-draft-p-min", "--draft-p-min")
_GENERIC_N, _GENERIC_M, _GENERIC_HITS = "--spec-ngram-size-n", "--spec-ngram-size-m", "--spec-ngram-min-hits"
# In the era of generic sizes this also limited the proposals of n-gram modes; later builds removed it.
_CUT_MAX, _CUT_MIN = "--draft-max", "--draft-min"
WHOLE_BATCHES: tuple[tuple[str, ...], ...] = (("--swa-full",), ("--ctx-checkpoints", "0"))
"""Options, if the build has them, with which batches are computed as a whole: a sliding-window cache can then be cut, and no
prompt is split for a checkpoint four tokens before its end (b11434, `checkpoint_offsets` in tools/server/server-context.cpp)."""
# Tried on b9093, b11434 and xllamacpp 2026.10.11549: a prompt that drafts 8 to 256 tokens as the first request drafts
# none as the second. `begin` is a no-op there and `cache_size` only grows, so a later request is read only from
# where the longest one so far ended.
NGRAM_CACHE_NOTE = "ngram-cache is left out: these servers never empty its cache, so it drafts from the first request's text only."


IK_NOTE = "ik_llama.cpp: its modes ngram-cache and suffix are left out; answers are not predicted, every drafting is measured."


def modes(text: HelpText) -> frozenset[Mode]:
    """The modes that a build's flags can express, `off` among them; ngram-cache is left out, see `NGRAM_CACHE_NOTE`.

    A type in the help may still not work, so every launch is checked.
    """
    found = {Mode.OFF}
    listed = text.spec_types
    if _type_of(text, Mode.DRAFT_MODEL) or _drafts_without_type(text):
        found.add(Mode.DRAFT_MODEL)
    found |= {mode for mode, names in _TYPES.items() if set(names) & set(listed)}
    return frozenset(found)


_MTP_ADAPTIVE = "draft-mtp-adaptive"
_WITH_MODEL = (Mode.DRAFT_MODEL, Mode.MTP, Mode.EAGLE3, Mode.DFLASH, Mode.DSPARK)
# ik_llama.cpp switches its tuner off for the others, and only logs that (common/speculative.cpp).
_AUTOTUNED = (Mode.DRAFT_MODEL, Mode.MTP, Mode.DFLASH)
_REJECTION_SAMPLED = (Mode.DRAFT_MODEL, Mode.MTP)


def engines(text: HelpText) -> frozenset[tuple[Mode, Engine]]:
    """What a build's flags can let it adapt by itself, and in which modes."""
    sampling = text.find("--spec-draft-sampling")
    found: list[tuple[Mode, Engine]] = []
    if _MTP_ADAPTIVE in text.spec_types:
        found.append((Mode.MTP, Engine.MTP_ADAPTIVE))
    if text.has("--spec-draft-adaptive"):
        found += [(mode, Engine.ADAPTIVE) for mode in _WITH_MODEL]
    if sampling is not None and "probabilistic" in sampling.choices:
        found += [(mode, Engine.PROBABILISTIC) for mode in _REJECTION_SAMPLED]
    if text.has("--spec-autotune"):
        found += [(mode, Engine.AUTOTUNE) for mode in _AUTOTUNED]
    able = modes(text)
    return frozenset((mode, engine) for mode, engine in found if mode in able)


def drafting_args(text: HelpText, build: str, drafting: Drafting) -> tuple[str, ...]:
    """The arguments for one drafting, every parameter pinned.

    Args:
        text: The build's help.
        build: The build's name, for error messages.
        drafting: An unset ``n_min`` or ``p_min`` is pinned to 0.

    Returns:
        Arguments in a fixed order; empty for `off`.

    Raises:
        UnsupportedError: The build lacks the mode, or a flag to pin one of its parameters.
    """
    if drafting.is_off:
        return ()
    parts = [_Flags(text, build, part) for part in drafting.parts]
    if drafting.engine is not None and (drafting.mode, drafting.engine) not in engines(text):
        raise UnsupportedError(
            f"llama-server {build} has no {drafting.engine} drafting with {drafting.mode}.",
            "Choose a drafting without it, or another build.",
        )
    types = [name for flags in parts if (name := flags.type()) is not None]
    if len(parts) > 1 and not lists_types(text):
        raise UnsupportedError(
            f"llama-server {build} drafts in one mode at a time, so not with"
            f" {' and '.join(flags.drafting.mode for flags in parts)} together.",
            "Choose one of them, or install a newer llama-server.",
        )
    if text.of_ik:
        return _ik_args(parts)
    chosen = ("--spec-type", ",".join(types)) if types else ()
    return (*chosen, *(word for flags in parts for word in _parameters(flags)))


def lists_types(text: HelpText) -> bool:
    """True if one launch of the build can draft in several modes."""
    option = text.find("--spec-type")
    return option is not None and ("comma-separated list" in option.text or text.of_ik)


_IK_BESIDE_NGRAMS = (Mode.MTP, Mode.DRAFT_MODEL)


def _ik_args(parts: Sequence[_Flags]) -> tuple[str, ...]:
    """The stages of ik_llama.cpp: the n-gram mode comes first, as it is asked first."""
    first = parts[0]
    if len(parts) > 2 or (len(parts) > 1 and first.drafting.mode not in _IK_BESIDE_NGRAMS):
        raise UnsupportedError(
            f"llama-server {first.build} drafts in one n-gram mode beside {' or '.join(_IK_BESIDE_NGRAMS)}, not in"
            f" {' and '.join(flags.drafting.mode for flags in parts)} together.",
            "Choose fewer modes.",
        )
    stages = [word for flags in (*parts[1:], first) for word in ("--spec-type", _ik_stage(flags))]
    file = () if first.drafting.draft is None else first.pin(first.drafting.draft, *_DRAFT_FILE)
    tuner = ("--spec-autotune",) if first.drafting.engine is Engine.AUTOTUNE else ()
    if tuner and len(parts) > 1:  # it would only log that the tuner is off
        raise UnsupportedError(
            f"llama-server {first.build} has no autotune drafting in several modes.", "Choose one mode."
        )
    return (*stages, *file, *tuner)


def _ik_stage(flags: _Flags) -> str:
    drafting = flags.drafting
    numbers: dict[str, object]
    match drafting.mode:
        case Mode.NGRAM_SIMPLE | Mode.NGRAM_MAP_K | Mode.NGRAM_MAP_K4V:
            numbers = {
                "ngram_size_n": drafting.ngram_n,
                "ngram_size_m": drafting.ngram_m,
                "ngram_min_hits": drafting.min_hits,
                "n_max": drafting.ngram_m,  # a stage without it is cut to the build's own n_max
                "n_min": 0,
            }
        case Mode.NGRAM_MOD:
            numbers = {
                "ngram_size_n": drafting.ngram_n,
                "n_max": drafting.n_max,
                "n_min": drafting.n_min or 0,
            }
        case _:
            numbers = {
                "n_max": drafting.n_max,
                "n_min": drafting.n_min or 0,
                "p_min": drafting.p_min or 0.0,
            }
    return f"{flags.type()}:{','.join(f'{key}={value}' for key, value in numbers.items())}"


def _parameters(flags: _Flags) -> tuple[str, ...]:
    match flags.drafting.mode:
        case Mode.NGRAM_SIMPLE | Mode.NGRAM_MAP_K | Mode.NGRAM_MAP_K4V:
            return _ngram_map(flags)
        case Mode.NGRAM_MOD:
            return _ngram_mod(flags)
        case _:
            return _with_model(flags)


class _Flags:
    """One build's flags, and errors that name the build."""

    def __init__(self, text: HelpText, build: str, drafting: Drafting) -> None:
        self.text = text
        self.build = build
        self.drafting = drafting

    def pin(self, value: object, *names: str) -> tuple[str, str]:
        """A flag in the newest spelling that the build has, with its value."""
        name = self.text.first(*names)
        if name is None:
            raise UnsupportedError(
                f"llama-server {self.build} has no {names[0]}, which {self.drafting.mode} needs.",
                "Choose another mode, or install a newer llama-server.",
            )
        return name, str(value)

    def type(self) -> str | None:
        """The mode's name in ``--spec-type``; ``None`` for a draft model if ``-md`` alone drafts."""
        if self.drafting.engine is Engine.MTP_ADAPTIVE:
            return _MTP_ADAPTIVE
        name = _type_of(self.text, self.drafting.mode)
        if name is None and not (self.drafting.mode is Mode.DRAFT_MODEL and _drafts_without_type(self.text)):
            raise self.lacks_mode()
        return name

    def lacks_mode(self) -> UnsupportedError:
        offered = ", ".join(sorted(modes(self.text)))
        return UnsupportedError(
            f"llama-server {self.build} has no mode {self.drafting.mode}.", f"It offers: {offered}."
        )


def _type_of(text: HelpText, mode: Mode) -> str | None:
    return next((name for name in _TYPES.get(mode, ()) if name in text.spec_types), None)


def _drafts_without_type(text: HelpText) -> bool:
    """True in the eras without `--spec-type`, or with one for n-gram modes only."""
    return text.first(*_DRAFT_FILE) is not None and not any(t.startswith("draft") for t in text.spec_types)


def _with_model(flags: _Flags) -> tuple[str, ...]:
    drafting = flags.drafting
    file = () if drafting.draft is None else flags.pin(drafting.draft, *_DRAFT_FILE)
    least = drafting.n_min or 0
    adapted: tuple[str, ...] = ()
    match drafting.engine:
        case Engine.MTP_ADAPTIVE:
            # The floor of the depth; a build ends at its start unless it is from 1 to n_max.
            adapted, least = flags.pin(max(least, 1), "--spec-draft-n-min-adaptive"), 0
        case Engine.ADAPTIVE:
            adapted = ("--spec-draft-adaptive",)
        case Engine.PROBABILISTIC:
            adapted = ("--spec-draft-sampling", "probabilistic")
        case _:
            pass
    return (
        *file,
        *flags.pin(drafting.n_max, *_N_MAX),
        *flags.pin(least, *_N_MIN),
        *flags.pin(drafting.p_min or 0.0, *_P_MIN),
        *adapted,
    )


def _ngram_map(flags: _Flags) -> tuple[str, ...]:
    drafting = flags.drafting
    own = f"--spec-{drafting.mode}"
    return (
        *flags.pin(drafting.ngram_n, f"{own}-size-n", _GENERIC_N),
        *flags.pin(drafting.ngram_m, f"{own}-size-m", _GENERIC_M),
        *flags.pin(drafting.min_hits, f"{own}-min-hits", _GENERIC_HITS),
        *_cut(flags, drafting.ngram_m, 0),
    )


def _ngram_mod(flags: _Flags) -> tuple[str, ...]:
    drafting = flags.drafting
    return (
        *flags.pin(drafting.ngram_n, "--spec-ngram-mod-n-match", _GENERIC_N),
        *flags.pin(drafting.n_max, "--spec-ngram-mod-n-max", _CUT_MAX),
        *flags.pin(drafting.n_min or 0, "--spec-ngram-mod-n-min", _CUT_MIN),
    )


def _cut(flags: _Flags, most: int | None, least: int) -> tuple[str, ...]:
    if not flags.text.has(_CUT_MAX):
        return ()
    return (*flags.pin(most, _CUT_MAX), *flags.pin(least, _CUT_MIN))
