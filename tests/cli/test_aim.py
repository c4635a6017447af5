"""The aim on the command line: who is refused, who falls back, and whose results are shown."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from autospec.backends import registry
from autospec.cells import Aim, PromptType
from autospec.cli import cli
from autospec.hardware import energy, identify
from autospec.hardware.energy import EnergyMeter
from autospec.recommendations import Verdict
from autospec.settings import load_settings
from autospec.store.database import open_store
from autospec.tuning import load_guard, request
from autospec.tuning import run as run_module
from tests.report.samples import recommendation
from tests.tuning.simulated import SimulatedBackend
from tests.tuning.test_run import request_with

NO_METER = EnergyMeter(lambda: None, [])


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path) -> SimulatedBackend:
    """A machine without counters, and a backend on which drafting pays."""
    made = SimulatedBackend(lambda _drafting, _text: 1.5)

    def prepared(settings, _model, **_options):
        found = request_with(tmp_path, "draft", aim=Aim(settings.aim))
        return replace(found, storage=settings.storage, prompt_types=(PromptType.CODING,))

    monkeypatch.setattr(energy, "EnergyMeter", lambda _gpu: NO_METER)
    monkeypatch.setattr(request, "prepare", prepared)
    monkeypatch.setattr(registry, "backend_for", lambda *_: made)
    monkeypatch.setattr(load_guard, "busy", lambda _state: False)
    monkeypatch.setattr(run_module, "devices_here", lambda _hardware: ())
    return made


def test_a_person_who_asks_for_energy_is_refused_without_a_meter(backend):
    """Before anything is launched, in a sentence that says what to do."""
    result = CliRunner().invoke(cli, ["tune", "--model", "main", "--aim", "energy"])
    assert result.exit_code == 1
    assert "The aim energy needs" in result.stderr
    assert "--aim speed" in result.stderr
    assert backend.launched == []


def test_a_configured_aim_falls_back_to_speed(backend, monkeypatch):
    """So does the daemon, which runs this command: it says so and measures for speed."""
    monkeypatch.setenv("AUTOSPEC_AIM", "energy")
    result = CliRunner().invoke(cli, ["tune", "--model", "main", "--json"])
    assert result.exit_code == 0, result.stderr
    assert "The aim is speed instead." in result.stderr
    (found,) = json.loads(result.stdout)["recommendations"]
    assert (found["aim"], found["verdict"]) == ("speed", "enable")


@pytest.fixture
def both() -> None:
    """Coding is enabled for speed, and not for energy."""
    store = open_store(load_settings().storage)
    frugal = recommendation(Verdict.DISABLE, aim=Aim.ENERGY, created_at="2026-11-21T10:00:00+00:00")
    for key, r in (("speed", recommendation()), ("energy", frugal)):
        store.save_recommendation(r, identify(), key)
    store.close()


@pytest.mark.usefixtures("both")
def test_results_are_those_of_the_aim(monkeypatch):
    """Of the setting, or the one named; the newer one of the other aim does not answer."""

    def shown(*flags: str) -> list[tuple[str, str]]:
        result = CliRunner().invoke(cli, ["recommend", "--json", *flags])
        assert result.exit_code == 0, result.stderr
        return [(r["aim"], r["verdict"]) for r in json.loads(result.stdout)["recommendations"]]

    assert shown() == [("speed", "enable")]
    assert shown("--aim", "energy") == [("energy", "disable")]
    monkeypatch.setenv("AUTOSPEC_AIM", "energy")
    monkeypatch.setattr(energy, "EnergyMeter", lambda _gpu: NO_METER)
    assert shown() == [("speed", "enable")]
    meter = EnergyMeter(lambda: 1.0, [])
    monkeypatch.setattr(EnergyMeter, "parts", property(lambda _meter: frozenset({"cpu", "gpu"})))
    monkeypatch.setattr(energy, "EnergyMeter", lambda _gpu: meter)
    assert shown() == [("energy", "disable")]
    assert shown("--aim", "speed") == [("speed", "enable")]


@pytest.mark.usefixtures("both")
def test_the_table_says_what_the_verdicts_are_about():
    """Where that is not the speed in it."""
    table = CliRunner().invoke(cli, ["recommend", "--aim", "energy"]).stdout
    assert "aim: energy" in table
    assert "aim" not in CliRunner().invoke(cli, ["recommend"]).stdout


def test_nothing_known_names_the_aim():
    """The hint measures with it."""
    store = open_store(load_settings().storage)
    store.save_recommendation(recommendation(), identify(), "speed")
    store.close()
    result = CliRunner().invoke(cli, ["recommend", "--model", "Main-7B", "--aim", "energy"])
    assert result.exit_code == 3
    assert "with the aim energy" in result.stderr
    assert "--aim energy" in result.stderr


def test_a_mix_has_no_answer_of_energy(backend):
    """It weighs times; the refusal comes before any work."""
    known = CliRunner().invoke(cli, ["recommend", "--mix", "coding=1", "--aim", "energy"])
    assert known.exit_code == 2
    assert "--mix weighs times" in known.stderr
