"""`autospec.proxy.app` and `autospec.proxy.api`: probes, which are no use of a model, and endpoints that start none."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import httpx
import pytest

from autospec.drafting import OFF
from autospec.errors import LaunchError, OverloadedError
from autospec.proxy.app import Rules
from tests.backends.waiting import wait_until
from tests.proxy.harness import proxy_over
from tests.proxy.raw import exchange
from tests.serving.scene import LOOKUP, Scene, recommend, until, wanted

CHAT = "/v1/chat/completions"
PAGE = {"Origin": "http://localhost:3000"}


def ask(proxy, method: str, path: str, **more) -> httpx.Response:
    """One request."""
    return httpx.request(method, proxy.base_url + path, trust_env=False, timeout=20, **more)


def metrics(proxy) -> str:
    """What Prometheus reads."""
    return ask(proxy, "GET", "/autospec/metrics").text


def test_probes_do_not_keep_a_model_loaded():
    """Health checks once a minute, for 40 minutes: the model is unloaded after 15 all the same (Proxy review 1)."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            (await supervisor.lease(wanted())).give_back()
            polls = 0
            for _ in range(40):
                scene.clock.now_s += 60.0
                if not any(offered.running for offered in supervisor.offered()):
                    break
                probe = await supervisor.lease(wanted(kind=None, probe=True))
                assert probe.model == "alpha-1b"
                probe.give_back()
                polls += 1
                supervisor._reconciler.reconcile()
            assert 13 <= polls <= 15
            await until(lambda: not scene.backend.running)
            busy = supervisor.status()["busy"]
            assert (busy["requests"], busy["last_request_s_ago"]) == (1, 60.0 * (polls + 1))

    asyncio.run(scenario())


def test_a_probe_neither_waits_nor_starts_a_server():
    """Its server died under it: the second attempt started the model, and /health waited for it for up to five minutes."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            probe = wanted(kind=None, probe=True)
            with pytest.raises(OverloadedError, match="No server of alpha-1b runs now"):
                await supervisor.lease(probe)
            (await supervisor.lease(wanted())).give_back()
            lease = await supervisor.lease(probe)
            scene.backend.hold.clear()
            scene.backend.servers[0].kill()
            lease.died()
            lease.give_back()
            with pytest.raises(OverloadedError, match="No server of alpha-1b runs now"):
                await supervisor.lease(probe)
            assert supervisor.status()["busy"] | {"now": None} == {
                "now": None,
                "leases": 0,
                "waiting": 0,
                "requests": 1,
                "last_request_s_ago": 0.0,
            }
            scene.backend.hold.set()

    asyncio.run(scenario())


def test_a_probe_is_answered_by_whichever_server_runs():
    """`x-autospec-drafting: off` in its headers starts no server without drafting."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        async with scene.opened() as supervisor:
            (await supervisor.lease(wanted())).give_back()
            async with await supervisor.lease(wanted(kind=None, probe=True, off=True)) as lease:
                assert lease.drafting == LOOKUP
            assert len(scene.backend.asked) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("method", "path", "is_probe"),
    [
        ("GET", "/health", True),
        ("HEAD", "/v1/health", True),
        ("GET", "/props", True),
        ("GET", "/slots", True),
        ("GET", "/metrics", True),
        ("GET", "/props?model=main", True),
        ("POST", "/api/show", True),
        ("POST", "/v1/streams/lookup", True),
        ("POST", "/slots/0?action=erase", True),
        ("DELETE", "/v1/stream?conv_id=1", True),
        ("POST", "/tokenize", False),
        ("POST", "/v1/messages/count_tokens", False),
        ("POST", CHAT, False),
    ],
)
def test_what_is_a_probe(proxy, dispatch, method, path, is_probe):
    """Whoever reads a running server's pages does not use its model (Proxy review 1); probes are counted apart (Proxy review 19)."""
    assert ask(proxy, method, path).status_code == 200
    told = metrics(proxy)
    assert [w.is_probe for w in dispatch.wanted] == [is_probe]
    assert ('autospec_probes_total{model="main",status="200"} 1.0' in told) is is_probe
    assert ("autospec_requests_total{" in told) is not is_probe
    assert ("autospec_wait_seconds_count{" in told) is not is_probe


def test_only_requests_that_get_a_server_stop_a_measurement(loop, dispatch, backend, storage):
    """A dashboard polls for ever (Proxy review 1), and a client may ask for ever for a model that is not here."""
    told = []

    @contextlib.contextmanager
    def serving():
        told.append(len(backend.asked))
        yield
        told.append("end")

    with proxy_over(loop, dispatch, storage, serving=serving) as proxy:
        for path in ("/health", "/slots", "/props"):
            assert ask(proxy, "GET", path).status_code == 200
        assert ask(proxy, "POST", CHAT, json={"model": "gone"}).status_code == 404
        assert not told
        assert ask(proxy, "POST", CHAT, json={"model": "main"}).status_code == 200
        wait_until(lambda: told == [3, "end"])  # the client has its answer a moment before


HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
# Browsers, on an address of the LAN and on this machine.
PAGE_OPENED = [HTML | {"Upgrade-Insecure-Requests": "1"}, HTML | {"Sec-Fetch-Dest": "document"}]


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/metrics", {}),
        ("GET", "/slots", {}),
        ("GET", "/v1/slots", {}),
        ("GET", "/slots?model=main", {}),
        ("GET", "/healthz", {}),
        ("GET", "/api/version", {}),
        ("GET", "/.well-known/appspecific/com.chrome.devtools.json", {}),
        ("GET", "/favicon.ico", PAGE_OPENED[0]),
        ("GET", "/", {}),
        ("GET", "/", HTML),  # Uptime Kuma
        ("GET", "/index.html", HTML),
        ("GET", "/", HTML | {"Sec-Fetch-Dest": "empty"}),
        ("GET", "/", {"Accept": "*/*", "Upgrade-Insecure-Requests": "1"}),
        ("HEAD", "/", PAGE_OPENED[0]),
        ("HEAD", "/props", {}),
        ("HEAD", "/v1/chat/completions?model=main", {}),
        ("OPTIONS", "/", {}),
    ],
)
@pytest.mark.parametrize("default", ["main", ""])
def test_polls_start_no_model(loop, dispatch, storage, method, path, headers, default):  # noqa: PLR0917 - fixtures
    """After an idle unload, the next poll of a dashboard or a monitor must not load the model again (Proxy review 1)."""
    dispatch.running = False
    with proxy_over(loop, dispatch, storage, rules=Rules(default_model=default)) as proxy:
        answer = ask(proxy, method, path, headers=headers)
    assert answer.status_code == 503
    if method != "HEAD":
        assert answer.json()["error"]["code"] == "no_model_running"
    assert not dispatch.wanted


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/show"),
        ("POST", "/api/chat"),
        ("POST", "/v1/streams/lookup"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/slots/0?action=erase"),
        ("PUT", CHAT + "/x"),
        ("DELETE", "/v1/stream?conv_id=1"),
    ],
)
def test_what_needs_no_model_starts_none(loop, dispatch, storage, method, path):
    """Ollama's clients ask /api/show for each model again and again: each question loaded one, for a 404."""
    dispatch.running = False
    with proxy_over(loop, dispatch, storage) as proxy:
        for body in ({"model": "main"}, {}):
            answer = ask(proxy, method, path, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert not dispatch.wanted
        dispatch.servers[0].backend = "attached"  # it runs, and may have this route
        assert ask(proxy, method, path, json={"model": "main"}).status_code == 200
    assert [w.is_probe for w in dispatch.wanted] == [False]


@pytest.mark.parametrize("opened", PAGE_OPENED)
@pytest.mark.parametrize("named", ["", "?model=main"])
def test_a_page_that_a_person_opens_starts_the_model(loop, dispatch, storage, named, opened):
    """llama.cpp's own, and what it asks for before a chat; that counts as use."""
    dispatch.running = False
    with proxy_over(loop, dispatch, storage) as proxy:
        for path, headers in (("/", opened), ("/props", {}), ("/tools", {})):
            assert ask(proxy, "GET", path + named, headers=headers).status_code == 200
    assert [w.is_probe for w in dispatch.wanted] == [False] * 3


def test_an_attached_server_answers_before_the_first_prompt(loop, dispatch, storage):
    """It runs already, and has lists of its own (LM Studio's); what browsers ask for by themselves attaches nothing."""
    dispatch.running = False
    dispatch.servers[0].backend = "attached"
    with proxy_over(loop, dispatch, storage) as proxy:
        assert ask(proxy, "GET", "/api/v0/models").status_code == 200
        for method, path in (("GET", "/favicon.ico"), ("GET", "/metrics"), ("HEAD", "/api/v0/models")):
            assert ask(proxy, method, path).status_code == 503
    assert len(dispatch.wanted) == 1


@pytest.mark.parametrize("path", ["/models/unload", "/models/load", "/v1/models", "/v1/models/main"])
def test_router_endpoints_start_nothing(proxy, dispatch, path):
    """`POST /models/unload` started the model that it was to end (Proxy review 25)."""
    answer = ask(proxy, "POST", path, json={"model": "main"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert not dispatch.wanted


def test_names_in_paths_are_decoded_once(loop, dispatch, storage):
    """`a%2525b` is `a%25b`; the list has no name, whatever slash ends its path (Proxy review 25)."""
    dispatch.servers[0].model = "a%25b"
    with proxy_over(loop, dispatch, storage) as proxy:
        assert ask(proxy, "GET", "/v1/models/a%2525b").json()["id"] == "a%25b"
        for path in ("/v1/models/", "/models/"):
            assert [m["id"] for m in ask(proxy, "GET", path).json()["data"]] == ["a%25b"]


def test_pages_may_read_events(proxy):
    """EventSource reads only what names its origin (Proxy review 23)."""
    url = proxy.base_url + "/autospec/v1/events"
    with httpx.stream("GET", url, headers=PAGE, trust_env=False, timeout=20) as answer:
        assert answer.headers["access-control-allow-origin"] == PAGE["Origin"]
        assert answer.headers["vary"] == "Origin"


def test_head_of_events_ends(proxy):
    """It has no body, so the connection's next request is answered (Proxy review 23)."""
    head = b"HEAD /autospec/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    received = exchange(
        proxy.base_url, head + b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert b'"object": "list"' in received


def test_pages_may_read_the_proxys_headers(proxy):
    """Answers of backends name the origin in Vary, and the proxy's headers for scripts (Proxy review 23, 26)."""
    answer = ask(proxy, "POST", CHAT, json={"model": "main"}, headers=PAGE)
    assert answer.headers["access-control-allow-origin"] == PAGE["Origin"]
    assert answer.headers["vary"] == "Origin"
    assert "x-autospec-drafting" in answer.headers["access-control-expose-headers"]
    assert "vary" not in ask(proxy, "POST", CHAT, json={"model": "main"}).headers


def test_slots_are_neither_saved_nor_restored(proxy, backend):
    """The server would write a file (Proxy review 4)."""
    for action in ("save", "restore"):
        answer = ask(proxy, "POST", f"/slots/0?action={action}", json={"filename": "autospec.db"})
        assert answer.status_code == 403
    assert not backend.asked
    assert ask(proxy, "POST", "/slots/0?action=erase").status_code == 200


def test_a_known_back_off_is_told(loop, dispatch, storage):
    """Clients that read Retry-After need not ask in vain (Proxy review 26)."""
    error = LaunchError("Out of memory.")
    error.retry_after_s = 30.2
    dispatch.refusal = error
    with proxy_over(loop, dispatch, storage) as proxy:
        answer = ask(proxy, "POST", CHAT, json={"model": "main"})
    assert (answer.status_code, answer.headers["retry-after"]) == (502, "31")


def test_long_names_are_refused_wherever_they_stand(proxy, dispatch):
    """In a body, and in a query (Proxy review 26)."""
    assert ask(proxy, "POST", CHAT, json={"model": "-" * 2000}).status_code == 404
    assert ask(proxy, "GET", "/props?model=" + "-" * 2000).status_code == 404
    assert not dispatch.wanted


def test_a_parsed_document_is_dropped_before_the_answer(proxy, backend):
    """It takes several times the memory of its body, and answers take minutes (Proxy review 26)."""
    mark, found = "only in this test", []

    async def behave(asked):
        found.extend(o for o in gc.get_objects() if type(o) is dict and mark in o)
        await asked.answer(b"{}")

    backend.behaviour = behave
    content = b'{"model": "main", "only in this test": [1]}'
    assert ask(proxy, "POST", CHAT, content=content).status_code == 200
    assert backend.asked[0].body == content
    assert not found


def test_refused_requests_are_not_kept_in_memory():
    """One stored error, raised for each request, held the frames and so the bodies of all of them (Proxy review 7)."""

    async def scenario():
        scene = Scene()
        scene.backend.refuses[OFF] = LaunchError("Out of memory.")
        async with scene.opened() as supervisor:
            errors = []
            for _ in range(20):
                with pytest.raises(LaunchError) as raised:
                    await supervisor.lease(wanted())
                errors.append(raised.value)
            stored, _ = supervisor._reconciler._broken["alpha-1b"]
        assert stored.__traceback__ is None or not _frames(stored)
        assert len({id(error) for error in errors}) == len(errors)
        assert errors[-1].message == "Out of memory."
        assert errors[-1].retry_after_s > 0

    asyncio.run(scenario())


def _frames(error: BaseException) -> list[str]:
    """The functions in an error's traceback that are a request's."""
    names, step = [], error.__traceback__
    while step is not None:
        names.append(step.tb_frame.f_code.co_name)
        step = step.tb_next
    return [name for name in names if name in ("lease", "lend", "scenario")]


def test_waiters_get_errors_of_their_own():
    """The error of a launch is one, those who wait for it are many (Proxy review 7)."""

    async def scenario():
        scene = Scene()
        scene.backend.refuses[OFF] = LaunchError("Out of memory.")
        scene.backend.hold.clear()
        async with scene.opened() as supervisor:
            waiting = [asyncio.create_task(supervisor.lease(wanted())) for _ in range(5)]
            await until(lambda: supervisor.status()["busy"]["waiting"] == 5)
            scene.backend.hold.set()
            errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(error) for error in errors] == ["Out of memory."] * 5
        assert len({id(error) for error in errors}) == 5

    asyncio.run(scenario())


def test_both_attempts_have_one_deadline():
    """A request that waited for a server that broke waits for the next one only for the rest (Proxy review 26)."""

    async def scenario():
        scene = Scene()
        scene.backend.hold.clear()
        async with scene.opened() as supervisor:
            first = asyncio.create_task(supervisor.lease(wanted()))
            second = asyncio.create_task(supervisor.lease(wanted(waited_s=299.0)))
            await until(lambda: supervisor.status()["busy"]["waiting"] == 2)
            scene.clock.now_s += 2.0
            supervisor._reconciler.reconcile()
            [error] = await asyncio.gather(second, return_exceptions=True)
            assert "within 300 s" in str(error)
            scene.backend.hold.set()
            (await first).give_back()

    asyncio.run(scenario())
