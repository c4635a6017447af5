"""What autospec reads of a binary: the name of its version, its hash, and if it reports drafts."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from autospec.backends import binaries
from autospec.backends.binaries import _check_output, _files, facts_of, first_look, probe, version_name
from autospec.errors import BackendMissingError
from tests.backends.conftest import FAKE, HELP


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("version: 4372 (e34c5af4)\nbuilt with cc", "b4372"),
        ("version: 0.6.0 (build 11434, commit e34c5af4)", "b11434"),
        ("version: 0.6.0-dev (build 0, commit unknown)", "source-01234567"),
        ("version: 0 (unknown)", "source-01234567"),
        # A shallow clone counts the commits that it has; a package has a version of its own.
        ("version: 0.2.0-dev (build 1, commit ab)", "source-01234567"),
        ("version: 1 (e34c5af)", "source-01234567"),
        ("version: 2.0.0", "source-01234567"),
        ("version: 11434.2.0", "source-01234567"),
        ("version: 0.6.0-dev (build 11457, commit e34c5af4)", "b11457"),
        ("warning: 3 devices\nversion: 5200 (abc)", "b5200"),
        ("", "source-01234567"),
    ],
)
def test_version_name(said, name):
    """A build number where there is one; a source build goes by its fingerprint."""
    assert version_name(said, "0123456789abcdef") == name


@pytest.mark.parametrize(
    ("name", "build"),
    [
        *((name, "source-01234567") for name in ("pycore010", "pydist012", "pydist018", "b9093", "b11434")),
        ("b11669", "b11669"),
    ],
)
def test_captured_versions(name, build):
    """Five call themselves build 0; Debian's package has the number, and no commit."""
    said = (HELP / f"{name}.version.txt").read_text(encoding="utf-8")
    assert version_name(said, "0123456789abcdef") == build


def test_another_binary_has_another_fingerprint(tmp_path, state_dir):
    """Also where the version line is the same, as between source builds."""

    def build(comment):
        program = tmp_path / "llama-server"
        program.write_text(
            f'#!/bin/sh\n# {comment}\nexec "{sys.executable}" -I -S "{FAKE}" "$@"\n', encoding="utf-8"
        )
        program.chmod(0o755)
        return probe(program, state_dir).build

    one, two = build("one"), build("another")
    assert one.version == two.version == "b11434"
    assert one.fingerprint != two.fingerprint
    assert build("one") == one


def test_shared_libraries_count(tmp_path, state_dir):
    """In a dynamic build the program stays the same when llama.cpp changes."""
    program = tmp_path / "bin" / "llama-server"
    library = tmp_path / "lib" / "libllama.so.0"
    for file in (program, library):
        file.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{FAKE}" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    library.write_bytes(b"one")
    first = probe(program, state_dir).build.fingerprint
    library.write_bytes(b"another")
    assert probe(program, state_dir).build.fingerprint != first


@pytest.mark.parametrize("library", ["lib/libggml-base.0.dylib", "libexec/libggml-metal.so"])
def test_homebrews_kernels_count(tmp_path, state_dir, library):
    """They are in the formula ggml, which `brew upgrade` moves without llama.cpp."""
    cellar = tmp_path / "homebrew" / "Cellar"
    program = cellar / "llama.cpp" / "8770" / "bin" / "llama-server"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{FAKE}" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    link = tmp_path / "homebrew" / "bin" / "llama-server"
    opt = tmp_path / "homebrew" / "opt" / "ggml"
    link.parent.mkdir()
    link.symlink_to(program)
    opt.parent.mkdir()
    prints = []
    for version in ("0.23.0", "0.24.0"):
        file = cellar / "ggml" / version / library
        file.parent.mkdir(parents=True)
        file.write_text(version, encoding="utf-8")
        opt.unlink(missing_ok=True)
        opt.symlink_to(cellar / "ggml" / version)
        prints.append(probe(link, state_dir).build.fingerprint)
    assert prints[0] != prints[1]


def _put(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(str(file).encode())


DEBIAN = "lib/x86_64-linux-gnu"


@pytest.mark.parametrize(
    "libraries",
    [
        (
            f"{DEBIAN}/libggml.so.0",
            f"{DEBIAN}/llama/libllama.so.0",
            f"{DEBIAN}/ggml/backends0/libggml-cuda.so",
        ),
        ("lib/libllama.so", "lib/libggml-base.so", "lib/ggml/libggml-cuda.so"),
        ("lib64/libllama.so.0", "lib64/libmtmd.so.0", "lib64/ggml/libggml-vulkan.so"),
    ],
    ids=["Debian", "Arch", "Fedora"],
)
def test_the_libraries_of_distributions_count(tmp_path, libraries):
    """`apt upgrade` may change a backend alone."""
    program = tmp_path / "usr" / "bin" / "llama-server"
    files = [tmp_path / "usr" / name for name in libraries]
    others = ("lib/ggml/notes.txt", f"{DEBIAN}/libssl.so.3", f"{DEBIAN}/ggml/backends0/libother.so")
    _put(program, *files, *(tmp_path / "usr" / name for name in others))
    assert _files(program) == (program, *sorted(files))


@pytest.mark.parametrize(
    ("program", "libraries", "elsewhere"),
    [
        # A release's archive or a build folder; other builds' libraries may be near.
        ("b/bin/llama-server", ["b/bin/libllama.so", "b/bin/libggml-cuda.so"], ["b/lib64/libllama.so", "b/lib/ggml/libggml-cuda.so"]),
        ("b/bin/llama-server", ["b/bin/libllama.so", "b/lib/libggml.so"], [f"b/{DEBIAN}/libllama.so"]),
        # `cmake --install`.
        ("usr/local/bin/llama-server", ["usr/local/lib/libllama.so.0", "usr/local/lib/libggml-cpu.so"], ["usr/local/lib64/libllama.so.0"]),
        # No libraries: a static build.
        ("opt/llama-server", [], ["lib64/libllama.so", "opt/lib64/libllama.so"]),
        (
            "brew/Cellar/llama.cpp/8770/bin/llama-server",
            ["brew/Cellar/llama.cpp/8770/lib/libllama.dylib", "brew/opt/ggml/lib/libggml.dylib", "brew/opt/ggml/libexec/libggml-metal.so"],
            ["brew/Cellar/llama.cpp/8770/lib/ggml/libggml-x.so", "brew/Cellar/llama.cpp/8770/lib64/libllama.so"],
        ),
    ],
    ids=["archive", "build", "installed", "static", "Homebrew"],
)  # fmt: skip
def test_other_builds_keep_their_fingerprint(tmp_path, program, libraries, elsewhere):
    """What was found before distributions' folders were known: a stored recommendation stays right."""
    _put(*(tmp_path / name for name in (program, *libraries, *elsewhere)))
    assert _files(tmp_path / program) == (tmp_path / program, *sorted(tmp_path / n for n in libraries))


# stderr of a Metal build on an M4 Pro, then what --version prints.
METAL_LOG = """\
ggml_metal_device_init: tensor API disabled for pre-M5 and pre-A19 devices
ggml_metal_library_init: using embedded metal library
ggml_metal_library_init: loaded in {seconds} sec
version: 8770 (e34c5af4)
built with AppleClang 17.0.0.17000013 for Darwin arm64
"""


def test_the_drivers_log_is_no_version(tmp_path, state_dir):
    """It has a duration that differs each time, and comes first; the build number is that of the version's line."""
    said = tmp_path / "said"
    program = tmp_path / "llama-server"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exec cat "{said}" >&2\nexec "{sys.executable}" -I -S "{FAKE}" "$@"\n',
        encoding="utf-8",
    )
    program.chmod(0o755)

    def build(text: str):
        said.write_text(text, encoding="utf-8")
        return probe(program, state_dir).build

    slow, quick = (build(METAL_LOG.format(seconds=seconds)) for seconds in ("31.201", "0.009"))
    m5 = build(METAL_LOG.format(seconds="0.009").replace("disabled for pre-M5 and pre-A19", "enabled for M5"))
    assert slow == quick == m5
    assert slow.version == "b8770"
    assert build(METAL_LOG.format(seconds="0.009").replace("e34c5af4", "0badcafe")) != slow


DYLD = """\
dyld[4711]: Symbol not found: _ggml_backend_dev_memory
  Referenced from: <0A1B2C3D-0000-3000-8000-000000000000> /opt/homebrew/Cellar/llama.cpp/8770/bin/llama-server
"""


@pytest.mark.parametrize(
    ("code", "output", "platform", "said", "hint"),
    [
        (-6, DYLD, "darwin", "cannot find _ggml_backend_dev_memory", "brew reinstall ggml llama.cpp"),
        (
            -9,
            "",
            "darwin",
            "was ended by SIGKILL and printed nothing",
            "xattr -d com.apple.quarantine '/my builds/x'",
        ),
        (-9, "", "linux", "was ended by SIGKILL and printed nothing", "Install llama-server again"),
        (
            -11,
            "loading\nCUDA error.\n",
            "linux",
            "was ended by SIGSEGV and printed only: CUDA error.",
            "Install",
        ),
        (1, "", "linux", "ended with status 1 and printed nothing", "Install"),
    ],
)
def test_a_program_that_cannot_start_is_told_as_that(code, output, platform, said, hint):
    """And not as a program of another kind."""
    with pytest.raises(BackendMissingError, match=re.escape(said)) as raised:
        _check_output(Path("/my builds/x"), "--help", code, output, platform)
    assert hint in raised.value.hint


def test_a_crash_after_the_answer_does_no_harm():
    """Drivers are unloaded at the end."""
    _check_output(Path("/x"), "--version", -11, "version: 8770 (e34c5af4)\n", "linux")
    _check_output(Path("/x"), "--help", 1, "usage\n", "linux")


def test_drafts_are_told_if_the_binary_can(tmp_path, state_dir):
    """The answer's key stands in the program."""
    program = tmp_path / "llama-server"
    program.write_bytes(b"\x00prompt_n\x00draft_n_accepted\x00")
    assert facts_of((program,), state_dir).tells_drafts
    program.write_bytes(b"\x00prompt_n\x00")
    assert not facts_of((program,), state_dir).tells_drafts


def test_the_first_look_at_a_program_on_a_mac_is_announced(tmp_path, state_dir):
    """Once for each build; its Metal kernels are compiled then."""
    program = tmp_path / "llama-server"
    program.write_bytes(b"one")
    program.chmod(0o755)
    assert first_look(str(program), state_dir, "darwin").startswith(
        f"Looking at {program} for the first time"
    )
    assert first_look(str(program), state_dir, "linux") == ""
    facts_of((program,), state_dir)
    assert first_look(str(program), state_dir, "darwin") == ""
    program.write_bytes(b"another")
    assert first_look(str(program), state_dir, "darwin")
    assert first_look(str(tmp_path / "nothing"), state_dir, "darwin") == ""


def test_hashes_are_remembered_by_size_and_time(tmp_path, state_dir):
    """A large build is read once: a change that keeps both is not seen, which is the price."""
    program = tmp_path / "llama-server"
    program.write_bytes(b"one")
    first = facts_of((program,), state_dir)
    stat = program.stat()
    program.write_bytes(b"two")
    os.utime(program, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert facts_of((program,), state_dir) == first
    os.utime(program, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert facts_of((program,), state_dir) != first


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}'])
def test_a_damaged_memory_costs_time_only(tmp_path, state_dir, content):
    """It is made again."""
    program = tmp_path / "llama-server"
    program.write_bytes(b"one")
    first = facts_of((program,), state_dir)
    (state_dir / "binaries.json").write_text(content, encoding="utf-8")
    assert facts_of((program,), state_dir) == first


@pytest.mark.parametrize("empty", [False, True])
def test_a_file_that_goes_away_while_it_is_read_is_a_missing_backend(state_dir, tmp_path, monkeypatch, empty):
    """An upgrade takes files away for a moment: the proxy ended with a traceback."""
    program = tmp_path / "llama-server"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{FAKE}" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(binaries, "_files", lambda _: (tmp_path / "gone",))
    if empty:
        (tmp_path / "gone").touch()
    with pytest.raises(BackendMissingError, match="cannot be read"):
        probe(program, state_dir)
