"""Pages of other addresses in a real browser: a hostile one may do nothing, and Open WebUI's direct connection works.

Open WebUI itself is not run here: its package is some gigabytes. What its page sends is written from its source,
src/lib/apis/openai/index.ts (`getOpenAIModelsDirect`, `generateOpenAIChatCompletion`), as of commit 0334ab7.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.proxy.harness import LentServer, Loop, OneModel, proxy_over
from tests.proxy.stand_in import SSE, Asked, StandIn

pytestmark = pytest.mark.real

CHUNK = b'data: {"choices": [{"delta": {"content": "Hello from the model"}}]}\n\ndata: [DONE]\n\n'
# As in Open WebUI's page.
DIRECT = """
const [url, done] = arguments, headers = {'Content-Type': 'application/json', Authorization: 'Bearer '};
(async () => {
  const models = await (await fetch(`${url}/models`, {method: 'GET', headers})).json();
  const model = models.data.map((m) => ({id: m.id, name: m.name ?? m.id}))[0].id;
  const body = {stream: true, model, messages: [{role: 'user', content: 'Hi'}], stream_options: {include_usage: true}};
  const answer = await fetch(`${url}/chat/completions`, {method: 'POST', headers, body: JSON.stringify(body)});
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) { const {done: ended, value} = await reader.read(); if (ended) break; text += value; }
  done([answer.status, model, text]);
})().catch((error) => done([0, String(error), '']));
"""
ATTACKS = """
const [url, done] = arguments, tries = {};
const body = JSON.stringify({model: 'alpha-1b', drafting: 'off'});
(async () => {
  for (const action of ['drafting', 'tune', 'unload']) {
    for (const type of ['application/json', 'text/plain', 'application/x-www-form-urlencoded']) {
      for (const mode of ['cors', 'no-cors']) {
        const options = {method: 'POST', mode, body, headers: {'Content-Type': type}};
        tries[`${action} ${type} ${mode}`] = await fetch(`${url}autospec/v1/${action}`, options).then((a) => a.type, () => 'refused');
      }
    }
  }
  tries.read = await fetch(`${url}autospec/v1/status`).then((a) => a.type, () => 'refused');
  done(tries);
})();
"""


class Blank(BaseHTTPRequestHandler):
    """An empty page at every path."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"page")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def other_port() -> Iterator[int]:
    """Another server of this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Blank) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_page_of_another_site_can_do_nothing(stage, page, other_port):
    """By fetch in every mode, by a form in every encoding, in a frame: nothing is done and nothing is read."""
    page.expected_errors = ["403", "415", "CORS", "Failed to load", "frame", "Refused"]
    stage.use()
    page.open(f"http://evil.example:{other_port}/")
    tries = page.driver.execute_async_script(ATTACKS, f"{stage.listening.base_url}/")
    # A browser tells a page nothing of what it sent without asking (no-cors): that it was refused shows below.
    assert {how for name, how in tries.items() if not name.endswith("no-cors")} == {"refused"}
    for encoding in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        page.open(f"http://evil.example:{other_port}/")
        page.script(
            "const f = document.createElement('form'); [f.method, f.enctype, f.action] = ['POST', arguments[0], arguments[1]];"
            'f.innerHTML = `<input name=\'{"model": "alpha-1b", "x": "\' value=\'"}\'>`; document.body.append(f); f.submit();',
            encoding,
            f"{stage.listening.base_url}/autospec/v1/unload",
        )
        page.wait_for("may not use this proxy")
    page.open(f"http://evil.example:{other_port}/")
    page.script(
        "const f = document.createElement('iframe'); f.src = arguments[0]; document.body.append(f)", stage.url
    )
    page.wait(lambda: page.script("return document.querySelector('iframe').contentDocument === null"))
    status = stage.supervisor.status()
    assert status["drafting_off"] == {}
    assert [server["state"] for server in status["launches"]] == ["ready"]
    assert stage.asked == []


def test_another_page_of_this_machine_may_chat_and_not_act(stage, page, other_port):
    """The API is open to it, as to Open WebUI on another port; the buttons are not."""
    page.expected_errors = ["403", "415", "CORS", "Failed to load"]
    stage.use()
    page.open(f"http://localhost:{other_port}/")
    tries = page.driver.execute_async_script(ATTACKS, f"{stage.listening.base_url}/")
    assert tries.pop("read") == "cors"
    assert stage.supervisor.status()["drafting_off"] == {}
    assert [server["state"] for server in stage.supervisor.status()["launches"]] == ["ready"]
    assert stage.asked == []
    assert len(tries) == 18


def test_open_webuis_direct_connection(tmp_path: Path, page, other_port):
    """Its page asks for the models and chats, from its own address: preflight, stream and headers pass."""

    async def chat(asked: Asked) -> None:
        await asked.send(SSE)
        await asked.chunk(CHUNK)
        await asked.end()

    loop = Loop()
    backend = loop.run(StandIn(chat).start())
    dispatch = OneModel([LentServer(backend.base_url)])
    with proxy_over(loop, dispatch, tmp_path / "autospec.db") as proxy:
        page.open(f"http://localhost:{other_port}/")
        status, model, text = page.driver.execute_async_script(DIRECT, f"{proxy.base_url}/v1")
    assert (status, model) == (200, "main"), text
    assert text == CHUNK.decode()
    loop.run(backend.stop())
    loop.close()
