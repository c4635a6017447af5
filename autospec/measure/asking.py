"""Send a prompt to a server, or several at once, and record its times and the state of the machine."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from autospec.backends.protocol import Completion, Request, Server, Slotted
from autospec.drafting import Drafting
from autospec.errors import RequestError
from autospec.hardware.gpu import on_metal
from autospec.hardware.state import MachineState, StateWatch
from autospec.measure.measurements import (
    CUT,
    Measurement,
    Phase,
    enough_tokens,
    token_ms_of,
)
from autospec.prompts.suite import Prompt
from autospec.recommendations import WITHIN_REASONING

__all__ = ["Asking", "OffLength", "measure"]


# About a second after its last work, macOS takes a model's memory from the GPU's reach, unless the build holds it there (residency sets).
# The next request pays for its return: on an M4 Pro, 63 ms became 320 ms for a model of 7 billion parameters in F16 (llama.cpp #10119).
_RESTED_S = 0.5
_WAKE_UP = Request(messages=({"role": "user", "content": "Hello"},), max_tokens=1)


# A request may take so many times as long as the slowest tokens so far suggest.
_PATIENCE = 4.0
# Tokens of text have 3 to 5 bytes; of some languages fewer.
_LEAST_TOKEN_BYTES = 2.0


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
        # The slowest that was seen: milliseconds for a token of a prompt, and of an answer.
        self._slowest_ms = (0.0, 0.0)
        # Prompt id, and whether drafting was off → the newest answer.
        self._answers: dict[tuple[str, bool], Completion] = {}
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
            self.watch.start()
            ask(_WAKE_UP)

    def worked(self, launch_id: str) -> None:
        """Note that a server has just answered."""
        self._worked_s[launch_id] = self._clock()

    def note(self, prompt_id: str, answer: Completion, *, off: bool) -> None:
        """Keep the newest answer of one side."""
        self._answers[prompt_id, off] = answer
        more = answer.predicted_tokens - 1
        self.learn(
            answer.prompt_ms / answer.prompt_tokens if answer.prompt_tokens > 0 else 0.0,
            answer.predicted_ms / more if more > 0 else 0.0,
        )

    def learn(self, prompt_token_ms: float, token_ms: float) -> None:
        """Learn how slow a token of a prompt, and of an answer, may be: the requests get the time for it."""
        prompt_ms, answer_ms = self._slowest_ms
        self._slowest_ms = max(prompt_ms, prompt_token_ms), max(answer_ms, token_ms)

    def answer(self, prompt_id: str, *, off: bool) -> Completion | None:
        """The newest answer of one side."""
        return self._answers.get((prompt_id, off))

    def longest_answer(self, prompt_id: str) -> str | None:
        """The newest text without drafting; that with drafting where the former was cut shorter."""
        off, drafted = self.answer(prompt_id, off=True), self.answer(prompt_id, off=False)
        if off is None:
            return None
        return drafted.text if drafted is not None and _is_cut(off, drafted) else off.text

    def request(self, prompt: Prompt, most_tokens: int | None = None) -> Request:
        """Build the request for one prompt of the suite, with an answer of at most `most_tokens`."""
        longest = min(prompt.max_tokens, self.max_tokens)
        request = Request(
            messages=prompt.messages,
            max_tokens=longest if most_tokens is None else min(longest, most_tokens),
            temperature=self.temperature,
            tools=prompt.tools,
            cached=self.cached,
        )
        prompt_ms, token_ms = self._slowest_ms
        expected_ms = prompt.size_bytes / _LEAST_TOKEN_BYTES * prompt_ms + request.max_tokens * token_ms
        return replace(request, timeout_s=max(request.timeout_s, _PATIENCE * expected_ms / 1000.0))


class OffLength:
    """How long the answers without drafting are that `asking` asks for: a slow model's are cut, see `enough_tokens`.

    They are whole where a part of the machine tells its energy, which cannot be continued; and for prompts with tools, as a cut call of
    a tool has another text.
    """

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._fastest_ms = math.nan
        self._tells_energy = False

    def note(self, off: Measurement) -> None:
        """Learn the time of a token from a half without drafting."""
        token_ms = token_ms_of(off)
        self._fastest_ms = token_ms if math.isnan(self._fastest_ms) else min(self._fastest_ms, token_ms)
        self.learn(MachineState.from_json(off.machine))

    def learn(self, state: MachineState) -> None:
        """Learn whether the machine tells its energy."""
        told = state.cpu_energy_j is not None or state.gpu_energy_j is not None
        self._tells_energy = self._tells_energy or told

    def most(self, prompt: Prompt, token_ms: float) -> int | None:
        """Most tokens of an answer in most pairs, if a token takes `token_ms`; ``None`` for a whole one."""
        return None if self._tells_energy or prompt.tools else enough_tokens(token_ms)

    def of(self, prompt: Prompt, *, paired: bool) -> int | None:
        """Most tokens of the next answer; ``None`` for a whole one.

        `paired` says that the half with drafting was measured before. If its text is not known, whole texts are compared.
        """
        compares = not paired or self._asking.answer(prompt.id, off=False) is not None
        return self.most(prompt, self._fastest_ms) if compares and not math.isnan(self._fastest_ms) else None

    def is_lost(self, prompt: Prompt, half: Measurement) -> bool:
        """Whether a stored half was cut, and its text is not known: that of the other half cannot be compared with it."""
        whole = self._asking.request(prompt).max_tokens
        cut = half.drafting.is_off and half.finish_reason == "length" and half.predicted_tokens < whole
        return cut and self._asking.answer(prompt.id, off=True) is None


def measure(
    asking: Asking,
    server: Server,
    prompt: Prompt,
    more: Sequence[Prompt] = (),
    *,
    cell_key: str,
    phase: Phase,
    round_: int,
    compared: Drafting,
    position: int,
    most_tokens: int | None = None,
) -> Measurement:
    """Send one prompt and time the answer; with `more` prompts, send all at once to a `Slotted` server.

    All answers are timed together then: their tokens, and the time until the last one is complete. `most_tokens` cuts the
    answer shorter than the study does.

    Raises:
        RequestError: A request failed, or an answer has no tokens. If a request failed, `finish` of the watch tells the machine's state.
    """
    prompts = (prompt, *more)

    def ask(requests: Sequence[Request]) -> Sequence[Completion]:
        if not more:
            return [server.complete(request) for request in requests]
        assert isinstance(server, Slotted)
        return server.complete_all(requests)

    asking.wake(server.launch_id, lambda request: ask([request]))
    started_at = time.time()
    asking.watch.start()
    answers = ask([asking.request(each, most_tokens) for each in prompts])
    asking.worked(server.launch_id)
    state = asking.watch.finish()
    if any(answer.predicted_tokens < 1 or answer.wall_ms <= 0 for answer in answers):
        if more:
            raise RequestError(f"One of {len(prompts)} answers that were asked for at once has no tokens.")
        raise RequestError(
            f"The answer to the prompt {prompt.id} has no tokens.",
            "Send the prompt by hand. The server may need --jinja for its chat template.",
        )
    texts = [answer.text for answer in answers]
    if not more:
        off = server.drafting.is_off
        asking.note(prompt.id, answers[0], off=off)
        first = asking.answer(prompt.id, off=not off) if position else None
        if first is not None and _agree(first, answers[0]):
            texts = [first.text]
    within = any(a.still_reasoning and a.finish_reason in CUT for a in answers)
    return Measurement(
        cell_key=cell_key,
        protocol=asking.protocol,
        phase=phase,
        round=round_,
        drafting=server.drafting,
        compared=compared,
        prompt_id=" ".join(each.id for each in prompts),
        launch_id=server.launch_id,
        position=position,
        started_at=started_at,
        prompt_tokens=sum(a.prompt_tokens for a in answers),
        predicted_tokens=sum(a.predicted_tokens for a in answers),
        prompt_ms=max(a.prompt_ms for a in answers),
        predicted_ms=max(a.predicted_ms for a in answers),
        wall_ms=max(a.wall_ms for a in answers),
        drafted=_sum([a.drafted for a in answers]),
        accepted=_sum([a.accepted for a in answers]),
        text_digest=hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        finish_reason="" if more else answers[0].finish_reason,
        machine=state.to_json() | ({WITHIN_REASONING: True} if within else {}),
    )


def _is_cut(shorter: Completion, longer: Completion) -> bool:
    return shorter.finish_reason in CUT and shorter.predicted_tokens < longer.predicted_tokens


def _agree(first: Completion, second: Completion) -> bool:
    """Whether one answer was cut, and is the beginning of the other."""
    # By text: builds of 2025 count the last accepted tokens of an answer that is cut, and do not send them.
    shorter, longer = sorted((first, second), key=lambda answer: len(answer.text))
    # A cut within a character leaves a replacement character.
    begins = longer.text.startswith(shorter.text.rstrip("\ufffd"))
    return shorter.finish_reason in CUT and begins


def _sum(counts: Sequence[int | None]) -> int | None:
    """The sum; ``None`` if one of them is unknown."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
