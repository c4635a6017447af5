"""Which public drafts and draft heads are made for a main model: from a table with sources, ``drafts.toml``.

Nothing is downloaded, and nothing is asked of a network. Whether a draft fits is decided by its file (`autospec.catalog.candidates`);
before it is here, only its source says so.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path, PurePath
from typing import Any, Final

from autospec.catalog.candidates import MAX_RELATIVE_COST, Candidate
from autospec.catalog.model import Format, Model
from autospec.drafting import Mode
from autospec.formats import gigabytes

__all__ = ["Row", "Suggestion", "size_words", "suggest", "table"]

_TABLE: Final = Path(__file__).with_name("drafts.toml")
# Makers' names before the model's own, as repositories and files write them, and how many words they are at most.
_MAKERS: Final = frozenset(
    {"meta", "google", "mistralai", "unsloth", "openai", "deepseek", "ai", "qwen", "zai", "org", "moonshotai"}
)
_MOST_MAKERS: Final = 2


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table; its first lines say what the fields mean."""

    repository: str
    file: str
    size_bytes: int
    format: Format
    mode: Mode
    fits: tuple[str, ...]
    not_for: tuple[str, ...]
    architectures: tuple[str, ...]
    main: str
    why: str
    source: str
    date: date


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A public draft for one main model.

    Attributes:
        row: Where it is, and who says that it fits.
        here: The same file as the catalogue judged it, if it is on this disk already.
    """

    row: Row
    here: Candidate | None = None

    @property
    def fit(self) -> str:
        """Whether it fits, and who says so, one sentence."""
        if self.here is not None:
            return f"It is on this disk. {self.here.reason}"
        what = "its tokenizer matches" if self.row.mode is Mode.DRAFT_MODEL else "it is made for this model"
        return f"According to {self.row.source} (read on {self.row.date}), {what}."

    @property
    def command(self) -> str:
        """What downloads it into Hugging Face's cache, where autospec looks for models."""
        words = ["hf", "download", self.row.repository]
        if self.row.file:
            words.append(self.row.file)
        elif self.row.format == "gguf":
            words += ["--include", "*Q8_0*.gguf"]
        return shlex.join(words)

    @property
    def server_command(self) -> str:
        """The flag with which llama-server downloads and loads it beside ``-m``; empty where no flag names it.

        Draft heads stand in the repository of their main model, and llama-server chooses among them by itself.
        """
        if self.row.format != "gguf" or self.row.mode is not Mode.DRAFT_MODEL:
            return ""
        found = re.search(r"(?:^|[-.])((?:IQ|Q)\d\w*|F16|BF16)\.gguf$", self.row.file, re.IGNORECASE)
        return f"llama-server -hfd {self.row.repository}:{found[1].upper() if found else 'Q8_0'}"

    def to_json(self) -> dict[str, Any]:
        """The form of ``autospec drafts --suggest --json``."""
        row = self.row
        return {
            "repository": row.repository,
            "file": row.file or None,
            "size_bytes": row.size_bytes or None,
            "format": row.format,
            "mode": str(row.mode),
            "why": row.why,
            "fit": self.fit,
            "here": self.here is not None,
            "fits": None if self.here is None else self.here.fits,
            "download": self.command,
            "server": self.server_command or None,
            "source": row.source,
            "date": row.date.isoformat(),
        }


@cache
def table() -> tuple[Row, ...]:
    """The shipped table."""
    return tuple(_row(entry) for entry in tomllib.loads(_TABLE.read_text("utf-8"))["draft"])


def _row(entry: dict[str, Any]) -> Row:
    return Row(
        repository=entry["repository"],
        file=entry["file"],
        size_bytes=entry["size"],
        format=entry["format"],
        mode=Mode(entry["mode"]),
        fits=tuple(entry["for"]),
        not_for=tuple(entry.get("not_for", ())),
        architectures=tuple(entry["architectures"]),
        main=entry["main"],
        why=entry["why"],
        source=entry["source"],
        date=entry["date"],
    )


def suggest(main: Model, found: Sequence[Candidate]) -> list[Suggestion]:
    """The public drafts for a main model: those that are not here first, heads before draft models.

    `found` are the models on this disk, judged as its drafts.
    """
    by_file = {_key(c.model): c for c in found if not c.own_layers}
    fitting = [
        Suggestion(row, by_file.get(_file_key(row)))
        for row in table()
        if row.format == main.format and main.architecture in row.architectures and _named(main, row)
        # A file that is as large as the main model is no draft for it.
        if row.size_bytes <= main.bytes_per_token * MAX_RELATIVE_COST or not row.size_bytes
        # Its own MTP layers need no file.
        if not (row.mode is Mode.MTP and main.mtp_layers)
    ]
    return sorted(fitting, key=lambda s: (s.here is not None, s.row.mode is Mode.DRAFT_MODEL))


def size_words(row: Row) -> str:
    """The size of the file, or that it is unknown."""
    return gigabytes(row.size_bytes) if row.size_bytes else "unknown"


def _named(main: Model, row: Row) -> bool:
    names = [_words(text) for text in (main.name, main.basename, *main.aliases) if text]
    return any(_begins(n, row.fits) for n in names) and not any(_begins(n, row.not_for) for n in names)


def _begins(words: tuple[str, ...], beginnings: Iterable[str]) -> bool:
    """True if the name begins with one of these, or does after its maker's name."""
    starts = [i for i in range(_MOST_MAKERS + 1) if all(w in _MAKERS for w in words[:i])]
    return any(words[i : i + len(b)] == b for b in map(_words, beginnings) for i in starts)


def _words(name: str) -> tuple[str, ...]:
    """The words of a model's name without its folder: ``llama 3.1 8b`` of Llama-3.1-8B, and of Ollama's llama3.1:8b."""
    return tuple(re.findall(r"[a-z]+|\d+(?:\.\d+)*[a-z]*", name.rpartition("/")[2].casefold()))


def _key(model: Model) -> str:
    return model.name.rpartition("/")[2].casefold().removesuffix(".gguf")


def _file_key(row: Row) -> str:
    return PurePath(row.file or row.repository).name.casefold().removesuffix(".gguf")
