"""Does the wheel work where there is no checkout? Builds it, installs it in an empty environment, runs it there."""

# ruff: noqa: INP001, T201 - a script: it prints, and is no package
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Run inside the new environment: says where the data was found and what is in it.
PROBE = """
import json, sys, sysconfig
import autospec.files as data
from autospec.prompts.request_text import keywords
keywords()  # the word lists are a file of the package
from autospec.proxy.dashboard import PAGE_PATHS, page
pages = [page(path) for path in PAGE_PATHS]  # so are those of the dashboard, and of the report
from pathlib import Path
from autospec.report import html
for name in ("page.html.j2", "page.css"):
    Path(html.__file__).with_name(name).read_text("utf-8")
folders = [data.studies_dir(), data.launchd_dir()]
json.dump({
    "site": sysconfig.get_path("purelib"),
    "folders": [str(folder) for folder in folders],
    "files": sorted(str(p.relative_to(f)) for f in folders for p in f.rglob("*") if p.is_file()),
}, sys.stdout)
"""
WANTED = {
    *("quick.toml", "default.toml", "thorough.toml", "suites/default.jsonl"),
    *("com.autospec.daemon.plist", "autospec.service"),
}

# Of the installed wheel, by the name that autospec itself has for its distribution.
METADATA = """
from importlib import metadata
from autospec.errors import DISTRIBUTION
found = metadata.metadata(DISTRIBUTION)
print(*(f"{key}: {value}" for key, value in found.items()), sep="\\n")
print(*(f"Script: {e.name}" for e in metadata.distribution(DISTRIBUTION).entry_points), sep="\\n")
"""
WANTED_METADATA = {
    *("Requires-Python: >=3.11", "License-Expression: MIT", "License-File: LICENSE", "Script: autospec"),
    *(f"Classifier: Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13, 14)),
}


class CheckError(Exception):
    """The wheel is not fit to be shipped; one sentence."""


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """The command's stdout.

    Raises:
        CheckError: It failed; carries what it said.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()
        raise CheckError(f"`{' '.join(words)}` ended with {done.returncode}:\n{said}")
    return done.stdout


def check(folder: Path) -> None:
    """Build, install and try the wheel, all of it under `folder`."""
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", ROOT, cwd=folder)
    wheels = list((folder / "dist").glob("*.whl"))
    if len(wheels) != 1:
        raise CheckError(f"one wheel was expected, {len(wheels)} were built")
    venv.create(folder / "venv", with_pip=True)
    binaries = folder / "venv" / "bin"
    pip = (
        binaries / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    )
    run(*pip, wheels[0], cwd=folder)

    # Neither the checkout nor the developer's own settings may help.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AUTOSPEC_", "PYTHON", "VIRTUAL_ENV"))}
    env["AUTOSPEC_HOME"] = str(folder / "home")
    metadata = run(binaries / "python", "-c", METADATA, cwd=folder, env=env)
    if missing_lines := sorted(WANTED_METADATA - set(metadata.splitlines())):
        raise CheckError(f"the wheel's metadata lacks {', '.join(missing_lines)}")
    version = run(binaries / "autospec", "--version", cwd=folder, env=env)
    if wheels[0].name.split("-")[1] not in version:
        raise CheckError(f"`autospec --version` says {version.strip()!r}, the wheel is {wheels[0].name}")
    doctor = run(binaries / "autospec", "doctor", "--json", cwd=folder, env=env)
    if "_AUTOSPEC_COMPLETE" not in run(binaries / "autospec", "completion", "zsh", cwd=folder, env=env):
        raise CheckError("`autospec completion zsh` prints no completion script")
    try:
        json.loads(doctor)
    except ValueError:
        raise CheckError(f"`autospec doctor --json` is not one JSON document:\n{doctor}") from None
    found = json.loads(run(binaries / "python", "-c", PROBE, cwd=folder, env=env))
    site = Path(found["site"]).resolve()
    outside = [path for path in found["folders"] if not Path(path).resolve().is_relative_to(site)]
    if outside:
        raise CheckError(f"the data was found outside the installation: {', '.join(outside)}")
    missing = sorted(WANTED - set(found["files"]))
    if missing:
        raise CheckError(f"the wheel lacks {', '.join(missing)}; it has {', '.join(found['files'])}")
    print(
        f"wheel check: {wheels[0].name} installs and runs; data in {site.name}: {len(found['files'])} files"
    )


def main() -> int:
    """0 if the wheel is fit."""
    with tempfile.TemporaryDirectory(prefix="autospec-wheel-") as folder:
        try:
            check(Path(folder).resolve())
        except CheckError as error:
            print(f"wheel check: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
