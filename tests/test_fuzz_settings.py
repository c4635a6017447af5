"""Any config file and any environment: settings, or an error that names what is wrong."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autospec.errors import AutospecError
from autospec.proxy.serve import rules_for
from autospec.settings import KEYS, load_settings, parse_duration, parse_hours

text = st.one_of(
    st.sampled_from(
        (
            "",
            "~",
            "~nobody-here",
            "90s",
            "1h30m",
            "22:00-07:00",
            "proven",
            "postgresql://x",
            "a'b",
            "\\",
            "\0",
            "٣s",
        )
    ),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
)
number = st.one_of(st.integers(), st.floats(), st.sampled_from((10**400, 2**63, 1e308, -1, 0, 65536)))
value = st.recursive(
    st.one_of(text, number, st.booleans()), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)
document = st.dictionaries(st.one_of(st.sampled_from([key.name for key in KEYS]), text), value, max_size=3)


def _toml(value: object) -> str:
    """A value in TOML."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
        case list():
            return f"[{', '.join(map(_toml, value))}]"
        case _:
            return str(value)


def _load(content: bytes) -> None:
    """Read a file as the proxy does; an error of autospec is fine, any other is not."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.toml"
        file.write_bytes(content)
        with contextlib.suppress(AutospecError):
            found = load_settings(file, environ={"AUTOSPEC_HOME": folder})
            rules_for(found)
            for name in ("queue_deadline", "daemon_idle", "daemon_budget", "daemon_step"):
                assert _seconds(getattr(found, name)) > 0
            for name in ("budget", "idle_unload"):
                if duration := getattr(found, name):
                    assert _seconds(duration) > 0
            parse_hours(found.daemon_hours)


def _seconds(duration: str) -> float:
    """Read it as whoever uses the setting does: there an error would not be one of the config file."""
    try:
        return parse_duration(duration)
    except AutospecError as error:
        raise AssertionError(duration) from error


@settings(max_examples=60)
@given(document)
def test_any_document(document):
    """Values of every type under every key."""
    _load("\n".join(f"{_toml(key)} = {_toml(value)}" for key, value in document.items()).encode())


@settings(max_examples=60)
@given(st.one_of(st.binary(max_size=40), st.text("[]{}=\"'\\#.,_-+\n a0e:TZ", max_size=40).map(str.encode)))
def test_any_bytes(content):
    """Mostly no TOML."""
    _load(content)


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.one_of(st.sampled_from([key.variable for key in KEYS]), text.map("AUTOSPEC_{}".format)),
        st.one_of(text, number.map(str)),
        max_size=3,
    )
)
def test_any_environment(environ):
    """Variables of every name with every text."""
    with contextlib.suppress(AutospecError):
        load_settings(environ={"AUTOSPEC_HOME": "/nowhere", **environ})


@pytest.mark.parametrize(
    "content",
    [
        "storage = " + "[" * 100_000,
        "proxy_port = " + "9" * 5000,
        f"request_limit_mib = {10**400}",
        "request_limit_mib = 1e308",
        'daemon_budget = ""',
    ],
    ids=["nested deeply", "too many digits", "beyond all floats", "beyond all sizes", "no duration"],
)
def test_found_inputs(content):
    """What was no plain error before."""
    _load(content.encode())
