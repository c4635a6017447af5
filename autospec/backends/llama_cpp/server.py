"""The backend `llama-server`: the native program. Its own help tells which flags it has."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from autospec.backends import binaries
from autospec.backends.binaries import list_devices
from autospec.backends.flags import (
    IK_NOTE,
    NGRAM_CACHE_NOTE,
    HelpText,
    drafting_args,
    engines,
    lists_types,
    modes,
)
from autospec.backends.llama_cpp.scorer import LlamaCppScorer
from autospec.backends.process import HOST, ServerProcess
from autospec.backends.protocol import Capabilities, LaunchSettings
from autospec.backends.server import LlamaHttpServer, start_child
from autospec.backends.user_args import check
from autospec.cells import options_in
from autospec.drafting import Drafting, Mode
from autospec.errors import BackendMissingError, UnsupportedError
from autospec.hardware.gpu import Device

__all__ = ["LlamaServer", "find_llama_server"]

# Set on every launch for measuring unless the user sets it, with and without drafting: without it a repeated
# measurement would be another experiment.
_MEASURED_WITH = (
    # One request at a time; more slots would share the context among them.
    ("--parallel", "1"),
    # Otherwise every new prompt first copies the previous prompt's cache to memory, and may reuse an old one.
    ("--cache-ram", "0"),
)

_VERBOSITY = frozenset({"-v", "--verbose", "-lv", "--verbosity", "--log-verbosity"})


class LlamaServer:
    """The backend `llama-server`.

    Args:
        binary: The program; ``None`` takes the one on PATH.
        state_dir: Takes records, logs and hashes.
    """

    name = "llama-server"

    def __init__(self, binary: Path | None, state_dir: Path) -> None:
        self._binary = binary
        self._state_dir = state_dir
        self._probe: binaries.Probe | None = None
        self._program: Path | None = None
        self._has_devices: bool | None = None

    def capabilities(self) -> Capabilities:
        """See `autospec.backends.protocol.Backend`."""
        _, probe = self._probed()
        notes = []
        if probe.help.of_ik:
            notes.append(IK_NOTE)
        elif Mode.NGRAM_CACHE in probe.help.spec_types:
            notes.append(NGRAM_CACHE_NOTE)
        if not probe.tells_drafts:
            notes.append(
                "This build does not report how many drafted tokens were accepted (b4985 and later do)."
            )
        return Capabilities(
            build=probe.build,
            modes=modes(probe.help),
            tells_drafts=probe.tells_drafts,
            notes=tuple(notes),
            combines=lists_types(probe.help),
            engines=engines(probe.help),
        )

    def command(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> tuple[str, ...]:
        """See `autospec.backends.protocol.Backend`; the port is not part of it."""
        program, probe = self._probed()
        build = probe.build.version
        checked = check(probe.help, build, settings.args, serving=settings.serving)
        given = {name for option in checked for name in option.names}
        fixed: list[str] = []
        for option, value in () if settings.serving else _MEASURED_WITH:
            if probe.help.has(option) and option not in given:
                fixed += [option, value]
        named = bool(settings.served_as) and "," not in settings.served_as  # commas part several names
        if named and probe.help.has("--alias") and "--alias" not in given:
            fixed += ["--alias", settings.served_as]
        if probe.help.has("--slots"):
            fixed.append("--slots")
        if not settings.serving and not given & _VERBOSITY and self._tells_placement_as_trace():
            fixed += ["--log-verbosity", "4"]
        if _drafts_only_with_cache(probe.help) and "--slot-save-path" not in given:
            # Without a folder these builds refuse to empty a slot; nothing is ever saved to it.
            fixed += ["--slot-save-path", f"{self._state_dir}/"]
        drafted = drafting_args(probe.help, build, drafting)
        if probe.help.of_ik and drafted and _slots_of(settings.args) != "1":
            # "Speculative decoding is currently limited to a single server slot" (server-context.cpp), and the server ends.
            raise UnsupportedError(
                f"llama-server {build} drafts with one slot only.", "Remove --parallel, or set it to 1."
            )
        # llama-server does not know ``--flag=value``.
        own = [word for flag, values in options_in(settings.args) for word in (flag, *values)]
        return (str(program), "--model", model_path, *own, *fixed, *drafted)

    def drafting_args(self, _model: str, drafting: Drafting, _settings: LaunchSettings) -> tuple[str, ...]:
        """See `autospec.backends.protocol.Backend`."""
        _, probe = self._probed()
        return drafting_args(probe.help, probe.build.version, drafting)

    def launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> LlamaHttpServer:
        """See `autospec.backends.protocol.Backend`."""
        command = self.command(model_path, drafting, settings)
        text = self._probed()[1].help
        erases_slot = _drafts_only_with_cache(text)

        def make(process: ServerProcess, port: int) -> LlamaHttpServer:
            server = LlamaHttpServer(
                process, drafting, port, self.name, erases_slot=erases_slot, serves=settings.serving
            )
            if text.of_ik:
                server.tokens = None  # its /completion gives no token ids
            return server

        return start_child(
            make,
            lambda port: (*command, "--host", HOST, "--port", str(port)),
            lambda server: server.verify(self.capabilities()),
            ready_timeout_s=settings.ready_timeout_s,
            state_dir=self._state_dir,
        )

    def devices(self) -> tuple[Device, ...] | None:
        """See `autospec.backends.registry.OnDevices`."""
        program, probe = self._probed()
        return list_devices(program) if probe.help.has("--list-devices") else None

    def _tells_placement_as_trace(self) -> bool:
        """True if there is a GPU and the build logs the place of the weights at the level "trace" only."""
        option = self._probed()[1].help.find("--log-verbosity")
        if option is None or "4: trace" not in option.text:
            return False
        if self._has_devices is None:
            self._has_devices = bool(self.devices())
        return self._has_devices

    def scorer(self, model_path: str, n_ctx: int) -> LlamaCppScorer:
        """See `autospec.backends.registry.Scores`."""
        return LlamaCppScorer.launch(model_path, n_ctx=n_ctx, state_dir=self._state_dir)

    def _probed(self) -> tuple[Path, binaries.Probe]:
        if self._program is None:
            self._program = find_llama_server(self._binary)
        if self._probe is None:
            self._probe = binaries.probe(self._program, self._state_dir)
        return self._program, self._probe


def _slots_of(args: Sequence[str]) -> str:
    """The user's number of slots; 1 without one, as ik_llama.cpp has it."""
    given = [values[0] for flag, values in options_in(args) if flag in ("-np", "--parallel")]
    return given[-1] if given else "1"


def _drafts_only_with_cache(text: HelpText) -> bool:
    """True for the builds of 2025, which silently do not draft for a request with ``cache_prompt: false``.

    Tried: b4372 and May 2025 do this; b9093, the first here with ``--spec-draft-n-max``, does not. Builds in between
    were not tried; emptying the slot does no harm there. ik_llama.cpp drafts without the cache (`server_slot::can_speculate`).
    """
    return text.has("--slot-save-path") and not text.has("--spec-draft-n-max") and not text.of_ik


def find_llama_server(binary: Path | None) -> Path:
    """The given program, or else the one on PATH.

    Raises:
        BackendMissingError: There is none.
    """
    wanted = "llama-server" if binary is None else str(binary.expanduser())
    found = shutil.which(wanted)
    if found is not None:
        return Path(found).absolute()
    if binary is None:
        raise BackendMissingError(
            "There is no llama-server on PATH.",
            "brew install llama.cpp, or set llama_server in the config to the program.",
        )
    raise BackendMissingError(
        f"The llama-server {binary} does not exist or cannot be run.", "Correct llama_server in the config."
    )
