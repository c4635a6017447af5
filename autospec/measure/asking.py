"""Ask one prompt of one server, and keep what it took and how the machine was meanwhile."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from autospec.backends.protocol import Completion, Request, Server
from autospec.drafting import Drafting
from autospec.errors import RequestError
from autospec.hardware.state import MachineState, StateWatch
from autospec.measure.disturbances import LIMITS, Cause, cause_of, load_limit
from autospec.measure.measurements import Measurement, Pair, Phase
from autospec.prompts.suite import Prompt

__all__ = ["Asking", "busy", "disturbance", "measure"]


class Asking:
    """What is the same for every request of a study.

    Args:
        protocol: Digest of suite, lengths and temperature; stored with every measurement.
        max_tokens: Cap on each prompt's own.
        temperature: 0 is greedy.
        watch: Watches the machine around each request.

    Attributes:
        answers: Prompt id → the newest answer without drafting, its text; in memory only.
    """

    def __init__(self, protocol: str, max_tokens: int, temperature: float, watch: StateWatch) -> None:
        self.protocol = protocol
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.watch = watch
        self.answers: dict[str, str] = {}

    def request(self, prompt: Prompt) -> Request:
        """The request for one prompt of the suite."""
        return Request(
            messages=prompt.messages,
            max_tokens=min(prompt.max_tokens, self.max_tokens),
            temperature=self.temperature,
            tools=prompt.tools,
        )


def measure(
    asking: Asking,
    server: Server,
    prompt: Prompt,
    *,
    cell_key: str,
    phase: Phase,
    round_: int,
    compared: Drafting,
    position: int,
) -> Measurement:
    """Ask and time one prompt.

    Raises:
        RequestError: The request failed, or the answer has no tokens to time.
    """
    started_at = time.time()
    asking.watch.start()
    completion = server.complete(asking.request(prompt))
    state = asking.watch.finish()
    if server.drafting.is_off:
        asking.answers[prompt.id] = completion.text
    if completion.predicted_tokens < 1 or completion.wall_ms <= 0:
        raise RequestError(
            f"The server answered the prompt {prompt.id} with no tokens.",
            "Try the prompt by hand; a chat template may be missing (--jinja).",
        )
    return Measurement(
        cell_key=cell_key,
        protocol=asking.protocol,
        phase=phase,
        round=round_,
        drafting=server.drafting,
        compared=compared,
        prompt_id=prompt.id,
        launch_id=server.launch_id,
        position=position,
        started_at=started_at,
        machine=state.to_json(),
        **_figures(completion),
    )


def busy(state: MachineState) -> bool:
    """True if other programs, or the hypervisor, took more of the processor than a measurement can bear."""
    slack = LIMITS.slack_core_s / max(state.window_s, 1e-3)
    return state.other_load + state.steal > load_limit(state) + slack


def disturbance(pair: Pair, lasting: frozenset[Cause] = frozenset()) -> str:
    """Why a pair should be measured again; empty where nothing disturbed it. `cause_of` says more."""
    found = cause_of(pair, lasting)
    return "" if found is None else found.sentence


def _figures(completion: Completion) -> dict[str, Any]:
    return {
        "prompt_tokens": completion.prompt_tokens,
        "predicted_tokens": completion.predicted_tokens,
        "prompt_ms": completion.prompt_ms,
        "predicted_ms": completion.predicted_ms,
        "wall_ms": completion.wall_ms,
        "drafted": completion.drafted,
        "accepted": completion.accepted,
        "text_digest": hashlib.sha256(completion.text.encode()).hexdigest(),
        "finish_reason": completion.finish_reason,
    }
