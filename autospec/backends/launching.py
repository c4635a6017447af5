"""From a command line to a server that is ready and verified; shared by every backend that launches one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

from autospec.backends import in_force
from autospec.backends.child_server import LOG_SEARCHED, ChildServer, start_child
from autospec.backends.openai_http import ChatClient
from autospec.backends.placement import Placement, placement_of
from autospec.backends.process import ServerProcess
from autospec.backends.protocol import Capabilities, Completion, Request, Server, Tokens
from autospec.backends.token_http import HttpTokens
from autospec.drafting import Drafting

__all__ = ["HttpServer", "LaunchedServer", "launch"]


class LaunchedServer(ChildServer):
    """A server that answers with a drafting, whatever its API is. See `autospec.backends.protocol.Server`."""

    tokens: Tokens | None = None

    def __init__(self, process: ServerProcess, drafting: Drafting, port: int) -> None:
        super().__init__(process, port)
        self.drafting = drafting
        self.command = process.command

    @abstractmethod
    def complete(self, request: Request) -> Completion:
        """Ask and wait for the whole answer.

        Raises:
            ServerDiedError: The process ended.
            RequestError: Refused, timed out, cut off, or an answer that makes no sense.
        """

    @abstractmethod
    def verify(self, abilities: Capabilities) -> None:
        """Check that the drafting is in force.

        Raises:
            NotInForceError: It is not.
            LaunchError: The server did not survive its first request.
        """

    def with_drafting(self, drafting: Drafting) -> Server | None:
        """See `Server`: without drafting per request, another drafting takes another launch."""
        return self if drafting == self.drafting else None


class HttpServer(LaunchedServer):
    """One launch of a llama.cpp server.

    Args:
        process: The server's process.
        drafting: What it was launched with.
        name: What to call it in sentences.
        port: Where it listens.
        erases_slot: See `ChatClient`.

    Attributes:
        placement: Where the main model is, once the server is verified; ``None`` where its log does not tell.
    """

    def __init__(
        self, process: ServerProcess, drafting: Drafting, name: str, port: int, *, erases_slot: bool = False
    ) -> None:
        super().__init__(process, drafting, port)
        self._client = ChatClient(self.base_url, name, process.wait_ended, process.log_tail)
        self._client.erases_slot = erases_slot
        self.tokens = HttpTokens(self._client)
        self.placement: Placement | None = None

    def complete(self, request: Request) -> Completion:
        """See `LaunchedServer`."""
        return self._client.complete(request)

    def stop(self) -> None:
        """See `LaunchedServer`."""
        super().stop()
        self._client.close()

    def ready(self) -> str:
        """See `LaunchedServer`."""
        return self._client.ready()

    def verify(self, abilities: Capabilities) -> None:
        """See `LaunchedServer`."""
        self._client.tells_drafts = abilities.tells_drafts
        self.placement = placement_of(self._process.log_lines())
        build = f"{abilities.build.backend} {abilities.build.version}"
        with self._first_request():
            in_force.verify(self._client, self.drafting, build, self._process.log_tail(LOG_SEARCHED))


def launch(
    command: Callable[[int], tuple[str, ...]],
    drafting: Drafting,
    abilities: Capabilities,
    *,
    ready_timeout_s: float,
    state_dir: Path,
    erases_slot: bool = False,
    choose_port: Callable[[], int] | None = None,
) -> HttpServer:
    """`start_child` for a llama.cpp server.

    Args:
        command: The command line for a port.
        drafting: What the command line asks for.
        abilities: Of the build that is launched.
        ready_timeout_s: How long loading may take.
        state_dir: Where the launch's record and log go.
        erases_slot: True for builds that draft only with the prompt cache, see `ChatClient`.
        choose_port: Finds a port; `free_port` unless a test chooses.

    Raises:
        LaunchError: It did not get ready.
        NotInForceError: It runs with another drafting than asked for.
    """
    return start_child(
        lambda process, port: HttpServer(
            process, drafting, abilities.build.backend, port, erases_slot=erases_slot
        ),
        command,
        lambda server: server.verify(abilities),
        ready_timeout_s=ready_timeout_s,
        state_dir=state_dir,
        choose_port=choose_port,
    )
