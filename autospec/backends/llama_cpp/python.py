"""The backend `llama-cpp-python`: the package's server in a child process, which drafts by prompt lookup.

The server knows one draft model, ``prompt-lookup-decoding``, and takes only one of its two numbers, ``num_pred_tokens``
(llama_cpp/server/model.py, 0.3.36). The child also sets the n-gram size, and reports times and counts as llama.cpp does.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from autospec.backends import binaries
from autospec.backends.process import ask_child
from autospec.backends.protocol import Capabilities, LaunchSettings
from autospec.backends.server import LlamaHttpServer, start_child
from autospec.backends.user_args import check_count, options_of, refuse_owned
from autospec.cells import Build
from autospec.drafting import Drafting, Mode
from autospec.errors import BackendMissingError, UnsupportedError, UsageError, install_line

__all__ = ["LlamaCppPython"]

_CHILD = ("-m", "autospec.backends.llama_cpp.python_child")
# Importing FastAPI and the library takes 2 s; from a cold disk, several.
_PROBE_TIMEOUT_S = 120.0
_MODES = frozenset({Mode.OFF, Mode.PROMPT_LOOKUP})
# llama-server's spelling → this server's, so that the same server arguments work for both.
_SPELLINGS = {
    spelling: setting
    for setting, spellings in {
        "n_ctx": ("-c", "--ctx-size"),
        "n_threads": ("-t", "--threads"),
        "n_threads_batch": ("-tb", "--threads-batch"),
        "n_gpu_layers": ("-ngl", "--gpu-layers", "--n-gpu-layers"),
        "n_batch": ("-b", "--batch-size"),
        "n_ubatch": ("-ub", "--ubatch-size"),
        "lora_path": ("--lora",),
    }.items()
    for spelling in spellings
}
_LACKING = {
    "--lora-scaled": "It takes one adapter without a scale: --lora FILE.",
    "--mmproj": "It takes --clip_model_path FILE with the --chat_format of the model.",
    "-mm": "It takes --clip_model_path FILE with the --chat_format of the model.",
}
_OWNED = {
    "model": "the model is chosen with --model",
    "hf_model_repo_id": "the model is chosen with --model",
    "draft_model": "autospec sets the drafting itself",
    "draft_model_num_pred_tokens": "autospec sets the drafting itself",
    "verbose": "autospec reads the log of a launch that fails",
}


@dataclass(frozen=True, slots=True)
class _Package:
    build: Build
    settings: frozenset[str]


class LlamaCppPython:
    """The backend `llama-cpp-python`; `state_dir` takes records, logs and hashes."""

    name = "llama-cpp-python"

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def capabilities(self) -> Capabilities:
        """See `autospec.backends.protocol.Backend`."""
        return Capabilities(
            build=self._package.build,
            modes=_MODES,
            takes_p_min=False,
            notes=(
                "It drafts by prompt lookup only. While it drafts, it keeps the logits of the whole context in memory.",
            ),
        )

    def command(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> tuple[str, ...]:
        """See `autospec.backends.protocol.Backend`; the port is not part of it."""
        drafted = self.drafting_args(model_path, drafting, settings)
        options = {"model": model_path, **user_settings(settings.args, self._package.settings)}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        return (sys.executable, *_CHILD, *words, *drafted)

    def drafting_args(self, _model: str, drafting: Drafting, _settings: LaunchSettings) -> tuple[str, ...]:
        """See `autospec.backends.protocol.Backend`."""
        if drafting.mode not in _MODES:
            raise UnsupportedError(
                f"llama-cpp-python {self._package.build.version} has no mode {drafting.mode}.",
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
        """See `autospec.backends.protocol.Backend`."""
        command = self.command(model_path, drafting, settings)
        return start_child(
            lambda process, port: LlamaHttpServer(process, drafting, port, self.name),
            lambda port: (*command, "--port", str(port)),
            lambda server: server.verify(self.capabilities()),
            settings=settings,
            state_dir=self._state_dir,
        )

    @cached_property
    def _package(self) -> _Package:
        return _probe(self._state_dir)


def user_settings(args: Sequence[str], known: frozenset[str]) -> dict[str, str]:
    """The user's own launch settings, as texts that pydantic reads.

    Args:
        args: ``--n_ctx 4096`` as this server spells it, or llama-server's spelling of the most common ones.
        known: The settings that the installed package has.

    Raises:
        UsageError: autospec sets one of them itself, its value is missing, or it is not an option.
        UnsupportedError: The package has no such setting.
    """
    own: dict[str, str] = {}
    translated: dict[str, str] = {}
    for name, values in options_of("llama-cpp-python's server", args):
        refuse_owned(name)
        setting = _SPELLINGS.get(name, name.removeprefix("--"))
        if setting in _OWNED:
            raise UsageError(f"{name} cannot be passed to the server: {_OWNED[setting]}.", f"Remove {name}.")
        if setting not in known:
            raise UnsupportedError(
                f"llama-cpp-python's server does not know {name}.",
                _LACKING.get(name, "python -m llama_cpp.server --help lists all."),
            )
        check_count("llama-cpp-python's server", name, values, 1)
        if setting == "lora_path" and setting in (own | translated):
            raise UnsupportedError(
                "llama-cpp-python's server takes one LoRA adapter.", "Merge the adapters into one file."
            )
        (translated if name in _SPELLINGS else own)[setting] = values[0]
    # The package's own spelling wins: autospec adds -c where the user gave none of llama-server's spellings.
    found = translated | own
    # As llama-server does; this server would use all cores for batches.
    if "n_threads" in found:
        found.setdefault("n_threads_batch", found["n_threads"])
    return found


def _install_hint() -> str:
    return f"{install_line('llama-cpp')} (compiling takes some minutes)"


def _probe(state_dir: Path) -> _Package:
    if importlib.util.find_spec("llama_cpp") is None:
        raise BackendMissingError("llama-cpp-python is not installed.", _install_hint())
    try:
        told = ask_child(*_CHILD, "--probe", timeout_s=_PROBE_TIMEOUT_S)
    except ValueError as error:
        raise BackendMissingError(
            f"llama-cpp-python is installed but its server cannot be loaded: {error}.", _install_hint()
        ) from error
    files = tuple(Path(file) for file in told["libraries"])
    version = str(told["version"])
    digest = hashlib.sha256(f"{version}\n{binaries.facts_of(files, state_dir).sha256}".encode())
    return _Package(
        Build(LlamaCppPython.name, version, digest.hexdigest()[:16]), frozenset(map(str, told["settings"]))
    )
