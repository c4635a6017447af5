"""The backend `llama-cpp-python`: its own server, in a child process, drafting by prompt lookup.

Its server knows one draft model, ``prompt-lookup-decoding``, and of its two numbers only ``num_pred_tokens``
(llama_cpp/server/model.py, 0.3.36); the child sets the n-gram size as well, and tells times and counts as llama.cpp does.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autospec.backends import binaries
from autospec.backends.process import child_environment
from autospec.backends.protocol import Capabilities, LaunchSettings
from autospec.backends.server import LlamaHttpServer, start_child
from autospec.backends.user_args import refuse_owned
from autospec.cells import Build
from autospec.drafting import Drafting, Mode
from autospec.errors import BackendMissingError, UnsupportedError, UsageError

__all__ = ["LlamaCppPython"]

_CHILD = ("-m", "autospec.backends.llama_cpp.python_child")
_INSTALL = "pip install 'autospec[llama-cpp]' (it compiles for some minutes)"
# Importing FastAPI and the library takes 2 s; from a cold disk, several.
_PROBE_TIMEOUT_S = 120.0
_MODES = frozenset({Mode.OFF, Mode.PROMPT_LOOKUP})
# llama-server's spelling of what this server calls otherwise, so that one config's server arguments do for both.
_SPELLINGS = {
    "-c": "n_ctx",
    "--ctx-size": "n_ctx",
    "-t": "n_threads",
    "--threads": "n_threads",
    "-tb": "n_threads_batch",
    "--threads-batch": "n_threads_batch",
    "-ngl": "n_gpu_layers",
    "--gpu-layers": "n_gpu_layers",
    "--n-gpu-layers": "n_gpu_layers",
    "-b": "n_batch",
    "--batch-size": "n_batch",
    "-ub": "n_ubatch",
    "--ubatch-size": "n_ubatch",
}
_OWNED = {
    "model": "the model is chosen with --model",
    "hf_model_repo_id": "the model is chosen with --model",
    "draft_model": "drafting is what autospec varies",
    "draft_model_num_pred_tokens": "drafting is what autospec varies",
    "verbose": "autospec reads the log of a launch that fails",
}


@dataclass(frozen=True, slots=True)
class _Package:
    build: Build
    settings: frozenset[str]


class LlamaCppPython:
    """The Python package's server.

    Args:
        state_dir: Where records, logs and hashes go.
    """

    name = "llama-cpp-python"

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._package: _Package | None = None

    def capabilities(self) -> Capabilities:
        """Probe the installed package; cached for the life of the object.

        Raises:
            BackendMissingError: It or its server's part is not installed, or cannot be loaded on this machine.
        """
        return Capabilities(
            build=self._probed().build,
            modes=_MODES,
            takes_p_min=False,
            notes=(
                "It drafts by prompt lookup only; drafting keeps the scores of the whole context in memory.",
            ),
        )

    def command(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> tuple[str, ...]:
        """The command line of a launch without its port; starts nothing.

        Raises:
            UnsupportedError: The package has no such mode or setting.
            UsageError: A server argument that autospec sets itself, or one without its value.
        """
        return self._command(model_path, drafting, settings, port=None)

    def drafting_args(
        self, _model_path: str, drafting: Drafting, _settings: LaunchSettings
    ) -> tuple[str, ...]:
        """See `autospec.backends.protocol.Backend`."""
        if drafting.mode not in _MODES:
            raise UnsupportedError(
                f"llama-cpp-python {self._probed().build.version} has no mode {drafting.mode}.",
                f"It offers: {', '.join(sorted(_MODES))}.",
            )
        if drafting.is_off:
            return ()
        # `--max_ngram_size` is read by our child process; the package has no flag for it.
        return (
            *("--draft_model", "prompt-lookup-decoding"),
            *("--draft_model_num_pred_tokens", str(drafting.n_max)),
            *("--max_ngram_size", str(drafting.ngram_n)),
        )

    def launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> LlamaHttpServer:
        """Start a server, wait until it is ready, and check that its drafting is in force.

        Raises:
            UnsupportedError: As `command`.
            LaunchError: It did not get ready.
            SpeculationInactiveError: It runs with another drafting than asked for.
        """
        self.command(model_path, drafting, settings)  # what is unsupported is told before anything starts
        return start_child(
            lambda process, port: LlamaHttpServer(process, drafting, port, self.name),
            lambda port: self._command(model_path, drafting, settings, port),
            lambda server: server.verify(self.capabilities()),
            ready_timeout_s=settings.ready_timeout_s,
            state_dir=self._state_dir,
        )

    def _command(
        self, model_path: str, drafting: Drafting, settings: LaunchSettings, port: int | None
    ) -> tuple[str, ...]:
        drafted = self.drafting_args(model_path, drafting, settings)
        options = {"model": model_path, **user_settings(settings.args, self._probed().settings)}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        address = () if port is None else ("--port", str(port))
        return (sys.executable, *_CHILD, *words, *drafted, *address)

    def _probed(self) -> _Package:
        if self._package is None:
            self._package = _probe(self._state_dir)
        return self._package


def user_settings(args: Sequence[str], known: frozenset[str]) -> dict[str, str]:
    """The user's own launch settings, as texts that pydantic reads.

    Args:
        args: ``--n_ctx 4096`` as its server takes them, or llama-server's spelling of the commonest.
        known: The settings that the installed package has.

    Raises:
        UsageError: One is autospec's own, lacks its value, or is no option at all.
        UnsupportedError: The package has no such setting.
    """
    own: dict[str, str] = {}
    translated: dict[str, str] = {}
    rest = list(args)
    while rest:
        name = rest.pop(0)
        if not name.startswith("-"):
            raise UsageError(f"{name!r} is not an option.", "Quote a value that has spaces.")
        refuse_owned(name)
        setting = _SPELLINGS.get(name, name.removeprefix("--"))
        if setting in _OWNED:
            raise UsageError(
                f"{name} cannot be passed to the server: {_OWNED[setting]}.", f"Leave {name} out."
            )
        if setting not in known:
            raise UnsupportedError(
                f"llama-cpp-python's server does not know {name}.",
                "python -m llama_cpp.server --help lists all.",
            )
        if not rest:
            raise UsageError(f"{name} needs a value.")
        (translated if name in _SPELLINGS else own)[setting] = rest.pop(0)
    # Its own spelling wins: autospec adds a -c where it sees none of llama-server's.
    found = translated | own
    # As llama-server does; this one would take all cores for batches.
    if "n_threads" in found:
        found.setdefault("n_threads_batch", found["n_threads"])
    return found


def _probe(state_dir: Path) -> _Package:
    """Ask a child, so that a library that cannot be loaded ends the child and not autospec."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise BackendMissingError("llama-cpp-python is not installed.", _INSTALL)
    try:
        done = subprocess.run(
            [sys.executable, *_CHILD, "--probe"],
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_PROBE_TIMEOUT_S,
            env=child_environment(os.environ),
        )
        told = json.loads(done.stdout.splitlines()[-1])
        files = tuple(Path(file) for file in told["libraries"])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError, KeyError) as error:
        lines = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
        raise BackendMissingError(
            f"llama-cpp-python is installed but its server cannot be loaded: {lines[-1] if lines else error}.",
            _INSTALL,
        ) from error
    version = str(told["version"])
    digest = hashlib.sha256(f"{version}\n{binaries.facts_of(files, state_dir).sha256}".encode())
    return _Package(
        Build(LlamaCppPython.name, version, digest.hexdigest()[:16]), frozenset(map(str, told["settings"]))
    )
