"""The identity under which measurements of a draft are stored."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest

from autospec.backends.protocol import Capabilities
from autospec.catalog.candidates import Candidate
from autospec.catalog.model import Model
from autospec.cells import Build
from autospec.drafting import OFF, Drafting, Engine, Mode
from autospec.store.compatibility import DraftFile, DraftFiles
from autospec.tuning.definition import load_definition
from autospec.tuning.request import draft_file, space_for
from tests.catalog.making import make_model

MIB = 1024 * 1024
OLD = Drafting(Mode.DRAFT_MODEL, draft="/a/draft.gguf", n_max=8, n_min=0, p_min=0.0)
MOVED = replace(OLD, draft="/b/draft.gguf")
AT = 1000.0


@pytest.fixture
def draft(tmp_path) -> Model:
    """A draft of two files, of which one is larger than what is read of it."""
    parts = (tmp_path / "draft-1.gguf", tmp_path / "draft-2.gguf")
    parts[0].write_bytes(b"small")
    parts[1].write_bytes(bytes(range(256)) * (24 * MIB // 256))
    return make_model(name="draft", path=parts[0], files=parts, fingerprint="f")


def test_a_draft_that_is_moved_stays_the_same(draft, tmp_path):
    """Moved, or copied: neither name, folder nor time is part of it."""
    before = draft_file(draft)
    (tmp_path / "other").mkdir()
    files = tuple(shutil.copy(path, tmp_path / "other" / path.name.upper()) for path in draft.files)
    assert draft_file(replace(draft, path=files[0], files=files)).identity == before.identity


@pytest.mark.parametrize(
    ("part", "offset", "data"), [(0, 0, b"S"), (1, 12 * MIB, bytes(MIB)), (1, 24 * MIB, b"longer")]
)
def test_a_draft_that_is_replaced_is_another(draft, part, offset, data):
    """Of the same fingerprint: one small file's bytes, a hole in a large one, another length."""
    before = draft_file(draft)
    with draft.files[part].open("r+b") as file:
        file.seek(offset)
        file.write(data)
    assert draft_file(draft).identity != before.identity


def test_the_fingerprint_is_part_of_it(draft):
    """Of a draft whose files are gone, it is all that is known."""
    gone = replace(draft, files=(), path=draft.path.with_name("gone"))
    assert draft_file(gone) == draft_file(gone)
    assert draft_file(gone).identity != draft_file(replace(gone, fingerprint="g")).identity
    assert draft_file(gone).changed_at == 0.0


def test_the_newest_file_tells_when_it_was_changed(draft):
    """A row from before identities were kept is compared with that."""
    for path, at_s in zip(draft.files, (100.0, 200.0), strict=True):
        os.utime(path, (at_s, at_s))
    assert draft_file(draft).changed_at == 200.0


@pytest.mark.parametrize(
    ("files", "identity", "today"),
    [
        ({"/a/draft.gguf": DraftFile("one", 1.0)}, "one", OLD),
        ({"/b/draft.gguf": DraftFile("one", 1.0)}, "one", MOVED),
        ({"/a/draft.gguf": DraftFile("two", 1.0)}, "one", None),
        ({"/a/draft.gguf": DraftFile("two", 1.0), "/b/draft.gguf": DraftFile("one", 1.0)}, "one", MOVED),
        ({"/a/draft.gguf": DraftFile("one", AT - 1)}, "", OLD),
        ({"/a/draft.gguf": DraftFile("one", AT + 1)}, "", None),
        ({"/b/draft.gguf": DraftFile("two", 1.0)}, "one", OLD),
        ({}, "one", OLD),
    ],
)
def test_a_stored_drafting_is_found_by_what_its_draft_was(files, identity, today):
    """The same file, moved, replaced, both; older rows by their time; drafts outside the current space stay as they are."""
    assert DraftFiles(files).today(OLD, identity, AT) == today


@pytest.mark.parametrize(
    ("temperature", "engines"),
    [(0.0, [None, None, Engine.AUTOTUNE]), (0.8, [None, None, Engine.AUTOTUNE, Engine.PROBABILISTIC])],
)
def test_what_a_build_adapts_is_an_arm_of_the_first_draft(temperature, engines):
    """Rejection sampling changes nothing at temperature 0, so it is not tried there; modes without a draft have no engine."""
    drafts = [
        Candidate(make_model(name=name), Mode.DRAFT_MODEL, fits=True, reason="") for name in ("best", "other")
    ]
    able = Capabilities(
        Build("llama-server", "b1", "f" * 8),
        frozenset({Mode.OFF, Mode.DRAFT_MODEL, Mode.MTP}),
        engines=frozenset(
            {
                (Mode.DRAFT_MODEL, Engine.AUTOTUNE),
                (Mode.DRAFT_MODEL, Engine.PROBABILISTIC),
                (Mode.MTP, Engine.MTP_ADAPTIVE),
            }
        ),
    )
    arms = space_for(load_definition("thorough"), able, drafts, temperature).arms
    assert [arm.engine for arm in arms] == engines
    assert {arm.draft for arm in arms if arm.engine} == {"/models/best.gguf"}


def test_what_has_no_draft_is_always_the_same():
    """Off, and modes that draft from the text."""
    ngram = Drafting(Mode.NGRAM_SIMPLE, ngram_n=6, ngram_m=24, min_hits=1)
    files = DraftFiles({"/a/draft.gguf": DraftFile("one", 2.0)})
    assert [files.today(d, "", 1.0) for d in (OFF, ngram)] == [OFF, ngram]
    assert files.identity(ngram) == ""
