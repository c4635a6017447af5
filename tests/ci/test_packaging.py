"""The Docker image, the formula and the metadata name what is here. Neither Docker nor Homebrew runs in these tests."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from autospec.service.managers import STOP_WITHIN_S
from autospec.settings import KEYS
from tests.golden.conftest import SYSTEM_PATH

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "packaging/docker/Dockerfile"
FORMULA = ROOT / "packaging/homebrew/autospec.rb"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
KEY = "packaging-test"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their words."""
    lines = (line for line in DOCKERFILE.read_text("utf-8").splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        (word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines())
        if word
    ]


def command_of(name: str) -> list[str]:
    """The words of an instruction in JSON's form."""
    [words] = [rest for word, rest in instructions() if word == name]
    return json.loads(words[words.index("[") :])


def copied() -> list[str]:
    """What goes from the repository into the image."""
    sources = [rest.split()[:-1] for word, rest in instructions() if word == "COPY" and "--from" not in rest]
    return [source for words in sources for source in words]


def name_of(requirement: str) -> str:
    """The normalized name in a requirement."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-").replace(".", "-")


def test_the_metadata_names_each_python():
    """Those of the workflow's matrix, `test_workflow.py` says the same of it."""
    pythons = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert pythons == {"3.11", "3.12", "3.13", "3.14"}
    assert PROJECT["requires-python"] == ">=3.11"
    assert {"Operating System :: MacOS", "Operating System :: POSIX :: Linux"} <= set(PROJECT["classifiers"])
    # PEP 639: the licence is an expression, and no classifier.
    assert PROJECT["license"] == "MIT"
    assert not [c for c in PROJECT["classifiers"] if c.startswith("License")]
    assert all((ROOT / name).is_file() for name in PROJECT["license-files"])
    assert all(url.startswith("https://") for url in PROJECT["urls"].values())


def test_macos_13_can_install_it():
    """MLX's wheels need macOS 14: it must not be a dependency."""
    assert not [r for r in PROJECT["dependencies"] if name_of(r).startswith("mlx")]
    assert [name_of(r) for r in PROJECT["optional-dependencies"]["mlx"]] == ["mlx-lm", "mlx"]


def test_the_image_copies_what_is_here():
    """And the build's context has it."""
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")
    }
    assert copied()
    for source in copied():
        assert (ROOT / source).exists()
        assert source in allowed


def test_the_image_copies_what_the_wheel_is_built_from():
    """The package, the data that travels in it, the texts of the metadata."""
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], PROJECT["readme"], *PROJECT["license-files"]}
    assert needed | {"pyproject.toml"} <= set(copied())


def test_the_image_runs_as_a_user_without_rights():
    """From there on nothing is run at build time, and the folders are its own."""
    words = [word for word, _ in instructions()]
    [user] = [rest for word, rest in instructions() if word == "USER"]
    assert user not in {"root", "0"}
    assert "RUN" not in words[words.index("USER") :]
    assert f"--owner={user}" in DOCKERFILE.read_text("utf-8")
    assert ["HEALTHCHECK" in words, "ENTRYPOINT" in words] == [True, True]


def test_the_image_sets_settings_that_there_are():
    """A misspelt variable would do nothing."""
    set_here = set(re.findall(r"\bAUTOSPEC_\w+(?==)", " ".join(r for w, r in instructions() if w == "ENV")))
    assert set_here >= {"AUTOSPEC_HOME", "AUTOSPEC_PROXY_HOST"}
    named = set(re.findall(r"\bAUTOSPEC_\w+", DOCKERFILE.read_text("utf-8")))
    assert named <= {key.variable for key in KEYS} | {"AUTOSPEC_HOME"}


def test_the_image_takes_an_extra_that_there_is():
    """Of an unknown one, pip only warns."""
    text = DOCKERFILE.read_text("utf-8")
    assert '".[${EXTRAS}]"' in text
    extras = re.findall(r"\bEXTRAS=([\w,-]+)", text)
    # The example in the comment, and what it is without --build-arg.
    assert len(extras) == 2
    assert {name for names in extras for name in names.split(",")} <= PROJECT["optional-dependencies"].keys()


def test_the_image_is_given_time_to_stop():
    """After ten seconds `docker stop` killed a proxy that waits fifteen for an answer in progress."""
    for file in (DOCKERFILE, ROOT / "docs/platforms.md"):
        examples = re.findall(r"docker run (.*AUTOSPEC_PROXY_API_KEY.*)", file.read_text("utf-8"))
        assert examples
        for options in examples:
            given = re.search(r"--stop-timeout (\d+)", options)
            assert given
            assert int(given[1]) >= STOP_WITHIN_S


def test_podman_builds_the_health_check():
    """Of an OCI image, which Podman and Buildah make unless told otherwise, it is no part: Buildah 1.28 ignored it."""
    for file in (DOCKERFILE, ROOT / "docs/platforms.md"):
        assert "--format docker" in file.read_text("utf-8")


@pytest.mark.process
def test_the_images_health_check(tmp_path):
    """The image's command and its check, in this environment: well while the proxy serves, not after it."""
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("AUTOSPEC_")},
        "HOME": str(tmp_path),
        "AUTOSPEC_HOME": str(tmp_path),
        "AUTOSPEC_PROXY_API_KEY": KEY,
        "AUTOSPEC_MODEL_DIRS": str(tmp_path),
        "AUTOSPEC_PROXY_HOST": "0.0.0.0",
        "PATH": SYSTEM_PATH,
        # Whoever has a proxy for the web must not have it asked for this address.
        "http_proxy": "http://127.0.0.1:9",
    }
    assert command_of("ENTRYPOINT") == ["autospec"]
    program = [sys.executable, "-m", "autospec", *command_of("CMD"), "--port", "0", "--json"]
    python, *check = command_of("HEALTHCHECK")
    assert python == "python"
    with subprocess.Popen(program, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True) as proxy:
        try:
            assert proxy.stdout is not None
            document = ""
            while not document.endswith("}\n"):
                line = proxy.stdout.readline()
                assert line, f"the proxy ended after {document!r}"
                document += line
            env["AUTOSPEC_PROXY_PORT"] = json.loads(document)["base_url"].rpartition(":")[2]
            assert subprocess.run([sys.executable, *check], env=env, check=False).returncode == 0
        finally:
            proxy.send_signal(signal.SIGTERM)
            proxy.wait(60)
    dead = subprocess.run([sys.executable, *check], env=env, check=False, capture_output=True)
    assert dead.returncode == 1


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """What writes the formula's resources."""
    spec = importlib.util.spec_from_file_location("resources", FORMULA.with_name("resources.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def formula_resources() -> dict[str, tuple[str, str]]:
    """Each resource of the formula with its address and checksum."""
    pattern = r'  resource "([^"]+)" do\n    url "([^"]+)"\n    sha256 "([0-9a-f]{64})"\n  end\n'
    return {name: (url, digest) for name, url, digest in re.findall(pattern, FORMULA.read_text("utf-8"))}


def test_the_formula_has_every_dependency(script):
    """As a resource, or as Homebrew's own formula."""
    found = formula_resources()
    assert FORMULA.read_text("utf-8").count("resource ") == len(found)
    wanted = {name_of(requirement) for requirement in PROJECT["dependencies"]}
    assert wanted - found.keys() == script.NOT_BUILT & wanted
    assert not script.NOT_BUILT & found.keys()
    assert all(url.startswith("https://files.pythonhosted.org/packages/") for url, _ in found.values())
    needs = set(re.findall(r'depends_on "([^"]+)"', FORMULA.read_text("utf-8")))
    assert needs >= {"certifi", "llama.cpp", "numpy", "scipy"}


def test_the_formulas_address_has_the_form_that_homebrew_wants():
    """`brew style` (FormulaAudit/PyPiUrls) refused the short form, packages/source/a/…, which the formula had."""
    [url] = re.findall(r'^  url "(.+)"$', FORMULA.read_text("utf-8"), re.MULTILINE)
    assert re.fullmatch(
        r"https://files\.pythonhosted\.org/packages/[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{60}/autospec_llm-[\d.]+\.tar\.gz",
        url,
    )


def test_the_formulas_test_can_fail():
    """It looked for the word llama-server, which the doctor also writes where there is none."""
    assert '"llama-server" }["ok"]' in FORMULA.read_text("utf-8")


def test_the_formula_is_whole():
    """Every block that begins ends; Ruby itself is not here to say so."""
    code = re.sub(r"<<~EOS.*?^\s*EOS$", "", FORMULA.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines = [line.strip() for line in code.splitlines() if not line.strip().startswith("#")]
    begun = [line for line in lines if re.match(r"(class|def)\b", line) or re.search(r"\bdo$", line)]
    assert len(begun) == lines.count("end")
    assert 'generate_completions_from_executable(bin/"autospec", "completion"' in code


def lock(**package: Any) -> dict[str, Any]:
    """A lock with one package."""
    return {"packages": [{"name": "click", "version": "8.1", **package}]}


def test_resources_are_written(script):
    """With the index's own address, whichever mirror was asked; what Homebrew has is left out."""
    sdist = {
        "url": "https://mirror.example/root/packages/ab/click-8.1.tar.gz",
        "hashes": {"sha256": "0" * 64},
    }
    text = script.resources(lock(sdist=sdist))
    assert 'url "https://files.pythonhosted.org/packages/ab/click-8.1.tar.gz"' in text
    assert f'sha256 "{"0" * 64}"' in text
    assert script.resources({"packages": [{"name": "numpy", "version": "2", "sdist": sdist}]}) == ""


def test_a_package_without_source_is_refused(script):
    """Homebrew would have nothing to build."""
    with pytest.raises(ValueError, match=r"click 8\.1 has no sdist"):
        script.resources(lock(wheels=[]))
