"""A server that has rested is woken before it is timed, where a rest costs time."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from autospec.backends.protocol import Completion, Request
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import RequestError
from autospec.hardware.state import MachineState
from autospec.measure import asking as module
from autospec.measure.asking import Asking, OffLength, measure
from autospec.measure.measurements import Measurement, Pair, Phase
from autospec.prompts.suite import Half, Prompt

LONG = "Tell me a story."


class Watch:
    """A machine that is always calm."""

    def start(self) -> None:
        """Nothing to begin."""

    def finish(self) -> MachineState:
        """Calm."""
        return MachineState(window_s=1.0, cores=4)


class Server:
    """A server that notes what it is asked."""

    drafting = OFF

    def __init__(self, launch_id: str = "one") -> None:
        self.launch_id = launch_id
        self.asked: list[int] = []

    def complete(self, request: Request) -> Completion:
        """An answer of as many tokens as allowed."""
        self.asked.append(request.max_tokens)
        return SimpleNamespace(
            text="so", prompt_tokens=4, predicted_tokens=request.max_tokens, prompt_ms=1.0, predicted_ms=2.0, wall_ms=3.0,
            drafted=None, accepted=None, finish_reason="length", still_reasoning=False,
        )  # type: ignore[return-value]  # fmt: skip


class Clock:
    """Time that a test sets."""

    now_s = 100.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now_s


def asked(asking: Asking, server: Server) -> Measurement:
    """One measurement."""
    prompt = SimpleNamespace(
        id="p", messages=({"role": "user", "content": LONG},), max_tokens=64, tools=(), prompt_type=None,
        size_bytes=len(LONG),
    )  # fmt: skip
    return measure(
        asking, server, prompt, cell_key="c", phase=Phase.SEARCH, round_=0, compared=OFF, position=0  # type: ignore[arg-type]
    )  # fmt: skip


class Thinker(Server):
    """A server whose model has not ended its thinking."""

    def __init__(self, finish_reason: str) -> None:
        super().__init__()
        self._finish_reason = finish_reason

    def complete(self, request: Request) -> Completion:
        """An answer of reasoning alone."""
        answer = super().complete(request)
        answer.still_reasoning, answer.finish_reason = True, self._finish_reason  # type: ignore[misc]
        return answer


@pytest.mark.parametrize(("finish_reason", "within"), [("length", True), ("", True), ("stop", False)])
def test_an_answer_that_is_cut_within_the_reasoning_is_marked(finish_reason, within):
    """Beside the machine's state, which reads as before."""
    measured = asked(Asking("p", 64, 0.0, Watch()), Thinker(finish_reason))  # type: ignore[arg-type]
    assert measured.within_reasoning is within
    assert MachineState.from_json(measured.machine) == Watch().finish()
    assert not asked(Asking("p", 64, 0.0, Watch()), Server()).within_reasoning  # type: ignore[arg-type]


def test_a_server_at_rest_is_asked_for_one_token_first():
    """Each server by itself: while one answers, the other one rests. The token is not in the measurement."""
    clock, one, two = Clock(), Server("one"), Server("two")
    asking = Asking("p", 64, 0.0, Watch(), rested_s=0.5, clock=clock)  # type: ignore[arg-type]
    assert asked(asking, one).predicted_tokens == 64
    clock.now_s += 0.4
    asked(asking, one)
    assert one.asked == [1, 64, 64]
    asked(asking, two)
    clock.now_s += 0.6
    asked(asking, one)
    assert one.asked == [1, 64, 64, 1, 64]
    assert two.asked == [1, 64]


def test_nobody_is_woken_where_a_rest_costs_nothing(monkeypatch: pytest.MonkeyPatch):
    """Only on a Mac's GPU by default."""
    for metal, expected in ((False, [64]), (True, [1, 64])):
        monkeypatch.setattr(module, "on_metal", lambda metal=metal: metal)
        server = Server()
        asked(Asking("p", 64, 0.0, Watch()), server)  # type: ignore[arg-type]
        assert server.asked == expected


def test_a_cached_prompt_is_not_thrown_out_of_the_server():
    """Behind a cached context the wake-up would replace it."""
    server = Server()
    asked(Asking("p", 64, 0.0, Watch(), cached=True, rested_s=0.0), server)  # type: ignore[arg-type]
    assert server.asked == [64]


def test_an_answer_without_tokens_is_still_refused():
    """The wake-up does not hide it."""
    server = Server()
    with pytest.raises(RequestError):
        asked(Asking("p", 0, 0.0, Watch(), rested_s=0.0), server)  # type: ignore[arg-type]
    assert server.asked == [1, 0]


NGRAM = Drafting(Mode.NGRAM_SIMPLE, ngram_n=4, ngram_m=8, min_hits=1)
PROMPT = Prompt("p", PromptType.QA, ({"role": "user", "content": LONG},), 64, Half.PROVE)


class Slow(Server):
    """A server that takes 125 ms for a token, and tells this text word by word."""

    def __init__(self, words: list[str], drafting: Drafting = OFF) -> None:
        super().__init__("slow")
        self.drafting = drafting
        self._words = words

    def complete(self, request: Request) -> Completion:
        """As many words as allowed."""
        self.asked.append(request.max_tokens)
        told = self._words[: request.max_tokens]
        generation_ms = 125.0 * (len(told) - 1)
        ended = len(self._words) <= request.max_tokens
        return Completion("".join(told), 4, len(told), 500.0, generation_ms, 505.0 + generation_ms, 0, 0,
                          "stop" if ended else "length")  # fmt: skip


def half(asking: Asking, server: Slow, *, second: bool = False, most: int | None = None) -> Measurement:
    """One half of the prompt's pair."""
    return measure(
        asking, server, PROMPT, cell_key="c", phase=Phase.PROVE, round_=1, compared=NGRAM,  # type: ignore[arg-type]
        position=int(second), most_tokens=most,
    )  # fmt: skip


def words(*changed: int) -> list[str]:
    """A hundred words; those at the changed places are others."""
    return [f"w{n} " if n not in changed else "x " for n in range(100)]


def test_a_slow_model_is_asked_for_fewer_tokens_without_drafting():
    """The first answer is whole and tells the time of a token: 2.5 s of it are enough for the next ones."""
    asking = Asking("p", 64, 0.0, Watch())  # type: ignore[arg-type]
    length, server = OffLength(asking), Slow(words())
    assert length.of(PROMPT, paired=False) is None
    length.note(half(asking, server))
    assert length.of(PROMPT, paired=False) == 21
    assert half(asking, server, most=21).predicted_tokens == 21
    assert server.asked == [64, 21]


def test_what_cannot_be_continued_is_asked_whole():
    """Energy, calls of tools, and an answer whose partner's text is not known."""
    asking = Asking("p", 64, 0.0, Watch())  # type: ignore[arg-type]
    length = OffLength(asking)
    length.note(half(asking, Slow(words())))
    assert length.of(replace(PROMPT, tools=({"type": "function"},)), paired=False) is None
    assert length.of(PROMPT, paired=True) is None  # measured by an earlier tune
    half(asking, Slow(words(), NGRAM))
    assert length.of(PROMPT, paired=True) == 21
    off = half(asking, Slow(words()))
    assert length.most(PROMPT, 125.0) == 21
    length.note(replace(off, machine={**off.machine, "gpu_energy_j": 12.0}))
    assert length.of(PROMPT, paired=False) is None
    assert length.most(PROMPT, 125.0) is None  # nor planned as cut
    # An idle GPU tells its energy, too.
    early = OffLength(asking)
    early.learn(MachineState(window_s=0.0, cores=4, gpu_energy_j=0.0))
    assert early.most(PROMPT, 125.0) is None


@pytest.mark.parametrize("off_first", [True, False])
@pytest.mark.parametrize(("changed", "same"), [((), True), ((5,), False), ((40,), True)])
def test_texts_are_compared_as_far_as_the_shorter_goes(off_first, changed, same):
    """A cut answer agrees with the beginning of the other one; what follows is not known."""
    asking = Asking("p", 64, 0.0, Watch())  # type: ignore[arg-type]
    off, drafted = Slow(words()), Slow(words(*changed), NGRAM)
    sides = [(off, 21), (drafted, None)]
    first, second = sides if off_first else sides[::-1]
    halves = [half(asking, first[0], most=first[1]), half(asking, second[0], second=True, most=second[1])]
    pair = Pair(*(halves if off_first else halves[::-1]))
    assert pair.same_text is same


@pytest.mark.parametrize("off_first", [True, False])
@pytest.mark.parametrize("most", [None, 21])
def test_accepted_tokens_that_were_counted_and_not_sent_differ_from_nothing(off_first, most):
    """llama-server of December 2025: of the batch with which a drafted answer reaches its limit, the client gets the first token."""

    class Withholding(Slow):
        def complete(self, request):
            answer = super().complete(request)
            return replace(answer, text=answer.text.removesuffix("w62 w63 "))

    asking = Asking("p", 64, 0.0, Watch())  # type: ignore[arg-type]
    sides = [(Slow(words()), most), (Withholding(words(), NGRAM), None)]
    first, second = sides if off_first else sides[::-1]
    halves = [half(asking, first[0], most=first[1]), half(asking, second[0], second=True, most=second[1])]
    assert Pair(*(halves if off_first else halves[::-1])).same_text


def test_whole_texts_of_which_one_begins_as_the_other_differ():
    """With drafting the text ends earlier, by itself: nothing was cut."""
    asking = Asking("p", 64, 0.0, Watch())  # type: ignore[arg-type]
    off = half(asking, Slow(words()))
    drafted = half(asking, Slow(words()[:30], NGRAM), second=True)
    assert not Pair(off, drafted).same_text


def test_the_longest_answer_stands_for_a_cut_one():
    """Predictions replay a whole answer."""
    asking = Asking("p", 64, 0.0, Watch())  # type: ignore[arg-type]
    assert asking.longest_answer("p") is None
    half(asking, Slow(words()), most=21)
    half(asking, Slow(words(50), NGRAM))
    assert asking.longest_answer("p") == "".join(words(50)[:64])
    half(asking, Slow(words()))
    assert asking.longest_answer("p") == "".join(words()[:64])


def test_a_stored_cut_half_is_lost_with_its_text():
    """It is measured again: its text could not be compared."""
    asking = Asking("p", 64, 0.0, Watch())  # type: ignore[arg-type]
    cut = half(asking, Slow(words()), most=21)
    assert not OffLength(asking).is_lost(PROMPT, cut)
    later = OffLength(Asking("p", 64, 0.0, Watch()))  # type: ignore[arg-type]
    assert later.is_lost(PROMPT, cut)
    assert not later.is_lost(PROMPT, half(asking, Slow(words())))
    assert not later.is_lost(PROMPT, half(asking, Slow(words()[:20])))


def test_a_slow_model_gets_the_time_for_its_answers():
    """The limit grows with the slowest tokens so far; a usual model has ten minutes."""
    asking = Asking("p", 64, 0.0, Watch())  # type: ignore[arg-type]
    assert asking.request(PROMPT).timeout_s == 600.0
    asking.learn(100.0, 20.0)
    assert asking.request(PROMPT).timeout_s == 600.0
    answer = Completion("so", 4, 5, 500.0, 4 * 9000.0, 36_500.0, 0, 0, "length")
    asking.note("p", answer, off=True)
    expected_s = PROMPT.size_bytes / 2.0 * 0.125 + 64 * 9.0
    assert asking.request(PROMPT).timeout_s == pytest.approx(4.0 * expected_s)
    asking.learn(0.0, 10.0)
    assert asking.request(PROMPT).timeout_s > 2000.0, "the slowest counts"
