"""Records: what they may contain, and what their numbers support."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from autospec.cells import PromptType
from autospec.drafting import OFF, Mode
from autospec.errors import StudyFileError
from autospec.hardware.identity import describe
from autospec.recommendations import Status, Verdict
from autospec.report.records import find_record, read_record, recommendations_of, shipped_records

FOUNDING = "m2-ultra-2025-12-13"


@pytest.fixture
def founding():
    """The shipped record."""
    return read_record(find_record(FOUNDING))


@pytest.fixture
def said(founding):
    """Its recommendations by model and backend."""
    return {(s.recommendation.model, s.recommendation.backend): s for s in recommendations_of(founding)}


def write(tmp_path: Path, old: str = "", new: str = "") -> Path:
    """The founding record with one text replaced."""
    text = find_record(FOUNDING).read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "record.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


def test_every_run_of_the_founding_record_is_there(founding):
    """Seven groups, fifteen runs, as the record has them."""
    runs = {
        (g.backend, g.model, g.drafting.n_max if g.drafting.mode is Mode.DRAFT_MODEL else 0): g.runs_tps
        for g in founding.groups
    }
    coder = "Qwen3-Coder-30B-A3B"
    assert runs == {
        ("mlx", "Qwen3-4B", 0): (144.3, 144.4, 144.3),
        ("mlx", "Qwen3-4B", 2): (144.1, 144.2, 144.1),
        ("mlx", coder, 0): (87.1, 87.3, 85.9),
        ("mlx", coder, 2): (87.5, 87.4, 87.6),
        ("llama-server", coder, 0): (75.5,),
        ("llama-server", coder, 8): (59.0,),
        ("llama-server", coder, 4): (63.2,),
    }
    assert (founding.prompt, founding.max_tokens) == ("Escreva um Palindromo em Kotlin", 512)
    assert founding.date == dt.date(2025, 12, 13)
    assert founding.prompt_type is PromptType.CODING


def test_the_record_holds_nothing_derived():
    """No average and no percentage is written down."""
    text = find_record(FOUNDING).read_text(encoding="utf-8")
    for number in ("86.8", "144.33", "-22", "-16", "+0.8"):
        assert number not in text


def test_its_hardware_id_is_made_as_this_machines_would_be(founding):
    """Up to the digest, for which the number of GPU cores was not noted."""
    h = founding.hardware
    made = describe(
        chip=h.chip, memory_bytes=h.memory_bytes, cores=h.cores, os_name=h.os, gpu=f"{h.chip} 60-core GPU"
    )
    assert made.id.startswith(f"{h.id}-")


def test_all_its_pairs_run_off(said):
    """Off for each model and backend, as imported recommendations of that machine."""
    assert len(said) == 3
    for stored in said.values():
        r = stored.recommendation
        assert r.drafting == OFF
        assert r.verdict is not Verdict.ENABLE
        assert r.status is Status.IMPORTED
        assert stored.hardware.chip == "Apple M2 Ultra"


def test_eight_tenths_of_a_percent_are_not_evidence_enough(said):
    """Three runs each that scatter by 0.9 %: the interval reaches from a loss to a gain above the threshold."""
    r = said["Qwen3-Coder-30B-A3B", "mlx"].recommendation
    assert r.verdict is Verdict.UNDECIDED
    assert r.speedup == pytest.approx(1.0085, abs=0.0005)
    low, high = r.speedup_ci
    assert low < 1
    assert high > 1.02
    assert "not enough evidence" in r.reason


def test_a_tenth_of_a_percent_less_is_below_the_threshold(said):
    """Runs that scatter by 0.04 % settle it: no gain of +2 %."""
    r = said["Qwen3-4B", "mlx"].recommendation
    assert r.verdict is Verdict.DISABLE
    assert r.speedup_ci[1] < 1.02


def test_a_large_loss_from_single_runs_is_evidence(said):
    """The best drafting tried is n_max 4 at -16 %, beyond any noise to reckon with; n_max 8 is named as well."""
    r = said["Qwen3-Coder-30B-A3B", "llama-server"].recommendation
    assert r.verdict is Verdict.DISABLE
    assert (r.tried.n_max, r.tried.p_min) == (4, 0.8)
    assert (r.baseline_tps, r.drafting_tps) == (pytest.approx(75.5), pytest.approx(63.2))
    assert r.speedup_ci[1] < 1
    assert r.reason == (
        "With n_max 4 it is 16.3 % slower (63.2 instead of 75.5 tok/s). These are single runs, and 3 % noise per run is "
        "assumed. The loss is larger than the noise. With n_max 8 it is 21.9 % slower."
    )
    assert [run["runs_tps"] for run in r.evidence["runs"]] == [[75.5], [59.0], [63.2]]


def test_nothing_is_called_paired(said):
    """Unpaired runs count as no pairs; how many runs there were is in the evidence."""
    r = said["Qwen3-4B", "mlx"].recommendation
    assert r.pairs == 0
    assert r.evidence["unpaired"] == {"off": 3, "drafting": 3}


def test_keys_are_stable_and_distinct(founding, said):
    """The same record gives the same keys, each its own."""
    again = [s.cell_key for s in recommendations_of(founding)]
    assert sorted(again) == sorted(s.cell_key for s in said.values())
    assert len(set(again)) == 3


def test_a_record_never_enables(tmp_path):
    """A gain of a third on one prompt is promising, and no more."""
    path = write(tmp_path, "[144.1, 144.2, 144.1]", "[190.0, 191.0, 190.5]")
    r = recommendations_of(read_record(path))[0].recommendation
    assert r.verdict is Verdict.UNDECIDED
    assert "measure on this machine" in r.reason


def test_single_runs_alone_prove_nothing(tmp_path):
    """With no replicate anywhere the noise is unknown, and even a large loss stays undecided."""
    text = find_record(FOUNDING).read_text(encoding="utf-8")
    head, *groups = text.split("[[group]]")
    path = tmp_path / "single.toml"
    path.write_text("[[group]]".join([head, *groups[4:]]), encoding="utf-8")
    r = recommendations_of(read_record(path))[0].recommendation
    assert r.verdict is Verdict.UNDECIDED
    assert r.speedup_ci is None
    assert "noise is unknown" in r.reason


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("max_tokens = 512", "max_token = 512", "no key request.max_token"),
        ("max_tokens = 512", "", "request.max_tokens is missing"),
        ("max_tokens = 512", "max_tokens = 0", "request.max_tokens must be"),
        ('prompt_type = "coding"', 'prompt_type = "code"', "not a prompt type"),
        (
            "memory_bytes = 68719476736",
            'memory_bytes = "64 GB"',
            "hardware.memory_bytes must be a whole number",
        ),
        ("[75.5]", "[]", "group 5: runs_tps must be speeds"),
        ("[75.5]", "[-1.0]", "group 5: runs_tps must be speeds"),
        ("[75.5]", "[inf]", "group 5: runs_tps must be speeds"),
        ("n_max = 8, p_min = 0.8", "n_max = 4, p_min = 0.8", "two groups with the drafting draft-model"),
        ("n_max = 8, p_min = 0.8", "n_max = 8, p_min = 8", "group 6: drafting is invalid: p_min"),
        ('mode = "off"', 'mode = "none"', "group 1: drafting is invalid"),
        ('kind = "record"', "", "is not a record"),
        ("date = 2025-12-13", 'date = "2025-12-13"', "date must be a date"),
        ("[request]", "[request", "is not valid TOML"),
    ],
)
def test_a_malformed_record_is_told_by_its_key(tmp_path, old, new, words):
    """The sentence names the file and the key."""
    with pytest.raises(StudyFileError, match=r"record\.toml") as raised:
        read_record(write(tmp_path, old, new))
    assert words in raised.value.message


def test_a_model_without_runs_off_is_refused(tmp_path):
    """There is nothing to compare with."""
    text = find_record(FOUNDING).read_text(encoding="utf-8")
    head, *groups = text.split("[[group]]")
    path = tmp_path / "record.toml"
    path.write_text("[[group]]".join([head, *groups[1:]]), encoding="utf-8")
    with pytest.raises(StudyFileError, match="Qwen3-4B on mlx has no runs without drafting"):
        read_record(path)


def test_a_shipped_record_is_found_by_its_name(tmp_path, monkeypatch):
    """With or without its ending, from any folder; a study definition is no record."""
    monkeypatch.chdir(tmp_path)
    assert find_record(FOUNDING) == find_record(f"{FOUNDING}.toml")
    assert "default" not in shipped_records()
    with pytest.raises(StudyFileError, match="no shipped record"):
        find_record("no-such-record")


def test_a_folder_is_no_record(tmp_path):
    """It is there, so the sentence does not say that it is not."""
    with pytest.raises(StudyFileError, match="is a folder"):
        find_record(str(tmp_path))
