"""Probe a llama-server binary: its help, its version, its hash, and whether its answers count drafted tokens.

Hashes are kept on disk by path, size and modification time, since a CUDA build has hundreds of megabytes.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from autospec.backends.failures import MISSING_LIBRARY, QUARANTINE_HINT, REINSTALL_HINT
from autospec.backends.flags import HelpText, parse
from autospec.backends.placement import parse_device_list
from autospec.backends.process import child_environment
from autospec.cells import Build
from autospec.errors import BackendMissingError
from autospec.files import replace_file
from autospec.hardware.gpu import Device, shares_memory

__all__ = ["Facts", "Probe", "facts_of", "first_look", "list_devices", "probe", "version_name"]

# Measured 39 ms; a binary that loads GPU drivers first may need seconds.
_PROBE_TIMEOUT_S = 60.0
# "version: 4372 (e34c5af4)" until 2026, "version: 0.6.0 (build 11434, commit e34c5af4)" since. The first number of
# "version: 2.0.0" is no build number.
_NUMBER = re.compile(r"version: (?:.*\bbuild )?(?P<number>\d+)(?:,| \(|\)|$)", re.MULTILINE)
# The number is a count of commits, and a shallow clone has only its last few. llama-server is older than a thousand commits.
_FIRST_NUMBER = 1000
# The key that answers carry since llama.cpp #12603 (March 2025). It stands in the binary as text.
_TELLS_DRAFTS = b"draft_n_accepted"
_TELLS_DRAFTS_SINCE = 4985
# What the output of a working llama-server contains: that of --version, --help, --list-devices.
_ANSWERS = ("version:", "--model", "Available devices:")
# The file in the state folder with the facts about each program.
_MEMORY = "binaries.json"
_LIBRARIES = ("libllama*", "libggml*", "libmtmd*")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the files of a program show.

    Attributes:
        sha256: Of the program and of llama.cpp's shared libraries beside it.
        tells_drafts: True if answers carry drafted and accepted counts.
    """

    sha256: str
    tells_drafts: bool


@dataclass(frozen=True, slots=True)
class Probe:
    """What a binary reports without loading a model."""

    build: Build
    help: HelpText
    tells_drafts: bool


def probe(binary: Path, state_dir: Path) -> Probe:
    """Run ``--version`` and ``--help`` and hash the files.

    Raises:
        BackendMissingError: It does not run, or it is no llama-server.
    """
    version = _output(binary, "--version")
    text = parse(_output(binary, "--help"))
    if not text.has("--model"):
        raise BackendMissingError(
            f"{binary} is not a llama-server: its --help has no --model.",
            "Set llama_server in the config to the right program.",
        )
    try:
        facts = facts_of(_files(binary), state_dir)
    except (OSError, ValueError) as error:
        # An upgrade takes files away for a moment, and an empty one cannot be mapped.
        raise BackendMissingError(
            f"The files of {binary} cannot be read: {error}.", "Try again; if it stays so, install it again."
        ) from error
    line = _version_line(version)
    fingerprint = hashlib.sha256(f"{line}\n{facts.sha256}".encode()).hexdigest()[:16]
    # A program's files show it; for a wrapper script only the flags and the build number do.
    tells_drafts = facts.tells_drafts or text.has("--spec-type") or _number(version) >= _TELLS_DRAFTS_SINCE
    name = version_name(version, fingerprint)
    return Probe(
        # ik_llama.cpp counts its own commits.
        build=Build("llama-server", f"ik-{name}" if text.of_ik else name, fingerprint),
        help=text,
        tells_drafts=tells_drafts,
    )


def first_look(configured: str, state_dir: Path, platform: str = sys.platform) -> str:
    """Why the first look at a llama-server takes long on a Mac, as one sentence; empty elsewhere and for a known one."""
    found = shutil.which(Path(configured or "llama-server").expanduser()) if platform == "darwin" else None
    if found is None or _key(_files(Path(found))) in _known(state_dir / _MEMORY):
        return ""
    return f"Looking at {found} for the first time: macOS compiles its Metal kernels, which takes up to half a minute."


def list_devices(binary: Path) -> tuple[Device, ...] | None:
    """Run ``--list-devices``, which loads GPU drivers and no model; ``None`` if it prints no list."""
    try:
        return parse_device_list(_output(binary, "--list-devices"), shares_memory)
    except BackendMissingError:
        return None


def version_name(version: str, fingerprint: str) -> str:
    """``b11434``, or the fingerprint for a source build, which calls itself build 0."""
    number = _number(version)
    return f"b{number}" if number else f"source-{fingerprint[:8]}"


def _version_line(version: str) -> str:
    """The line with the version, or else the first one: GPU builds print what their drivers say before it."""
    lines = [line.strip() for line in version.splitlines()]
    return next((line for line in lines if line.startswith("version:")), lines[0] if lines else "")


def _number(version: str) -> int:
    """The build number, or 0 if the build does not know it."""
    found = _NUMBER.search(version)
    number = int(found["number"]) if found else 0
    return number if number >= _FIRST_NUMBER else 0


def facts_of(files: tuple[Path, ...], state_dir: Path) -> Facts:
    """Read the files of a program, or their facts from ``binaries.json`` in `state_dir` if no file has changed."""
    key = _key(files)
    memory = state_dir / _MEMORY
    known = _known(memory)
    with suppress(KeyError, TypeError):
        return Facts(str(known[key]["sha256"]), bool(known[key]["tells_drafts"]))
    digest = hashlib.sha256()
    tells_drafts = False
    for file in files:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            digest.update(content)
            tells_drafts = tells_drafts or content.find(_TELLS_DRAFTS) >= 0
    facts = Facts(digest.hexdigest(), tells_drafts)
    with suppress(OSError):  # without a writable state folder the files are read again
        replace_file(memory, json.dumps({**known, key: asdict(facts)}), durable=False)
    return facts


def _key(files: tuple[Path, ...]) -> str:
    """Paths, sizes and times of the files."""
    stats = [(str(file), file.stat()) for file in files]
    return json.dumps([[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats])


def _files(binary: Path) -> tuple[Path, ...]:
    """The program, and llama.cpp's shared libraries where package managers and release archives put them."""
    # Homebrew has the kernels in a formula of their own, ``ggml``: its backends are loaded from ``libexec``.
    real = binary.resolve()
    folders = {real.parent, real.parent.parent / "lib"}
    cellar = next((folder for folder in real.parents if folder.name == "Cellar"), None)
    if cellar is not None:
        folders |= {cellar.parent / "opt" / "ggml" / name for name in ("lib", "libexec")}
    elif real.parent.name == "bin" and not _libraries(real.parent):
        folders |= _of_distributions(real.parent.parent)
    found = {path for folder in folders for path in _libraries(folder)}
    return (real, *sorted(path for path in found if path.is_file() and path.stat().st_size))


def _of_distributions(prefix: Path) -> set[Path]:
    """The folders of a Linux distribution's packages below ``/usr``."""
    # Arch: /usr/lib/ggml. Fedora: /usr/lib64. Debian and Ubuntu: /usr/lib/x86_64-linux-gnu/{llama,ggml/backends0}.
    # Where ../lib has libraries, those of the other roots are another build's.
    roots = {prefix / "lib"}
    if not _libraries(prefix / "lib"):
        roots |= {prefix / "lib64", *(prefix / "lib").glob("*-linux-gnu*")}
    names = ("llama", "ggml", "ggml/backends*")
    return roots | {folder for root in roots for name in names for folder in root.glob(name)}


def _libraries(folder: Path) -> set[Path]:
    """llama.cpp's shared libraries in a folder, where links to them lead."""
    return {
        path.resolve()
        for pattern in _LIBRARIES
        for path in folder.glob(pattern)
        if re.search(r"\.(so|dylib)(\.|$)", path.name)
    }


def _output(binary: Path, flag: str) -> str:
    """The output for a flag; most builds print `--version` to standard error."""
    try:
        done = subprocess.run(
            [binary, flag],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_PROBE_TIMEOUT_S,
            env=child_environment(os.environ),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or f"no answer to {flag} within {_PROBE_TIMEOUT_S:g} s"
        raise BackendMissingError(
            f"{binary} cannot be run: {reason}.",
            "Install llama-server again, or set llama_server in the config.",
        ) from error
    output = (done.stdout + done.stderr).decode(errors="replace")
    if done.returncode != 0:
        _check_output(binary, flag, done.returncode, output)
    return output


def _check_output(binary: Path, flag: str, code: int, output: str, platform: str = sys.platform) -> None:
    """Refuse what a program printed that ended with an error."""
    if (missing := MISSING_LIBRARY.search(output)) is not None:
        raise BackendMissingError(
            f"{binary} cannot find {missing['what']}: its installation is incomplete.", REINSTALL_HINT
        )
    # Some builds crash at their end, after they have printed everything.
    answered = output.strip() if code > 0 else any(word in output for word in _ANSWERS)
    if answered:
        return
    said = output.strip().splitlines()
    words = f"printed only: {said[-1].strip().rstrip('.')}" if said else "printed nothing"
    how = f"ended with status {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
    hint = "Install llama-server again, or set llama_server in the config."
    if platform == "darwin" and code == -signal.SIGKILL:
        hint = f"{QUARANTINE_HINT} {shlex.quote(str(binary))}"
    raise BackendMissingError(f"{binary} {flag} {how} and {words}.", hint)


def _known(memory: Path) -> dict[str, dict[str, object]]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
