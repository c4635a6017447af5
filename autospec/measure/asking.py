"""Ask one prompt of one server, and keep what it took and how the machine was meanwhile."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import Any

from autospec.backends.protocol import Completion, Request, Server
from autospec.drafting import Drafting
from autospec.errors import RequestError
from autospec.hardware.state import Limits, MachineState, StateWatch, disturbed
from autospec.measure.measurements import Measurement, Pair, Phase
from autospec.prompts.suite import Prompt

__all__ = ["Asking", "busy", "disturbance", "measure"]

_LIMITS = Limits()


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
    slack = _LIMITS.slack_core_s / max(state.window_s, 1e-3)
    return state.other_load + state.steal > _load_limit(state) + slack


def disturbance(pair: Pair) -> str:
    """Why a pair should be measured again; empty where nothing disturbed it.

    What is steady (a video playing all along) slows both halves and leaves their ratio; what changed between or
    within the halves does not. So power, heat and swapping count as `hardware.state.disturbed` says, and foreign
    load by its difference between the halves.
    """
    off, drafted = (MachineState(**half.machine) for half in (pair.off, pair.drafted))
    first, second = (off, drafted) if pair.off.position == 0 else (drafted, off)
    calm_first, calm_second = (replace(state, other_load=0.0, steal=0.0) for state in (first, second))
    reason = disturbed(calm_first) or disturbed(calm_second, calm_first)
    if reason:
        return reason
    limit = _load_limit(first)
    slack = sum(_LIMITS.slack_core_s / max(state.window_s, 1e-3) for state in (first, second))
    difference = abs(first.other_load + first.steal - second.other_load - second.steal)
    if difference > limit + slack:
        return f"The load of other processes changed by {difference:.1f} cores within the pair."
    return ""


def _load_limit(state: MachineState) -> float:
    return max(_LIMITS.other_load, _LIMITS.other_share * state.cores)


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
