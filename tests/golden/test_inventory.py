"""Every stored copy is compared by some test."""

from __future__ import annotations

from pathlib import Path

from tests.golden.golden import DATA
from tests.golden.test_command_line import DOCUMENTS
from tests.golden.test_exports import FORMATS
from tests.golden.test_proxy import REQUESTS


def test_no_copy_is_left_over():
    """A copy whose test was renamed or removed would be held by nobody."""
    source = "".join(file.read_text("utf-8") for file in Path(__file__).parent.glob("test_*.py"))
    held = {f"cli/{name}.json" for name in DOCUMENTS} | {f"exports/{name}" for name in FORMATS}
    held |= {
        f"proxy/{name}.json"
        for name in (*REQUESTS, "program", "metrics", "events", "behind-openai", "behind-anthropic")
    }
    held |= {f"exports/{form}-merged.txt" for form in ("preset", "llama-swap")}
    files = {
        str(file.relative_to(DATA))
        for file in DATA.rglob("*")
        if file.is_file() and file.parent.name != "31c5bcf"
    }
    assert {name for name in files if name not in held and f'"{name}"' not in source} == set()
    assert held <= files
