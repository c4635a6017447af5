"""Put recommendations into a configuration file that may be somebody else's: only what lies between our marks is ours.

A file without marks gets them: a preset at its end, where new sections do no harm; llama-swap's YAML right below its
``models:``. What is outside stays as it is, character by character, and what would be another configuration to its
reader is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from autospec.errors import AutospecError
from autospec.files import replace_file
from autospec.report.server_config import BEGIN, END, Rendered

__all__ = ["merged_llama_swap", "merged_preset", "update_file"]

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
