"""The backend `mlx`: `mlx_lm.server` of the installed mlx-lm. The number of drafted tokens goes with the request.

Read in mlx-lm 0.32.2 (mlx_lm/server.py, generate.py). It holds for later versions unless `mlx.child` finds otherwise:

* ``num_draft_tokens`` may change from request to request. Another ``draft_model``, also `null`, reloads both models.
* There is no p-min and no n-min; a cycle always proposes ``num_draft_tokens``, fewer only at the end of an answer.
* A loaded draft, a ``seed`` in the request and ``--kv-bits`` turn batching off. A draft that is loaded and not used
  (``num_draft_tokens: 0``) still computes every prompt and keeps its memory: it is not the baseline, which is launched
  without the draft.
* Answers hold no times and no drafted tokens: the stream gives the times, `mlx.child` counts inside the server.
* The prompt cache can give wrong text after a drafted request: `MlxPackage.cache_matches_key`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from autospec.backends.failures import classify
from autospec.backends.mlx.in_process import CANARY_TOKENS, MlxInProcess
from autospec.backends.mlx.in_process import CHILD as IN_PROCESS
from autospec.backends.process import HOST, ServerProcess, ask_child
from autospec.backends.protocol import Capabilities, Completion, Cycle, LaunchSettings, Request, Server
from autospec.backends.server import LOG_SEARCHED, LaunchedServer, canary, start_child
from autospec.backends.streamed import StreamedClient
from autospec.backends.user_args import check_count, options_of
from autospec.cells import Build, options_in
from autospec.drafting import Drafting, Mode
from autospec.errors import (
    BackendMissingError,
    LaunchError,
    ModelFileError,
    RequestError,
    ServerDiedError,
    SpeculationInactiveError,
    UnsupportedError,
    UsageError,
    install_line,
)
from autospec.files import replace_file

__all__ = ["CHILD", "Mlx", "MlxServer", "undraftable"]

CHILD = ("-m", "autospec.backends.mlx.child")
_NO_CACHE = ("--prompt-cache-size", "0")
_PACKAGES = ("mlx-lm", "mlx")
# Importing MLX and mlx_lm takes 2 s from a warm disk and 10 s on a busy machine.
_CHILD_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class MlxPackage:
    """The installed mlx-lm.

    Attributes:
        build: Backend, version of mlx-lm, and a hash over the files that pip installed of mlx-lm and MLX.
        options: Options of its server: name → whether a value follows.
        tells_drafts: True if `mlx.child` can make its server report drafted tokens.
        cache_matches_key: True if drafted requests may use the prompt cache; see `mlx.child`.
    """

    build: Build
    options: Mapping[str, bool]
    tells_drafts: bool
    cache_matches_key: bool

    @classmethod
    def installed(cls, state_dir: Path) -> MlxPackage:
        """Probe the installed package, or read the last probe of the same build from ``mlx.json`` in `state_dir`.

        Raises:
            BackendMissingError: It is not installed, is too old, or cannot be loaded on this machine.
        """
        package = cls._probed(state_dir)
        # The option came with 0.31 (mlx-lm #906), and every measured launch needs it.
        if _NO_CACHE[0] not in package.options:
            raise BackendMissingError(
                f"The server of {package.build.version} has no {_NO_CACHE[0]}, which autospec needs: mlx-lm has it since 0.31.",
                install_line("mlx"),
            )
        return package

    @classmethod
    def _probed(cls, state_dir: Path) -> MlxPackage:
        build = _build()
        memory = state_dir / "mlx.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(memory.read_text(encoding="utf-8"))
            if Build(**known.pop("build")) == build:
                return cls(build=build, **known)
        try:
            told = ask_child(*CHILD, "--probe", timeout_s=_CHILD_TIMEOUT_S)
        except ValueError as error:
            raise BackendMissingError(
                f"mlx-lm is installed but cannot be loaded: {error}.", install_line("mlx")
            ) from error
        package = cls(build=build, **told)
        with suppress(OSError):  # the next process probes again
            replace_file(memory, json.dumps(asdict(package)), durable=False)
        return package


def undraftable(stuck: list[str], rotating: list[str]) -> str:
    """Why these kinds of cache cannot be rolled back after rejected tokens; empty without any."""
    if stuck:
        return f"its layers keep a state that cannot be rolled back ({', '.join(stuck)})"
    if rotating:
        return (
            f"its sliding-window caches cannot be rolled back once the window is full ({', '.join(rotating)})"
        )
    return ""


def _build() -> Build:
    digest = hashlib.sha256()
    try:
        for name in _PACKAGES:
            found = metadata.distribution(name)
            digest.update(f"{name} {found.version}\n{found.read_text('RECORD')}\n".encode())
        version = metadata.version(_PACKAGES[0])
    except metadata.PackageNotFoundError as error:
        raise BackendMissingError(f"{error.name} is not installed.", install_line("mlx")) from error
    return Build("mlx", f"mlx-lm-{version}", digest.hexdigest()[:16])


_LAUNCHED = "default_model"
# Options that `speculative_generate_step` applies to both models; adapters and templates are the main model's alone.
_OF_BOTH = frozenset({"--kv-bits", "--kv-group-size", "--quantized-kv-start", "--prefill-step-size"})
# Options that autospec sets itself.
_OWNED = frozenset(
    (
        "--model",
        "--draft-model",
        "--num-draft-tokens",
        "--host",
        "--port",
        "--help",
        "--pipeline",
        _NO_CACHE[0],
    )
)


class Mlx:
    """The backend `mlx`; `state_dir` takes records, logs and the last probe."""

    name = "mlx"

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._unrewindable: dict[str, str] = {}

    def capabilities(self) -> Capabilities:
        """See `autospec.backends.protocol.Backend`."""
        package = self._package
        notes = []
        if not package.cache_matches_key:
            notes.append(
                f"The prompt cache of {package.build.version} can give wrong text after a drafted request. So drafting "
                f"needs {' '.join(_NO_CACHE)}, and the server computes the whole chat again for every turn."
            )
        if not package.tells_drafts:
            notes.append("This mlx-lm does not report how many drafted tokens were accepted.")
        if sys.platform != "darwin":
            notes.append("MLX computes on the CPU here; its speeds say nothing about a Mac.")
        return Capabilities(
            build=package.build,
            modes=frozenset({Mode.OFF, Mode.DRAFT_MODEL}),
            drafting_per_request=True,
            tells_drafts=package.tells_drafts,
            takes_p_min=False,
            notes=tuple(notes),
            cycle=Cycle.MLX_LM,
            drafts_uncached=not package.cache_matches_key,
        )

    def command(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> tuple[str, ...]:
        """The command line of `mlx_lm.server` as a user would run it; starts nothing.

        autospec's own launch counts drafted tokens too. For measuring it turns the prompt cache off, also without
        drafting, so that every request is computed as a whole.

        Raises:
            UnsupportedError: No such mode or server argument, or a model whose cache cannot be rolled back.
            UsageError: A server argument that autospec sets itself, or one without its value.
            ModelFileError: mlx_lm cannot load a model from the folder.
        """
        return (sys.executable, "-m", "mlx_lm", "server", *self._arguments(model_path, drafting, settings))

    def drafting_args(
        self, model_path: str, drafting: Drafting, _settings: LaunchSettings
    ) -> tuple[str, ...]:
        """See `autospec.backends.protocol.Backend`."""
        if drafting.is_off:
            return ()
        if drafting.mode is not Mode.DRAFT_MODEL or drafting.n_min or drafting.p_min or drafting.beside:
            raise UnsupportedError(
                f"mlx_lm.server does not offer {drafting.label}.",
                "It drafts with a draft model and a number of tokens, and has no p-min, no draft-min and no n-gram modes.",
            )
        if why := self._cannot_rewind(model_path):
            raise UnsupportedError(
                f"mlx_lm cannot draft for {Path(model_path).name}: {why}.", "Run it without drafting."
            )
        drafted = ("--draft-model", str(drafting.draft), "--num-draft-tokens", str(drafting.n_max))
        return (*(() if self._package.cache_matches_key else _NO_CACHE), *drafted)

    def launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> MlxServer:
        """See `autospec.backends.protocol.Backend`."""
        arguments = self._arguments(model_path, drafting, settings)
        _check_folders(model_path, drafting)
        # Users' chats need the prompt cache. Where it is wrong after a drafted request, `drafting_args` turns it off; without
        # a draft nothing drafts, which `request_fields` ensures.
        cache = () if settings.serving else _NO_CACHE
        return start_child(
            lambda process, port: MlxServer(process, drafting, port, settings.ready_timeout_s),
            lambda port: (
                *(sys.executable, *CHILD, "serve", *arguments),
                *(*cache, "--host", HOST, "--port", str(port)),
            ),
            lambda server: server.verify(self.capabilities()),
            settings=settings,
            state_dir=self._state_dir,
        )

    def request_fields(self, drafting: Drafting) -> Mapping[str, Any]:
        """The fields that replace a client's own: the launch's models, and how many tokens to draft.

        ``default_model`` is mlx_lm.server's name for the models of its command line, also for "no draft"
        (`ModelProvider.load`). It would load any other name in place of both models, or look for it on the Hugging
        Face hub. Zero tokens with a draft in memory drafts nothing, but it is not the measured baseline
        (`autospec.tuning.calibration`). ``adapters`` is a path that versions before 0.32 load.
        """
        models = {"model": _LAUNCHED, "draft_model": _LAUNCHED, "adapters": None}
        return {**models, "num_draft_tokens": 0 if drafting.is_off else drafting.n_max}

    def in_process(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> MlxInProcess:
        """See `autospec.backends.registry.InProcess`; the child answers with `mlx_lm.stream_generate`."""
        self._arguments(model_path, drafting, settings)  # refuses what the server refuses
        _check_folders(model_path, drafting)
        models: tuple[str, ...] = ("--model", model_path)
        number: tuple[str, ...] = ()
        if not drafting.is_off:
            models = (*models, "--draft-model", str(drafting.draft))
            number = ("--num-draft-tokens", str(drafting.n_max))
        by_hand = (sys.executable, "-m", "mlx_lm", "generate", *models, *number)
        return start_child(
            lambda process, port: MlxInProcess(process, drafting, port, command=by_hand),
            lambda port: (
                *(sys.executable, *IN_PROCESS, *models, *settings.args),
                *("--host", HOST, "--port", str(port)),
            ),
            lambda server: server.verify(self.capabilities()),
            settings=settings,
            state_dir=self._state_dir,
        )

    def settings_of_draft(self, settings: LaunchSettings) -> LaunchSettings:
        """See `autospec.backends.registry.DraftsAlone`: the settings of cache and prompt processing."""
        options = options_in(settings.args)
        kept = tuple(word for flag, values in options if flag in _OF_BOTH for word in (flag, *values))
        return LaunchSettings(args=kept, ready_timeout_s=settings.ready_timeout_s)

    def _arguments(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> tuple[str, ...]:
        package = self._package
        for name, values in options_of("mlx_lm.server", settings.args):
            if name in _OWNED:
                raise UsageError(
                    f"{name} cannot be passed to mlx_lm.server: autospec sets it.", f"Remove {name}."
                )
            if name not in package.options:
                raise UnsupportedError(
                    f"mlx_lm.server of {package.build.version} does not know {name}.",
                    "See mlx_lm.server --help.",
                )
            check_count("mlx_lm.server", name, values, int(package.options[name]))
        return ("--model", model_path, *settings.args, *self.drafting_args(model_path, drafting, settings))

    def _cannot_rewind(self, model_path: str) -> str:
        """Why a model's cache cannot be rolled back after rejected tokens; empty if it can."""
        if model_path not in self._unrewindable:
            try:
                told = ask_child(*CHILD, "--caches", model_path, timeout_s=_CHILD_TIMEOUT_S)
            except ValueError as error:
                raise ModelFileError(f"mlx_lm cannot load a model from {model_path}: {error}.") from error
            self._unrewindable[model_path] = undraftable(told["stuck"], told["rotating"])
        return self._unrewindable[model_path]

    @cached_property
    def _package(self) -> MlxPackage:
        return MlxPackage.installed(self._state_dir)


def _check_folders(model_path: str, drafting: Drafting) -> None:
    """Refuse paths that are no model folder: mlx_lm takes them for names on the Hugging Face hub and downloads them."""
    for what, path in (("model", model_path), ("draft", drafting.draft)):
        if path is not None and not (Path(path) / "config.json").is_file():
            raise LaunchError(
                f"The {what} {path} could not be loaded: it is not a folder with a config.json.",
                "`autospec models` lists the models that were found.",
                permanent=True,
            )


# When the thread that loads has died, the server still runs and answers 404; later its process ends (`mlx.child`).
_DIED = re.compile(r"generation thread died: (?P<why>.+)")
_MEMORY = re.compile(
    r"out of memory|insufficient memory|unable to allocate|bad_alloc|attempting to allocate", re.IGNORECASE
)
_REFUSED = re.compile(
    r"(?P<why>Draft model tokenizer does not match|Speculative decoding (?:requires|does not support)[^.\n]*)"
)


class MlxServer(LaunchedServer):
    """A running `mlx_lm.server`; its first request waits at most `load_timeout_s` until the model is loaded."""

    def __init__(self, process: ServerProcess, drafting: Drafting, port: int, load_timeout_s: float) -> None:
        super().__init__(process, drafting, port)
        self._client: StreamedClient = StreamedClient(
            self.base_url, "mlx_lm.server", process.wait_ended, process.log_tail
        )
        self._load_timeout_s = load_timeout_s
        self._tells_drafts = False
        self.unused = False

    def complete(self, request: Request) -> Completion:
        """See `LaunchedServer`. Prompt processing ends at the first text, which may come some tokens late."""
        extra = (
            {} if self.drafting.is_off else {"num_draft_tokens": 0 if self.unused else self.drafting.n_max}
        )
        done = self._client.complete(request, extra)
        if not self._tells_drafts:
            return replace(done, drafted=None, accepted=None)
        # Requests without drafting may be batched, and are not counted then.
        return replace(done, drafted=done.drafted or 0, accepted=done.accepted or 0)

    def with_drafting(self, drafting: Drafting) -> Server | None:
        """A view on this process for another number of tokens. Another draft needs a launch: it reloads both models."""
        if drafting == self.drafting and not self.unused:
            return self
        if self.drafting.is_off or (drafting.mode, drafting.draft, drafting.beside) != (
            self.drafting.mode,
            self.drafting.draft,
            (),
        ):
            return None
        view = copy.copy(self)
        view.drafting = drafting
        view.unused = False
        return view

    def idle(self) -> Server:
        """See `autospec.backends.registry.Idles`."""
        view = copy.copy(self)
        view.unused = True
        return view

    def verify(self, abilities: Capabilities) -> None:
        """Wait until the models are loaded, and check that the draft drafts; see `LaunchedServer`.

        A thread of its own answers /health while the models load, and with 503 when the thread that loads and generates
        has died. So only a request shows whether the models could be loaded.
        """
        self._tells_drafts = abilities.tells_drafts
        question = replace(canary(self.drafting), max_tokens=CANARY_TOKENS, timeout_s=self._load_timeout_s)
        try:
            done = self.complete(question)
        except RequestError as error:
            raise self._failure(error) from error
        self.launch_ms += done.wall_ms
        refused = _REFUSED.search("\n".join(self._process.log_tail(LOG_SEARCHED)))
        told_otherwise = done.drafted is not None and (done.drafted == 0) is not self.drafting.is_off
        if refused is not None or told_otherwise:
            raise SpeculationInactiveError(
                f"{abilities.build.backend} {abilities.build.version} does not draft with {self.drafting.label} as asked"
                + (f" ({refused['why']})." if refused else f": it drafted {done.drafted} tokens."),
                "`autospec drafts --model NAME` lists the drafts that fit.",
            )

    def _failure(self, error: RequestError) -> LaunchError | SpeculationInactiveError:
        """The error for a failed first request."""
        log = self._process.log_tail(LOG_SEARCHED)
        text = "\n".join(log)
        tail = self._process.log_tail()
        if (refused := _REFUSED.search(text)) is not None:
            return SpeculationInactiveError(
                f"mlx_lm.server refuses {self.drafting.label}: {refused['why']}.",
                "`autospec drafts --model NAME` lists the drafts that fit.",
            )
        died = _DIED.search(text)
        if died is None and isinstance(error, ServerDiedError):
            ended = self._process.wait_ended(0.0)
            if ended is not None:
                return classify(ended, log).error(tail)
        if _MEMORY.search(text):
            return LaunchError(
                "There was not enough memory for the models and their caches.",
                "Close other programs, or choose smaller models.",
                log_tail=tail,
            )
        if died is not None:
            what = "The model" if self.drafting.is_off else "The model or its draft"
            return LaunchError(
                f"{what} could not be loaded by mlx_lm: {died['why'].rstrip('.')}.",
                "Download it again, or update mlx-lm.",
                log_tail=tail,
                permanent=True,
            )
        return LaunchError(
            f"The server started but failed its first request: {error.message}", error.hint, log_tail=tail
        )
