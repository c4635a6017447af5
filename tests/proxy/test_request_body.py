"""`autospec.proxy.request`: which bodies are read, which model they name, and what a backend gets of them."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from autospec.backends.mlx.backend import Mlx
from autospec.drafting import OFF, Drafting, Mode
from autospec.proxy.request import Refused, RequestBody, parse

BOM = b"\xef\xbb\xbf"
NAMED = b'{"model": "nobody", "messages": []}'


@pytest.mark.parametrize("before", [b"", b" " * 63, b" " * 64, b"\r\n\t " * 5000, BOM, BOM + b" " * 100])
@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/plain", ""])
def test_a_models_name_is_read_whatever_precedes_the_json(before, kind):
    """llama.cpp's parser passes over blanks and a byte-order mark, so the proxy must, too (Proxy review 6)."""
    read = parse(before + NAMED, {"Content-Type": kind} if kind else {})
    assert (read.model, read.content) == ("nobody", before + NAMED)


@pytest.mark.parametrize("content", [b" " * 100_000, BOM, b"\n", b""])
def test_a_body_of_blanks_names_nothing(content):
    """There is no JSON that could be damaged."""
    assert parse(content, {"Content-Type": "application/json"}).model == ""


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", ""])
@pytest.mark.parametrize("codings", [["gzip"], ["identity", "gzip"], ["identity, br"], ["x"]])
def test_compressed_bodies_are_refused_whatever_their_type(kind, codings):
    """The proxy cannot read their model; a server that can would answer with another one (Proxy review 6)."""
    headers = CIMultiDict([("content-type", kind), *(("content-encoding", coding) for coding in codings)])
    with pytest.raises(Refused) as refused:
        parse(b"\x1f\x8b\x08whatever", headers)
    assert refused.value.problem.status == 415
    assert parse(b"", headers).model == ""


def test_identity_is_no_compression():
    """It says that nothing was done to the body."""
    assert parse(NAMED, {"content-encoding": "Identity"}).model == "nobody"


@pytest.mark.parametrize(
    "content",
    [
        NAMED.decode().encode("utf-16"),
        NAMED.decode().encode("utf-32-be"),
        b"[1]",
        b"\x00" + NAMED,
        b"model=x",
    ],
)
def test_fields_that_cannot_be_set_refuse_the_request(content):
    """mlx_lm.server would read the client's own model from such a body (Proxy review 6)."""
    body = parse(content, {"Content-Type": "multipart/form-data"}).body("/v1/chat/completions")
    assert body.content_with({}) == content
    with pytest.raises(Refused) as refused:
        body.content_with({"model": "default_model"})
    assert refused.value.problem.status == 400


def test_fields_are_set_in_objects_and_left_out_of_forms():
    """A file that is sent to an attached server goes in parts, which no JSON parser reads."""
    body = parse(BOM + NAMED, {}).body("/v1/chat/completions")
    assert json.loads(body.content_with({"model": "pinned"})) == {"model": "pinned", "messages": []}
    assert RequestBody(b"--boundary\r\n").content_with({"model": "pinned"}) == b"--boundary\r\n"
    assert RequestBody().content_with({"model": "pinned"}) == b""


@pytest.mark.parametrize("drafting", [OFF, Drafting(Mode.DRAFT_MODEL, draft="/draft", n_max=4)])
def test_no_client_chooses_what_mlx_loads(tmp_path, drafting):
    """Older versions of mlx_lm.server load a folder that `adapters` names, in place of the measured model (Proxy review 21)."""
    asked = {"model": "/etc", "draft_model": "/etc", "adapters": "/etc", "num_draft_tokens": 9, "seed": 1}
    body = parse(json.dumps(asked).encode(), {}).body("/v1/chat/completions")
    sent = json.loads(body.content_with(Mlx(tmp_path).request_fields(drafting)))
    assert sent == {
        "model": "default_model",
        "draft_model": "default_model",
        "adapters": None,
        "num_draft_tokens": 0 if drafting.is_off else 4,
        "seed": 1,
    }


def test_names_have_a_longest_length():
    """A name of megabytes held the event loop for tenths of a second, and stayed in memory (Proxy review 26)."""
    assert parse(json.dumps({"model": "n" * 512}).encode(), {}).model == "n" * 512
    with pytest.raises(Refused) as refused:
        parse(json.dumps({"model": "-" * 513}).encode(), {})
    assert refused.value.problem.status == 404


@pytest.mark.parametrize(
    ("path", "document", "streamed"),
    [
        ("/v1/chat/completions", {"stream": True}, True),
        ("/v1/messages", {"stream": True}, True),
        ("/v1/chat/completions", {"stream": False}, False),
        ("/v1/chat/completions", {"stream": 1}, False),
        ("/v1/chat/completions", {}, False),
        ("/tokenize", {"stream": True}, False),
    ],
)
def test_who_asked_for_a_stream(path, document, streamed):
    """Only whoever generates text, and says so."""
    assert parse(json.dumps(document).encode(), {}).body(path).is_streamed is streamed


SOUND = b'Content-Disposition: form-data; name="file"; filename="model"\r\nContent-Type: audio/wav\r\n\r\n\r\n--x\r\n'
FIELD = b'Content-Disposition: form-data; name="model"\r\n\r\n'


def form(*parts: bytes, boundary: bytes = b"xyz") -> bytes:
    """A body of parts."""
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--"


@pytest.mark.parametrize(
    ("parts", "model"),
    [
        ((FIELD + b"whisper", SOUND), "whisper"),
        ((SOUND, FIELD + "größe".encode()), "größe"),
        ((SOUND + bytes(100_000), FIELD + b"a b "), "a b"),
        ((FIELD, SOUND), ""),
        ((SOUND,), ""),
        ((FIELD.replace(b"model", b"modeling") + b"x", FIELD.replace(b'"', b"") + b"y"), "y"),
        ((FIELD.replace(b"name", b"filename=a; name") + b"x",), ""),
        ((b"\r\nno headers", b"content-disposition: FORM-DATA;NAME=model\r\nX: y\r\n\r\nz"), "z"),
        ((FIELD + b"first", FIELD + b"second"), "first"),
        ((b"X: " + b"y" * 5000 + b"\r\n\r\n", FIELD + b"late"), ""),
        ((*(100 * [SOUND]), FIELD + b"late"), ""),
    ],
)
def test_a_form_names_its_model_in_a_field(parts, model):
    """It was ignored, so that a sound went to whatever model ran. JavaScript's client sends the file first."""
    for quoted in ("xyz", '"xyz"'):
        content = form(*parts)
        read = parse(content, {"Content-Type": f"multipart/form-data; charset=utf-8; boundary={quoted}"})
        assert (read.model, read.document, read.content) == (model, None, content)


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/mixed; boundary=xyz", "x/y; boundary=xyz", ""]
)
def test_only_forms_with_a_boundary_are_read(kind):
    """Everything else passes as it is."""
    assert parse(form(FIELD + b"a"), {"Content-Type": kind}).model == ""


def test_a_forms_model_may_not_be_too_long():
    """As in JSON."""
    with pytest.raises(Refused) as refused:
        parse(form(FIELD + b"x" * 600), {"Content-Type": "multipart/form-data; boundary=xyz"})
    assert refused.value.problem.status == 404


PIECES = st.sampled_from(
    [FIELD, SOUND, b"--xyz", b"--", b"\r\n", b'"', b";", b"\xff", b"name*=utf-8''model", b"a", b":"]
)


@given(st.lists(PIECES | st.binary(max_size=8), max_size=12), st.text(max_size=30))
def test_no_form_breaks_the_parser(pieces, kind):
    """Whatever a client sends is passed on or refused."""
    for content_type in ("multipart/form-data; boundary=xyz", f"multipart/form-data; boundary={kind}", kind):
        with suppress(Refused):
            assert isinstance(parse(b"".join(pieces), {"Content-Type": content_type}).model, str)
