"""Is the drafting in force? Asked of every launch before it is measured: silence looks exactly like success.

llama.cpp starts without speculation when a draft's vocabulary does not fit, when `-md` stands alone (since
b9496) and when a context cannot be rolled back; it says so in its log at most. Two witnesses are heard: the
slots, and a canary request whose answer must, or must not, name drafted tokens.
"""

from __future__ import annotations

from autospec.backends.failures import speculation_refused
from autospec.backends.openai_http import ChatClient
from autospec.backends.protocol import Request
from autospec.drafting import Drafting
from autospec.errors import NotInForceError

__all__ = ["CANARY_TOKENS", "canary", "verify"]

# Long enough for several cycles; short enough for 2 s on a model of 10 tokens per second.
CANARY_TOKENS = 20
_CANARY_TIMEOUT_S = 300.0
# A first request warms up what a server allocates lazily. Its text is nobody's prompt, so that an n-gram pool learns
# nothing from it that a suite asks for; but some pools keep places in it, and prediction begins with it too.
_CANARY_TEXT = "Continue counting: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20"
_CANARY_EXTRA = {
    # In the eras that take them per request (to early 2026) these let the canary draft whatever the launch's limits are;
    # later builds ignore them.
    "speculative.p_min": 0.0,
    "speculative.n_min": 0,
}


def canary(drafting: Drafting) -> Request:
    """A request on whose answer a working draft model must have proposed something.

    Near its end an answer has no room for `n_min` tokens, so it is longer by as many.
    """
    return Request(
        messages=({"role": "user", "content": _CANARY_TEXT},),
        max_tokens=CANARY_TOKENS + (drafting.n_min or 0),
        timeout_s=_CANARY_TIMEOUT_S,
        ignore_eos=True,
    )


def verify(client: ChatClient, drafting: Drafting, build: str, log: tuple[str, ...]) -> None:
    """Check a server that is ready.

    Args:
        client: Its API.
        drafting: What it was launched with.
        build: Backend and build, for the sentence.
        log: What it printed while it started.

    Raises:
        NotInForceError: It speculates though it should not, or the other way round, or nobody can tell.
        RequestError: The canary failed.
    """
    slots = client.speculative()
    if slots is False and not drafting.is_off:
        raise _not_in_force(drafting, build, log)
    drafted = client.complete(canary(drafting), _CANARY_EXTRA).drafted
    if drafting.is_off:
        if slots or drafted:
            raise NotInForceError(
                f"{build} drafts although drafting is off.",
                "Take the speculation flags out of the server arguments.",
            )
        return
    if drafted or drafting.mode.draft_free:
        # An n-gram mode proposes only where text repeats, so the canary's silence says nothing: the slots have spoken.
        return
    if (slots is None) or (drafted == 0 and not drafting.p_min):
        raise _not_in_force(drafting, build, log)


def _not_in_force(drafting: Drafting, build: str, log: tuple[str, ...]) -> NotInForceError:
    reason = speculation_refused(log)
    return NotInForceError(
        f"{build} runs without speculation although {drafting.label} was asked for"
        + (f" ({reason})." if reason else "."),
        "autospec drafts --model … lists the drafts that fit." if drafting.draft else "Choose another mode.",
    )
