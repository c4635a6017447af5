"""One export of each format: `recommend --format`, `studies export`, the reference benchmark."""

from __future__ import annotations

import json
import re

import pytest

from tests.golden.conftest import RECORD, run
from tests.golden.golden import check, check_json, normalized

FORMATS = {
    "args.txt": "--format args --model main --prompt-type coding",
    "mlx.txt": "--format mlx --model apple",
    "preset.ini": "--format preset",
    "llama-swap.yaml": "--format llama-swap",
}


def without_sentences(text: str) -> str:
    """Comments say why; only autospec's marks in them are read again, up to the colon."""
    lines = []
    for line in text.splitlines():
        begin = re.match(r"\s*# >>> autospec", line)
        end = re.match(r"\s*# <<< autospec <<<$", line)
        comment = re.match(r"\s*[;#]", line)
        lines.append(
            begin[0] + ": <text>" if begin else line if end else comment[0] + " <text>" if comment else line
        )
    return "\n".join(lines)


@pytest.mark.parametrize("name", FORMATS)
def test_configuration_of_a_server(known, name):
    """Flags, keys and names of entries."""
    result = run("recommend", *FORMATS[name].split())
    assert result.exit_code == 0, result.stderr
    check(f"exports/{name}", normalized(without_sentences(result.stdout), known.names))


@pytest.mark.parametrize(
    ("form", "theirs"),
    [
        ("preset", "version = 1\n\n[theirs]\nmodel = /m.gguf\n"),
        ("llama-swap", "healthCheckTimeout: 60\nmodels:\n  theirs:\n    cmd: llama-server -m /m.gguf\n"),
    ],
)
def test_file_of_somebody_else(known, form, theirs):
    """Where our entries go in a file that is there already."""
    file = known.folder / "theirs"
    file.write_text(theirs, encoding="utf-8")
    assert run("recommend", "--format", form, "-o", str(file)).exit_code == 0
    check(f"exports/{form}-merged.txt", normalized(without_sentences(file.read_text("utf-8")), known.names))


def test_export_of_studies(known):
    """Recommendations, measurements and trials: of the many rows, the first of each kind, and how many there are."""
    document = json.loads(run("studies", "export").stdout)
    rows = document.pop("measurements")
    held = {
        **normalized(document, known.names),
        "measurements": {
            "count": len(rows),
            "first": normalized(rows[0], known.names),
            "last": normalized(rows[-1], known.names),
        },
    }
    check_json("exports/studies-export.json", held)


def test_export_is_read_again(known, monkeypatch):
    """On another home: everything arrives, once."""
    file = known.folder / "export.json"
    assert run("studies", "export", "-o", str(file)).exit_code == 0
    monkeypatch.setenv("AUTOSPEC_HOME", str(known.folder / "another"))
    [first] = json.loads(run("studies", "import", str(file), "--json").stdout)["imported"]
    [again] = json.loads(run("studies", "import", str(file), "--json").stdout)["imported"]
    exported = json.loads(file.read_text("utf-8"))
    assert first["recommendations"] == len(exported["recommendations"]) > 0
    assert first["measurements"] == len(exported["measurements"]) > 0
    assert (again["recommendations"], again["measurements"]) == (0, 0)


def test_founding_record():
    """The record that comes with autospec, as Markdown."""
    text = run("studies", "show", RECORD).stdout
    # Its conclusion is in sentences.
    text, count = re.subn(r"(?<=## Conclusion\n\n).*?(?=\n## )", "<text>\n", text, flags=re.DOTALL)
    assert count == 1
    check("exports/founding-record.md", text)
