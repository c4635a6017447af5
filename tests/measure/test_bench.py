"""The reference benchmark: order, launches, and that no server is left behind."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from autospec.backends.protocol import Completion, LaunchSettings, Request
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import RequestError, UnsupportedError
from autospec.measure.bench import group_runs, measure_runs, run_order

N8, N4 = (Drafting(Mode.DRAFT_MODEL, draft="d.gguf", n_max=n, n_min=0, p_min=0.8) for n in (8, 4))
REQUEST = Request(messages=({"role": "user", "content": "the prompt"},), max_tokens=64)


@dataclass
class Server:
    """A launch that counts what it is asked."""

    backend: Backend
    launch_id: str
    drafting: Drafting
    command: tuple[str, ...] = ("server", "-m", "x")
    asked: list[str] = field(default_factory=list)
    pids: frozenset[int] = frozenset()

    def complete(self, request):
        """Answer, or fail as the test wants."""
        content = request.messages[0]["content"]
        self.asked.append(content)
        if self.backend.fails and content == "the prompt":
            raise self.backend.fails
        drafted = 0 if self.drafting.is_off else 40
        return Completion(
            text="t", prompt_tokens=5, predicted_tokens=self.backend.tokens, prompt_ms=50.0, predicted_ms=1000.0,
            wall_ms=1100.0, drafted=drafted, accepted=drafted // 2,
        )  # fmt: skip

    def stop(self):
        """End."""
        self.backend.running -= 1


@dataclass
class Backend:
    """Faults are its purpose: real servers are asked in tests/cli/test_bench.py."""

    fails: BaseException | None = None
    tokens: int = 64
    lacks: Mode | None = None
    running: int = 0
    most: int = 0
    servers: list[Server] = field(default_factory=list)
    name: str = "stand-in"

    def command(self, model_path, drafting, settings):
        """Refuse a mode, if the test says so."""
        if drafting.mode is self.lacks:
            raise UnsupportedError(f"no {drafting.mode}")
        return ("server",)

    def launch(self, model_path, drafting, settings):
        """Start one."""
        self.running += 1
        self.most = max(self.most, self.running)
        self.servers.append(Server(self, f"launch-{len(self.servers)}", drafting))
        return self.servers[-1]


def measure(backend, runs=2, **extra):
    """Off and both draftings."""
    return measure_runs(backend, "m.gguf", [OFF, N8, N4], REQUEST, LaunchSettings(), runs=runs, **extra)


def test_the_order_turns_round():
    """Off, 8, 4, 4, 8, off, off …: a drift favours none of them."""
    assert run_order([OFF, N8, N4], 3) == [
        (0, OFF), (0, N8), (0, N4), (1, N4), (1, N8), (1, OFF), (2, OFF), (2, N8), (2, N4),
    ]  # fmt: skip


def test_every_run_has_a_launch_of_its_own():
    """Six runs, six launches, one at a time, each asked a warm-up and then the prompt once."""
    backend = Backend()
    runs = measure(backend)
    assert len({r.launch_id for r in runs}) == len(backend.servers) == 6
    assert backend.most == 1
    assert all(s.asked[1:] == ["the prompt"] and s.asked[0] != "the prompt" for s in backend.servers)


def test_runs_are_grouped_by_drafting():
    """Generation and whole request apart, with what was accepted."""
    groups = group_runs(measure(Backend()), backend="b", build="b1", model="M", model_file="m.gguf")
    assert [g.drafting for g in groups] == [OFF, N8, N4]
    assert groups[1].runs_tps == pytest.approx((64.0, 64.0))
    assert groups[1].request_tps == pytest.approx((58.18, 58.18), abs=0.01)
    assert groups[1].remarks[0].startswith("64 tokens, prompt 50 ms, 20 of 40 drafted tokens accepted, 50%")
    assert "accepted" not in groups[0].remarks[0]


@pytest.mark.parametrize("fault", [RequestError("cut off"), KeyboardInterrupt()])
def test_no_server_is_left_behind(fault):
    """Neither after a failed request nor after Ctrl-C."""
    backend = Backend(fails=fault)
    with pytest.raises(type(fault)):
        measure(backend)
    assert backend.running == 0


def test_a_missing_mode_is_found_before_anything_starts():
    """The build is asked for every drafting's command first."""
    backend = Backend(lacks=Mode.DRAFT_MODEL)
    with pytest.raises(UnsupportedError):
        measure(backend)
    assert backend.servers == []


def test_an_empty_answer_has_no_speed():
    """One token takes no time to generate."""
    with pytest.raises(RequestError, match="1 tokens"):
        measure(Backend(tokens=1))


def test_a_disturbed_run_says_so():
    """What others did on the machine stands beside the speed."""
    run = measure(Backend(), runs=1)[0]
    assert replace(run, disturbance="Other processes used 2.0 of 2 cores.").remark == (
        "64 tokens, prompt 50 ms, disturbed: other processes used 2.0 of 2 cores"
    )


def test_each_launch_is_announced():
    """For the progress on stderr."""
    told = []
    measure(Backend(), runs=1, on_start=lambda number, drafting: told.append((number, drafting)))
    assert told == [(0, OFF), (0, N8), (0, N4)]
