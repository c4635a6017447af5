"""Recommendations as server configuration: flags, llama-server's presets, llama-swap's YAML, a command for MLX.

Every format turns drafting off by leaving it out, because no server has a safe flag for that. The flags are those of the
tuned build (`evidence["args"]`), because builds differ in names and defaults.

A configuration file may contain other people's entries: autospec writes only between its own marks. A file without marks gets
them at the end of a preset, or right below ``models:`` of a llama-swap file. The rest stays unchanged, character by
character; a change of its meaning is refused.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from autospec.backends import flags as _flags
from autospec.backends.flags import HelpText, Option
from autospec.cells import options_in, values_of
from autospec.drafting import Drafting
from autospec.errors import AutospecError, UsageError
from autospec.files import replace_file
from autospec.formats import build_words, caution_words, percent
from autospec.recommendations import MODEL_SETTINGS, USER_SETTINGS, Recommendation, Status, Verdict

__all__ = [
    "BEGIN",
    "END",
    "Rendered",
    "drafting_args",
    "llama_swap_text",
    "merged_llama_swap",
    "merged_preset",
    "mlx_command",
    "newest_args",
    "one_args",
    "own_settings",
    "preset_text",
    "to_run",
    "update_file",
    "what_to_run",
]


# Both are llama.cpp's server; other backends have other configuration.
_LLAMA_SERVERS = ("llama-server", "embedded")
# Drafting flags of llama.cpp b11434, from its --help, for results of the embedded server of that time.
_NEWEST_TYPES = (
    *("draft-simple", "draft-eagle3", "draft-mtp", "draft-dflash", "draft-dspark"),
    *("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache"),
)
_NEWEST = HelpText(
    (
        Option(("--spec-type",), text="comma-separated list", choices=_NEWEST_TYPES),
        *(Option((f"--spec-draft-{name}",), "N") for name in ("model", "n-max", "n-min", "p-min")),
        *(Option((f"--spec-ngram-mod-{name}",), "N") for name in ("n-match", "n-max", "n-min")),
        *(
            Option((f"--spec-{mode}-{name}",), "N")
            for mode in ("ngram-simple", "ngram-map-k", "ngram-map-k4v")
            for name in ("size-n", "size-m", "min-hits")
        ),
    )
)
# What measuring adds to the user's settings by default (`TuneRequest.settings`).
_MEASURED_CONTEXT = ("-c", "4096")
# autospec writes between these marks, which are comments in INI and YAML.
BEGIN = "# >>> autospec: written by `autospec recommend`, changes here are lost >>>"
END = "# <<< autospec <<<"
_PRESET_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A configuration: head lines, entry names, block between the marks, and a sentence for each recommendation left out."""

    head: tuple[str, ...]
    names: tuple[str, ...]
    block: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The whole configuration without a final newline."""
        return "\n".join((*self.head, *self.block))


def drafting_args(recommendation: Recommendation) -> tuple[str, ...]:
    """The server flags of the recommended drafting; empty for off.

    Raises:
        AutospecError: They were not recorded.
    """
    if recommendation.drafting.is_off:
        return ()
    if recommendation.backend == "embedded":
        # It is configured by fields, not by flags; a llama-server of its time takes these.
        return newest_args(recommendation.drafting)
    args = recommendation.evidence.get("args")
    if not isinstance(args, list) or not args:
        raise AutospecError(
            f"The server flags for {recommendation.drafting.label} were not recorded.",
            f"Run `autospec tune --model {recommendation.model}` to record those of this machine's build.",
        )
    return tuple(map(str, args))


def newest_args(drafting: Drafting) -> tuple[str, ...]:
    """The flags of a drafting for a current llama-server; empty for off."""
    return _flags.drafting_args(_NEWEST, "current", drafting)


def one_args(recommendations: Sequence[Recommendation]) -> tuple[tuple[str, ...], Recommendation]:
    """The flags that all recommendations (at least one) agree on, and one of these recommendations.

    Raises:
        UsageError: They are for several models, or disagree.
        AutospecError: The flags were not recorded.
    """
    models = sorted({r.model for r in recommendations})
    if len(models) > 1:
        raise UsageError(
            f"Flags are for one model, but there are results for {len(models)}: {', '.join(models)}.",
            "Choose one with --model.",
        )
    choices: dict[tuple[str, ...], list[Recommendation]] = {}
    for r in recommendations:
        choices.setdefault(drafting_args(r), []).append(r)
    if len(choices) == 1:
        return next(iter(choices)), recommendations[0]
    backends = {r.backend for r in recommendations}
    by_backend = len(backends) > 1
    by_type = len({(r.backend, r.prompt_type) for r in recommendations}) > len(backends)
    options = " and ".join(["--prompt-type"] * by_type + ["--backend"] * by_backend or ["--hardware"])
    what = "; ".join(
        f"{', '.join(_subject(r, with_backend=by_backend) for r in group)}: {group[0].drafting.label}"
        for group in choices.values()
    )
    hint = f"Choose one with {options}."
    if by_type:
        hint += f" `autospec tune --model {models[0]}` finds one for all prompt types together."
    raise UsageError(f"The recommendations for {models[0]} differ: {what}.", hint)


def own_settings(recommendation: Recommendation) -> tuple[str, ...]:
    """The server arguments that the user's config gave this model alone when it was measured, adapters for example."""
    own = recommendation.evidence.get(MODEL_SETTINGS)
    return tuple(map(str, own)) if isinstance(own, list) else ()


# Model → more names for it.
_Aliases = Mapping[str, Sequence[str]]
_NO_ALIASES: Final[_Aliases] = MappingProxyType({})


def preset_text(recommendations: Sequence[Recommendation], aliases: _Aliases = _NO_ALIASES) -> Rendered:
    """An INI file for llama-server's router (``--models-preset``): a section for each model and prompt type.

    Keys are flags without dashes (llama.cpp, ``common/preset.cpp``). That parser ends a value at the first ``;`` or
    ``#`` and has no quotes, so a path with one of them cannot be written. It has one value for each key, and sorts the keys, so
    an option stands under one spelling. The whole file is refused if two sections have one alias.
    """
    head = ["; Written by autospec. Start with: llama-server --models-preset THIS_FILE", "version = 1", ""]

    def section(name: str, r: Recommendation, more_names: Sequence[str]) -> list[str]:
        options = {"model": r.model_path} | _options([*_without_alias(r), *drafting_args(r)])
        if more_names:
            options["alias"] = ",".join(more_names)
        for key, value in options.items():
            if not _PRESET_KEY.fullmatch(key) or re.search(r"[;#\r\n]", value) or value != value.strip():
                raise AutospecError(f"{value!r} cannot be written into a preset.", "Rename the file.")
        comments = [f"; {line}" for line in _why(r, recommendations)]
        return [*comments, f"[{name}]", *(f"{key} = {value}".rstrip() for key, value in options.items())]

    named = {r.model: (*_alias_of(r), *aliases.get(r.model, ())) for r in recommendations}
    return _render(recommendations, head, section, named)


def llama_swap_text(
    recommendations: Sequence[Recommendation], program: str = "llama-server", aliases: _Aliases = _NO_ALIASES
) -> Rendered:
    """A YAML file for llama-swap: a model with its command for each model and prompt type.

    Strings are written as JSON, which is YAML. llama-swap splits ``cmd`` like a POSIX shell and replaces ``${PORT}``.
    `program` is the server where a recommendation's own was not recorded.
    """

    def entry(name: str, r: Recommendation, more_names: Sequence[str]) -> list[str]:
        command = r.evidence.get("command")
        server = str(command[0]) if r.backend == "llama-server" and command else program
        words = ["--model", r.model_path, *_settings(r), *drafting_args(r)]
        if macro := next((word for word in (server, *words) if "${" in word), None):
            raise AutospecError(
                f"{macro!r} cannot be written for llama-swap, which reads ${{…}} as a macro.", "Rename it."
            )
        line = f"{shlex.quote(server)} --port ${{PORT}} {shlex.join(words)}"
        # YAML does not join the surrogate pairs of JSON's \u escapes, so do not escape.
        key, cmd = (json.dumps(text, ensure_ascii=False) for text in (name, line))
        names = [f"    aliases: {json.dumps(list(more_names), ensure_ascii=False)}"] if more_names else []
        comments = [f"  # {line}" for line in _why(r, recommendations)]
        return [*comments, f"  {key}:", f"    cmd: {cmd}", *names]

    head = ["# Written by autospec. Start with: llama-swap -config THIS_FILE", "models:"]
    return _render(recommendations, head, entry, aliases, indent="  ")


def mlx_command(recommendations: Sequence[Recommendation]) -> tuple[str, ...]:
    """The command line of one ``mlx_lm.server`` that all recommendations for MLX agree on; those for other backends are ignored.

    It has one draft model for all requests; clients may still send ``num_draft_tokens`` with each.

    Raises:
        UsageError: They are for several models, or disagree.
        AutospecError: None is for MLX, or the model's folder or the flags are unknown.
    """
    ours = [r for r in recommendations if r.backend == "mlx"]
    if not ours:
        backends = ", ".join(sorted({r.backend for r in recommendations}))
        raise AutospecError(
            f"There are no results for MLX, only for {backends}.",
            "Measure it with `autospec tune --backend mlx`.",
        )
    args, chosen = one_args(ours)
    if not chosen.model_path:
        raise AutospecError(
            f"The folder of {chosen.model} on this machine is unknown.",
            "The result was imported. `autospec models` lists the models that were found.",
        )
    return "mlx_lm.server", "--model", chosen.model_path, *_settings(chosen), *args


class ToRun(NamedTuple):
    """How to run one server: a sentence, and the command; empty if none can be written, and then the sentence says why."""

    words: str
    command: str


def what_to_run(r: Recommendation) -> str:
    """`to_run` in one line."""
    words, command = to_run(r)
    return f"{words} Run: {command}" if command else words


def to_run(r: Recommendation) -> ToRun:
    """How to run one server for all prompt types, as an overall answer recommends."""
    what = r.drafting.label if r.verdict is Verdict.ENABLE else "off"
    if r.verdict is Verdict.UNDECIDED:
        what += " (undecided)"
    gain = f" ({percent(r.speedup)})" if r.speedup is not None and not r.drafting.is_off else ""
    try:
        command = _command_line(r)
    except AutospecError as error:
        return ToRun(f"One server for all prompt types: {what}{gain}. {error}", "")
    return ToRun(f"One server for all prompt types: {what}{gain}.", command)


def _command_line(r: Recommendation) -> str:
    """The command that starts a server as recommended. Raises `AutospecError` if none can be written."""
    if r.backend == "mlx":
        return shlex.join(mlx_command([r]))
    if r.backend not in _LLAMA_SERVERS or not r.model_path:
        raise AutospecError(f"`autospec explain --model {r.model}` says more.")
    recorded = r.evidence.get("command")
    program = str(recorded[0]) if r.backend == "llama-server" and recorded else "llama-server"
    return shlex.join((program, "--model", r.model_path, *_settings(r), *drafting_args(r)))


def _render(
    recommendations: Iterable[Recommendation],
    head: list[str],
    part: Callable[[str, Recommendation, Sequence[str]], list[str]],
    aliases: _Aliases,
    indent: str = "",
) -> Rendered:
    lines, names, left_out = [f"{indent}{BEGIN}"], [], []
    entries = list(_named(recommendations))
    # An alias means one entry.
    wanted = Counter(alias for _, r in entries for alias in dict.fromkeys(aliases.get(r.model, ())))
    taken = {name for name, _ in entries} | {alias for alias, count in wanted.items() if count > 1}
    left_out += [
        f"The alias {alias} is left out: {wanted[alias]} entries could have it, or one has it as its name."
        for alias in wanted
        if alias in taken
    ]
    for name, r in entries:
        subject = f"{r.model} ({_subject(r, with_backend=True)})"
        if r.backend not in _LLAMA_SERVERS:
            left_out.append(f"{subject} is left out: this format cannot configure {r.backend}.")
        elif not r.model_path:
            left_out.append(f"{subject} is left out: the path of the model on this machine is unknown.")
        else:
            try:
                free = [alias for alias in dict.fromkeys(aliases.get(r.model, ())) if alias not in taken]
                lines += [*part(name, r, free), ""]
                names.append(name)
            except AutospecError as error:
                left_out.append(f"{subject} is left out: {error}")
    if not names:
        raise AutospecError("No recommendation can be written in this format.", " ".join(left_out))
    lines[-1] = f"{indent}{END}"
    return Rendered(tuple(head), tuple(names), tuple(lines), tuple(left_out))


def _named(recommendations: Iterable[Recommendation]) -> Iterator[tuple[str, Recommendation]]:
    """Each with a unique name: model and prompt type, then the backend, then a number."""
    taken: set[str] = set()
    for r in recommendations:
        # No other characters: the router upper-cases the text after a colon.
        # The answer for all prompt types together has the model's own name.
        name = r.model if r.is_overall else f"{r.model}-{r.prompt_type or 'any'}"
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")
        names = [base, f"{base}-{r.backend}", *(f"{base}-{r.backend}-{n}" for n in range(2, 1000))]
        name = next(n for n in names if n not in taken)
        taken.add(name)
        yield name, r


# llama-server adds up what these are given; of any other option the last value counts. Each takes a list with commas.
_LISTS: Final = frozenset(
    {"lora", "lora-scaled", "control-vector", "control-vector-scaled", "override-tensor", "override-kv"}
)
# Short spellings, and others, of the options that people set most (b11434).
_LONG: Final = {
    "c": "ctx-size", "ngl": "n-gpu-layers", "gpu-layers": "n-gpu-layers", "t": "threads", "tb": "threads-batch",
    "b": "batch-size", "ub": "ubatch-size", "np": "parallel", "fa": "flash-attn", "ctk": "cache-type-k",
    "ctv": "cache-type-v", "ot": "override-tensor", "cram": "cache-ram", "mm": "mmproj", "dev": "device",
    "sm": "split-mode", "ts": "tensor-split", "mg": "main-gpu", "fit": "fit", "temp": "temperature",
    "cmoe": "cpu-moe", "ncmoe": "n-cpu-moe", "kvu": "kv-unified",
}  # fmt: skip


def _options(args: Sequence[str]) -> dict[str, str]:
    """Flags and values as keys and values; a flag without a value is ``true``. Spellings stay, unless two are of one option."""
    options: dict[str, str] = {}
    spelled: dict[str, str] = {}
    for flag, values in options_in(args):
        stray = values[1:] if flag else values
        if stray:
            raise AutospecError(
                f"{stray[0]!r} cannot be written into a preset: it does not belong to a flag."
            )
        key, value = flag.lstrip("-"), values[0] if values else "true"
        option = _LONG.get(key, key)
        before = options.pop(spelled[option]) if option in spelled else None
        options[key] = f"{before},{value}" if before is not None and option in _LISTS else value
        spelled[option] = key
    return options


_ALIAS: Final = ("-a", "--alias")


def _alias_of(r: Recommendation) -> tuple[str, ...]:
    """The names that the user's own arguments give the model."""
    given = values_of(_settings(r), _ALIAS)
    return tuple(name.strip() for name in given[-1].split(",")) if given else ()


def _without_alias(r: Recommendation) -> list[str]:
    options = options_in(_settings(r))
    return [word for flag, values in options if flag not in _ALIAS for word in (flag, *values) if word]


def _settings(r: Recommendation) -> list[str]:
    """The user's own launch settings, without those that measuring adds."""
    own = r.evidence.get(USER_SETTINGS)
    settings = own if isinstance(own, list) else r.evidence.get("settings")
    words = [word for flag, values in options_in(settings or ()) for word in (flag, *values)]
    if settings is own:
        return words
    # Older recommendations do not separate them. Measuring added its context last, and only if the user set none. A user who
    # set this same value gets a server with the model's whole context, which is larger.
    return words[:-2] if tuple(words[-2:]) == _MEASURED_CONTEXT else words


def _why(r: Recommendation, known: Sequence[Recommendation]) -> list[str]:
    """Comment lines: the verdict with its reason, then the conditions and limits."""
    stale = "" if r.status is Status.PROVEN else f", {r.status}"
    # With the build, because another build's flags may have other names.
    verdict = f"{build_words(r)}, {r.verdict}{stale}: {r.reason}"
    return [" ".join(line.split()) for line in (verdict, caution_words(r, known)) if line]


def _subject(r: Recommendation, *, with_backend: bool) -> str:
    kind = "all prompts" if r.is_overall else "any prompt" if r.prompt_type is None else str(r.prompt_type)
    return f"{kind} on {r.backend}" if with_backend else kind


# The wording inside the marks may change.
_BEGIN = re.compile(rf"\s*{re.escape(BEGIN.split(':', maxsplit=1)[0])}\b.*")
_END = re.compile(rf"\s*{re.escape(END)}\s*")


def update_file(path: Path, rendered: Rendered, form: str) -> bool:
    """Write the file, or autospec's part of it, atomically; `form` is ``preset`` or ``llama-swap``.

    Returns:
        False if the file was up to date.

    Raises:
        AutospecError: The file cannot be changed safely and is unchanged.
        OSError: It cannot be read or written.
    """
    merged = merged_preset if form == "preset" else merged_llama_swap
    try:
        old = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        old = ""
    except UnicodeDecodeError as error:
        raise AutospecError(f"{path} is not UTF-8 text: {error}.", "Choose another file.") from None
    try:
        new = merged(old.replace("\r\n", "\n"), rendered)
    except AutospecError as error:
        raise AutospecError(f"{path} is unchanged: {error.message}", error.hint) from None
    # Both readers accept both line ends; keep those of the file.
    if "\r\n" in old:
        new = new.replace("\n", "\r\n")
    if new == old:
        return False
    replace_file(path, new)
    return True


def merged_preset(old: str, rendered: Rendered) -> str:
    """A preset with autospec's sections in it.

    A name that the rest of the file has is refused: llama.cpp silently takes the last of two sections of one name.
    """
    if not old.strip():
        return f"{rendered.text}\n"
    before, after = _around(old) or ([*old.rstrip("\n").split("\n"), ""], [])
    taken = re.findall(r"(?m)^\[\s*([^]]*?)\s*\]", "\n".join((*before, *after)))
    _refuse_taken(rendered, taken)
    return _joined(before, list(rendered.block), after)


def merged_llama_swap(old: str, rendered: Rendered) -> str:
    """A llama-swap configuration with autospec's models in it; refused if the rest would change."""
    if not old.strip():
        return f"{rendered.text}\n"
    around = _around(old)
    outside = _joined(*around) if around else old
    others = _yaml(outside)
    models = others.get("models") or {}
    if not isinstance(models, dict):
        raise AutospecError("its `models` is not a mapping.", "Choose another file.")
    _refuse_taken(rendered, models)
    before, after = around or _below_models(old, others)
    indent = _indent_of(old, before, after)
    block = [indent + line[2:] if line else line for line in rendered.block]
    new = _joined(before, block, after)
    expected = {**others, "models": {**models, **_yaml(rendered.text)["models"]}}
    try:
        # Check that the rest of the configuration means the same.
        as_meant = _yaml(new) == expected
    except AutospecError:
        as_meant = False
    if not as_meant:
        raise AutospecError(
            "the models cannot be added below its `models:` without changing its meaning.",
            f"Add these two marker lines below `models:` and run the command again:\n  {BEGIN}\n  {END}",
        )
    return new


def _around(text: str) -> tuple[list[str], list[str]] | None:
    """The lines before and after autospec's marks; ``None`` without marks."""
    lines = text.split("\n")
    begins = [n for n, line in enumerate(lines) if _BEGIN.fullmatch(line)]
    ends = [n for n, line in enumerate(lines) if _END.fullmatch(line)]
    if not begins and not ends:
        return None
    if len(begins) != 1 or len(ends) != 1 or begins[0] > ends[0]:
        raise AutospecError(
            f"its autospec markers do not match ({len(begins)} begin, {len(ends)} end).",
            "Remove them and the lines between them, then run the command again.",
        )
    return lines[: begins[0]], lines[ends[0] + 1 :]


def _below_models(old: str, others: dict[str, Any]) -> tuple[list[str], list[str]]:
    lines = old.rstrip("\n").split("\n")
    if "models" not in others:
        return [*lines, "", "models:"], [""]
    places = [n for n, line in enumerate(lines) if re.fullmatch(r"models:\s*(#.*)?", line)]
    # {a: …} on one line, or a quoted key: valid YAML without a line to write below.
    place = places[0] if len(places) == 1 else len(lines) - 1
    return lines[: place + 1], [*lines[place + 1 :], ""]


def _indent_of(old: str, before: list[str], after: list[str]) -> str:
    """The indentation of the neighbouring entries: a YAML mapping has one."""
    mark = re.search(rf"(?m)^([ ]*){re.escape(BEGIN.split(':', maxsplit=1)[0])}", old)
    neighbour = next((line for line in after if line.strip() and not line.lstrip().startswith("#")), "")
    found = re.match(r" +", neighbour) if re.fullmatch(r"models:.*", before[-1]) else None
    return found[0] if found else mark[1] if mark else "  "


def _joined(*parts: list[str]) -> str:
    text = "\n".join(line for part in parts for line in part)
    return text if text.endswith("\n") else f"{text}\n"


def _refuse_taken(rendered: Rendered, taken: Any) -> None:
    both = [name for name in rendered.names if name in taken]
    if both:
        hint = "Rename or remove it, or choose another file."
        raise AutospecError(f"it already has its own entry {both[0]}.", hint)


def _yaml(text: str) -> dict[str, Any]:
    import yaml  # noqa: PLC0415 - only this format needs it

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise AutospecError(
            f"it is not valid YAML: {' '.join(str(error).split())}.", "Correct it first."
        ) from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise AutospecError("it is not a llama-swap configuration.", "Choose another file.")
    return document
