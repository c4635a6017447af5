"""Send one prompt to one server, and record its times and the state of the machine."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from autospec.backends.protocol import Completion, Request, Server, Slotted
from autospec.drafting import Drafting
from autospec.errors import RequestError
from autospec.hardware.metal import on_metal
from autospec.hardware.state import MachineState, StateWatch
from autospec.measure.disturbances import LIMITS, Cause, cause_of, load_limit
from autospec.measure.measurements import Measurement, Pair, Phase
from autospec.prompts.suite import Prompt

__all__ = ["Asking", "busy", "disturbance", "measure", "measure_at_once"]


# About a second after its last work, macOS takes a model's memory from the GPU's reach, unless the build holds it there (residency sets).
# The next request pays for its return: on an M4 Pro, 63 ms became 320 ms for a model of 7 billion parameters in F16 (llama.cpp #10119).
_RESTED_S = 0.5
_WAKE_UP = Request(messages=({"role": "user", "content": "Hello"},), max_tokens=1)


class Asking:
    """Settings that all requests of a study share.

    Args:
        protocol: Digest of suite, lengths and temperature; stored with every measurement.
        max_tokens: Upper limit on each prompt's own `max_tokens`.
        temperature: 0 is greedy.
        watch: Records the state of the machine around each request.
        cached: Whether requests use and fill the server's prompt cache.
        rested_s: A server that has rested for so long is asked for one token before it is timed. Only on a Mac's GPU by default;
            elsewhere a rest costs nothing.
        clock: Seconds.
    """

    def __init__(
        self,
        protocol: str,
        max_tokens: int,
        temperature: float,
        watch: StateWatch,
        *,
        cached: bool = False,
        rested_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.protocol = protocol
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.watch = watch
        self.cached = cached
        # Prompt id → text of the newest answer without drafting.
        self.answers: dict[str, str] = {}
        self._rested_s = (_RESTED_S if on_metal() else math.inf) if rested_s is None else rested_s
        self._clock = clock
        self._worked_s: dict[str, float] = {}

    def wake(self, launch_id: str, ask: Callable[[Request], object]) -> None:
        """Ask a server for one token if it has rested; both halves of a pair are treated alike.

        Not where requests find their prompt in the server's cache, which this one would replace.

        Raises:
            RequestError: The request failed.
        """
        rested_s = self._clock() - self._worked_s.get(launch_id, -math.inf)
        if not self.cached and rested_s > self._rested_s:
            ask(_WAKE_UP)

    def worked(self, launch_id: str) -> None:
        """Note that a server has just answered."""
        self._worked_s[launch_id] = self._clock()

    def request(self, prompt: Prompt) -> Request:
        """Build the request for one prompt of the suite."""
        return Request(
            messages=prompt.messages,
            max_tokens=min(prompt.max_tokens, self.max_tokens),
            temperature=self.temperature,
            tools=prompt.tools,
            cached=self.cached,
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
    """Send one prompt and time the answer.

    Raises:
        RequestError: The request failed, or the answer has no tokens.
    """
    asking.wake(server.launch_id, server.complete)
    started_at = time.time()
    asking.watch.start()
    completion = server.complete(asking.request(prompt))
    asking.worked(server.launch_id)
    state = asking.watch.finish()
    if server.drafting.is_off:
        asking.answers[prompt.id] = completion.text
    if completion.predicted_tokens < 1 or completion.wall_ms <= 0:
        raise RequestError(
            f"The answer to the prompt {prompt.id} has no tokens.",
            "Send the prompt by hand. The server may need --jinja for its chat template.",
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


def measure_at_once(
    asking: Asking,
    server: Slotted,
    prompts: Sequence[Prompt],
    *,
    cell_key: str,
    phase: Phase,
    round_: int,
    compared: Drafting,
    position: int,
) -> Measurement:
    """Send several prompts at once and time all answers together: their tokens, and the time until the last one is complete.

    Raises:
        RequestError: A request failed, or an answer has no tokens.
    """
    asking.wake(server.launch_id, lambda request: server.complete_all([request]))
    started_at = time.time()
    asking.watch.start()
    answers = server.complete_all([asking.request(prompt) for prompt in prompts])
    asking.worked(server.launch_id)
    state = asking.watch.finish()
    if any(answer.predicted_tokens < 1 or answer.wall_ms <= 0 for answer in answers):
        raise RequestError(f"One of {len(prompts)} answers that were asked for at once has no tokens.")
    told = [(a.drafted, a.accepted) for a in answers if a.drafted is not None and a.accepted is not None]
    all_told = len(told) == len(answers)
    return Measurement(
        cell_key=cell_key,
        protocol=asking.protocol,
        phase=phase,
        round=round_,
        drafting=server.drafting,
        compared=compared,
        prompt_id=" ".join(prompt.id for prompt in prompts),
        launch_id=server.launch_id,
        position=position,
        started_at=started_at,
        prompt_tokens=sum(a.prompt_tokens for a in answers),
        predicted_tokens=sum(a.predicted_tokens for a in answers),
        prompt_ms=max(a.prompt_ms for a in answers),
        predicted_ms=max(a.predicted_ms for a in answers),
        wall_ms=max(a.wall_ms for a in answers),
        drafted=sum(drafted for drafted, _ in told) if all_told else None,
        accepted=sum(accepted for _, accepted in told) if all_told else None,
        text_digest=hashlib.sha256("\n".join(a.text for a in answers).encode()).hexdigest(),
        machine=state.to_json(),
    )


def busy(state: MachineState) -> bool:
    """Return True if other programs, or the hypervisor, use too much of the processor or the GPU for a measurement."""
    slack = LIMITS.slack_core_s / max(state.window_s, 1e-3)
    if (state.gpu_other_load or 0.0) > LIMITS.gpu_load:
        return True
    return state.other_load + state.steal > load_limit(state) + slack


def disturbance(pair: Pair, lasting: frozenset[Cause] = frozenset()) -> str:
    """Say why a pair should be measured again; empty if nothing disturbed it. See `cause_of`."""
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
