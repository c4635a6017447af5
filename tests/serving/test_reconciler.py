"""Servers that die, hang, are replaced or do not start: what the control loop makes of it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from typing import Any

import pytest

from autospec.backends.protocol import LaunchSettings
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import LaunchError, OverloadedError, UnknownModelError
from autospec.serving import instance, reconciler
from autospec.serving.dispatch import RouteRequest
from autospec.serving.model_registry import ModelRegistry
from tests.serving.scene import (
    ALPHA,
    BETA,
    BUILD,
    LOOKUP,
    FakeBackend,
    FakeServer,
    Passing,
    Scene,
    model,
    recommend,
    states,
    until,
    wanted,
)

NEXT_BUILD = dataclasses.replace(BUILD, version="fake-2", fingerprint="other")


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Play a scenario to its end."""
    asyncio.run(scenario)


async def crash(supervisor, scene: Scene, request: RouteRequest, by: str = "SIGABRT") -> str:
    """Send a request that its server dies of; returns the drafting of the server."""
    lease = await supervisor.lease(request)
    server = next(s for s in scene.backend.servers if s.base_url == lease.base_url)
    server.kill(by)
    lease.died()
    lease.give_back()
    await until(lambda: lease.launch.state.over)
    await asyncio.sleep(0)
    scene.clock.now_s += 5.0  # the pause before the next start
    return lease.drafting.label


@pytest.mark.parametrize(("requests", "attempts", "by"), [(2, 2, "SIGABRT"), (5, 1, "SIGKILL")])
def test_a_death_that_has_another_cause_does_not_cost_the_drafting(requests, attempts, by):
    """Proxy review 2: a request that no server survives, and the kernel that is short of memory, marked the drafting for good."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        async with scene.opened() as supervisor:
            for _ in range(requests):
                request = wanted()
                for _ in range(attempts):
                    await crash(supervisor, scene, request, by)
            async with await supervisor.lease(wanted()) as lease:
                lease.answered(1e6)
            scene.clock.now_s += 100.0
            await until(lambda: states(supervisor).get(f"alpha-1b {LOOKUP.label}") == "ready")
        assert not scene.saved

    run(scenario())


def test_a_flag_that_a_replaced_build_refuses_is_no_failure_of_the_drafting():
    """Proxy review 26: it was launched with the flags of the old build, and its recommendation marked as stale."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        scene.backend.refuses[LOOKUP] = LaunchError("Unknown flag.", permanent=True)
        async with scene.opened() as supervisor:
            scene.backend.build = NEXT_BUILD
            scans = scene.scans
            async with await supervisor.lease(wanted()) as lease:
                lease.answered(1e6)
            await until(lambda: scene.scans > scans)
            scene.backend.refuses.clear()
            await until(lambda: states(supervisor).get(f"alpha-1b {LOOKUP.label}") == "ready")
        assert not scene.saved

    run(scenario())


class FailsAtOnce(FakeBackend):
    """What it refuses fails at once; everything else waits for `hold`."""

    def launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> FakeServer:
        """A server, or the error that is switched on."""
        if drafting in self.refuses:
            self.asked.append((model_path, drafting, settings))
            raise self.refuses[drafting]
        return super().launch(model_path, drafting, settings)


def test_a_request_waits_for_a_drafting_that_starts_while_off_does_not():
    """Proxy review 11: older requests were served, and new ones got 502."""

    async def scenario():
        scene = Scene(FailsAtOnce(), stored=[recommend(LOOKUP)])
        async with scene.opened() as supervisor:
            scene.backend.hold.clear()
            first = asyncio.create_task(supervisor.lease(wanted()))
            await until(lambda: "starting" in states(supervisor).values())
            scene.backend.refuses[OFF] = LaunchError("Out of memory.")
            with pytest.raises(LaunchError, match="Out of memory"):
                await supervisor.lease(wanted(off=True))
            second = asyncio.create_task(supervisor.lease(wanted()))
            await asyncio.sleep(0.01)
            assert not second.done()
            scene.backend.hold.set()
            for waiting in (first, second):
                async with await waiting as lease:
                    assert lease.drafting == LOOKUP

    run(scenario())


def test_who_needs_a_server_that_does_not_start_is_told_at_once():
    """Proxy review 20: with `x-autospec-drafting: off` a request waited five minutes while off was launched again and again."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        scene.backend.refuses[OFF] = LaunchError("Out of memory.")
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()) as lease:
                assert lease.drafting == LOOKUP
            for _ in range(2):
                with pytest.raises(LaunchError, match="Out of memory"):
                    await supervisor.lease(wanted(off=True))
            launches = len(scene.backend.asked)
            for _ in range(50):
                scene.clock.now_s += 1.0
                supervisor._reconciler.reconcile()
            assert len(scene.backend.asked) == launches == 2
            async with await supervisor.lease(wanted()) as lease:
                assert lease.drafting == LOOKUP
            with pytest.raises(
                LaunchError, match="Out of memory"
            ):  # it is tried again when it is asked for again
                await supervisor.lease(wanted(off=True))
            assert len(scene.backend.asked) == launches + 1

    run(scenario())


async def rescan(supervisor, scene: Scene) -> None:
    """Scan the disk, as for a name that nobody knows."""
    scene.clock.now_s += 31.0
    with pytest.raises(UnknownModelError):
        await supervisor.lease(wanted("nobody"))


def test_a_lease_names_the_build_that_its_server_was_started_from():
    """Proxy review 9: after an upgrade the old process's figures were filed under the new build."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            held = await supervisor.lease(wanted())
            scene.backend.build = NEXT_BUILD
            scene.backend.hold.clear()
            await rescan(supervisor, scene)
            async with await supervisor.lease(wanted()) as meanwhile:
                assert (meanwhile.base_url, meanwhile.build) == (held.base_url, "fake-1")
            scene.backend.hold.set()
            await until(
                lambda: (
                    sorted(row["state"] for row in supervisor.status()["launches"]) == ["draining", "ready"]
                )
            )
            async with await supervisor.lease(wanted()) as after:
                assert after.base_url != held.base_url
                assert after.build == "fake-2"
            assert not scene.backend.servers[0].stopped
            held.give_back()
            await until(lambda: scene.backend.servers[0].stopped)

    run(scenario())


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": "another"},
        {"path": ALPHA.path.with_name("new.gguf")},
        {"adapters": "of a LoRA adapter that was trained again"},
    ],
)
@pytest.mark.parametrize("limit_mib", [65536, 500])
def test_a_file_that_was_replaced_is_not_served_on(changes, limit_mib):
    """Proxy review 9: the same name means the new file from the next scan on, also where two servers do not fit."""

    async def scenario():
        scene = Scene()
        scene.limit(limit_mib)
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()) as before:
                pass
            scene.models = (dataclasses.replace(ALPHA, **changes), BETA)
            await rescan(supervisor, scene)
            await until(
                lambda: scene.backend.servers[0].stopped and states(supervisor) == {"alpha-1b off": "ready"}
            )
            async with await supervisor.lease(wanted()) as after:
                assert after.base_url != before.base_url
        assert scene.backend.asked[-1][0] == str(scene.models[0].path)
        assert len(scene.backend.servers) == 2

    run(scenario())


def test_a_draft_model_that_was_replaced_is_not_served_on(tmp_path):
    """Proxy review 9: the draft is a part of the server, too."""

    async def scenario():
        draft = dataclasses.replace(model("draft"), path=tmp_path)
        drafting = Drafting(Mode.DRAFT_MODEL, draft=str(draft.path), n_max=4)
        scene = Scene(models=(ALPHA, draft), stored=[recommend(drafting)])
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted("alpha-1b")) as lease:
                assert lease.drafting == drafting
            await rescan(supervisor, scene)
            assert len(scene.backend.asked) == 1
            scene.models = (ALPHA, dataclasses.replace(draft, fingerprint="another"))
            await rescan(supervisor, scene)
            await until(lambda: len(scene.backend.servers) == 2 and scene.backend.servers[0].stopped)

    run(scenario())


def test_what_was_replaced_is_found_without_a_reason_to_look(monkeypatch):
    """Proxy review 9: only an unknown name or a new recommendation made the proxy scan."""
    monkeypatch.setattr("autospec.serving.supervisor._POLL_S", 0.005)

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()):
                pass
            scene.backend.build = NEXT_BUILD
            await asyncio.sleep(0.05)
            assert scene.scans == 1
            scene.clock.now_s += 300.0
            await until(lambda: len(scene.backend.servers) == 2)
            assert scene.scans == 2

    run(scenario())


class UpgradedScene(Scene):
    """A backend that is away while `missing` is set, or another one while `other` is."""

    missing = False
    other: FakeBackend | None = None

    def _scan_models(self) -> ModelRegistry:
        if self.missing:
            self.scans += 1
            return ModelRegistry(
                self.models, {}, {"gguf": "GGUF models are not served: nothing is installed."}
            )
        found, self.backend = self.backend, self.other or self.backend
        try:
            return super()._scan_models()
        finally:
            self.backend = found


def test_a_moment_without_the_backend_withdraws_nothing():
    """Proxy review 14: during an upgrade all models vanished, and their servers were drained."""

    async def scenario():
        scene = UpgradedScene()
        async with scene.opened() as supervisor:
            held = await supervisor.lease(wanted())
            scene.missing = True
            await rescan(supervisor, scene)
            assert len(supervisor.offered()) == 2
            assert states(supervisor) == {"alpha-1b off": "ready"}
            assert supervisor.status()["not_served"] == []
            scene.missing = False
            await rescan(supervisor, scene)
            held.give_back()
            async with await supervisor.lease(wanted()) as lease:
                assert lease.base_url == held.base_url

    run(scenario())


def test_a_backend_that_stays_away_is_believed(monkeypatch):
    """Proxy review 14: it was uninstalled. The scan that says so needs no request."""
    monkeypatch.setattr("autospec.serving.supervisor._POLL_S", 0.005)

    async def scenario():
        scene = UpgradedScene()
        async with scene.opened() as supervisor:
            scene.missing = True
            await rescan(supervisor, scene)
            assert supervisor.offered()
            scene.clock.now_s += 61.0
            await until(lambda: not supervisor.offered())
            assert supervisor.status()["not_served"]

    run(scenario())


def test_a_moment_with_another_backend_starts_nothing_on_it():
    """Proxy review 14: while one build was replaced, the other one would have taken over all servers."""

    async def scenario():
        scene = UpgradedScene()
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()):
                pass
            scene.other = FakeBackend("llama-server", build=NEXT_BUILD)
            await rescan(supervisor, scene)
            async with await supervisor.lease(wanted()) as lease:
                assert lease.build == "fake-1"
            assert not scene.other.asked
            scene.clock.now_s += 31.0
            await rescan(supervisor, scene)
            await until(lambda: scene.other.running and not scene.backend.running)

    run(scenario())


class Daemon:
    """A daemon that measures, or rests."""

    def __init__(self) -> None:
        self.measuring = False
        self.held = self.most = self.asked = 0

    def serving(self) -> Any:
        """Counted."""
        daemon = self

        class Held(nullcontext):
            def __enter__(self) -> None:
                daemon.held += 1
                daemon.most = max(daemon.most, daemon.held)

            def __exit__(self, *_error: object) -> None:
                daemon.held -= 1

        return Held()

    async def machine_is_free(self) -> bool:
        """Asked while the daemon has been told."""
        assert self.held
        self.asked += 1
        return True


def test_the_daemon_is_told_of_a_launch_until_it_is_over():
    """Proxy review 8: only requests were told, so a restart loaded gigabytes beside a measurement."""

    async def scenario():
        scene = Scene(daemon=Daemon())
        scene.backend.refuses[OFF] = LaunchError("Out of memory.")
        async with scene.opened() as supervisor:
            with pytest.raises(LaunchError):
                await supervisor.lease(wanted())
            assert (scene.daemon.held, scene.daemon.asked) == (0, 1)
            scene.backend.refuses.clear()
            scene.clock.now_s += 5.0
            scene.backend.hold.clear()
            waiting = asyncio.create_task(supervisor.lease(wanted()))
            await until(lambda: len(scene.backend.asked) == 2)
            assert scene.daemon.held == 1
            scene.backend.hold.set()
            (await waiting).give_back()
            assert scene.daemon.held == 0

    run(scenario())


@pytest.mark.parametrize("limit_mib", [65536, 600])
def test_a_switch_that_nobody_waits_for_waits_for_the_daemon(limit_mib):
    """Proxy review 8: a new recommendation comes exactly when a tune goes on with its next cell."""

    async def scenario():
        scene = Scene(daemon=Daemon())
        scene.limit(limit_mib)
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()) as lease:
                lease.answered(1e6)
            scene.daemon.measuring = True
            scene.learn(recommend(LOOKUP))
            await supervisor.refresh()
            for _ in range(5):
                supervisor._reconciler.reconcile()
            assert states(supervisor) == {"alpha-1b off": "ready"}
            scene.daemon.measuring = False
            await until(lambda: "alpha-1b off" not in states(supervisor))

    run(scenario())


def test_a_model_that_is_unloaded_is_stopped_while_the_daemon_measures():
    """Proxy review 8: what frees memory need not wait."""

    async def scenario():
        scene = Scene(daemon=Daemon())
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()):
                pass
            scene.daemon.measuring = True
            scene.clock.now_s += 901.0
            await until(lambda: not scene.backend.running)

    run(scenario())


def test_a_request_that_names_no_model_means_the_one_used_last():
    """Proxy review 12: after the unload it meant none, and with two running models the first by name."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            assert not any(o.last_used for o in supervisor.offered())
            for name in ("alpha", "beta"):
                async with await supervisor.lease(wanted(name)):
                    scene.clock.now_s += 1.0
            async with await supervisor.lease(wanted("")) as lease:
                assert lease.model == "beta-1b"
            scene.clock.now_s += 10_000.0
            await until(lambda: not scene.backend.running)
            assert [o.name for o in supervisor.offered() if o.last_used] == ["beta-1b"]
            async with await supervisor.lease(wanted("")) as lease:
                assert lease.model == "beta-1b"

    run(scenario())


class Witness:
    """What is seen of servers from outside.

    Attributes:
        silent: Base URLs that answer nothing.
        slots: What ``/slots`` shows; ``None`` where it is not there.
        share: Of one core, what each server takes.
        asked: The questions.
    """

    def __init__(self, monkeypatch, clock) -> None:
        self.silent: set[str] = set()
        self.slots: Callable[[], bytes] | None = lambda: b"as ever"
        self.share = 0.0
        self.asked: list[str] = []
        monkeypatch.setattr(instance, "_ask", self._ask)
        monkeypatch.setattr(instance, "_processor_s", lambda _pids: {1: clock.now_s * self.share})

    def _ask(self, base_url: str, _wait_s: float, path: str) -> tuple[int, bytes] | None:
        self.asked.append(base_url)
        if base_url in self.silent:
            return None
        if path == "/health":
            return 200, b""
        return (404, b"") if self.slots is None else (200, self.slots())


@pytest.fixture
def scene() -> Scene:
    """Servers that nobody unloads."""
    return Scene(settings=dataclasses.replace(Scene().settings, idle_unload=""))


@pytest.fixture
def witness(monkeypatch, scene) -> Witness:
    """Servers that answer and do nothing."""
    return Witness(monkeypatch, scene.clock)


async def pass_time(supervisor, scene: Scene, minutes: int) -> None:
    """Let time pass, with a look each minute as the loop would have."""
    for _ in range(minutes):
        supervisor._reconciler.pool.look()
        await asyncio.sleep(0.005)  # for the questions, which threads ask
        scene.clock.now_s += 60.0
    supervisor._reconciler.pool.look()
    await asyncio.sleep(0.005)


def test_a_server_that_hangs_is_replaced_and_others_go_on(scene, witness):
    """Proxy review 22, issue 17 item 2: every request waited for ever."""

    async def scenario():
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted("beta")) as other:
                other.follow(Passing(100))
            stuck = await supervisor.lease(wanted())
            witness.silent.add(stuck.base_url)
            await pass_time(supervisor, scene, 9)
            assert not scene.backend.servers[1].stopped
            await pass_time(supervisor, scene, 3)
            assert set(witness.asked) == {stuck.base_url}
            await until(lambda: scene.backend.servers[1].stopped)
            stuck.died()
            stuck.give_back()
            async with await supervisor.lease(wanted()) as again:
                assert again.base_url != stuck.base_url
            async with await supervisor.lease(wanted("beta")) as other:
                assert other.base_url == scene.backend.servers[0].base_url
            (row,) = supervisor.status()["setbacks"]
            assert "does not answer /health or /slots, and uses 0.00% of a core" in row["error"]

    run(scenario())


@pytest.mark.parametrize("slots", [None, lambda: b"as ever"], ids=["no slots", "the same slots"])
def test_a_server_that_answers_and_does_nothing_hangs(scene, witness, slots):
    """`/health` comes from another thread: such a server was taken for a slow one for ever."""
    witness.slots = slots

    async def scenario():
        async with scene.opened() as supervisor:
            stuck = await supervisor.lease(wanted())
            await pass_time(supervisor, scene, 19)
            assert not scene.backend.servers[0].stopped
            await pass_time(supervisor, scene, 5)
            await until(lambda: scene.backend.servers[0].stopped)
            stuck.give_back()
            (row,) = supervisor.status()["setbacks"]
            assert "answers /health and /slots, and uses 0.00% of a core" in row["error"]

    run(scenario())


def test_a_server_that_computes_is_only_slow(scene, witness):
    """A long prompt, during which some servers answer nothing for an hour (ik_llama.cpp issue 1210); but not for ever."""
    witness.share = 0.9

    async def scenario():
        async with scene.opened() as supervisor:
            held = await supervisor.lease(wanted())
            witness.silent.add(held.base_url)
            await pass_time(supervisor, scene, 118)
            assert witness.asked
            assert not scene.backend.servers[0].stopped
            await pass_time(supervisor, scene, 8)
            await until(lambda: scene.backend.servers[0].stopped)
            held.give_back()

    run(scenario())


def test_a_server_whose_slots_move_is_only_slow(scene, witness):
    """However long it takes, and however little of the processor, because a GPU computes."""
    witness.slots = lambda: str(scene.clock.now_s).encode()

    async def scenario():
        async with scene.opened() as supervisor:
            held = await supervisor.lease(wanted())
            await pass_time(supervisor, scene, 150)
            assert not scene.backend.servers[0].stopped
            held.give_back()

    run(scenario())


def test_a_server_for_which_nobody_waits_does_not_hang(scene, witness):
    """Its client left before the first byte; and another client does not take its answer."""

    async def scenario():
        async with scene.opened() as supervisor:
            (await supervisor.lease(wanted())).give_back()
            await pass_time(supervisor, scene, 20)
            assert witness.asked
            witness.asked.clear()
            paused = await supervisor.lease(wanted())
            answer = Passing(1)
            answer.unread_bytes = 70_000
            paused.follow(answer)
            await pass_time(supervisor, scene, 40)
            assert not witness.asked
            assert not scene.backend.servers[0].stopped
            paused.give_back()

    run(scenario())


def test_probes_say_nothing_of_a_server(scene, witness):
    """A dashboard asks for ever, and is answered by threads that do not hang."""

    async def scenario():
        async with scene.opened() as supervisor:
            (await supervisor.lease(wanted())).give_back()
            await pass_time(supervisor, scene, 20)
            witness.asked.clear()
            for _ in range(20):
                (await supervisor.lease(wanted(kind=None, probe=True))).give_back()
                await pass_time(supervisor, scene, 1)
            assert not witness.asked

    run(scenario())


def test_a_server_that_sends_is_not_asked(scene, witness):
    """Proxy review 22: with more streams than threads llama-server's health check waits, too."""

    async def scenario():
        answer = Passing()
        async with scene.opened() as supervisor:
            held = await supervisor.lease(wanted())
            held.follow(answer)
            for _ in range(20):
                await pass_time(supervisor, scene, 2)
                answer.generated_bytes += 1
            held.give_back()
            assert not witness.asked

    run(scenario())


def test_a_page_that_stays_open_is_no_silence(scene, witness):
    """llama.cpp's page holds a stream for as long as it is open: the model owes it nothing."""

    async def scenario():
        page = Passing()
        page.generates = False
        async with scene.opened() as supervisor:
            held = await supervisor.lease(wanted())
            held.follow(page)
            await pass_time(supervisor, scene, 40)
            assert not witness.asked
            held.give_back()

    run(scenario())


def test_a_server_that_sends_while_it_is_watched_is_not_ended(scene, witness):
    """Proxy review 22: both health checks timed out, and tokens came meanwhile."""

    async def scenario():
        answer = Passing()
        async with scene.opened() as supervisor:
            held = await supervisor.lease(wanted())
            held.follow(answer)
            witness.silent.add(held.base_url)
            for _ in range(5):
                await pass_time(supervisor, scene, 9)
                answer.generated_bytes += 1
            assert witness.asked
            assert not scene.backend.servers[0].stopped
            held.give_back()

    run(scenario())


@pytest.mark.parametrize("answers", [True, False])
def test_a_server_that_no_client_is_patient_enough_for_is_found(scene, witness, answers):
    """Proxy review 22: each gives up after a minute, so no single request is silent for long."""

    async def scenario():
        async with scene.opened() as supervisor:
            for _ in range(25 if answers else 12):
                lease = await supervisor.lease(wanted(kind=PromptType.CHAT))
                if not answers:
                    witness.silent.add(lease.base_url)
                await pass_time(supervisor, scene, 1)
                lease.give_back()
                if scene.backend.servers[0].stopped:
                    break
            await until(lambda: scene.backend.servers[0].stopped)

    run(scenario())


def test_a_model_that_waits_for_the_memory_of_a_hung_server_gets_it_after_its_end(scene, witness):
    """Proxy review 22: until its process has ended it holds its memory."""

    async def scenario():
        scene.limit(600)
        async with scene.opened() as supervisor:
            stuck = await supervisor.lease(wanted())
            witness.silent.add(stuck.base_url)
            await pass_time(supervisor, scene, 12)
            stuck.give_back()
            async with await supervisor.lease(wanted("beta")) as lease:
                assert lease.model == "beta-1b"
        assert scene.backend.most == 1

    run(scenario())


def test_a_dead_server_is_not_lent_before_the_next_look():
    """Proxy review 26: its port may be another program's by then."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()) as first:
                pass
            scene.backend.servers[0].kill()
            async with await supervisor.lease(wanted()) as second:
                assert second.base_url != first.base_url

    run(scenario())


def test_starts_and_failures_are_counted_by_cause():
    """What an alert needs; servers that are stopped are no failures."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        scene.backend.refuses[LOOKUP] = LaunchError("Unknown flag.", permanent=True)
        async with scene.opened() as supervisor:
            assert supervisor.status()["totals"] == []
            for by in ("SIGABRT", "SIGKILL", "SIGKILL"):
                assert await crash(supervisor, scene, wanted(), by) == OFF.label
            async with await supervisor.lease(wanted()):
                totals = {row["drafting"]["mode"]: row for row in supervisor.status()["totals"]}
        no_start = {"model": "alpha-1b", "started": 1, "did_not_start": 1, "died": 0, "killed": 0}
        off = {"model": "alpha-1b", "started": 4, "did_not_start": 0, "died": 1, "killed": 2}
        assert totals == {
            LOOKUP.mode: {"drafting": LOOKUP.to_json(), **no_start},
            OFF.mode: {"drafting": OFF.to_json(), **off},
        }

    run(scenario())


def test_a_switch_that_has_room_for_one_server_only_ends_with_the_new_one():
    """Nobody asks meanwhile. Between the old server and the new one the model is in use as before."""

    async def scenario():
        scene = Scene(stored=[recommend(OFF)])
        scene.limit(400)
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()) as lease:
                lease.answered(10_000)
                assert lease.drafting == OFF
            scene.learn(recommend(LOOKUP))
            await supervisor.refresh()
            await until(lambda: states(supervisor) == {f"alpha-1b {LOOKUP.label}": "ready"})
            assert [d for _, d, _ in scene.backend.asked] == [OFF, LOOKUP]

    run(scenario())


def test_a_model_that_lost_its_memory_during_a_switch_waits_for_a_request():
    """Another model's request came first and has waited: nobody asks for the one that was being switched."""

    async def scenario():
        scene = Scene(stored=[recommend(OFF)])
        scene.limit(400)
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()) as lease:
                lease.answered(10_000)
            scene.backend.hold.clear()
            scene.learn(recommend(LOOKUP))
            await supervisor.refresh()
            await until(lambda: states(supervisor) == {f"alpha-1b {LOOKUP.label}": "starting"})
            waiting = asyncio.ensure_future(supervisor.lease(wanted("beta")))
            await until(lambda: len(supervisor._reconciler.queue))
            scene.clock.now_s += 40.0
            supervisor._reconciler.reconcile()
            scene.backend.hold.set()
            (await waiting).give_back()
            for _ in range(3):
                scene.clock.now_s += 40.0
                supervisor._reconciler.reconcile()
                await asyncio.sleep(0.05)
            assert states(supervisor) == {"beta-1b off": "ready"}

    run(scenario())


@pytest.mark.parametrize("where", ["a server's check", "the records of servers"])
def test_an_error_in_the_control_loop_leaves_nobody_waiting(monkeypatch, caplog, where):
    """One in a server's check ended the loop, and who waited for any model waited for ever."""
    monkeypatch.setattr(reconciler, "_TICK_S", 0.01)

    def fails(*_args):
        raise ValueError("35 is not a valid Signals")

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            (await supervisor.lease(wanted())).give_back()
            scene.backend.hold.clear()
            waiting = asyncio.create_task(supervisor.lease(wanted("beta")))
            await until(lambda: "starting" in states(supervisor).values())
            with monkeypatch.context() as patched:
                if where == "a server's check":
                    patched.setattr(scene.backend.servers[0], "ended", fails)
                else:
                    patched.setattr(supervisor._reconciler, "_collect", fails)
                await until(lambda: "35 is not a valid" in caplog.text)
                scene.clock.now_s += 301.0
                with pytest.raises(OverloadedError, match="within 300 s"):
                    await waiting
            scene.backend.hold.set()
            (await supervisor.lease(wanted("beta"))).give_back()

    run(scenario())
