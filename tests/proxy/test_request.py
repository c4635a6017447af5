"""Reading a request's body: as the standard library reads it, without changing it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autospec.proxy.request import ProxyRequest, Refused, answers_of, parse, sets_drafting

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


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


@pytest.mark.parametrize(
    ("document", "answers"),
    [
        ({"messages": []}, 1),
        ({"messages": [], "n": 3}, 3),
        ({"prompt": "a", "n_cmpl": 2}, 2),
        ({"prompt": ["a", "b", [1, 2]]}, 3),
        ({"prompt": ["a", "b"], "n": 4}, 8),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": ["a", 2, 3]}, 1),
        ({"prompt": []}, 1),
        ({"n": 0}, 1),
        ({"n": -4}, 1),
        ({"n": "3"}, 1),
        ({"n": True}, 1),
        ({"n": None, "n_cmpl": 2}, 2),
        ({"n": 10**30}, 256),
    ],
)
def test_how_many_answers_a_request_asks_for(document, answers):
    """As llama-server counts prompts; whatever the values are."""
    assert answers_of(document) == answers


def test_fields_that_change_the_drafting():
    """Those of llama-server; MLX's are set by the proxy."""
    assert sets_drafting({"prompt": "a", "speculative.n_max": 0})
    assert not sets_drafting({"prompt": "a", "speculative": True, "n_predict": 4})
