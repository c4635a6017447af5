"""Reading without disturbing: bodies, the tail of an answer, events held until they are whole."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import UsageError
from autospec.proxy.access import Access, check_bind
from autospec.proxy.relay import WholeEvents
from autospec.proxy.request import ProxyRequest, Refused, parse
from autospec.proxy.usage import RequestOutcome, TokenCounts, UsageReader, read_counts, sample_of, saw_the_end

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
TIMINGS = {
    "prompt_n": 3,
    "prompt_ms": 1.5,
    "predicted_n": 9,
    "predicted_ms": 90.0,
    "draft_n": 8,
    "draft_n_accepted": 6,
}


@given(st.dictionaries(st.text(), JSON), st.sampled_from([None, 2]), st.booleans())
def test_a_body_is_read_as_the_standard_library_reads_it(value, indent, ascii_only):
    """Any object, spaced or not; lone surrogates included."""
    value.pop("model", None)
    content = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    assert parse(content, {}) == ProxyRequest(content, json.loads(content))


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": [NaN, -Infinity, 1e999]}',
        b'{"a": 1, "a": 2}',
        b'{"a": "\\ud800"}',
        '{"a": "\ud800"}'.encode(errors="surrogatepass"),
        b'\xef\xbb\xbf{"a": 1}',
        '{"a": "ä"}'.encode("utf-16"),
        b'{"a": ' + b"9" * 4000 + b"}",
        b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)
def test_what_only_the_standard_library_reads_passes(content):
    """NaN, repeated keys, half a character, other encodings, long numbers, deep nesting."""
    found = parse(content, {"Content-Type": "application/json"})
    assert repr(found.document) == repr(json.loads(content))


@pytest.mark.parametrize(
    "text",
    ["{", '{"a"', '{"a":1,}', '{"a":1} x', '{"a":[1,]}', '{"a":[1 2]}', "{1:2}", '{"a":nul}', '{"a":"\x01"}'],
)
def test_invalid_json_is_refused_with_the_standard_librarys_sentence(text):
    """Clients read what is wrong and at which character."""
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    with pytest.raises(Refused) as refused:
        parse(text.encode(), {})
    sentence = f"The body is not valid JSON: {expected.value.msg} at character {expected.value.pos}."
    assert refused.value.problem.message == sentence


@given(st.dictionaries(st.text(), JSON | st.integers()))
def test_fields_are_set_and_all_others_keep_their_value(value):
    """Also integers that fit into no machine word."""
    content = json.dumps({**value, "model": "m"}).encode()
    fields = {"model": "other", "num_draft_tokens": 4}
    request = parse(content, {}).body("/v1/chat/completions")
    assert request.content_with({}) is content
    assert json.loads(request.content_with(fields)) == {**json.loads(content), **fields}


def test_timings_are_found_at_the_end_and_text_cannot_pretend():
    """The last ones count; quotation marks in text are escaped, so text is never taken for a field."""
    fake = json.dumps({"content": '"timings":{"prompt_n":1,"predicted_n":99}', "timings": TIMINGS})
    first = json.dumps({"timings": {**TIMINGS, "predicted_n": 1}})
    found = read_counts(f"data: {first}\n\ndata: {fake}\n\ndata: [DONE]\n\n".encode())
    assert found == TokenCounts(3, 9, 1.5, 90.0, 8, 6)
    assert read_counts(json.dumps({"content": '"timings":{}'}).encode()) is None
    assert read_counts(b'"timings":{"prompt_n":') is None


def test_usage_counts_where_there_are_no_timings():
    """OpenAI's and Anthropic's names; cached tokens were not processed."""
    usage = {"prompt_tokens": 10, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}
    assert read_counts(json.dumps({"usage": usage}).encode()) == TokenCounts(2, 4)
    assert read_counts(b'{"usage": {"input_tokens": 5, "output_tokens": 6}}') == TokenCounts(5, 6)


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        ({"usage": {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": [1]}}, None),
        (
            {
                "usage": {
                    "prompt_tokens": 9,
                    "completion_tokens": 4,
                    "prompt_tokens_details": {"cached_tokens": "3"},
                }
            },
            None,
        ),
        (
            {"usage": {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": None}},
            TokenCounts(9, 4),
        ),
        ({"usage": {"prompt_tokens": -1, "completion_tokens": 4}}, None),
        ({"usage": {"prompt_tokens": True, "completion_tokens": 4}}, None),
        ({"timings": {**TIMINGS, "prompt_n": float("inf")}}, None),
        ({"timings": {**TIMINGS, "predicted_n": 10**20}}, None),
        ({"timings": {**TIMINGS, "prompt_ms": float("nan")}}, None),
        ({"timings": {**TIMINGS, "predicted_ms": -1.0}}, None),
        ({"timings": {**TIMINGS, "predicted_ms": "90"}}, None),
        ({"timings": [TIMINGS]}, None),
        # mlx-vlm's fields are null unless a drafter ran.
        (
            {"timings": {**TIMINGS, "draft_n": None, "draft_n_accepted": None}},
            TokenCounts(3, 9, 1.5, 90.0),
        ),
        ({"timings": {**TIMINGS, "draft_n": 10**20}}, TokenCounts(3, 9, 1.5, 90.0)),
        ({"timings": {**TIMINGS, "draft_n_accepted": 9}}, TokenCounts(3, 9, 1.5, 90.0)),
        ({"timings": {**TIMINGS, "draft_n_accepted": []}}, TokenCounts(3, 9, 1.5, 90.0, 8)),
    ],
)
def test_counts_of_another_shape_are_unknown(answer, counts):
    """What is good beside them is kept."""
    assert read_counts(json.dumps(answer).encode()) == counts


def test_a_number_without_end_and_a_nest_without_bottom():
    """What JSON can say and Python's parser refuses."""
    assert read_counts(b'{"timings": {"prompt_n": ' + b"9" * 5000 + b"}}") is None
    assert read_counts(b'{"usage": {"a": ' + b"[" * 15_000) is None
    assert read_counts(b'{"timings": {"prompt_n": 1e999, "predicted_n": 1}}') is None


COUNTED = st.sampled_from(
    [
        *TIMINGS,
        "prompt_tokens",
        "completion_tokens",
        "input_tokens",
        "output_tokens",
        "prompt_tokens_details",
        "input_tokens_details",
        "cached_tokens",
    ]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 5, 2**31 - 1, 2**31, 10**20, 1e308])
ODD = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(COUNTED, inner, max_size=6),
    max_leaves=12,
)
# Mostly near to what a server sends, so that each reader comes to its end.
NEAR = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(TIMINGS, NUMBERS | ODD)
    | dict.fromkeys(("prompt_tokens", "completion_tokens", "prompt_tokens_details"), NUMBERS | ODD),
)


@given(ODD | NEAR, ODD | NEAR, ODD, st.integers(0, 400))
def test_any_document_is_read_without_an_error(timings, usage, metrics, lost):
    """A count is unknown, or one that every database holds; whatever a backend says, and wherever the kept bytes begin."""
    content = json.dumps({"metrics": metrics, "usage": usage, "timings": timings}).encode()
    counts = read_counts(content[lost:])
    if counts is None:
        return
    told = [counts.prompt_tokens, counts.predicted_tokens, counts.drafted, counts.accepted]
    assert all(type(n) is int and 0 <= n < 2**31 for n in told if n is not None)
    assert all(0 <= ms < 2**31 for ms in (counts.prompt_ms, counts.predicted_ms) if ms is not None)
    assert (counts.accepted or 0) <= (counts.drafted or 0)


def test_usage_that_arrives_in_two_parts():
    """Anthropic's stream tells the prompt at its beginning and the answer's tokens, which grow, at its end."""
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}}
    end = {"type": "message_delta", "usage": {"output_tokens": 15, "input_tokens": None}}
    events = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in (start, end))
    assert read_counts(events) == TokenCounts(25, 15)
    assert read_counts(events[60:]) is None  # the beginning of a long answer is not kept
    odd = json.dumps({"usage": {"output_tokens": "15"}}).encode()
    assert read_counts(events + odd) is None


def test_the_last_timings_count_or_none():
    """Those of an earlier event are of a part of the answer."""
    first, last = json.dumps({"timings": TIMINGS}), json.dumps({"timings": {**TIMINGS, "predicted_n": None}})
    assert read_counts(f"data: {first}\n\ndata: {last}\n\n".encode()) is None


def test_tail_keeps_the_end_and_not_the_whole():
    """A long stream costs 16 KiB and its last part."""
    tail = UsageReader()
    for number in range(10_000):
        tail.feed(b"%09d\n" % number)
    assert tail.content().endswith(b"000009999\n")
    assert 16 * 1024 <= len(tail.content()) < 17 * 1024


@pytest.mark.parametrize(
    ("end", "seen"),
    [
        (b"data: [DONE]\n\n", True),
        (b'data: {"type":"message_stop"}', True),
        (b'{"stop":true}', True),
        (b"x", False),
    ],
)
def test_streams_say_that_they_are_complete(end, seen):
    """In one of the ways of the APIs."""
    assert saw_the_end(b"data: {}\n\n" + end) is seen


@given(st.lists(st.binary(max_size=8) | st.sampled_from([b"\n\n", b"\r\n\r\n", b"data: x\n"]), max_size=20))
def test_events_pass_whole_and_unchanged(parts):
    """Whatever the cuts: the same bytes in all, and a break only between events."""
    events = WholeEvents()
    for part in parts:
        passed = events.feed(part)
        assert passed == b"" or passed.endswith((b"\n\n", b"\r\n\r\n"))
    events = WholeEvents()
    assert b"".join([*map(events.feed, parts), events.rest()]) == b"".join(parts)


def test_sample_of_an_answer():
    """Complete answers with counts are evidence; with the server's clock, or ours where a stream has none."""
    drafting = Drafting(Mode.NGRAM_MOD, ngram_n=16, n_max=8, n_min=0)
    outcome = RequestOutcome(
        1.0, "/v1/completions", "main", "mlx", "1", PromptType.QA, drafting,
        status=200, complete=True, first_byte_ms=20.0, total_ms=100.0, streamed=True, counts=TokenCounts(5, 8),
    )  # fmt: skip
    sample = sample_of(outcome)
    assert (sample.prompt_ms, sample.predicted_ms, sample.drafted) == (20.0, 80.0, None)
    from dataclasses import replace

    assert sample_of(replace(outcome, streamed=False)) is None
    assert sample_of(replace(outcome, complete=False)) is None
    assert sample_of(replace(outcome, status=500)) is None
    assert sample_of(replace(outcome, drafting=OFF)).drafted == 0


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost:8686", True),
        ("127.0.0.1", True),
        ("[::1]:8686", True),
        ("a.localhost", True),
        ("192.168.1.7:8686", True),
        ("box", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.nip.io", False),
        ("localhost@evil.example", False),
        ("", False),
        ("a b", False),
    ],
)
def test_names_in_host(host, allowed):
    """An address cannot be rebound; a name must be this machine's."""
    access = Access(machine=frozenset({"box"}))
    assert (access.refuse({"Host": host}, "/", "GET") is None) is allowed


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:3000", True),
        ("https://127.0.0.1", True),
        ("vscode-webview://abc", True),
        ("file://", True),
        ("https://chat.example.org", True),
        ("http://chat.example.org", False),
        ("https://evil.example", False),
        ("http://192.168.1.7", False),
        ("null", False),
    ],
)
def test_origins(origin, allowed):
    """Local pages and installed apps, and those that the settings name."""
    assert Access(origins=frozenset({"https://chat.example.org"})).allows_origin(origin) is allowed


@pytest.mark.parametrize(
    ("host", "key", "fine"),
    [
        ("127.0.0.1", "", True),
        ("localhost", "", True),
        ("::1", "", True),
        ("0.0.0.0", "k", True),
        ("0.0.0.0", "", False),
        ("::", "", False),
        ("192.168.1.7", "", False),
    ],
)
def test_other_addresses_need_a_key(host, key, fine):
    """Loopback is nobody else's."""
    if fine:
        check_bind(host, key)
    else:
        with pytest.raises(UsageError):
            check_bind(host, key)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/v1/chat/completions", {}, 401),
        # A preflight is an OPTIONS request; a header alone makes none.
        ("POST", "/v1/chat/completions", {"Access-Control-Request-Method": "POST"}, 401),
        ("OPTIONS", "/v1/chat/completions", {"Access-Control-Request-Method": "POST"}, None),
        ("GET", "/health", {}, None),
        ("POST", "/health", {}, 401),
        ("POST", "/v1/chat/completions", {"Authorization": "Bearer secret"}, None),
    ],
)
def test_what_passes_without_the_key(method, path, headers, status):
    """Looking for health and a browser's preflight, and nothing else."""
    access = Access(api_key="secret", machine=frozenset())
    problem = access.refuse({"Host": "127.0.0.1", **headers}, path, method)
    assert (problem.status if problem else None) == status


@pytest.mark.parametrize(("site", "passes"), [("cross-site", False), ("same-origin", True), ("none", True)])
def test_a_page_elsewhere_cannot_use_a_plain_get(site, passes):
    """An image or a script carries no Origin; the browser says where it comes from."""
    problem = Access(machine=frozenset()).refuse({"Host": "127.0.0.1", "Sec-Fetch-Site": site}, "/x", "GET")
    assert (problem is None) is passes
