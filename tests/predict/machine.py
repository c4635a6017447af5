"""A machine on paper: a backend whose servers answer in tokens and take computed times, with every truth known.

For the logic that stands on prediction (search, benches), where a real server would need minutes for each run. What
real servers do is tested in test_recording.py and test_ngram.py.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np

from autospec.backends.protocol import (
    Capabilities,
    Completion,
    LaunchSettings,
    Proposal,
    Request,
    TokenAnswer,
)
from autospec.cells import Build
from autospec.drafting import Drafting, Mode
from autospec.predict.ngram import Pool, pool_of, replay_tokens
from autospec.predict.profile import Recording

# Longer than any n_max that is asked for.
_AFTER_MISS = 64
_VOCABULARY = 5000
_PROMPT_TOKENS = 60
_SERVED = " within a server"


@dataclass(frozen=True)
class Costs:
    """What a machine takes, in milliseconds.

    Attributes:
        main: Tokens in a batch → time of the main model.
        draft: The same of the draft.
        prompt_ms: Per prompt token of the main model.
        draft_prompt_ms: Of the draft.
        noise: Standard deviation of the log of a request's time.
        stalls: Part of the requests that take 1.3 to 3 times as long, because something else woke up.
        luck: Of the log of a launch's speed, the same for all its requests.
        drift: The log of the machine's speed wanders by so much over a hundred requests.
        deep_ms: Per token of a batch and token before it, of the main model: attention.
        draft_deep_ms: Of the draft.
    """

    main: Callable[[int], float] = lambda k: 40.0 + 1.5 * (k - 1)
    draft: Callable[[int], float] = lambda k: 4.0 + 0.1 * (k - 1)
    prompt_ms: float = 1.0
    draft_prompt_ms: float = 0.1
    noise: float = 0.01
    stalls: float = 0.0
    luck: float = 0.0
    drift: float = 0.0
    deep_ms: float = 0.0
    draft_deep_ms: float = 0.0

    def cycle_ms(self, proposed: int, before: int) -> float:
        """Both models' time to verify so many tokens behind so many."""
        n = proposed + 1
        deep_ms = (self.deep_ms + self.draft_deep_ms) * n * before
        return self.main(n) + self.draft(n) + deep_ms

    def plain_ms(self, tokens: int, before: int) -> float:
        """The main model's time for so many tokens one by one, the first behind so many."""
        return tokens * self.main(1) + self.deep_ms * sum(range(before, before + tokens))


@dataclass(frozen=True)
class Text:
    """A prompt's truth: what the main model says, and what the draft would."""

    prompt_ids: tuple[int, ...]
    answer: tuple[int, ...]
    hits: np.ndarray
    p: np.ndarray
    after_miss: np.ndarray

    def cut(self, n: int) -> Text:
        """The same, whose answer ends after n tokens."""
        if n >= len(self.answer):
            return self
        return Text(self.prompt_ids, self.answer[:n], self.hits[:n], self.p[:n], self.after_miss[:n])


@dataclass
class Machine:
    """A backend. `acceptance` gives the draft's chance to be right for a prompt's text; prompts differ by `spread`.

    Attributes:
        acceptance: Prompt text → chance, 0…1.
        worse: Draft's path → what its chance is less than `acceptance`, for machines with several drafts.
        served_worse: What any draft's chance is less within a server than alone: what no pass can see.
        costs: Times.
        served: Times of cycles within a launch that drafts, where they are others than those of batches alone.
        spread: Standard deviation by which prompts differ in it.
        repeats: Part of the answer's tokens that copy an earlier stretch: what n-gram modes live on.
        modes: What the build offers.
        main_path: Any other model that is launched is a draft.
        tells_tokens: False for a build that cannot be asked in tokens.
        combines: True for a build that takes several modes in one launch.
        uncut: True for a main model whose cache cannot be cut: a partly accepted draft is computed again.
        launched: Model and drafting of every launch, in order.
    """

    acceptance: Callable[[str], float] = lambda _: 0.8
    worse: Mapping[str, float] = field(default_factory=dict)
    served_worse: float = 0.0
    costs: Costs = field(default_factory=Costs)
    served: Costs | None = None
    spread: float = 0.05
    repeats: float = 0.0
    modes: frozenset[Mode] = frozenset({Mode.OFF, Mode.DRAFT_MODEL})
    main_path: str = ""
    tells_tokens: bool = True
    combines: bool = False
    uncut: bool = False
    seed: int = 0
    launched: list[tuple[str, Drafting]] = field(default_factory=list)
    spent_ms: float = 0.0
    name: str = "machine"

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        self._numbers = itertools.count()
        self._texts: dict[tuple[str, int, str], Text] = {}
        self._asked: dict[tuple[int, ...], tuple[str, int]] = {}
        self._longest: dict[str, int] = {}  # of the answers to these words
        self.wander = 0.0

    def capabilities(self) -> Capabilities:
        """The modes."""
        return Capabilities(Build(self.name, "b1", "f" * 8), self.modes, combines=self.combines)

    def command(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> tuple[str, ...]:
        """A command line that names all of it."""
        drafted = self.drafting_args(model_path, drafting, settings)
        return ("machine", "-m", model_path, *settings.args, *drafted)

    def drafting_args(
        self, _model_path: str, drafting: Drafting, _settings: LaunchSettings
    ) -> tuple[str, ...]:
        """A word for each parameter."""
        return () if drafting.is_off else tuple(f"--{k}={v}" for k, v in drafting.to_json().items())

    def launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> MachineServer:
        """Start a server."""
        del settings
        self.launched.append((model_path, drafting))
        luck = float(np.exp(self._random.normal(0.0, self.costs.luck)))
        alone = model_path if model_path != self.main_path else ""
        return MachineServer(self, f"launch-{next(self._numbers)}", drafting, luck, alone)

    def main_launches(self) -> list[Drafting]:
        """Draftings of the main model's launches, off left out."""
        return [d for path, d in self.launched if path == self.main_path and not d.is_off]

    def text(self, words: str, max_tokens: int, draft: str = "") -> Text:
        """The truth of a prompt, and of one draft about it; a shorter answer is the beginning of a longer one before it."""
        longest = self._longest[words] = max(max_tokens, self._longest.get(words, 0))
        key = (words, longest, draft)
        if key not in self._texts:
            self._texts[key] = self._make(words, longest, draft)
            self._asked[self._texts[key].prompt_ids] = (words, longest)
        return self._texts[key].cut(max_tokens)

    def find(self, ids: Sequence[int], draft: str = "") -> tuple[Text, int]:
        """The text that begins so, and how many tokens of its answer are among `ids`."""
        asked = self._asked[tuple(ids[:_PROMPT_TOKENS])]
        return self.text(*asked, draft), len(ids) - _PROMPT_TOKENS

    def _make(self, words: str, n: int, draft: str) -> Text:
        # By its name: the folder is another in every run.
        random, of_draft = (self._seeded(w) for w in (words, f"{words}/{PurePath(draft).name}"))
        prompt = [int(i) for i in random.integers(0, _VOCABULARY, _PROMPT_TOKENS)]
        answer: list[int] = []
        while len(answer) < n:
            written = prompt + answer
            if random.random() < self.repeats / 20:
                start = int(random.integers(0, len(written) - 20))
                answer += written[start : start + 20]
            else:
                answer.append(int(random.integers(0, _VOCABULARY)))
        chance = self.acceptance(words) + random.normal(0.0, self.spread)
        chance -= self.worse.get(draft.removesuffix(_SERVED), 0.0)
        chance -= self.served_worse if draft.endswith(_SERVED) else 0.0
        hits = of_draft.random(n) < np.clip(chance, 0.02, 0.995)
        p = np.where(hits, of_draft.beta(6, 1.2, n), of_draft.beta(2, 2.5, n))
        return Text(tuple(prompt), tuple(answer[:n]), hits, p, of_draft.beta(3, 2, (n, _AFTER_MISS)))

    def _seeded(self, words: str) -> np.random.Generator:
        return np.random.default_rng(list(hashlib.sha256(f"{self.seed}/{words}".encode()).digest()[:8]))

    def took(self, ms: float, luck: float) -> float:
        """A time as measured: with noise, drift and the launch's luck."""
        self.wander += self._random.normal(0.0, self.costs.drift / 10)
        noisy = ms * luck * float(np.exp(self.wander + self._random.normal(0.0, self.costs.noise)))
        if self._random.random() < self.costs.stalls:
            noisy *= self._random.uniform(1.3, 3.0)
        self.spent_ms += noisy
        return noisy


@dataclass
class MachineServer:
    """One launch."""

    machine: Machine
    launch_id: str
    drafting: Drafting
    luck: float
    alone: str = ""
    base_url: str = "http://127.0.0.1:1"
    command: tuple[str, ...] = ("machine",)
    launch_ms: float = 1000.0
    pids: frozenset[int] = frozenset()
    _pool: Pool | None = None

    @property
    def tokens(self) -> MachineTokens | None:
        """The model in token ids."""
        return MachineTokens(self) if self.machine.tells_tokens else None

    def complete(self, request: Request) -> Completion:
        """Answer at once, and say how long it would have taken."""
        words = json.dumps(list(request.messages))
        draft = self.drafting.draft or ""
        if draft and self.machine.served_worse:
            draft += _SERVED
        text = self.machine.text(words, request.max_tokens, draft)
        prompt_ms, generate_ms, drafted, accepted = self.exact(text, request.max_tokens)
        took = self.machine.took(prompt_ms + generate_ms, self.luck) / (prompt_ms + generate_ms)
        return Completion(
            text=" ".join(map(str, text.answer)),
            prompt_tokens=len(text.prompt_ids),
            predicted_tokens=len(text.answer),
            prompt_ms=prompt_ms * took,
            predicted_ms=generate_ms * took,
            wall_ms=(prompt_ms + generate_ms) * took,
            drafted=drafted,
            accepted=accepted,
            finish_reason="length",
        )

    def exact(self, text: Text, max_tokens: int) -> tuple[float, float, int, int]:
        """Without noise: milliseconds for the prompt and for the rest, tokens drafted and accepted."""
        costs = self.machine.costs
        prompt_ms = costs.prompt_ms * len(text.prompt_ids)
        if self.drafting.is_off:
            return prompt_ms, costs.plain_ms(len(text.answer) - 1, len(text.prompt_ids)), 0, 0
        if self.drafting.mode.draft_free:
            return prompt_ms, *self._tokens_alone(text, max_tokens)
        return prompt_ms + costs.draft_prompt_ms * len(text.prompt_ids), *self._drafting(text)

    def with_drafting(self, drafting: Drafting) -> MachineServer | None:
        """Itself, or nothing: another drafting takes another launch."""
        return self if drafting == self.drafting else None

    def stop(self) -> None:
        """End it."""

    def _drafting(self, text: Text) -> tuple[float, int, int]:
        """The cycles one by one, as the server goes: not the arithmetic that is tested against it."""
        costs, n = self.machine.served or self.machine.costs, len(text.answer)
        most, least = self.drafting.n_max or 1, self.drafting.p_min or 0.0
        fewest = self.drafting.n_min or 0
        total, drafted, accepted, position = 0.0, 0, 0, 1
        if self.drafting.beside:
            self._pool = self._pool or pool_of(self.drafting)
            self._pool.begin(text.prompt_ids)
        while position < n:
            limit = min(most, n - position - 1)
            copied, right = self._copied(text, position)
            if copied:
                total += costs.main(copied + 1) + costs.draft(copied + 1)
                drafted, accepted, position = drafted + copied, accepted + right, position + right + 1
                continue
            proposed, right, on_path = 0, 0, True
            miss = position
            while proposed < limit:
                place = position + proposed
                total += costs.draft(1) + costs.draft_deep_ms * (len(text.prompt_ids) + place)
                p = text.p[place] if on_path else text.after_miss[miss][place - miss - 1]
                if p < least:
                    break
                proposed += 1
                if on_path and text.hits[place]:
                    right += 1
                elif on_path:
                    on_path, miss = False, place
            if proposed < fewest:
                proposed = right = 0
            total += costs.cycle_ms(proposed, len(text.prompt_ids) + position)
            drafted, accepted, position = drafted + proposed, accepted + right, position + right + 1
            if self.machine.uncut and right < proposed:
                # What was accepted, and the main model's own token, once more; that gives the token behind them.
                total += costs.main(right + 2) + costs.draft(right + 2)
                position += 1
        return total, drafted, accepted

    def _copied(self, text: Text, position: int) -> tuple[int, int]:
        """Tokens that the modes beside a draft model propose, and how many of them are right."""
        room = len(text.answer) - position - 1
        if self._pool is None or room <= 0:
            return 0, 0
        tokens = (*text.prompt_ids, *text.answer)
        copied = self._pool.draft(tokens, len(text.prompt_ids) + position - 1)[:room]
        pairs = zip(copied, text.answer[position:], strict=False)
        right = next((k for k, (own, said) in enumerate(pairs) if own != said), len(copied))
        if copied:
            self._pool.accept(right)
        return len(copied), right

    def _tokens_alone(self, text: Text, max_tokens: int) -> tuple[float, int, int]:
        self._pool = self._pool or pool_of(self.drafting)
        recording = Recording("", text.prompt_ids, text.answer, max_tokens, False, 0.0, 0.0, 1.0)
        counts = replay_tokens(self._pool, recording, uncut=self.machine.uncut)
        costs = self.machine.served or self.machine.costs
        times = np.array([costs.main(k + 1) for k in range(counts.verified.shape[1])])
        return float(counts.verified[0] @ times), int(counts.drafted[0]), int(counts.accepted[0])


@dataclass
class MachineTokens:
    """A server's model in token ids. Ids of prompts are looked up among the texts that were asked for."""

    server: MachineServer

    def encode(self, request: Request) -> tuple[int, ...]:
        """The prompt's ids."""
        return self.server.machine.text(json.dumps(list(request.messages)), request.max_tokens).prompt_ids

    def encode_text(self, text: str) -> tuple[int, ...]:
        """The ids of an answer's text, which are its words."""
        return tuple(map(int, text.split()))

    def generate(self, ids: Sequence[int], request: Request) -> TokenAnswer:
        """The main model's answer; of a draft, only the times mean anything."""
        machine = self.server.machine
        text, _ = machine.find(ids)
        answer = text.answer[: request.max_tokens]
        costs = machine.costs
        prompt_ms, generate_ms = costs.prompt_ms * len(ids), costs.plain_ms(len(answer) - 1, len(ids))
        if self.server.alone:
            prompt_ms = costs.draft_prompt_ms * len(ids)
            steps = range(len(ids), len(ids) + len(answer) - 1)
            generate_ms = len(steps) * costs.draft(1) + costs.draft_deep_ms * sum(steps)
        took = machine.took(prompt_ms + generate_ms, self.server.luck) / (prompt_ms + generate_ms)
        return TokenAnswer(
            answer,
            False,
            len(ids),
            prompt_ms * took,
            generate_ms * took,
            (prompt_ms + generate_ms) * took,
        )

    def propose(self, ids: Sequence[int], count: int) -> list[Proposal]:
        """What the draft says: right where it hits, then its own way."""
        text, position = self.server.machine.find(ids, self.server.alone)
        proposals, on_path, miss = [], True, 0
        for k in range(count):
            place = position + k
            if place >= len(text.answer):
                break
            if on_path:
                right = bool(text.hits[place])
                token = text.answer[place] if right else _VOCABULARY + place
                proposals.append(Proposal(token, float(text.p[place])))
                if not right:
                    on_path, miss = False, place
            else:
                p = float(text.after_miss[miss][place - miss - 1])
                proposals.append(Proposal(_VOCABULARY + place, p))
        return proposals

    def batch_ms(self, ids: Sequence[int], extra: Sequence[int]) -> float:
        """One batch."""
        costs = self.server.machine.costs
        batch, deep_ms = (
            (costs.draft, costs.draft_deep_ms) if self.server.alone else (costs.main, costs.deep_ms)
        )
        took_ms = batch(len(extra)) + deep_ms * len(extra) * len(ids)
        return self.server.machine.took(took_ms, self.server.luck)
