"""The proxy's own endpoints, and the model of a request that names none."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from autospec.cells import PromptType
from autospec.drafting import OFF
from autospec.hardware import identify
from autospec.measure.measurements import Sample
from autospec.proxy.app import Rules
from autospec.proxy.metrics import SampleWriter
from autospec.recommendations import Recommendation, Status, Verdict
from autospec.store.database import open_store
from tests.backends.waiting import wait_until
from tests.proxy.harness import proxy_over
from tests.proxy.stand_in import SSE

RECOMMENDATION = Recommendation(
    model="main", model_path="/m.gguf", backend="llama-server", backend_build="b1", prompt_type=PromptType.CODING,
    verdict=Verdict.DISABLE, drafting=OFF, tried=OFF, baseline_tps=50.0, drafting_tps=40.0, speedup=0.8,
    speedup_ci=(0.7, 0.9), pairs=8, acceptance=0.5, reason="Because.", status=Status.PROVEN,
    created_at="2026-11-23T00:00:00+00:00",
)  # fmt: skip


def get(proxy, path: str) -> httpx.Response:
    """One GET."""
    return httpx.get(proxy.base_url + path, trust_env=False, timeout=20)


def save(storage, recommendation: Recommendation, cell: str) -> None:
    """Into the database that the proxy reads."""
    store = open_store(f"sqlite:///{storage}")
    store.save_recommendation(recommendation, identify(), cell)
    store.close()


def test_recommendations_are_the_command_lines_document(proxy, storage):
    """Nothing known is 404; then the document, filtered as asked; nonsense is 400."""
    assert get(proxy, "/autospec/v1/recommendations").status_code == 404
    save(storage, RECOMMENDATION, "a")
    save(storage, replace(RECOMMENDATION, prompt_type=PromptType.MATH), "b")
    document = get(proxy, "/autospec/v1/recommendations?model=main&prompt_type=math").json()
    assert document["schema"] == 1
    assert document["hardware"]["id"] == identify().id
    assert [r["prompt_type"] for r in document["recommendations"]] == ["math"]
    whole = get(proxy, "/autospec/v1/recommendations").json()
    assert (len(whole["recommendations"]), whole["overall"]) == (2, [])
    store = open_store(f"sqlite:///{storage}")
    together = replace(RECOMMENDATION, prompt_type=None, evidence={"mix": {"shares": {"math": 1.0}}})
    store.save_overall(together, identify(), "launch")
    store.close()
    [answer] = get(proxy, "/autospec/v1/recommendations").json()["overall"]
    assert (answer["prompt_type"], answer["evidence"]["mix"]) == (None, {"shares": {"math": 1.0}})
    assert get(proxy, "/autospec/v1/recommendations?prompt_type=poem").status_code == 400
    assert get(proxy, "/autospec/v1/recommendations?modell=x").status_code == 400
    assert get(proxy, "/autospec/v1/recommendations?model=other").status_code == 404


def test_pages_share_no_threads(proxy, loop):
    """A database or a daemon that hangs filled the loop's few threads, and whatever else needed one waited behind."""
    none = ThreadPoolExecutor(1)
    none.shutdown()
    loop.loop.call_soon_threadsafe(loop.loop.set_default_executor, none)
    assert get(proxy, "/autospec/v1/recommendations").status_code == 404  # nothing is known
    assert get(proxy, "/autospec/v1/daemon").json()["daemon"] is None
    asked = {"model": "main"}
    tune = httpx.post(proxy.base_url + "/autospec/v1/tune", json=asked, trust_env=False)
    assert (tune.status_code, tune.json()["error"]["code"]) == (404, "nothing_known")
    with httpx.stream("GET", proxy.base_url + "/autospec/v1/events", trust_env=False, timeout=20) as answer:
        assert next(answer.iter_lines()) == "event: recommendations"


def test_a_database_that_hangs_keeps_a_few_threads(proxy, monkeypatch):
    """Each poll of a monitor left a thread behind, until the system had no more."""
    hung, asked = threading.Event(), []

    def read(_storage):
        asked.append(1)
        hung.wait(20)
        return ()

    monkeypatch.setattr("autospec.proxy.api.read_recommendations", read)
    monkeypatch.setattr("autospec.proxy.api._MOST_READS", 2)
    url = proxy.base_url + "/autospec/v1/recommendations"
    try:
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                httpx.get(url, timeout=0.1, trust_env=False)
        refused = httpx.get(url, timeout=5, trust_env=False)
        assert (refused.status_code, "does not answer" in refused.text, len(asked)) == (502, True, 2)
    finally:
        hung.set()
    wait_until(lambda: get(proxy, "/autospec/v1/recommendations").status_code != 502)


def test_events_tell_what_is_new(proxy, storage):
    """What is known comes at once, a new recommendation within a poll."""
    save(storage, RECOMMENDATION, "a")
    with httpx.stream("GET", proxy.base_url + "/autospec/v1/events", trust_env=False, timeout=20) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: recommendations"
        assert len(json.loads(next(lines).removeprefix("data: "))["changed"]) == 1
        save(storage, replace(RECOMMENDATION, reason="New."), "a")
        while (line := next(lines)) != "event: recommendations":
            assert line == ""
        changed = json.loads(next(lines).removeprefix("data: "))["changed"]
        assert [c["reason"] for c in changed] == ["New."]


def test_status_plan_and_what_is_not_there(proxy):
    """Documents of the dispatch with the proxy's own facts; wrong paths and methods are told."""
    status = get(proxy, "/autospec/v1/status").json()
    assert status["launches"] == []
    assert status["proxy"]["in_flight"] == 0
    assert get(proxy, "/autospec/v1/plan").json() == {"schema": 1, "launches": []}
    assert get(proxy, "/autospec/v1/nothing").status_code == 404
    assert httpx.post(proxy.base_url + "/autospec/v1/plan", trust_env=False).status_code == 405


def test_metrics_and_samples_count_an_answer(proxy, backend, lent, storage):
    """The timings at the end of a stream become a sample, counters, and the lease's tokens."""
    timings = {"prompt_n": 5, "prompt_ms": 10.0, "predicted_n": 7, "predicted_ms": 70.0}

    async def behave(asked):
        await asked.send(SSE)
        await asked.chunk(b"data: " + json.dumps({"timings": timings}).encode() + b"\n\ndata: [DONE]\n\n")
        await asked.send(b"0\r\n\r\n")

    backend.behaviour = behave
    body = {"model": "main", "messages": []}
    httpx.post(proxy.base_url + "/v1/chat/completions", json=body, trust_env=False)
    text = get(proxy, "/autospec/metrics").text
    assert 'autospec_tokens_total{drafting="off",kind="predicted",model="main",prompt_type=""} 7.0' in text
    assert lent.tokens == 7
    store = open_store(f"sqlite:///{storage}")
    wait_until(lambda: store.samples(since=0))
    [sample] = store.samples(since=0)
    assert (sample.predicted_tokens, sample.predicted_ms, sample.prompt_tokens) == (7, 70.0, 5)
    store.close()


def test_a_batch_that_cannot_be_stored_is_lost_alone(monkeypatch):
    """Whatever the error: the thread lives, and later samples are written."""

    class Store:
        def __init__(self):
            self.errors = [OverflowError("Python int too large to convert to SQLite INTEGER")]

        def add_samples(self, batch):
            if self.errors:
                raise self.errors.pop()

        def prune_samples(self):
            raise RuntimeError("no")

        def close(self):
            pass

    monkeypatch.setattr("autospec.proxy.metrics._GATHER_S", 0.0)
    writer = SampleWriter(Store())
    sample = Sample(1.0, "main", "attached", "1", None, 5, 7, 10.0, 70.0)
    writer.put(sample)
    wait_until(lambda: writer.lost == 1)
    writer.put(sample)
    wait_until(lambda: writer.written == 1)
    writer.close()
    assert (writer.written, writer.lost) == (1, 1)


def test_asking_for_health_starts_nothing(proxy, dispatch, backend):
    """With a server it is the server's health; without one the proxy is well."""
    assert get(proxy, "/health").json() == {"ok": True}
    dispatch.running = False
    assert get(proxy, "/health").json() == {"status": "ok"}
    assert len(backend.asked) == 1


def test_default_model_is_meant_where_none_is_named(loop, dispatch, storage):
    """A chat without a model goes to the default one; ?model= names one for paths without a body."""
    with proxy_over(loop, dispatch, storage, rules=Rules(default_model="main")) as proxy:
        assert httpx.post(proxy.base_url + "/v1/completions", json={}, trust_env=False).status_code == 200
        assert get(proxy, "/props?model=nobody").status_code == 404
    assert [w.model for w in dispatch.wanted] == ["main", "nobody"]


@pytest.mark.parametrize("path", ["/v1/models/main", "/models/MAIN"])
def test_one_model_is_found_by_its_name(proxy, path):
    """Both spellings of the path; an unknown one lists what exists."""
    assert get(proxy, path).json()["id"] == "main"
    unknown = get(proxy, "/v1/models/other%2Fone")
    assert unknown.status_code == 404
    assert "main" in unknown.json()["error"]["message"]


def test_a_mac_is_kept_awake_from_the_first_request_to_the_last(loop, dispatch, storage, monkeypatch):
    """Two one after the other; the proxy's own pages are no requests."""
    calls: list[str] = []

    class Awake:
        def begin(self) -> None:
            calls.append("begin")

        def end(self) -> None:
            calls.append("end")

    monkeypatch.setattr("autospec.proxy.app.AwakeForRequests", Awake)
    body = {"model": "main", "messages": [{"role": "user", "content": "Hello"}]}
    with proxy_over(loop, dispatch, storage) as proxy:
        for count in (2, 4):
            httpx.post(f"{proxy.base_url}/v1/chat/completions", json=body, trust_env=False, timeout=20)
            wait_until(lambda count=count: len(calls) == count)
        get(proxy, "/autospec/v1/status")
    assert calls == ["begin", "end"] * 2
