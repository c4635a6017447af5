"""The checks of limits, on running servers: what `autospec.tuning.limits` plans is measured, and what follows is kept.

Both sides are launched as they serve users: with the server's slots and its prompt cache. All checks of one drafting share its
launches. Each side is launched twice, and the order of the sides alternates.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from autospec.backends.protocol import Backend, LaunchSettings, Server, Slots, Slotted
from autospec.backends.registry import EncodesText
from autospec.backends.server import canary
from autospec.catalog.model import USUAL_TEMPERATURE, Model
from autospec.cells import Aim, PromptType
from autospec.drafting import OFF, Drafting
from autospec.errors import BackendError, LateAnswerError, NoAnswerError, RequestError, ServerDiedError
from autospec.formats import checked_words, counted
from autospec.hardware.state import MachineState, StateWatch
from autospec.measure.asking import Asking, OffLength, measure
from autospec.measure.disturbances import disturbance
from autospec.measure.energy import energy_ratios
from autospec.measure.launch_scatter import LaunchScatter
from autospec.measure.measurements import AS_MEASURED, Measurement, Pair, Phase, Shapes, paired
from autospec.measure.verdict import Rule
from autospec.prompts.suite import Half, Prompt, after_text, heading, long_text
from autospec.recommendations import NO_LIMITS, LimitCheck, Limits, LimitVerdict
from autospec.tuning.budget import Budget, Pace
from autospec.tuning.cell import Progress, TuneStep
from autospec.tuning.definition import LimitsDefinition
from autospec.tuning.launches import Launches, Memory
from autospec.tuning.limits import (
    SPARE_TOKENS,
    Condition,
    Kind,
    Plan,
    check_of,
    checks_in,
    drafts_alone,
    is_known,
    limits_of,
    plan,
    times_of,
)
from autospec.tuning.load_guard import LoadGuard, patience_s

__all__ = ["LimitChecks", "Subject"]

# Two launches of each side and four pairs on each: with fewer than seven pairs a signed-rank interval of 99 % has no ends.
_LAUNCHES = 2
_PAIRS = 4
# How often a disturbed pair is measured again.
_REPEATS = 2
# As in the proof: a server that dies once may have been killed because another program took the memory.
_DEATHS_ALLOWED = 1
# More slots are asked only if more requests at once are checked.
_ASKED_SLOTS = 4
# Characters of the long text that show how many tokens it has, where a server does not tokenize.
_SAMPLE_CHARACTERS = 4000
# Behind a long text a request is slower, and two turns take two requests: for the expected time only.
_DEEP = 1.5
_QUESTION = "Thank you. Please give one more example of that, and explain it briefly."


@dataclass(frozen=True, slots=True)
class Subject:
    """A proven drafting of one cell.

    Attributes:
        name: Its prompt type, to be told.
        key: `Cell.key`.
        drafting: The drafting.
        prompts: The proof's prompts.
        context_tokens: The longest of them with its answer.
        prompt_token_ms: Time for one token of a prompt, for the expected time.
        shapes: The requests that the proof is for. What is cached is measured here, and assumed only where nothing is and the
            sides differ.
        known: What an earlier tune has checked; it is not checked again.
    """

    name: str
    key: str
    drafting: Drafting
    prompts: tuple[Prompt, ...]
    context_tokens: int
    prompt_token_ms: float = 0.0
    shapes: Shapes = AS_MEASURED
    known: Limits = NO_LIMITS

    @classmethod
    def of(
        cls,
        name: str,
        key: str,
        drafting: Drafting,
        prompts: Sequence[Prompt],
        pairs: Sequence[Pair],
        *,
        shapes: Shapes = AS_MEASURED,
        known: Limits = NO_LIMITS,
    ) -> Subject:
        """The subject from its proof's pairs and requests."""
        halves = [half for pair in pairs for half in (pair.off, pair.drafted)]
        longest = max((half.prompt_tokens + half.predicted_tokens for half in halves), default=0)
        per_token = [half.prompt_ms / half.prompt_tokens for half in halves if half.prompt_tokens]
        token_ms = statistics.median(per_token) if per_token else 0.0
        if not shapes.drafts_uncached:
            shapes = replace(shapes, cached_share=0.0)
        return cls(name, key, drafting, tuple(prompts), longest, token_ms, shapes, known)


@dataclass(slots=True)
class LimitChecks:
    """Checks proven draftings, one after another, while the budget lasts.

    Attributes:
        backend: Launches the servers.
        model: The main model.
        draft_of: The draft model of a drafting.
        wanted: The study's checks.
        args: The user's launch settings.
        memory: Returns what launches may use now; no other server of the tune may run then.
        asking: How the proof asked its prompts.
        rule: The proof's.
        scatter: Returns how much launches on this machine differ.
        budget: What is left is used.
        pace: The time that the proof's requests took.
        launch_s: The time of one launch.
        keep: Stores a subject's limits whenever they are new, with the prompts whose second turn fails with drafting only, by id, and why:
            no limit keeps users from those.
        progress: Receives what is reported.
        served: The temperature that users sample with.
        aim: What is compared: times, or joules per token.
        computing: See `autospec.measure.energy.energy_ratios`.
        watch: Makes a watch for the servers with these processes; tests have their own.
    """

    backend: Backend
    model: Model
    draft_of: Callable[[Drafting], Model | None]
    wanted: LimitsDefinition
    args: Sequence[str]
    memory: Callable[[], Memory]
    asking: Asking
    rule: Rule
    scatter: Callable[[], LaunchScatter]
    budget: Budget
    pace: Pace
    launch_s: float
    keep: Callable[[Subject, Limits, Mapping[str, str]], None]
    progress: Progress
    served: float = USUAL_TEMPERATURE
    aim: Aim = Aim.SPEED
    computing: tuple[str, ...] = ()
    watch: Callable[[Callable[[], frozenset[int]]], StateWatch] = StateWatch

    def run(self, subjects: Sequence[Subject]) -> None:
        """Check all of them; those with one drafting share its launches."""
        for drafting in dict.fromkeys(s.drafting for s in subjects):
            own = [s for s in subjects if s.drafting == drafting]
            longest = max(s.context_tokens for s in own)
            planned = plan(
                self.wanted,
                self.model,
                self.draft_of(drafting),
                self.memory(),
                args=self.args,
                temperature=self.asking.temperature,
                context_tokens=longest,
                served=self.served,
            )
            jobs = self._affordable(own, planned)
            if jobs:
                _DraftingChecks(self, drafting, planned, jobs).run()

    def _affordable(self, subjects: Sequence[Subject], planned: Plan) -> list[tuple[Condition, Subject]]:
        """The checks for which there is time, condition by condition."""
        jobs: list[tuple[Condition, Subject]] = []
        by_turns = planned.resident == 1
        expected_s = 0.0 if by_turns else 2 * _LAUNCHES * self.launch_s
        left_out = 0
        for condition in planned.conditions:
            for subject in subjects:
                if is_known(condition, subject.known, self.wanted):
                    continue
                check_s = self.expected_s(condition, subject, by_turns=by_turns)
                if self.budget.allows(expected_s + check_s):
                    expected_s += check_s
                    jobs.append((condition, subject))
                else:
                    left_out += 1
        self.tell_left_out(subjects[0].drafting, left_out)
        return jobs

    def tell_left_out(self, drafting: Drafting, count: int) -> None:
        """Tell that there was no time for so many checks, if for any."""
        if count:
            self.progress.tell(f"{drafting.label}: no time for {counted(count, 'limit check')}.")

    def expected_s(self, condition: Condition, subject: Subject, *, by_turns: bool) -> float:
        """Expected seconds of a check on all launches; by turns each check has its own launches, which count, too."""
        launches_s = 2 * _LAUNCHES * self.launch_s if by_turns else 0.0
        return launches_s + self._requests_s(condition, subject)

    def _requests_s(self, condition: Condition, subject: Subject) -> float:
        """Expected seconds of a check's requests, one after another."""
        pair_s = self.pace.pair_s(subject.key, subject.drafting)
        pairs_s = _LAUNCHES * _PAIRS * pair_s
        match condition.kind:
            case Kind.CONCURRENT:
                return condition.at * pairs_s
            case Kind.CONTEXT:
                text_s = condition.at * subject.prompt_token_ms / 1000.0
                return _DEEP * (pairs_s + 2 * _LAUNCHES * text_s)
            case Kind.SECOND_TURN:
                return 2.0 * pairs_s
            case Kind.TEMPERATURE:
                return pairs_s


@dataclass(frozen=True, slots=True)
class _Item:
    """One pair to be measured: its prompts, more than one if they are asked at once."""

    number: int
    prompts: tuple[Prompt, ...]


def _items(condition: Condition, prompts: Sequence[Prompt], turn: int) -> list[_Item]:
    """Four items for one pair of launches; the other pair gets other prompts as far as there are any."""
    size = int(condition.at) if condition.kind is Kind.CONCURRENT else 1
    count = len(prompts)
    places = range(turn * _PAIRS * size, (turn + 1) * _PAIRS * size)
    # Each time all prompts were asked, the next groups begin one later: other prompts are asked together then.
    step = max(1, count // (_LAUNCHES * _PAIRS * size))  # from all over the file
    chosen = [prompts[(place * step + place * step // count) % count] for place in places]
    return [_Item(k, tuple(chosen[k * size : (k + 1) * size])) for k in range(_PAIRS)]


# Number of the item, and whether it is the half without drafting.
_Halves = dict[tuple[int, bool], Measurement]


class _DraftingChecks:
    """All checks of one drafting, on its own launches."""

    def __init__(
        self,
        tools: LimitChecks,
        drafting: Drafting,
        planned: Plan,
        jobs: Sequence[tuple[Condition, Subject]],
    ) -> None:
        self._tools = tools
        self._drafting = drafting
        self._plan = planned
        self._jobs = jobs
        self._per_request = tools.backend.capabilities().drafting_per_request
        self._launches = Launches(
            tools.backend,
            str(tools.model.path),
            LaunchSettings(args=planned.args, serving=True),
            resident=planned.resident,
            tell=tools.progress.tell,
        )
        watch = tools.watch(lambda: self._launches.pids)
        asking = tools.asking
        self._asking = Asking(asking.protocol, asking.max_tokens, asking.temperature, watch)
        self._cached = Asking(asking.protocol, asking.max_tokens, asking.temperature, watch, cached=True)
        self._hot = Asking(asking.protocol, asking.max_tokens, tools.served, watch)
        self._off_length = OffLength(self._asking)
        self._calm = LoadGuard(watch, tools.progress.tell, limit_s=patience_s(tools.budget.total_s))
        self._pairs: dict[tuple[Condition, str], list[Pair]] = {}
        self._notes: dict[tuple[Condition, str], str] = {}
        # Requests that fail with drafting alone: prompt and reason.
        self._broken: dict[tuple[Condition, str], tuple[str, str]] = {}
        # Keys of the subjects whose second turn fails: they are not enabled, so that nothing more is asked for them.
        self._refused: set[str] = set()
        # Incomplete, because time ran out or a server gave no answer: the next tune checks them again.
        self._incomplete: set[tuple[Condition, str]] = set()
        # Not begun for want of time: what was known of them stays.
        self._left_out: set[tuple[Condition, str]] = set()
        # Seconds of the first launch's pairs. The proof's pace does not tell it: a drafting may be far slower under a condition.
        self._took_s: dict[tuple[Condition, str], float] = {}
        self._waited_s = 0.0  # for other programs, which the second launch need not expect
        self._done: dict[str, dict[Condition, LimitCheck]] = {}
        self._in_cache: dict[str, float] = {}  # launch → tokens of the long text in its cache
        self._tokens_per_character = 0.0
        self._silent = ""  # why it drafts for one request at a time only

    def run(self) -> None:
        """Measure on two launches of each side; a launch that fails ends the checks of this drafting."""
        label = self._drafting.label
        self._tools.progress.tell(f"{label}: checking where it may fail, with the server's slots and cache.")
        try:
            with self._launches:
                self._look_at_server()
                for turn in range(_LAUNCHES):
                    if all(self._is_over(condition, subject) for condition, subject in self._jobs):
                        break
                    if turn:
                        self._launches.renew()
                    self._turn(turn)
        except BackendError as error:
            self._tools.progress.tell(f"{label}: its limits were not checked. {error.message}")
            for condition, subject in self._jobs:
                if not self._is_over(condition, subject) and condition not in self._done.get(subject.key, {}):
                    self._notes.setdefault((condition, subject.key), error.message)
                    self._conclude(condition, subject)
        self._tools.tell_left_out(self._drafting, len(self._left_out))

    def _is_over(self, condition: Condition, subject: Subject) -> bool:
        """Whether nothing more is asked for a check, and nothing is concluded."""
        return subject.key in self._refused or (condition, subject.key) in self._left_out

    def _turn(self, turn: int) -> None:
        by_condition: dict[Condition, list[Subject]] = {}
        for condition, subject in self._jobs:
            by_condition.setdefault(condition, []).append(subject)
        for number, (condition, subjects) in enumerate(by_condition.items()):
            if self._remembers and number:
                self._launches.expire()  # only the first exposure to a prompt counts
            for done, subject in enumerate(subjects):
                self._step(
                    turn * len(by_condition) + number + 1, _LAUNCHES * len(by_condition), done, len(subjects)
                )
                if self._is_over(condition, subject):
                    continue
                if (condition, subject.key) not in self._notes:
                    self._measure(condition, subject, turn, number)
                if condition.kind is Kind.SECOND_TURN and (condition, subject.key) in self._broken:
                    self._refused.add(subject.key)
                if turn == _LAUNCHES - 1 or subject.key in self._refused:
                    self._conclude(condition, subject)

    def _look_at_server(self) -> None:
        """Rule out what this launch cannot be asked: more requests than it has slots, more context than a slot has."""
        server = self._launches.drafted(self._drafting)
        several = [job for job in self._jobs if job[0].kind is Kind.CONCURRENT]
        if self._per_request or not isinstance(server, Slotted):
            why = "This server answers several requests together only without drafting; nothing was measured."
            self._rule_out(several, why)
            return
        slots = server.slots()
        for condition, subject in self._jobs:
            if condition.kind is Kind.CONCURRENT and condition.at > slots.count:
                why = f"The server answers {counted(slots.count, 'request')} at once."
                self._rule_out([(condition, subject)], why)
            needed = condition.at + subject.context_tokens + SPARE_TOKENS
            if condition.kind is Kind.CONTEXT and slots.context_tokens and needed > slots.context_tokens:
                why = f"The server's context for one request is {slots.context_tokens} tokens."
                self._rule_out([(condition, subject)], why)
        self._silent = self._why_one_at_a_time(server, slots, several)
        if self._silent:
            self._tools.progress.tell(
                f"{self._drafting.label}: {self._silent} It holds for one request at a time."
            )
            self._notes |= {(condition, subject.key): self._silent for condition, subject in several}

    def _why_one_at_a_time(
        self, server: Server, slots: Slots, several: Sequence[tuple[Condition, Subject]]
    ) -> str:
        """Why the drafting holds for one request at a time only; empty if it may hold for more."""
        if slots.count == 1 and several:
            # Builds around the turn of 2025: four slots without drafting, and one with it (`n_parallel` in tools/server/server.cpp).
            off = self._launches.off()
            without = off.slots().count if isinstance(off, Slotted) else 1
            told = f"The server answers one request at once with drafting, and {without} without."
            return told if without > 1 else ""
        at_once = int(max((c.at for c, _ in several), default=1))
        silent = self._silent_slot(server, slots, at_once)
        return "" if silent is None else f"Slot {silent} of the server does not draft, although slot 0 does."

    @property
    def _remembers(self) -> bool:
        """True if an n-gram mode takes part, which proposes what it has seen before."""
        return any(part.mode.draft_free for part in self._drafting.parts)

    def _silent_slot(self, server: Server, slots: Slots, at_once: int) -> int | None:
        """The first slot that does not draft although slot 0 does: it says so, or proposes nothing for the same request.

        A fork drafts in the first slot only (buun-llama-cpp #110). The launch itself has looked at slot 0 (`backends.server`).
        """
        if told := [slot for slot in slots.silent if slot]:
            return min(told)
        if self._drafting.mode.draft_free:
            return None  # it proposes only where text repeats, and some of these modes remember the slot's last request
        asked = canary(self._drafting)
        count = min(slots.count, max(at_once, _ASKED_SLOTS))
        drafted = [server.complete(replace(asked, slot=slot)).drafted for slot in range(count)]
        return next((k for k, n in enumerate(drafted) if n == 0), None) if drafted[0] else None

    def _rule_out(self, jobs: Iterable[tuple[Condition, Subject]], why: str) -> None:
        for condition, subject in jobs:
            self._notes.setdefault((condition, subject.key), why)

    def _measure(self, condition: Condition, subject: Subject, turn: int, number: int) -> None:
        """Measure one condition's pairs on the present launches."""
        budget = self._tools.budget
        if not turn and not self._has_time(condition, subject):
            self._left_out.add((condition, subject.key))
            return
        if turn and not budget.allows(self._took_s[condition, subject.key], to_finish=True):
            self._incomplete.add((condition, subject.key))
            self._notes[condition, subject.key] = "The budget ended before the second launch."
            return
        if self._launches.resident == 2:
            self._launches.off()
            self._launches.drafted(self._drafting)  # now it is known whether two fit
        begun_s, waited_before_s = budget.spent_s, self._waited_s
        pairs: dict[int, Pair] = {}
        items = _items(condition, subject.prompts, turn)
        for again in range(_REPEATS + 1):
            try:
                pairs |= self._pairs_of(condition, subject, items, turn + number + again)
            except RequestError as error:
                self._notes[condition, subject.key] = f"A request failed: {error.message}"
                self._pairs.pop((condition, subject.key), None)
                return
            items = [item for item in items if disturbance(pairs[item.number])]
            # A second exposure would flatter a mode that remembers; by turns each repeat takes two launches. MLX's server finds
            # every prompt that it has seen in its cache, whatever the request says, but not for a request that is drafted.
            if not items or self._remembers or self._per_request or self._launches.resident == 1:
                break
        self._pairs.setdefault((condition, subject.key), []).extend(pairs.values())
        waited_s = self._waited_s - waited_before_s
        self._took_s[condition, subject.key] = budget.spent_s - begun_s - waited_s

    def _has_time(self, condition: Condition, subject: Subject) -> bool:
        """Whether the budget leaves time for a whole check, and for the second launch of those before it."""
        check_s = self._tools.expected_s(condition, subject, by_turns=self._launches.resident == 1)
        begun_s = sum(s for (_, key), s in self._took_s.items() if key not in self._refused)
        return self._tools.budget.allows(begun_s + check_s)

    def _pairs_of(
        self, condition: Condition, subject: Subject, items: Sequence[_Item], turn: int
    ) -> dict[int, Pair]:
        """A pair for each item: side by side the order of the halves alternates, else one side follows the other."""
        halves: _Halves = {}
        sides = (self._drafting, OFF)
        if self._launches.resident == 2:
            for k, item in enumerate(items):
                for side in sides[:: 1 if (k + turn) % 2 else -1]:
                    self._half(condition, subject, item, side, halves)
        else:
            for side in sides[:: -1 if turn % 2 else 1]:
                for item in items:
                    self._half(condition, subject, item, side, halves)
        return {item.number: self._pair(condition, subject, item, halves) for item in items}

    def _half(
        self, condition: Condition, subject: Subject, item: _Item, side: Drafting, halves: _Halves
    ) -> None:
        """Ask one side, and keep its half.

        A server that dies, or is late while other programs use the machine, is launched once more. What fails with drafting is its
        fault, unless it fails without drafting, too, or no prompt is to blame. Where off is late, too, the next tune checks it again.
        """
        for failures in range(_DEATHS_ALLOWED + 1):
            try:
                self._ask(condition, subject, item, side, halves)
            except RequestError as error:
                late = isinstance(error, LateAnswerError)
                if failures < _DEATHS_ALLOWED and (
                    isinstance(error, ServerDiedError) or (late and self._has_calmed())
                ):
                    continue
                if isinstance(error, NoAnswerError) and (side.is_off or not late):
                    self._incomplete.add((condition, subject.key))
                elif not side.is_off:
                    self._half(condition, subject, item, OFF, halves)
                    self._broken[condition, subject.key] = item.prompts[0].id, error.message
                raise
            else:
                return

    def _has_calmed(self) -> bool:
        """Whether other programs used the machine during the last request, and have finished."""
        begun_s = self._tools.budget.spent_s
        calmed = self._calm.after(self._asking.watch.finish())
        self._waited_s += self._tools.budget.spent_s - begun_s
        return calmed

    def _ask(
        self, condition: Condition, subject: Subject, item: _Item, side: Drafting, halves: _Halves
    ) -> None:
        launches, (first, *more) = self._launches, item.prompts
        server = launches.off() if side.is_off else launches.drafted(side)
        if condition.kind is not Kind.CONTEXT:
            self._in_cache.pop(server.launch_id, None)
        position = int((item.number, not side.is_off) in halves)
        cut = side.is_off and condition.kind is not Kind.CONCURRENT and not self._per_request
        try:
            self._asking.watch.start()
            asking, prompt = self._prepared(condition, first, server)
            measured = measure(
                asking,
                server,
                prompt,
                more if isinstance(server, Slotted) else (),
                cell_key=subject.key,
                phase=Phase.PROVE,
                round_=0,
                compared=self._drafting,
                position=position,
                most_tokens=self._off_length.of(prompt, paired=False) if cut else None,
            )
        except (ServerDiedError, LateAnswerError):
            launches.drop(server)
            raise
        halves[item.number, side.is_off] = measured
        if cut:
            self._off_length.note(measured)
        begun_s = self._tools.budget.spent_s
        self._calm.after(MachineState.from_json(measured.machine))
        self._waited_s += self._tools.budget.spent_s - begun_s

    def _prepared(self, condition: Condition, prompt: Prompt, server: Server) -> tuple[Asking, Prompt]:
        """Bring the server's prompt cache into the state of the condition; returns what is to be timed then."""
        match condition.kind:
            case Kind.CONTEXT:
                text = self._text(server, int(condition.at))
                if self._in_cache.get(server.launch_id) != condition.at:
                    head = replace(prompt, messages=heading(text), max_tokens=1)
                    server.complete(self._cached.request(head))
                    self._in_cache[server.launch_id] = condition.at
                return self._cached, after_text(prompt, text)
            case Kind.SECOND_TURN:
                answer = server.complete(self._cached.request(prompt)).text
                turn = ({"role": "assistant", "content": answer}, {"role": "user", "content": _QUESTION})
                return self._cached, replace(prompt, messages=(*prompt.messages, *turn))
            case Kind.TEMPERATURE:
                return self._hot, prompt
            case Kind.CONCURRENT:
                return self._asking, prompt

    def _text(self, server: Server, tokens: int) -> str:
        """The long text with about this many tokens, by the server's tokenizer."""
        if not self._tokens_per_character:
            sample = long_text(_SAMPLE_CHARACTERS)
            if isinstance(server.tokens, EncodesText):
                count = len(server.tokens.encode_text(sample))
            else:
                message = {"role": "user", "content": sample}
                prompt = Prompt("long text", PromptType.QA, (message,), 1, Half.PROVE)
                count = server.complete(self._asking.request(prompt)).prompt_tokens
            self._tokens_per_character = max(1, count) / len(sample)
        return long_text(round(tokens / self._tokens_per_character))

    def _pair(self, condition: Condition, subject: Subject, item: _Item, halves: _Halves) -> Pair:
        off, drafted = halves[item.number, True], halves[item.number, False]
        deep = condition.kind is Kind.CONTEXT
        computed_again = deep and max(off.prompt_tokens, drafted.prompt_tokens) > condition.at / 2
        # Both halves count for the proof's request. What is computed again is a cost, and stays in.
        # As in the proof, the prompt is cached on neither side: at most its beginning is, which it shares with others.
        whole = condition.kind is Kind.TEMPERATURE and off.prompt_tokens > drafted.prompt_tokens / 2
        as_measured = condition.kind is Kind.CONCURRENT or computed_again or (self._per_request and not whole)
        return paired(off, drafted, None if as_measured else subject.shapes)

    def _conclude(self, condition: Condition, subject: Subject) -> None:
        tools = self._tools
        measured = self._pairs.get((condition, subject.key), [])
        clean = [pair for pair in measured if not disturbance(pair)]
        notes = [self._notes.get((condition, subject.key), "")]
        if len(clean) < len(measured):
            notes.append(f"{len(measured) - len(clean)} of {counted(len(measured), 'pair')} were disturbed.")
        if condition.kind is Kind.CONTEXT:
            notes.append(_computed_again(condition, clean))
        note = " ".join(n for n in notes if n)
        energy = tools.aim is Aim.ENERGY
        compared = partial(energy_ratios, computing=tools.computing) if energy else times_of
        check = check_of(condition, clean, tools.rule, tools.scatter(), note, compared=compared)
        if (condition, subject.key) in self._broken:
            check = replace(check, verdict=LimitVerdict.SLOWER)
        check = replace(check, out_of_time=(condition, subject.key) in self._incomplete)
        done = self._done.setdefault(subject.key, self._known(subject))
        done[condition] = check
        tools.keep(
            subject,
            limits_of(
                done,
                context_tokens=subject.context_tokens,
                temperature=tools.asking.temperature,
                one_at_a_time=bool(self._silent) or drafts_alone(subject.known),
                most_lost=tools.rule.threshold,
            ),
            dict(
                found
                for (broken, key), found in self._broken.items()
                if broken.kind is Kind.SECOND_TURN and key == subject.key
            ),
        )
        ratio = "" if check.ratio is None else f"{check.ratio:.2f}×, {check.verdict}. "
        if check.ratio is not None and energy:
            ratio = f"{checked_words(check, tools.aim)}. "
        tools.progress.tell(f"{subject.name} {condition.words}: {ratio}{check.note}".rstrip())

    def _known(self, subject: Subject) -> dict[Condition, LimitCheck]:
        """What is known of a subject before its first check here."""
        known = {c: LimitCheck(c.at, note=why) for c, why in self._plan.refused.items()}
        known |= checks_in(subject.known)
        if self._silent:  # it is told even where there is no time to ask two at once
            two = Condition(Kind.CONCURRENT, 2)
            known[two] = LimitCheck(two.at, note=self._silent)
        return known

    def _step(self, number: int, of: int, done: int, todo: int) -> None:
        budget = self._tools.budget
        self._tools.progress.step(
            TuneStep("limits", self._drafting, number, of, done, todo, budget.until_end_s)
        )


def _computed_again(condition: Condition, pairs: Sequence[Pair]) -> str:
    """What a server without a usable prompt cache did: it computed the long text for each request."""
    half = condition.at / 2
    off = any(pair.off.prompt_tokens > half for pair in pairs)
    drafted = any(pair.drafted.prompt_tokens > half for pair in pairs)
    if off and drafted:
        return "The text was computed again for each request, with and without drafting."
    if drafted:
        return "With drafting the text was computed again for each request."
    return "Without drafting the text was computed again for each request." if off else ""
