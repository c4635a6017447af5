"""Names of the settings: in the file, in the environment, in `config show`."""

from __future__ import annotations

import json
import re

from tests.golden.conftest import ROOT, run
from tests.golden.golden import DATA, check, check_json


def test_config_show(place):
    """Every key with its default, its source and its variable."""
    check_json("settings/config-show.json", place.document(run("config", "show", "--json")))


def test_template(place):
    """The file with every key, without its sentences."""
    lines = run("config", "show", "--template").stdout.splitlines()
    check(
        "settings/template.toml",
        "\n".join(re.sub(r"^# .*?(\(AUTOSPEC_\w+\))?$", r"# \1", line) for line in lines),
    )


def test_variables(place):
    """Every name that begins with AUTOSPEC_: the settings', and what the source names besides."""
    shown = json.loads(run("config", "show", "--json").stdout)["settings"]
    named = {key["variable"] for key in shown.values()}
    source = (file.read_text("utf-8") for file in (ROOT / "autospec").rglob("*.py"))
    for text in source:
        named |= set(re.findall(r"\bAUTOSPEC_[A-Z_]*[A-Z]\b", text))
    check("settings/variables.txt", "\n".join(sorted(named)))


def test_the_settings_in_a_file_are_read(place):
    """Each key of the copy, written into a file, is still a key."""
    place.home.mkdir(exist_ok=True)
    template = (DATA / "settings" / "template.toml").read_text("utf-8")
    lines = [line.removeprefix("#") for line in template.splitlines() if re.match(r"#(\w+ = |\[)", line)]
    assert lines
    prompts = [
        {"id": name, "prompt_type": "chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
        for name in "ab"
    ]
    (place.home / "my-prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)), "utf-8")
    (place.home / "config.toml").write_text(
        "\n".join(line for line in lines if not line.startswith("study_storage"))
    )
    assert run("config", "check").exit_code == 0
