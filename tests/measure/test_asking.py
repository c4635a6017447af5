"""A server that has rested is woken before it is timed, where a rest costs time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from autospec.backends.protocol import Completion, Request
from autospec.drafting import OFF
from autospec.errors import RequestError
from autospec.hardware.state import MachineState
from autospec.measure import asking as module
from autospec.measure.asking import Asking, busy, measure
from autospec.measure.measurements import Measurement, Phase

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
            drafted=None, accepted=None, finish_reason="length",
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
        id="p", messages=({"role": "user", "content": LONG},), max_tokens=64, tools=(), prompt_type=None
    )
    return measure(
        asking, server, prompt, cell_key="c", phase=Phase.SEARCH, round_=0, compared=OFF, position=0  # type: ignore[arg-type]
    )  # fmt: skip


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


def test_a_gpu_that_others_use_is_busy():
    """It takes no processor time."""
    calm = MachineState(window_s=1.0, cores=4)
    assert not busy(calm)
    assert not busy(MachineState(window_s=1.0, cores=4, gpu_other_load=0.05))
    assert busy(MachineState(window_s=1.0, cores=4, gpu_other_load=0.3))
