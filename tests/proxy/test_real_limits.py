"""The proxy obeys the limits of a stored recommendation, with a native llama-server: headers, drafts, and no further launches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from autospec.drafting import OFF, Drafting, Mode
from autospec.recommendations import LIMITS, LimitCheck, Limits, LimitVerdict
from autospec.settings import load_settings
from tests.backends.waiting import wait_until
from tests.proxy.test_real_images import remember

TIMEOUT_S = 60.0
# So little is lost beyond a limit that no plan starts a server without drafting for it, however long the test takes.
LOST = {"ratio": 0.95, "interval": (0.92, 0.98), "pairs": 8, "verdict": LimitVerdict.SLOWER}
STORED = Limits(
    concurrent=(LimitCheck(4, **LOST),),
    context=(LimitCheck(8192, **LOST),),
    temperature=(LimitCheck(0.8, **LOST),),
    most_concurrent=2,
    deepest_context=400,
    highest_temperature=0.3,
)
SHORT = "Count from one to twenty, and begin again."
DEEP = "The cat sat on the mat and looked at the moon. " * 60  # about 700 tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client sees: the limit and the drafting in the headers, and how many tokens were drafted."""

    limit: str | None
    drafting: str
    drafted: int


@dataclass
class Client:
    """Asks a running proxy for answers to coding prompts."""

    http: httpx.Client

    def body(self, prompt: str, **changes: Any) -> dict[str, Any]:
        """A greedy request for 24 tokens."""
        message = {"role": "user", "content": prompt}
        return {"model": "main", "messages": [message], "max_tokens": 24, "temperature": 0, "ignore_eos": True, **changes}  # fmt: skip

    def ask(self, prompt: str = SHORT, *, drafting_off: bool = False, **changes: Any) -> Answer:
        """One whole answer."""
        headers = {"x-autospec-drafting": "off"} if drafting_off else {}
        answer = self.http.post("/v1/chat/completions", json=self.body(prompt, **changes), headers=headers)
        answer.raise_for_status()
        timings = answer.json()["timings"]
        assert timings["predicted_n"] == 24
        told = answer.headers
        return Answer(
            told.get("x-autospec-limit"), told["x-autospec-drafting"], int(timings.get("draft_n", 0))
        )

    def ask_beside(self, others: int) -> Answer:
        """An answer while this many others, which are within the limits, are being written."""
        with ExitStack() as stack:
            answers = []
            for _ in range(others):
                body = self.body(SHORT, stream=True, max_tokens=2000)
                other = stack.enter_context(self.http.stream("POST", "/v1/chat/completions", json=body))
                answers.append(other.iter_bytes())  # one that is forgotten closes its connection
                next(answers[-1])
                assert "x-autospec-limit" not in other.headers
            answer = self.ask()
        wait_until(
            lambda: self._status()["busy"]["leases"] == 0
        )  # the proxy has noticed that they are closed
        return answer

    def launches(self) -> int:
        """How many servers the proxy has started: they are numbered."""
        return max(launch["number"] for launch in self._status()["launches"])

    def beyond(self) -> dict[str, int]:
        """What the status counts beyond the limits."""
        return self._status()["beyond_limits"]["main"]

    def _status(self) -> dict[str, Any]:
        return self.http.get("/autospec/v1/status").json()


@pytest.fixture
def client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lab_models, llama_server_binary
) -> Iterator[tuple[Client, Drafting]]:
    """`autospec proxy` over two layers of SmolLM2 and a stored recommendation, and its drafting."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AUTOSPEC_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "main.gguf").symlink_to(lab_models.tiny)
    (tmp_path / "config.toml").write_text(
        f"""
        model_dirs = ["models"]
        llama_server = "{llama_server_binary}"
        backend = "llama-server"
        study = "quick"
        server_args = ["-t", "1", "-c", "4096"]
        """,
        "utf-8",
    )
    drafting = Drafting(Mode.DRAFT_MODEL, draft=str(lab_models.tiny), n_max=4, n_min=0, p_min=0.0)
    remember(load_settings(), drafting, **{LIMITS: STORED.to_json()})
    environ = {k: v for k, v in os.environ.items() if not k.startswith("NOTIFY_")}
    command = [sys.executable, "-m", "autospec", "proxy", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as proxy:
        try:
            assert proxy.stdout is not None
            document = ""
            while not document.endswith("}\n"):
                line = proxy.stdout.readline()
                assert line, "the proxy ended"
                document += line
            url = json.loads(document)["base_url"]
            headers = {"x-autospec-prompt-type": "coding"}
            with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=TIMEOUT_S) as http:
                yield Client(http), drafting
        finally:
            proxy.send_signal(signal.SIGTERM)
            proxy.wait(TIMEOUT_S)


@pytest.mark.slow
def test_a_client_beyond_the_limits(client: tuple[Client, Drafting]):
    """Marked, and drafted as long as there is no server without drafting; with one, answered there. Nothing is started for it."""
    asking, drafting = client
    within = asking.ask()
    assert (within.limit, within.drafting) == (None, drafting.label)
    assert within.drafted > 0
    assert asking.ask_beside(1).limit is None

    def beyond() -> list[Answer]:
        """One answer beyond each limit, the temperature first."""
        return [asking.ask(temperature=0.9), asking.ask_beside(2), asking.ask(DEEP)]

    limits = ["temperature", "concurrent", "context"]
    for answer, limit in zip(beyond(), limits, strict=True):
        assert (answer.limit, answer.drafting) == (limit, drafting.label)
        assert answer.drafted > 0, limit
    hot = [asking.ask(temperature=0.9) for _ in range(6)]
    assert {(a.limit, a.drafting) for a in hot} == {("temperature", drafting.label)}
    assert asking.launches() == 1

    # A client that wants no drafting gets its own server, which then answers what is beyond a limit.
    assert asking.ask(drafting_off=True) == Answer(None, OFF.label, 0)
    assert asking.launches() == 2
    assert beyond() == [Answer(limit, OFF.label, 0) for limit in limits]
    assert {asking.ask(temperature=0.9) for _ in range(6)} == {Answer("temperature", OFF.label, 0)}
    assert (asking.ask().limit, asking.ask().drafting) == (None, drafting.label)
    assert asking.launches() == 2
    assert asking.beyond() == {"temperature": 14, "concurrent": 2, "context": 2}
