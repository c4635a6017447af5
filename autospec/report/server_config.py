"""Recommendations as configuration of servers: flags to paste, llama-server's presets, llama-swap's YAML, a command for MLX.

Every format says off by leaving drafting out; no server has a safe flag for it. The flags are those that the tuned
build was launched with (`evidence["args"]`), because builds differ in names and defaults.

Put recommendations into a configuration file that may be somebody else's: only what lies between our marks is ours.

A file without marks gets them: a preset at its end, where new sections do no harm; llama-swap's YAML right below its
``models:``. What is outside stays as it is, character by character, and what would be another configuration to its
reader is refused.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autospec.backends import flags as _flags
from autospec.backends.flags import HelpText, Option
from autospec.drafting import Drafting
from autospec.errors import AutospecError, UsageError
from autospec.files import replace_file
from autospec.recommendations import USER_SETTINGS, Recommendation, Status

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
    "preset_text",
    "update_file",
]


# Both are llama.cpp's server; other backends are configured in other ways.
_LLAMA_SERVERS = ("llama-server", "embedded")
# The flags of llama.cpp b11434, from its --help: what the embedded wheel's drafting is called by a llama-server of its era.
_NEWEST_TYPES = (
    *("draft-simple", "draft-eagle3", "draft-mtp", "draft-dflash", "draft-dspark"),
    *("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache"),
)
_NEWEST = HelpText(
    (
        Option(("--spec-type",), choices=_NEWEST_TYPES),
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
# What autospec wrote into a file lies between these marks; a comment in INI and YAML alike.
BEGIN = "# >>> autospec: written by `autospec recommend`, changes here are lost >>>"
END = "# <<< autospec <<<"
_PRESET_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A configuration, and what could not be put into it.

    Attributes:
        head: The lines before the entries, in a file that is autospec's alone.
        names: The entries' names.
        block: The entries' lines with the marks around them.
        left_out: One sentence for each recommendation that is missing.
    """

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
        # It is configured by fields and not by flags; a llama-server of its era takes these.
        return newest_args(recommendation.drafting)
    args = recommendation.evidence.get("args")
    if not isinstance(args, list) or not args:
        raise AutospecError(
            f"The server flags for {recommendation.drafting.label} were not recorded.",
            f"`autospec tune --model {recommendation.model}` finds out what this machine's build calls them.",
        )
    return tuple(map(str, args))


def newest_args(drafting: Drafting) -> tuple[str, ...]:
    """The flags of a drafting as a llama-server of today takes them; empty for off."""
    return _flags.drafting_args(_NEWEST, "of today", drafting)


def one_args(recommendations: Sequence[Recommendation]) -> tuple[tuple[str, ...], Recommendation]:
    """The flags that all of the recommendations agree on, and one of these.

    Args:
        recommendations: At least one.

    Raises:
        UsageError: They are for several models, or do not agree.
        AutospecError: The flags were not recorded.
    """
    models = sorted({r.model for r in recommendations})
    if len(models) > 1:
        raise UsageError(
            f"Flags are for one model, and {len(models)} are known: {', '.join(models)}.",
            "Choose one with --model.",
        )
    choices: dict[tuple[str, ...], list[Recommendation]] = {}
    for r in recommendations:
        choices.setdefault(drafting_args(r), []).append(r)
    if len(choices) == 1:
        return next(iter(choices)), recommendations[0]
    by_backend = len({r.backend for r in recommendations}) > 1
    by_type = any(
        len({r.prompt_type for r in group}) > 1
        for group in (
            [r for r in recommendations if r.backend == b] for b in {r.backend for r in recommendations}
        )
    )
    options = " and ".join(["--prompt-type"] * by_type + ["--backend"] * by_backend or ["--hardware"])
    what = "; ".join(
        f"{', '.join(_subject(r, with_backend=by_backend) for r in group)}: {group[0].drafting.label}"
        for group in choices.values()
    )
    raise UsageError(
        f"What to run is not the same for all of {models[0]}: {what}.", f"Choose with {options}."
    )


def preset_text(recommendations: Sequence[Recommendation]) -> Rendered:
    """An INI file for llama-server's router (``--models-preset``): a section for each model and prompt type.

    Keys are flags without dashes (llama.cpp, ``common/preset.cpp``). That parser ends a value at the first ``;`` or
    ``#`` and knows no quotes, so a path with one of them has no way in.
    """
    lines = [
        "; Written by autospec. Start with: llama-server --models-preset THIS_FILE",
        "version = 1",
        "",
    ]

    def section(name: str, r: Recommendation) -> list[str]:
        options = {"model": r.model_path} | _options([*_settings(r), *drafting_args(r)])
        for key, value in options.items():
            if not _PRESET_KEY.fullmatch(key) or re.search(r"[;#\r\n]", value) or value != value.strip():
                raise AutospecError(
                    f"{value!r} cannot be written into a preset.", "Give the file another path."
                )
        return [f"; {_why(r)}", f"[{name}]", *(f"{key} = {value}".rstrip() for key, value in options.items())]

    return _render(recommendations, lines, section)


def llama_swap_text(recommendations: Sequence[Recommendation], program: str = "llama-server") -> Rendered:
    """A YAML file for llama-swap: a model with its command for each model and prompt type.

    Strings are written as JSON, which is YAML; llama-swap splits ``cmd`` as a POSIX shell would, and gives
    ``${PORT}`` a value of its own.

    Args:
        recommendations: What to write.
        program: The server for recommendations whose own is not recorded.
    """

    def entry(name: str, r: Recommendation) -> list[str]:
        command = r.evidence.get("command")
        server = str(command[0]) if r.backend == "llama-server" and command else program
        words = ["--model", r.model_path, *_settings(r), *drafting_args(r)]
        line = f"{shlex.quote(server)} --port ${{PORT}} {shlex.join(words)}"
        return [f"  # {_why(r)}", f"  {_json(name)}:", f"    cmd: {_json(line)}"]

    return _render(
        recommendations,
        ["# Written by autospec. Start with: llama-swap -config THIS_FILE", "models:"],
        entry,
        indent="  ",
    )


def mlx_command(recommendations: Sequence[Recommendation], program: str = "mlx_lm.server") -> tuple[str, ...]:
    """The command line of the one ``mlx_lm.server`` that all of the recommendations for MLX agree on.

    It has one draft for all requests; clients may still send ``num_draft_tokens`` with each.

    Args:
        recommendations: What to run; those for other backends do not count.
        program: The server.

    Raises:
        UsageError: They are for several models, or do not agree.
        AutospecError: None is for MLX, or its folder on this machine or its flags are not known.
    """
    ours = [r for r in recommendations if r.backend == "mlx"]
    if not ours:
        backends = ", ".join(sorted({r.backend for r in recommendations}))
        raise AutospecError(
            f"Nothing that is known was measured with MLX, only with {backends}.",
            "Find out with `autospec tune --backend mlx`.",
        )
    args, chosen = one_args(ours)
    if not chosen.model_path:
        raise AutospecError(f"The folder of {chosen.model} on this machine is not known.")
    return program, "--model", chosen.model_path, *_settings(chosen), *args


def _render(
    recommendations: Iterable[Recommendation],
    head: list[str],
    part: Callable[[str, Recommendation], list[str]],
    indent: str = "",
) -> Rendered:
    lines, names, left_out = [f"{indent}{BEGIN}"], [], []
    for name, r in _named(recommendations):
        subject = f"{r.model} ({_subject(r, with_backend=True)})"
        if r.backend not in _LLAMA_SERVERS:
            left_out.append(f"{subject} is left out: {r.backend} is not configured in this format.")
        elif not r.model_path:
            left_out.append(f"{subject} is left out: its model's path on this machine is not known.")
        else:
            try:
                lines += [*part(name, r), ""]
                names.append(name)
            except AutospecError as error:
                left_out.append(f"{subject} is left out: {error}")
    if not names:
        raise AutospecError("Nothing that is known can be written in this format.", " ".join(left_out))
    lines[-1] = f"{indent}{END}"
    return Rendered(tuple(head), tuple(names), tuple(lines), tuple(left_out))


def _named(recommendations: Iterable[Recommendation]) -> Iterator[tuple[str, Recommendation]]:
    """Each with a name that is unique: model and prompt type, then the backend, then a number.

    Only letters, digits, dot, dash and underscore: the router upper-cases what follows a colon.
    """
    taken: set[str] = set()
    for r in recommendations:
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{r.model}-{r.prompt_type or 'any'}").strip("-")
        names = [base, f"{base}-{r.backend}", *(f"{base}-{r.backend}-{n}" for n in range(2, 1000))]
        name = next(n for n in names if n not in taken)
        taken.add(name)
        yield name, r


def _options(args: Sequence[str]) -> dict[str, str]:
    """Flags and values as keys and values; a flag without a value is ``true``.

    Raises:
        AutospecError: A word is no flag's value, or a flag has two.
    """
    options: dict[str, str] = {}
    key = ""
    for word in args:
        # -1 is a value, -ngl is not.
        if word.startswith("-") and not re.fullmatch(r"-[\d.]+", word):
            key = word.lstrip("-")
            options[key] = "true"
        elif not key:
            raise AutospecError(
                f"{word!r} cannot be written into a preset: it follows no flag that takes it."
            )
        else:
            options[key] = word
            key = ""
    return options


def _settings(r: Recommendation) -> list[str]:
    """The user's own launch settings: what was measured holds with them. What measuring adds is not the user's."""
    own = r.evidence.get(USER_SETTINGS)
    if isinstance(own, list):
        return [str(word) for word in own]
    settings = r.evidence.get("settings")
    words = [str(word) for word in settings] if isinstance(settings, list) else []
    # Older recommendations do not tell them apart. Measuring added its context last, and only where the user named none;
    # a user who typed just that value there gets a server with the model's whole context, which holds more, not less.
    return words[:-2] if tuple(words[-2:]) == _MEASURED_CONTEXT else words


def _why(r: Recommendation) -> str:
    stale = "" if r.status is Status.PROVEN else f", {r.status}"
    # The build, because a server of another build may call its flags otherwise.
    return " ".join(f"{r.backend} {r.backend_build}, {r.verdict}{stale}: {r.reason}".split())


def _subject(r: Recommendation, *, with_backend: bool) -> str:
    kind = "any prompt" if r.prompt_type is None else str(r.prompt_type)
    return f"{kind} on {r.backend}" if with_backend else kind


def _json(text: str) -> str:
    # YAML does not join the surrogate pairs of JSON's \u escapes: leave such characters as they are.
    return json.dumps(text, ensure_ascii=False)


# Marks are found by their ends, so that their wording may change.
_BEGIN = re.compile(rf"\s*{re.escape(BEGIN.split(':', maxsplit=1)[0])}\b.*")
_END = re.compile(rf"\s*{re.escape(END)}\s*")


def update_file(path: Path, rendered: Rendered, form: str) -> bool:
    """Write the file, or the part of it that is ours, as a whole or not at all.

    Args:
        path: The file; it need not exist.
        rendered: What to write.
        form: ``preset`` or ``llama-swap``.

    Returns:
        False if the file said it already, and was not touched.

    Raises:
        AutospecError: The file cannot be changed safely; it is as it was.
        OSError: It cannot be read or written.
    """
    merged = merged_preset if form == "preset" else merged_llama_swap
    try:
        old = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        old = ""
    except UnicodeDecodeError as error:
        raise AutospecError(f"{path} is not UTF-8 text: {error}.", "Give another file.") from None
    # Both readers know both line ends; a file keeps the ones that it has.
    windows = "\r\n" in old
    try:
        new = merged(old.replace("\r\n", "\n"), rendered)
    except AutospecError as error:
        raise AutospecError(f"{path} is left as it is: {error.message}", error.hint) from None
    if windows:
        new = new.replace("\n", "\r\n")
    if new == old:
        return False
    replace_file(path, new)
    return True


def merged_preset(old: str, rendered: Rendered) -> str:
    """A preset with our sections in it.

    llama.cpp takes the last of two sections of one name, without a word: such a name is refused.

    Raises:
        AutospecError: The marks are not a pair, or a name is taken.
    """
    if not old.strip():
        return f"{rendered.text}\n"
    before, after = _around(old) or ([*old.rstrip("\n").split("\n"), ""], [])
    taken = re.findall(r"(?m)^\[\s*([^]]*?)\s*\]", "\n".join((*before, *after)))
    _refuse_taken(rendered, taken)
    return _joined(before, list(rendered.block), after)


def merged_llama_swap(old: str, rendered: Rendered) -> str:
    """A llama-swap configuration with our models in it.

    Raises:
        AutospecError: The marks are not a pair, a name is taken, or the result would not be what was there and ours.
    """
    if not old.strip():
        return f"{rendered.text}\n"
    around = _around(old)
    outside = _joined(*around) if around else old
    others = _yaml(outside)
    models = others.get("models") or {}
    if not isinstance(models, dict):
        raise AutospecError("its `models` is not a mapping.", "Give another file.")
    _refuse_taken(rendered, models)
    before, after = around or _below_models(old, others)
    new = _joined(before, _indented(rendered, _indent_of(old, before, after)), after)
    expected = {**others, "models": {**models, **_yaml(rendered.text)["models"]}}
    try:
        # The proof that nobody else's configuration became another.
        as_meant = _yaml(new) == expected
    except AutospecError:
        as_meant = False
    if not as_meant:
        raise AutospecError(
            "the models cannot be put below its `models:` without changing what it means.",
            f"Put these two lines where they belong, and say it again:\n  {BEGIN}\n  {END}",
        )
    return new


def _around(text: str) -> tuple[list[str], list[str]] | None:
    """The lines before and after the marks and what is between them; ``None`` where there are no marks."""
    lines = text.split("\n")
    begins = [n for n, line in enumerate(lines) if _BEGIN.fullmatch(line)]
    ends = [n for n, line in enumerate(lines) if _END.fullmatch(line)]
    if not begins and not ends:
        return None
    if len(begins) != 1 or len(ends) != 1 or begins[0] > ends[0]:
        raise AutospecError(
            f"autospec's marks in it are no pair ({len(begins)} begin, {len(ends)} end).",
            "Remove them and what lies between, and say it again.",
        )
    return lines[: begins[0]], lines[ends[0] + 1 :]


def _below_models(old: str, others: dict[str, Any]) -> tuple[list[str], list[str]]:
    lines = old.rstrip("\n").split("\n")
    if "models" not in others:
        return [*lines, "", "models:"], [""]
    places = [n for n, line in enumerate(lines) if re.fullmatch(r"models:\s*(#.*)?", line)]
    # {a: …} on one line, or a quoted key: correct YAML with no line to write below.
    place = places[0] if len(places) == 1 else len(lines) - 1
    return lines[: place + 1], [*lines[place + 1 :], ""]


def _indent_of(old: str, before: list[str], after: list[str]) -> str:
    """The indentation of the entries that ours stand among: a YAML mapping has one."""
    mark = re.search(rf"(?m)^([ ]*){re.escape(BEGIN.split(':', maxsplit=1)[0])}", old)
    neighbour = next((line for line in after if line.strip() and not line.lstrip().startswith("#")), "")
    found = re.match(r" +", neighbour) if re.fullmatch(r"models:.*", before[-1]) else None
    return found[0] if found else mark[1] if mark else "  "


def _indented(rendered: Rendered, indent: str) -> list[str]:
    return [indent + line[2:] if line else line for line in rendered.block]


def _joined(*parts: list[str]) -> str:
    text = "\n".join(line for part in parts for line in part)
    return text if text.endswith("\n") else f"{text}\n"


def _refuse_taken(rendered: Rendered, taken: Any) -> None:
    both = [name for name in rendered.names if name in taken]
    if both:
        raise AutospecError(
            f"it has an entry {both[0]} of its own already.", "Rename or remove it, or give another file."
        )


def _yaml(text: str) -> dict[str, Any]:
    import yaml  # noqa: PLC0415 - for this format alone

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise AutospecError(
            f"it is not valid YAML: {' '.join(str(error).split())}.", "Mend it first."
        ) from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise AutospecError("it is no llama-swap configuration.", "Give another file.")
    return document
