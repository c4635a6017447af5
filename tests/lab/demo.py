"""``python -m tests.lab.demo [--short]``: a real study on lab models, the way a user would run it.

``make demo`` shows it; with ``--short`` it is CI's: a quick main model, one prompt type, a budget of seconds, and the
document that comes out is checked against the contract and the lab's truth in place of being shown.
"""

# ruff: noqa: T201 - a command: it prints
from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.lab.cache import Lab
from tests.lab.source import LabError

ROOT = Path(__file__).resolve().parent.parent.parent
AUTOSPEC = Path(sys.executable).parent / "autospec"
# They leave time for installing and building the models: the demo ends within ten minutes, CI's tune within two.
DEMO_BUDGET = "6m30s"
FAST_BUDGET = "90s"
STUDY = Path(__file__).with_name("demo.toml")
SHORT_BUDGET = "80s"


def demo() -> int:
    """Tune a slow and a fast main model with the same draft, then show what is recommended. State goes to ``.demo/``."""
    home = ROOT / ".demo"
    slow, draft = _models("demo-main", home / "models")
    fast, _ = _models("fast-main", home / "models")
    env = _environment(home)
    tunes = [
        [
            *(str(AUTOSPEC), "tune", "--model", str(main_model), "--draft", str(draft)),
            *("--backend", "embedded", "--study", str(STUDY), "--budget", budget),
            *(word for prompt_type in types for word in ("--prompt-type", prompt_type)),
        ]
        for main_model, budget, types in ((slow, DEMO_BUDGET, ["qa"]), (fast, FAST_BUDGET, ["qa", "writing"]))
    ]
    for command in (*tunes, [str(AUTOSPEC), "recommend"]):
        print(f"\n$ {_readable(command)}", flush=True)
        done = subprocess.run(command, env=env, cwd=ROOT, check=False)
        if done.returncode != 0:
            return done.returncode
    return 0


def short() -> int:
    """One prompt type within a short budget; 0 if `tune --json` keeps the contract and does not enable what loses."""
    import jsonschema

    from autospec.recommendations import SCHEMA

    with tempfile.TemporaryDirectory(prefix="autospec-demo-") as folder:
        home = Path(folder)
        main_model, draft = _models("fast-main", home / "models")
        command = [
            *(str(AUTOSPEC), "tune", "--model", str(main_model), "--draft", str(draft)),
            *("--backend", "embedded", "--study", "quick", "--prompt-type", "coding"),
            *("--budget", SHORT_BUDGET, "--json"),
        ]
        print(f"$ {_readable(command)}", flush=True)
        done = subprocess.run(
            command, env=_environment(home), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
        )
    if done.returncode != 0:
        return _complain(f"autospec tune ended with {done.returncode}", done.stdout)
    try:
        document = json.loads(done.stdout)
        jsonschema.validate(document, SCHEMA)
    except ValueError as error:
        return _complain(f"stdout is not one JSON document: {error}", done.stdout)
    except jsonschema.ValidationError as error:
        return _complain(
            f"the document breaks the contract at {error.json_path}: {error.message}", done.stdout
        )
    found = document["recommendations"]
    if [entry["prompt_type"] for entry in found] != ["coding"] or not found[0]["pairs"]:
        return _complain("one recommendation for coding that rests on pairs was expected", done.stdout)
    entry = found[0]
    if entry["drafting"]["mode"] == "draft-model":
        return _complain("the draft was enabled for the fast main, where it loses", done.stdout)
    print(f"{entry['verdict']}: {entry['reason']} (speed ratio {entry['speedup']}, {entry['pairs']} pairs)")
    return 0


def _models(main_model: str, folder: Path) -> tuple[Path, Path]:
    """The main model and its draft in a folder of their own: beside them, the lab keeps damaged files on purpose."""
    lab = Lab()
    began = time.monotonic()
    print(f"Models: SmolLM2-135M from PyPI, and {main_model} built from it …", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    placed = []
    for name in (main_model, "smollm2"):
        path = folder / lab.path(name).name
        path.unlink(missing_ok=True)
        try:
            path.hardlink_to(lab.path(name))
        except OSError:  # another file system
            shutil.copyfile(lab.path(name), path)
        placed.append(path)
    print(f"… ready in {folder} after {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    return placed[0], placed[1]


def _environment(home: Path) -> dict[str, str]:
    """None of the developer's own settings, and a home apart from theirs."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AUTOSPEC_")}
    return {**kept, "AUTOSPEC_HOME": str(home)}


def _readable(command: list[str]) -> str:
    return " ".join(Path(word).name if word.startswith("/") else word for word in command)


def _complain(sentence: str, said: str) -> int:
    print(f"{sentence}\n{said}", file=sys.stderr)
    return 1


def main() -> int:
    """Run the one or the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.demo", description=__doc__)
    parser.add_argument("--short", action="store_true", help="CI's one real tune")
    try:
        return short() if parser.parse_args().short else demo()
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
