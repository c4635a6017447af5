"""One launch of `mlx_lm.server`. Its answers hold no times, so it is asked by streaming; drafting is in each request."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

from autospec.backends.failures import classify
from autospec.backends.process import ServerProcess
from autospec.backends.protocol import Capabilities, Completion, Request, Server
from autospec.backends.server import LOG_SEARCHED, LaunchedServer, canary
from autospec.backends.streamed import StreamedClient
from autospec.drafting import Drafting
from autospec.errors import LaunchError, RequestError, ServerDiedError, SpeculationInactiveError

__all__ = ["MlxServer"]

# Two cycles of a draft that proposes two tokens; a CPU takes a second for each token.
_CANARY_TOKENS = 6
# When the thread that computes has died, the server still runs and answers 404.
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
        question = replace(canary(self.drafting), max_tokens=_CANARY_TOKENS, timeout_s=self._load_timeout_s)
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
                "autospec drafts --model … lists the drafts that fit.",
            )

    def _failure(self, error: RequestError) -> LaunchError | SpeculationInactiveError:
        """The error for a failed first request."""
        log = self._process.log_tail(LOG_SEARCHED)
        text = "\n".join(log)
        tail = self._process.log_tail()
        if (refused := _REFUSED.search(text)) is not None:
            return SpeculationInactiveError(
                f"mlx_lm.server refuses {self.drafting.label}: {refused['why']}.",
                "autospec drafts --model … lists the drafts that fit.",
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
