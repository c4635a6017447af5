"""The servers of a study: scorers, renewals, and launches by turns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.backends.protocol import LaunchSettings
from autospec.backends.registry import Scores
from autospec.backends.user_args import args_of_draft
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import BackendMissingError, LaunchError, RequestError
from autospec.tuning.launches import Launches
from tests.tuning.simulated import FakeClock, SimulatedBackend

DRAFTING = Drafting(Mode.NGRAM_SIMPLE, ngram_n=4, ngram_m=8, min_hits=1)


def test_before_the_first_launch_the_usual_time_is_expected():
    """A later step of a tune plans with what the tune has seen, until it sees its own."""
    clock = FakeClock()
    backend = SimulatedBackend(lambda _d, _t: 1.2, clock=clock, launch_s=20.0)
    launches = Launches(backend, "/main.gguf", LaunchSettings(), resident=2, clock=clock, usual_s=180.0)
    assert launches.launch_s == 180.0
    launches.off()
    assert launches.launch_s == 20.0
    launches.close()


@pytest.mark.parametrize("order", [(OFF, DRAFTING), (DRAFTING, OFF)])
def test_whichever_is_launched_second_gets_the_memory_of_the_first(order):
    """Where two do not fit after all. Off, launched second in every other block of pairs, ended the tune with "Out of memory"."""
    backend = SimulatedBackend(lambda _d, _t: 1.2)

    def refuse(_drafting: Drafting) -> None:
        if backend.running:
            raise LaunchError("Out of memory.")

    backend.before_launch = refuse
    with Launches(backend, "/main.gguf", LaunchSettings(), resident=2) as launches:
        for drafting in order:
            server = launches.off() if drafting.is_off else launches.drafted(drafting)
        assert (launches.resident, backend.most_running, server.drafting) == (1, 1, order[1])


class Reading(SimulatedBackend):
    """A backend with a scorer, or a broken one."""

    def __init__(self, failure=None):
        super().__init__(lambda _d, _t: 1.2)
        self.failure = failure
        self.loaded = 0

    def scorer(self, model_path, n_ctx):
        """See `Scores`."""
        if self.failure is not None:
            raise self.failure
        assert (model_path, n_ctx) == ("/folder/draft.gguf", 64)
        return self

    def __enter__(self):
        self.loaded += 1
        return self

    def __exit__(self, *_):
        self.loaded -= 1


def scoring(backend, told):
    """The context under test."""
    launches = Launches(backend, "/main.gguf", LaunchSettings(), resident=2, tell=told.append)
    return launches.scoring("/folder/draft.gguf", 64)


def test_it_reads_as_long_as_it_is_needed():
    """Its memory is free again before the next launch."""
    backend, told = Reading(), []
    assert isinstance(backend, Scores)
    with scoring(backend, told) as scorer:
        assert scorer is backend
        assert backend.loaded == 1
    assert (backend.loaded, told) == (0, [])


@pytest.mark.parametrize(
    "backend", [SimulatedBackend(lambda _d, _t: 1.2), Reading(BackendMissingError("No."))]
)
def test_nothing_is_said_where_nothing_is_installed(backend):
    """A scorer is optional."""
    told = []
    with scoring(backend, told) as scorer:
        assert scorer is None
    assert told == []


def test_one_that_dies_is_told():
    """The tune continues, slower, and says why."""
    told = []
    with scoring(Reading(LaunchError("The server died of its first matrix.")), told) as scorer:
        assert scorer is None
    assert told == [
        "Draft draft.gguf reads the answers token by token, which is slower, because llama-cpp-python cannot load it: The server died of its first matrix."
    ]


class WithProjector(SimulatedBackend):
    """A backend whose models load with their own projector only."""

    def launch(self, model_path, drafting, settings):
        """See `Backend`."""
        if "--mmproj" in settings.args and model_path != "/main.gguf":
            raise LaunchError("The projector is of another model.", permanent=True)
        return super().launch(model_path, drafting, settings)

    def settings_of_draft(self, settings):
        """See `DraftsAlone`."""
        return replace(settings, args=args_of_draft(settings.args))


def test_a_draft_is_launched_alone_without_what_is_the_main_models():
    """A projector or an adapter would keep it from loading; the main model's own launch keeps them."""
    backend = WithProjector(lambda _d, _t: 1.2)
    settings = LaunchSettings(("-c", "4096", "--mmproj", "/eyes.gguf"))
    with Launches(backend, "/main.gguf", settings, resident=2) as launches:
        launches.off()
        with launches.alone("/draft.gguf", [("--swa-full",)]) as draft:
            assert draft.settings.args == ("-c", "4096", "--swa-full")
        with launches.alone("/main.gguf") as main:
            assert main.settings == settings


def plain(**options):
    """A backend without anything special."""
    return SimulatedBackend(lambda _d, _t: 1.2, **options)


def running(backend, resident=2, **options):
    """Off and a drafting, launched where there is room."""
    launches = Launches(backend, "/main.gguf", LaunchSettings(), resident=resident, **options)
    launches.off()
    launches.drafted(DRAFTING)
    return launches


@pytest.mark.parametrize("per_request", [False, True])
def test_the_new_off_is_compared_with_the_old_one_before_that_stops(per_request):
    """Both answer, nothing else runs, and afterwards the new one is off."""
    seen = []
    backend = plain(per_request=per_request)

    def compare(old, new):
        assert not old.stopped
        assert not new.stopped
        assert launches.off() is new
        assert backend.running == {old.launch_id, new.launch_id}
        seen.append((old.launch_id, new.launch_id))

    with running(backend, on_renewed=compare) as launches:
        old = launches.off()
        drafted = launches.drafted(DRAFTING)
        launches.renew()
        assert seen == [(old.launch_id, launches.off().launch_id)]
        assert old.stopped
        assert drafted.stopped
        assert launches.drafted(DRAFTING).launch_id != drafted.launch_id
        assert launches.count == 4
        assert launches.seconds >= 0.0
    assert not backend.running
    assert backend.most_running == 2


def test_only_the_drafted_launch_is_renewed_where_off_may_stay():
    """The proof's first round keeps the search's off."""
    backend = plain(per_request=True)
    with running(backend) as launches:
        off, drafted = launches.off(), launches.drafted(DRAFTING)
        launches.renew(off=False)
        assert launches.off() is off
        assert launches.drafted(DRAFTING).launch_id != drafted.launch_id


def test_by_turns_nothing_is_left_running_and_nothing_compared():
    """There is no room for two."""
    backend = plain()
    with running(backend, resident=1, on_renewed=lambda *_: pytest.fail("there are no two")) as launches:
        launches.renew()
        assert not backend.running
        launches.off()
        launches.renew()
        assert not backend.running
    assert backend.most_running == 1


def test_a_new_off_that_does_not_fit_beside_the_old_one_is_launched_alone():
    """From then on launches take turns."""
    backend = plain()
    with running(backend, on_renewed=lambda *_: pytest.fail("there are no two")) as launches:
        old = launches.off()

        def refuse(drafting):
            if backend.running:
                raise LaunchError("Out of memory.", permanent=True)

        backend.before_launch = refuse
        launches.renew()
        assert launches.resident == 1
        assert launches.off() is not old
        assert backend.running == {launches.off().launch_id}
        assert launches.drafted(DRAFTING)
        assert backend.running == {launches.drafted(DRAFTING).launch_id}


@pytest.mark.parametrize("second", ["drafted", "renewed", "alone"])
def test_why_launches_take_turns_is_told_once(second):
    """Two do not fit after all: a user wonders why a tune takes so long."""
    backend, told = plain(), []

    def refuse(_drafting):
        if backend.running:
            raise LaunchError("Out of memory.")

    with Launches(backend, "/main.gguf", LaunchSettings(), resident=2, tell=told.append) as launches:
        launches.off()
        backend.before_launch = refuse
        if second == "renewed":
            launches.renew()
        elif second == "alone":
            with launches.alone("/draft.gguf"):
                pass
        launches.drafted(DRAFTING)
        launches.off()
        assert launches.resident == backend.most_running == 1
    why = "A second server did not start beside the first one: Out of memory."
    assert told == [f"{why} The servers with and without drafting run by turns from now on."]


def test_an_off_that_does_not_start_at_all_is_an_error_and_leaves_nothing():
    """It was tried beside the old one, and alone."""
    backend = plain()
    with running(backend) as launches:

        def refuse(drafting):
            raise LaunchError("The file has gone.")

        backend.before_launch = refuse
        with pytest.raises(LaunchError, match="The file has gone"):
            launches.renew()
        assert backend.launched[-2:] == [OFF, OFF]
        assert not backend.running


@pytest.mark.parametrize("error", [RequestError("It died."), KeyboardInterrupt()])
def test_a_comparison_that_breaks_off_leaves_no_server(error):
    """A failed comparison does not end a proof; an interruption does, and every server stops."""
    backend = plain()

    def compare(_old, _new):
        raise error

    with running(backend, on_renewed=compare) as launches:
        if isinstance(error, KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                launches.renew()
            assert len(backend.running) == 2
            launches.close()
            assert not backend.running
        else:
            launches.renew()
            assert backend.running == {launches.off().launch_id}


def test_one_server_that_is_attached_to_is_not_compared_with_itself(monkeypatch):
    """Every launch of it is the same process."""
    backend = plain()
    with running(backend, on_renewed=lambda *_: pytest.fail("it is the same")) as launches:
        real = backend.launch

        def attach(*args):
            server = real(*args)
            server.base_url = launches._leaving.base_url
            return server

        monkeypatch.setattr(backend, "launch", attach)
        launches.renew()


def test_the_processes_of_both_are_ours_while_they_are_compared():
    """Their processor load does not count as other programs' load."""
    backend = plain()
    seen = []
    with running(backend, on_renewed=lambda *_: seen.append(launches.pids)) as launches:
        launches.off().pids = frozenset({1})
        real = backend.launch

        def launch(*args):
            server = real(*args)
            server.pids = frozenset({2})
            return server

        backend.launch = launch
        launches.renew()
    assert seen == [{1, 2}]
