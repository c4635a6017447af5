"""The backend `llama-server`: the native program. Its own help tells which flags it has."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from autospec.backends import binaries
from autospec.backends.binaries import list_devices
from autospec.backends.failures import projector_refused
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
from autospec.backends.protocol import Capabilities, Cycle, LaunchSettings
from autospec.backends.server import LlamaHttpServer, start_child
from autospec.backends.user_args import args_of_draft, check
from autospec.catalog.model import loads_projector, without_projector
from autospec.cells import options_in, values_of
from autospec.drafting import Drafting, Mode
from autospec.errors import BackendMissingError, LaunchError, UnsupportedError
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
    """The backend `llama-server`."""

    name = "llama-server"

    def __init__(self, binary: Path | None, state_dir: Path) -> None:
        self._binary = binary
        self._state_dir = state_dir

    def capabilities(self) -> Capabilities:
        """See `autospec.backends.protocol.Backend`."""
        probe = self._probe
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
            cycle=Cycle.LLAMA_CPP_KEEPS_LAST if _keeps_last(probe.help) else Cycle.LLAMA_CPP,
            combines=lists_types(probe.help),
            engines=engines(probe.help),
        )

    def command(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> tuple[str, ...]:
        """See `autospec.backends.protocol.Backend`; the port is not part of it, nor is the folder for slots."""
        probe = self._probe
        build = probe.build.version
        # llama-server does not know ``--flag=value``.
        own = [word for flag, values in options_in(settings.args) for word in (flag, *values)]
        scaled = probe.help.find("--lora-scaled")
        if scaled is not None and scaled.arity == 2:
            own = _scales_apart(own)
        given = {
            name
            for option in check(probe.help, build, own, serving=settings.serving)
            for name in option.names
        }
        fixed: list[str] = []
        for option, value in () if settings.serving else _MEASURED_WITH:
            if probe.help.has(option) and option not in given:
                fixed += [option, value]
        if not settings.serving and "--kv-unified" not in given and _takes_one_slot_for_four(probe.help, own):
            fixed.append("--kv-unified")
        named = bool(settings.served_as) and "," not in settings.served_as  # commas part several names
        if named and probe.help.has("--alias") and "--alias" not in given:
            fixed += ["--alias", settings.served_as]
        # The slots tell whether a drafting is in force. Users' servers show them only where the build does so by itself, or
        # does not count drafted tokens, which tell it too.
        if probe.help.has("--slots") and not (settings.serving and probe.tells_drafts):
            fixed.append("--slots")
        if not settings.serving and not given & _VERBOSITY and self._tells_placement_as_trace():
            fixed += ["--log-verbosity", "4"]
        drafted = drafting_args(probe.help, build, drafting)
        if probe.help.of_ik and drafted and _slots_of(settings.args) != "1":
            # "Speculative decoding is currently limited to a single server slot" (server-context.cpp), and the server ends.
            raise UnsupportedError(
                f"llama-server {build} drafts with one slot only.", "Remove --parallel, or set it to 1."
            )
        return (str(self._program), "--model", model_path, *own, *fixed, *drafted)

    def drafting_args(self, _model: str, drafting: Drafting, _settings: LaunchSettings) -> tuple[str, ...]:
        """See `autospec.backends.protocol.Backend`."""
        return drafting_args(self._probe.help, self._probe.build.version, drafting)

    def launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> LlamaHttpServer:
        """See `autospec.backends.protocol.Backend`; where a build does not draft with a projector, it drafts without."""
        try:
            return self._launch(model_path, drafting, settings)
        except LaunchError as error:
            args = tuple(without_projector(settings.args))
            if drafting.is_off or not loads_projector(settings.args) or not projector_refused(error.log_tail):
                raise
        return self._launch(model_path, drafting, replace(settings, args=args))

    def _launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> LlamaHttpServer:
        command = self.command(model_path, drafting, settings)
        # Only for measuring: who can empty a user's slot can also write its prompt to the disk.
        erases_slot = not settings.serving and _drafts_only_with_cache(self._probe.help)
        slots = _SlotFolder() if erases_slot and "--slot-save-path" not in command else None

        def make(process: ServerProcess, port: int) -> LlamaHttpServer:
            server = _Launched(process, drafting, port, self.name, erases_slot=erases_slot)
            server.slot_folder = slots
            if self._probe.help.of_ik:
                server.tokens = None  # its /completion gives no token ids
            return server

        try:
            return start_child(
                make,
                lambda port: (
                    *command,
                    *(slots.args() if slots else ()),
                    "--host",
                    HOST,
                    "--port",
                    str(port),
                ),
                lambda server: server.verify(self.capabilities()),
                settings=settings,
                state_dir=self._state_dir,
            )
        except BaseException:
            if slots is not None:
                slots.remove()
            raise

    def devices(self) -> tuple[Device, ...] | None:
        """See `autospec.backends.registry.OnDevices`."""
        return list_devices(self._program) if self._probe.help.has("--list-devices") else None

    def _tells_placement_as_trace(self) -> bool:
        """True if there is a GPU and the build logs the place of the weights at the level "trace" only."""
        option = self._probe.help.find("--log-verbosity")
        return option is not None and "4: trace" in option.text and self._has_devices

    def settings_of_draft(self, settings: LaunchSettings) -> LaunchSettings:
        """See `autospec.backends.registry.DraftsAlone`."""
        return replace(settings, args=args_of_draft(settings.args))

    def scorer(self, model_path: str, n_ctx: int) -> LlamaCppScorer:
        """See `autospec.backends.registry.Scores`."""
        return LlamaCppScorer.launch(model_path, n_ctx=n_ctx, state_dir=self._state_dir)

    @cached_property
    def _program(self) -> Path:
        return find_llama_server(self._binary)

    @cached_property
    def _probe(self) -> binaries.Probe:
        return binaries.probe(self._program, self._state_dir)

    @cached_property
    def _has_devices(self) -> bool:
        return bool(self.devices())


class _SlotFolder:
    """An empty folder of a launch's own, removed with it."""

    # Builds of 2025 refuse to empty a slot without a folder for slots. Nothing is ever saved to it, but every client of the server
    # can ask it to write a file there, so it holds nothing of autospec's.

    def __init__(self) -> None:
        self._folder = Path(tempfile.gettempdir()) / f"autospec-slots-{secrets.token_hex(8)}"

    def args(self) -> tuple[str, ...]:
        """The flag, for a folder that exists now."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return ("--slot-save-path", f"{self._folder}/")

    def remove(self) -> None:
        """Remove the folder with its contents."""
        shutil.rmtree(self._folder, ignore_errors=True)


class _Launched(LlamaHttpServer):
    """A launch, with its folder for slots if it has one."""

    slot_folder: _SlotFolder | None = None

    def stop(self) -> None:
        """See `ChildServer.stop`."""
        super().stop()
        if self.slot_folder is not None:
            self.slot_folder.remove()


def _slots_of(args: Sequence[str]) -> str:
    """The user's number of slots; 1 without one, as ik_llama.cpp has it."""
    given = values_of(args, ("-np", "--parallel"))
    return given[-1] if given else "1"


def _takes_one_slot_for_four(text: HelpText, args: Sequence[str]) -> bool:
    """True for builds around the turn of 2025: one slot means four that share a cache, but not with a draft model."""
    # Seen with the sources of 13 December 2025; their message names the flag that keeps it at one.
    unified, slots = text.find("--kv-unified"), text.find("--parallel")
    return (
        unified is not None
        and "(default: false)" in unified.text
        and slots is not None
        and "(default: 1)" in slots.text
        and _slots_of(args) == "1"
    )


def _drafts_only_with_cache(text: HelpText) -> bool:
    """True for the builds of 2025, which silently do not draft for a request with ``cache_prompt: false``."""
    # Tried: b4372 and May 2025 do this; b9093, the first here with ``--spec-draft-n-max``, does not. Builds in between
    # were not tried; emptying the slot does no harm there. ik_llama.cpp drafts without the cache (`server_slot::can_speculate`).
    return text.has("--slot-save-path") and not text.has("--spec-draft-n-max") and not text.of_ik


def _keeps_last(text: HelpText) -> bool:
    """True for builds that propose the token at which p_min ends a draft."""
    # llama.cpp's pull request 22506 of 29 April 2026 discards it, and ik_llama.cpp's 1820 of 17 May; no build in between was tried. b9093 is
    # the first here with ``--spec-draft-n-max``. Copies of common/speculative.cpp of 2024 to early 2026 were read.
    return not text.has("--spec-draft-n-max") and not text.of_ik


def _scales_apart(args: Sequence[str]) -> list[str]:
    """The arguments for builds of 2025, which take ``--lora-scaled PATH SCALE``; later ones take ``PATH:SCALE``."""
    words: list[str] = []
    for flag, values in options_in(args):
        if flag == "--lora-scaled" and len(values) == 1:
            words += [flag, *values[0].rsplit(":", 1)]
        else:
            words += [flag, *values]
    return words


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
