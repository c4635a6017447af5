"""The backend `attached`: a server that runs already. autospec sends requests to it and never stops it."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from autospec.backends.attached.kinds import (
    FoundServer,
    ServerKind,
    Sets,
    behind_router,
    find_out,
    model_name,
)
from autospec.backends.openai_http import STATUS_TIMEOUT_S, ChatClient, JsonClient
from autospec.backends.process import listeners
from autospec.backends.protocol import Capabilities, Completion, LaunchSettings, Request, Tokens
from autospec.backends.records import new_launch_id
from autospec.backends.server import canary
from autospec.backends.streamed import StreamedClient
from autospec.cells import Build, options_in
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import (
    BackendMissingError,
    LaunchError,
    RequestError,
    SpeculationInactiveError,
    UnsupportedError,
    UsageError,
)
from autospec.hardware.gpu import Device

__all__ = ["KEY_VARIABLE", "Attached"]

# Not a setting: the key is never written to a file and never shown.
KEY_VARIABLE = "AUTOSPEC_ATTACHED_KEY"
# The kernel accepts a connection for a living server at once, however busy the server is.
_CONNECT_S = 2.0
_POLL_S = 0.1
# mlx_engine/generate.py of LM Studio 0.4 and later (lmstudio-bug-tracker 1519), for every request with a draft.
_BATCHES = "Speculative decoding is not supported for batched"
# Old llama-servers draft only for a request that may use the prompt cache, see `ChatClient.erases_slot`.
_OFF_LIMITS = {"speculative.n_max": 0}
# `tune` adds these itself; an attached server has its context already.
_IGNORED_SETTINGS = frozenset({"-c", "--ctx-size"})


class Attached:
    """The backend `attached`.

    Args:
        url: Base of the server's API, with or without ``/v1``; empty if none is set.
        remote: True to allow a server on another machine.
    """

    name = "attached"

    def __init__(self, url: str, *, remote: bool = False) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._remote = remote
        self._found: FoundServer | None = None

    def capabilities(self) -> Capabilities:
        """Ask the server what it is; cached for the life of the object.

        Raises:
            BackendMissingError: No URL is set, or no server answers there.
            UsageError: The URL is invalid, or on another machine without `remote`.
        """
        found = self._probed()
        settable = found.sets is not Sets.NOTHING
        # Two servers of one kind at two addresses may have different settings: they are two builds.
        digest = hashlib.sha256(f"{found.kind}\n{found.version}\n{self._url}\n{found.model_file}".encode())
        return Capabilities(
            build=Build(self.name, f"{found.kind} {found.version}", digest.hexdigest()[:16]),
            modes=frozenset({Mode.OFF, Mode.DRAFT_MODEL} if settable else {Mode.OFF}),
            drafting_per_request=settable,
            tells_drafts=found.tells_drafts,
            takes_p_min=found.sets is Sets.LIMITS,
            only=found.only,
            measures_only=not settable,
            notes=found.notes,
        )

    def command(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> tuple[str, ...]:
        """The address, and the fields of a request that set the drafting. See `autospec.backends.protocol.Backend`."""
        found = self._probed()
        if extra := [
            flag or values[0] for flag, values in options_in(settings.args) if flag not in _IGNORED_SETTINGS
        ]:
            raise UsageError(
                f"{extra[0]} cannot be given to a server that is already running.",
                "Remove the server arguments.",
            )
        fields = {**_model_field(found, model_path), **_drafting_fields(found, drafting)}
        return (self._url, *(f"{name}={value}" for name, value in fields.items()))

    def drafting_args(self, _model: str, drafting: Drafting, _settings: LaunchSettings) -> tuple[str, ...]:
        """See `autospec.backends.protocol.Backend`: the request's fields as ``name=value``."""
        fields = {} if drafting.is_off else _drafting_fields(self._probed(), drafting)
        return tuple(f"{name}={value}" for name, value in fields.items())

    def launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> AttachedServer:
        """A view on the server; a request has shown that the drafting is in force. See `Backend`."""
        self.command(model_path, drafting, settings)
        found = self._that_runs(model_path, settings.ready_timeout_s)
        server = AttachedServer(self._url, found, model_path, drafting)
        server.verify()
        return server

    def devices(self) -> tuple[Device, ...]:
        """See `autospec.backends.registry.OnDevices`: this backend launches nothing that must fit on a GPU."""
        return ()

    def as_it_runs(self) -> AsItRuns:
        """The same server, to be measured with whatever drafting it has."""
        return AsItRuns(self._url, remote=self._remote)

    def _probed(self) -> FoundServer:
        if self._found is None:
            _check(self._url, remote=self._remote)
            self._found = self._ask(find_out, STATUS_TIMEOUT_S)
        if self._found is None:
            raise BackendMissingError(
                f"No OpenAI-compatible server answers at {self._url}.",
                f"Start it, or correct attached_url. If it needs an API key, set {KEY_VARIABLE}.",
            )
        return self._found

    def _that_runs(self, model_path: str, timeout_s: float) -> FoundServer:
        """The server that runs the model: behind a router one of its servers, which may be loaded first."""
        found = self._probed()
        if found.kind is not ServerKind.LLAMA_ROUTER:
            return found
        name = model_name(model_path, found)
        behind = self._ask(partial(behind_router, name=name), timeout_s)
        if behind is None:
            raise LaunchError(
                f"The attached {found.kind} does not load {name}.", "Look in the server's log for the reason."
            )
        return behind

    def _ask(
        self, question: Callable[[Callable[[str], Any]], FoundServer | None], timeout_s: float
    ) -> FoundServer | None:
        client = JsonClient(self._url, "the server", lambda _s: None, lambda _n: (), _headers())
        with closing(client):
            return question(partial(client.get, timeout_s=timeout_s))


class AttachedServer:
    """The server, asked with one drafting. See `autospec.backends.protocol.Server`."""

    def __init__(self, url: str, found: FoundServer, model_path: str, drafting: Drafting) -> None:
        self.launch_id = new_launch_id()
        self.drafting = drafting
        self.base_url = url
        self.launch_ms = 0.0
        self.pids = listeners(_address(url)[1])
        self._found = found
        self._model_path = model_path
        self._fields = {**_model_field(found, model_path), **_drafting_fields(found, drafting)}
        self.command = (url, *(f"{name}={value}" for name, value in self._fields.items()))
        name = f"the {found.kind} at {url}"
        self._client: ChatClient | StreamedClient
        # Prediction runs the draft alone, which this server does not offer.
        self.tokens: Tokens | None = None
        if found.kind is ServerKind.LLAMA_SERVER:
            self._client = ChatClient(url, name, self._gone, lambda _n: (), _headers())
            self._client.erases_slot = found.sets is Sets.LIMITS
        else:
            self._client = StreamedClient(url, name, self._gone, lambda _n: (), _headers(), path=found.chat)

    @property
    def request_fields(self) -> Mapping[str, Any]:
        """See `autospec.backends.protocol.WithEveryRequest`: the name of the model, and the drafting."""
        return self._fields

    @property
    def request_headers(self) -> Mapping[str, str]:
        """See `autospec.backends.protocol.WithEveryRequest`: the key."""
        return _headers()

    def complete(self, request: Request) -> Completion:
        """See `autospec.backends.protocol.Server`."""
        return self._client.complete(request, self._fields)

    def with_drafting(self, drafting: Drafting) -> AttachedServer | None:
        """The same server, asked with another drafting; ``None`` if a request cannot set it."""
        if drafting == self.drafting:
            return self
        if self._found.sets is Sets.NOTHING:
            return None
        other = AttachedServer(self.base_url, self._found, self._model_path, drafting)
        other.verify()
        return other

    def stop(self) -> None:
        """Do nothing: autospec did not start the server."""

    def verify(self) -> None:
        """Check by a request that the drafting is in force; raises as `Attached.launch`."""
        try:
            drafted = self._client.complete(canary(self.drafting), self._fields | self._unlimited()).drafted
        except RequestError as error:
            if not self.drafting.is_off and _BATCHES in str(error):
                raise SpeculationInactiveError(
                    f"The attached {self._found.kind} cannot draft with {self.drafting.label} as long as the model may "
                    "answer several requests at once.",
                    "In LM Studio set the model's number of concurrent predictions to 1 and load it again.",
                ) from error
            raise LaunchError(f"The attached server failed its first request: {error}") from error
        if self.drafting.is_off and (
            drafted or (self._found.speculates and self._found.sets is Sets.NOTHING)
        ):
            raise SpeculationInactiveError(
                f"The attached {self._found.kind} drafts although drafting is off.",
                "`autospec bench` measures it as it is. To compare draftings, start it without drafting.",
            )
        if not self.drafting.is_off and self._found.tells_drafts and not drafted:
            raise SpeculationInactiveError(
                f"The attached {self._found.kind} does not draft although {self.drafting.label} was asked for.",
                "Look in the server's log for the reason. The draft's vocabulary must fit the main model.",
            )

    def _unlimited(self) -> dict[str, Any]:
        """Fields that let the canary draft whatever the limits are."""
        return {name: 0 for name in ("speculative.n_min", "speculative.p_min") if name in self._fields}

    def _gone(self, timeout_s: float) -> str | None:
        """Wait until no process listens any more (a sentence's end), or for the time (``None``)."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                socket.create_connection(_address(self.base_url), timeout=_CONNECT_S).close()
            except ConnectionRefusedError:
                return "stopped listening"
            except OSError:
                return None  # not reachable, or too busy to answer
            if time.monotonic() >= deadline:
                return None
            time.sleep(_POLL_S)


class AsItRuns(Attached):
    """A `Backend` for measuring only: every launch is the attached server with whatever drafting it has, unverified."""

    def launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> AttachedServer:
        """The server as it is."""
        self.command(model_path, drafting, settings)
        return AttachedServer(
            self._url, self._that_runs(model_path, settings.ready_timeout_s), model_path, OFF
        )


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _model_field(found: FoundServer, path: str) -> dict[str, Any]:
    name = model_name(path, found)
    return {"model": name} if name else {}


def _drafting_fields(found: FoundServer, drafting: Drafting) -> Mapping[str, Any]:
    """The fields of a request that set a drafting; `UnsupportedError` if this kind of server has none."""
    if drafting.is_off:
        return _OFF_LIMITS if found.sets is Sets.LIMITS else {}
    settable = drafting.mode is Mode.DRAFT_MODEL and drafting.draft is not None and not drafting.beside
    if not settable or found.sets is Sets.NOTHING:
        raise UnsupportedError(
            f"A request to the attached {found.kind} cannot ask for {drafting.label}.",
            "`autospec tune` with --backend llama-server or mlx finds the flags with which to start a server. "
            "`autospec bench` measures this server as it is.",
        )
    if found.sets is Sets.LIMITS:
        return {
            "speculative.n_max": drafting.n_max,
            "speculative.n_min": drafting.n_min or 0,
            "speculative.p_min": drafting.p_min or 0.0,
        }
    if found.only is not None and (drafting.n_max, drafting.p_min) != found.only:
        raise UnsupportedError(
            f"The attached {found.kind} always drafts with n_max {found.only[0]}"
            + (f" and p_min {found.only[1]:g}." if found.only[1] is not None else "."),
            "A request cannot change that.",
        )
    return {"draft_model": model_name(str(drafting.draft), found)}


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE, "")
    return {"authorization": f"Bearer {key}"} if key else {}


def _check(url: str, *, remote: bool) -> None:
    if not url:
        raise BackendMissingError(
            "No server is attached.", "Give its address with --url, or set attached_url."
        )
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UsageError(f"{url!r} is not the address of a server.", "Write it as http://127.0.0.1:1234.")
    if not (remote or _is_loopback(address.hostname)):
        raise UsageError(
            f"{address.hostname} is another machine, so the measured times would include the network.",
            "Set attached_remote = true to measure it nevertheless.",
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
