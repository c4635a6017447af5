"""Reading what `llama-server --help` says: the one list of flags that is true for the build at hand.

The layout is llama.cpp's own (``common_arg::to_string`` in ``common/arg.cpp``): names from the first column,
then the value's name after one space, then the text from column 40 on, or on the following lines where the
names are too long. It has been the same from 2024 to b11434.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

__all__ = ["HelpText", "Option", "normalise", "parse"]

_NAME = r"-{1,2}[A-Za-z0-9][\w.-]*"
# Names are parted by a comma and any number of spaces, the value by exactly one space, the text by several.
_HEADER = re.compile(
    rf"^(?P<names>{_NAME}(?:,\s+{_NAME})*)(?: (?P<value>\S+(?: \S+)*))?(?:\s{{2,}}(?P<text>\S.*))?\s*$"
)
_TEXT_COLUMN = 40
_DEFAULT = re.compile(r"default:\s*(?P<value>\"[^\"]*\"|'[^']*'|[^,;)]*)")
_ENV = re.compile(r"\(env: (?P<name>\w+)\)")
_ALLOWED = re.compile(r"allowed values: (?P<values>[\w-]+(?:,\s*[\w-]+)*)")
_REMOVED = "argument has been removed"


@dataclass(frozen=True, slots=True)
class Option:
    """One entry of the help.

    Attributes:
        names: All spellings, in the help's order, dashes included.
        value: The value's name as printed, e.g. ``N`` or ``[on|off|auto]``; empty for a switch.
        text: The description, its lines joined by single spaces.
        default: What stands after ``default:``, unquoted, or ``None``.
        env: Environment variable that sets the same, or empty.
        choices: The values that the help lists, or empty.
    """

    names: tuple[str, ...]
    value: str = ""
    text: str = ""
    default: str | None = None
    env: str = ""
    choices: tuple[str, ...] = ()

    @property
    def arity(self) -> int:
        """How many arguments follow the name: ``START END`` is two, ``<tensor name>=<type>`` is one."""
        return len(re.sub(r"<[^>]*>", "X", self.value).split())

    @property
    def removed(self) -> bool:
        """True for a name that the build still lists only to say that it is gone."""
        return _REMOVED in self.text


@dataclass(frozen=True, slots=True)
class HelpText:
    """All options of one build.

    Attributes:
        options: Those that work.
        gone: Those whose text says that the argument has been removed.
    """

    options: tuple[Option, ...]
    gone: tuple[Option, ...] = ()

    def find(self, name: str) -> Option | None:
        """The option with this spelling, or ``None`` where the build lacks it."""
        wanted = normalise(name)
        return next((option for option in self.options if wanted in option.names), None)

    def has(self, name: str) -> bool:
        """True if the build takes this spelling."""
        return self.find(name) is not None

    def first(self, *names: str) -> str | None:
        """The first of several spellings, newest first, that the build takes."""
        return next((name for name in names if self.has(name)), None)

    def removal(self, name: str) -> str:
        """What the build says of a removed option (``use --spec-draft-n-max …``), or empty."""
        wanted = normalise(name)
        text = next((option.text for option in self.gone if wanted in option.names), "")
        return text.split(f"{_REMOVED}.")[-1].split("(env:")[0].strip()

    def nearest(self, name: str) -> str | None:
        """The known spelling that looks most like an unknown one."""
        known = [spelling for option in self.options for spelling in option.names]
        return next(iter(difflib.get_close_matches(normalise(name), known, n=1)), None)

    @property
    def spec_types(self) -> tuple[str, ...]:
        """What `--spec-type` accepts, ``none`` left out; empty for builds without it."""
        option = self.find("--spec-type")
        return () if option is None else tuple(c for c in option.choices if c != "none")


def normalise(name: str) -> str:
    """A spelling as llama.cpp compares it: underscores in long names count as dashes."""
    return name.replace("_", "-") if name.startswith("--") else name


def parse(text: str) -> HelpText:
    """Read a whole `--help` text.

    Args:
        text: Standard output of ``llama-server --help``.

    Returns:
        The options in the help's order; nothing is raised for lines that make no sense, they are skipped.
    """
    entries: list[tuple[re.Match[str], list[str]]] = []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header is not None:
            entries.append((header, [header["text"] or ""]))
        elif entries and line.startswith(" " * _TEXT_COLUMN):
            entries[-1][1].append(line.strip())
    options = [_option(header, " ".join(" ".join(lines).split())) for header, lines in entries]
    return HelpText(
        options=tuple(o for o in options if not o.removed),
        gone=tuple(o for o in options if o.removed),
    )


def _option(header: re.Match[str], text: str) -> Option:
    value = header["value"] or ""
    default = _DEFAULT.search(text)
    env = _ENV.search(text)
    return Option(
        names=tuple(re.split(r",\s+", header["names"])),
        value=value,
        text=text,
        default=None if default is None else default["value"].strip().strip("\"'"),
        env="" if env is None else env["name"],
        choices=_choices(value, text),
    )


def _choices(value: str, text: str) -> tuple[str, ...]:
    """Values listed as ``{a,b}``, ``[a|b]``, ``<a|b>``, ``a,b,c`` or after ``allowed values:``."""
    allowed = _ALLOWED.search(text)
    if allowed is not None:
        return tuple(re.split(r",\s*", allowed["values"]))
    bare = value.strip("[]{}<>")
    # ``N0,N1,N2,...`` and ``KEY=TYPE:VALUE,...`` describe a form; a list of words is a list of choices.
    if " " in value or "..." in bare or not re.search(r"[|,]", bare) or bare.isupper():
        return ()
    return tuple(re.split(r"[|,]", bare))
