"""The program that this machine's service would run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autospec.errors import ServiceError
from autospec.service import lifecycle
from autospec.service.lifecycle import (
    privacy_warnings,
    private_paths,
    refuse_root,
    service_here,
    service_path,
    unseen_variables,
)
from autospec.settings import load_settings
from tests.service.fakes import definition


@pytest.mark.parametrize("system", ["darwin", "linux"])
def test_it_runs_the_daemon_with_the_proxy_by_an_absolute_path(monkeypatch, system, autospec_home):
    """The same set-up that installs it: AUTOSPEC_HOME goes with it."""
    monkeypatch.setattr(sys, "platform", system)
    for name in lifecycle._GPU_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    definition = service_here(load_settings()).definition
    assert Path(definition.program[0]).is_absolute()
    assert definition.program[-2:] == ("daemon", "--proxy")
    assert definition.variables == (("AUTOSPEC_HOME", str(autospec_home)),)
    assert definition.log == autospec_home / "logs" / "daemon.log"


def test_a_config_file_that_was_named_goes_with_it(tmp_path):
    """By its absolute path, because the service's folder is another."""
    config = tmp_path / "c.toml"
    config.touch()
    assert service_here(load_settings(config)).definition.program[-2:] == ("--config", str(config))


def test_without_an_installed_program_the_module_is_run(tmp_path):
    """Not from the working folder, where a file of that name may be."""
    assert lifecycle._program(tmp_path / "python3") == (str(tmp_path / "python3"), "-P", "-m", "autospec")


def test_an_installed_program_is_run_by_its_name(tmp_path):
    """Beside the interpreter, whose link is not followed."""
    script = tmp_path / "autospec"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    assert lifecycle._program(tmp_path / "python") == (str(script),)


def test_the_folder_of_the_llama_server_in_use_comes_first(tmp_path):
    """The service finds the one that this shell does, and the usual places besides."""
    folders = service_path("darwin", tmp_path, "/opt/homebrew/bin/llama-server").split(":")
    assert folders[0] == "/opt/homebrew/bin"
    assert folders.count("/opt/homebrew/bin") == 1
    assert {"/usr/bin", "/bin", "/usr/local/bin"} <= set(folders)


@pytest.mark.parametrize("system", ["darwin", "linux"])
def test_the_service_gets_the_folders_of_the_shell(monkeypatch, system):
    """What a profile exports does not reach a supervisor: the service would see other models and another database."""
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setenv("HOME", "/Users/me")
    monkeypatch.setenv("XDG_STATE_HOME", "~/.local/state")
    monkeypatch.setenv("HF_HOME", "/Volumes/fast/hf")
    monkeypatch.setenv("LLAMA_CACHE", "")
    variables = dict(service_here(load_settings()).definition.variables)
    assert variables["XDG_STATE_HOME"] == "/Users/me/.local/state"
    assert variables["HF_HOME"] == "/Volumes/fast/hf"
    assert "LLAMA_CACHE" not in variables


@pytest.mark.parametrize("system", ["darwin", "linux"])
def test_the_service_gets_what_chooses_gpus_and_libraries(monkeypatch, system):
    """Its servers crashed, or used other GPUs than the tune: what a shell exports does not reach a supervisor."""
    monkeypatch.setattr(sys, "platform", system)
    told = {
        "CUDA_VISIBLE_DEVICES": "",  # hides all
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "HIP_VISIBLE_DEVICES": "1,0",
        "ROCR_VISIBLE_DEVICES": "GPU-4b2c1a9f8d3e6f7a",
        "GGML_VK_VISIBLE_DEVICES": "0",
        "HSA_OVERRIDE_GFX_VERSION": "10.3.0",
        "LD_LIBRARY_PATH": "/opt/rocm/lib::~/lib",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    service = service_here(load_settings())
    assert told.items() <= dict(service.definition.variables).items()
    text = service.supervisor.render(service.definition)
    assert told.items() <= service.supervisor.environment(text).items()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert "CUDA_VISIBLE_DEVICES" not in dict(service_here(load_settings()).definition.variables)


def test_folders_that_macos_keeps_private_are_known(tmp_path):
    """With links followed, and no other folder that merely begins alike."""
    (tmp_path / "Documents" / "autospec").mkdir(parents=True)
    (tmp_path / "src").symlink_to(tmp_path / "Documents")
    asked = [
        tmp_path / "Documents/autospec/.venv/bin/autospec",
        tmp_path / "src/autospec",
        tmp_path / "Documents2/autospec",
        tmp_path / "Library/Mobile Documents/x",
        tmp_path / ".local/bin/autospec",
        Path("/Volumes/SSD/models"),
    ]
    assert private_paths(asked, tmp_path) == (asked[0], asked[1], asked[3], asked[5])


def test_what_the_service_cannot_read_is_said_before_it_is_installed(monkeypatch, tmp_path):
    """A clone in Documents and models on another disk; on Linux nothing is private."""
    models = tmp_path / "Downloads" / "models"
    models.mkdir(parents=True)
    settings = load_settings(overrides={"model_dirs": [str(models)]})
    program = str(tmp_path / "Documents" / "autospec" / ".venv" / "bin" / "autospec")
    made = definition(tmp_path, program=(program, "daemon"))
    first, second = privacy_warnings(settings, made, "darwin")
    assert program in first
    assert str(models) in second
    assert "Full Disk Access" in second
    assert privacy_warnings(settings, made, "linux") == ()
    assert privacy_warnings(load_settings(), definition(tmp_path), "darwin") == ()


def test_a_llama_server_below_home_is_found(monkeypatch, tmp_path):
    """The setting may begin with a tilde."""
    program = tmp_path / "builds" / "llama-server"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = load_settings(overrides={"llama_server": "~/builds/llama-server"})
    assert service_here(settings).definition.path.split(":")[0] == str(program.parent)


def test_other_systems_are_refused(monkeypatch):
    """With what to do instead."""
    monkeypatch.setattr(sys, "platform", "freebsd14")
    with pytest.raises(ServiceError, match="not available on freebsd14") as raised:
        service_here(load_settings())
    assert "autospec daemon --proxy" in raised.value.hint


def test_root_is_refused_with_the_reason():
    """And under sudo with the user's name."""
    with pytest.raises(ServiceError, match="must not run as root") as raised:
        refuse_root(0, {"SUDO_USER": "maria"})
    assert raised.value.hint.startswith("Run this as maria, without sudo;")
    refuse_root(501, {})


def test_settings_of_this_shell_only_are_named():
    """All but those that the service carries."""
    environ = {"AUTOSPEC_HOME": "/x", "AUTOSPEC_BACKEND": "embedded", "AUTOSPEC_STORAGE": "", "PATH": "/bin"}
    assert unseen_variables(environ) == ("AUTOSPEC_BACKEND",)
