"""The page of `autospec report`: what it says, that it loads nothing, and that everybody can read it."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from autospec.cells import Aim, PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.recommendations import LIKELY, LIMITS, LimitCheck, Limits, LimitVerdict, Status, Verdict
from autospec.report.explanation import explain
from autospec.report.html.findings import (
    AcceptanceCell,
    AcceptanceMap,
    Findings,
    ModelFindings,
    TypeFindings,
    record_findings,
)
from autospec.report.html.page import MOST_BYTES, page
from autospec.report.records import find_record, read_record
from tests.report.html_samples import PREDICTION, Seen, findings, pairs, twelve, type_findings, undrawn
from tests.report.samples import DRAFTING, HERE, recommendation

SCRIPT = "<script>alert('x')</script>"
HOSTILE = f'{SCRIPT}"><img src=http://evil.example/ onerror=alert(1)>&$x$\x07{{{{ 7*7 }}}}'


def founding():
    """The founding record's part of the page."""
    return record_findings(read_record(find_record("m2-ultra-2025-12-13")))


@pytest.fixture
def quick(monkeypatch):
    """Pages without drawing their figures."""
    monkeypatch.setattr("autospec.report.html.page.inline_svg", undrawn)


@pytest.fixture(scope="module")
def whole():
    """A page with one model of three types and the founding record."""
    kinds = (
        (Verdict.ENABLE, PromptType.CODING),
        (Verdict.DISABLE, PromptType.CHAT),
        (Verdict.UNDECIDED, PromptType.QA),
    )
    types = tuple(type_findings(recommendation(v, prompt_type=k)) for v, k in kinds)
    return page(findings(*types, record=founding()))


def test_it_says_what_explain_says(quick):
    """The same sentences, and in short which types pay."""
    one = type_findings()
    text = Seen.of(page(findings(one))).text
    for sentence in one.explanation.sentences:
        assert " ".join(sentence.split()) in text
    assert "Drafting pays for coding (+30.6 %)." in text


def test_every_verdict_is_told_in_words(whole):
    """Which types pay, which do not, which are open and how to go on."""
    text = Seen.of(whole).text
    assert "It does not pay for chat: there it stays off." in text
    assert "Undecided, and therefore off: qa." in text
    assert "autospec tune --model Main-7B-Q4_K_M" in text


def test_a_disable_whose_proof_goes_on_is_no_end(quick):
    """The winner is slower, its runner-up is not proved yet; where nothing can be tried, there is nothing to go on with."""
    disabled = recommendation(Verdict.DISABLE, prompt_type=PromptType.CHAT, status=Status.PROVISIONAL)
    never = replace(disabled, prompt_type=PromptType.QA, tried=OFF, speedup=None, speedup_ci=None, pairs=0)
    text = Seen.of(page(findings(*map(type_findings, (disabled, never))))).text
    assert "It does not pay for qa: there it stays off." in text
    assert "So far it does not pay for chat. autospec tune --model Main-7B-Q4_K_M goes on measuring." in text
    assert "Disable so far: Main-7B-Q4_K_M on llama-server b11434, chat prompts." in text
    assert "Disable: Main-7B-Q4_K_M on llama-server b11434, qa prompts." in text


def test_thresholds_of_different_studies_are_all_told(quick):
    """+3 % was enabled by a study that asks for 2 %; the first prompt type's study asks for 5 %."""
    types = (
        type_findings(recommendation(evidence={"threshold": 0.05})),
        type_findings(
            recommendation(
                prompt_type=PromptType.CHAT,
                speedup=1.03,
                speedup_ci=(1.025, 1.04),
                evidence={"threshold": 0.02},
            )
        ),
    )
    text = Seen.of(page(findings(*types))).text
    assert "an enable needs its whole interval above +2 % or +5 %." in text
    assert "Dashed line: the +2 % or +5 % that an enable must exceed" in text
    assert "above +5 %." in Seen.of(page(findings(types[0]))).text


def test_imported_results_are_no_gains_of_this_machine(quick):
    """They are told apart, also where they enable."""
    types = (
        type_findings(),
        type_findings(recommendation(prompt_type=PromptType.CHAT, status=Status.IMPORTED)),
        type_findings(recommendation(prompt_type=PromptType.QA, status=Status.STALE)),
    )
    text = Seen.of(page(findings(*types))).text
    assert "Drafting pays for coding (+30.6 %) and qa (+30.6 %)." in text
    assert "Imported, not measured here: chat (enable)." in text
    assert "Measured under other conditions than today's: qa." in text


def test_it_loads_nothing(whole):
    """No script, no address outside of the page, no import of a style; the only references are to its own parts."""
    seen = Seen.of(whole)
    assert not {tag for tag, _ in seen.elements} & {
        "script",
        "link",
        "iframe",
        "img",
        "object",
        "embed",
        "base",
    }
    for tag, attributes in seen.elements:
        assert "src" not in attributes, tag
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert not re.search(r"https?:|//[a-z]|@import|data:", whole)
    assert not re.search(r"url\((?!#)", whole)


def test_names_of_models_and_prompts_are_texts():
    """Whoever names a model, a draft or a prompt cannot put markup, a script or a template into the page."""
    draft = Drafting(Mode.DRAFT_MODEL, draft=f"/models/{HOSTILE.replace('/', '')}.gguf", n_max=4)
    r = recommendation(model=HOSTILE, drafting=draft, tried=draft, reason=HOSTILE, status=Status.STALE)
    r.evidence["stale_reason"] = HOSTILE
    own = [
        replace(p, off=replace(p.off, prompt_id=HOSTILE), drafted=replace(p.drafted, prompt_id=HOSTILE))
        for p in pairs()
    ]
    one = TypeFindings(explain(r, own), tuple(own))
    machine = replace(HERE, chip=HOSTILE, gpu=HOSTILE)
    found = ModelFindings(HOSTILE, HOSTILE, machine, (one,))
    seen = Seen.of(page(Findings(machine, (found,), note=HOSTILE)))
    assert not seen.tags("script", "img")
    assert not [name for _, attributes in seen.elements for name in attributes if name.startswith("on")]
    assert SCRIPT in seen.text, "the name is not shown as it is"
    assert "{{ 7*7 }}" in seen.text, "the name was taken for a template"
    assert "\x07" not in seen.text


def test_a_screen_reader_finds_its_way(whole):
    """Language, one first heading, no level left out, captions, scopes, alternatives of figures, and names that exist."""
    seen = Seen.of(whole)
    assert seen.tags("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in seen.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels)), levels
    assert len(seen.tables) > 10
    assert all(tags[0] == "caption" for tags in seen.tables)
    assert all(th.get("scope") in ("row", "col") for th in seen.tags("th"))
    for svg in seen.tags("svg"):
        assert svg["role"] == "img"
        assert svg["aria-labelledby"]
    assert (
        len(seen.tags("svg"))
        == len(seen.tags("title")) - 1
        == len(seen.tags("desc"))
        == len(seen.tags("figcaption"))
    )
    wanted = [
        name for _, attributes in seen.elements for name in (attributes.get("aria-labelledby") or "").split()
    ] + [href[1:] for _, a in seen.elements if (href := a.get("href") or "").startswith("#")]
    assert set(wanted) <= set(seen.ids)
    assert [name for name, times in seen.ids.items() if times > 1] == []


def test_what_scrolls_can_be_reached_by_keyboard(whole):
    """Every region that may scroll takes the focus and has a name; the first link leads past the contents."""
    seen = Seen.of(whole)
    regions = [a for _, a in seen.elements if a.get("class") in ("scroll", "drawing")]
    assert regions
    assert all(a.get("tabindex") == "0" and a.get("role") == "group" and a.get("aria-label") for a in regions)
    assert seen.tags("a")[0] == {"class": "skip", "href": "#main"}


def test_with_nothing_measured_it_says_what_to_do(quick):
    """A newcomer sees the next commands, and the founding record."""
    text = Seen.of(page(Findings(HERE, record=founding()))).text
    assert "Nothing has been measured on this machine yet" in text
    assert "autospec tune --model MODEL" in text
    assert "Escreva um Palindromo em Kotlin" in text


def test_the_founding_record_is_whole(quick):
    """Every run and every command line of it, and both losses of llama-server."""
    text = Seen.of(page(Findings(HERE, record=founding()))).text
    for words in (
        "144.3, 144.4, 144.3",
        "86.8",
        "59.0",
        "63.2",
        "−21.9 %",
        "--draft-max 8",
        "Apple M2 Ultra, 64 GB",
    ):
        assert words in text


@pytest.mark.parametrize("status", list(Status))
def test_every_status_has_a_row(quick, status):
    """Stale and imported rows, and rows that nothing was tried for, are shown as what they are."""
    r = recommendation(Verdict.UNDECIDED, status=status, tried=OFF, speedup=None, speedup_ci=None, baseline_tps=None,
                       drafting_tps=None, acceptance=None, pairs=0, evidence={"stale_reason": "another build"})  # fmt: skip
    text = Seen.of(page(findings(TypeFindings(explain(r))))).text
    assert f"{status}," in text
    assert ("another build" in text) == (status is Status.STALE)


def test_a_likely_gain_is_told(quick):
    """An unfinished proof: off, with what is likely and how long it takes."""
    likely = {"speedup": 1.72, "interval": [1.3, 2.2], "chance": 0.98, "about_s": 240}
    r = recommendation(Verdict.UNDECIDED, status=Status.PROVISIONAL, evidence={LIKELY: likely})
    assert (
        "likely, +72 %, about 4 more minutes would prove it"
        in Seen.of(page(findings(TypeFindings(explain(r))))).text
    )


def test_an_unbounded_interval_is_no_number(quick):
    """A few pairs have no interval: neither the table nor the figure invents one."""
    r = recommendation(Verdict.UNDECIDED, speedup_ci=(0.0, float("inf")))
    text = Seen.of(page(findings(type_findings(r)))).text
    assert "unbounded" not in text
    assert "inf" not in text.lower().split()


def test_paths_below_the_home_folder_are_short(quick, monkeypatch):
    """The page may be shown to others; it does not tell the user's name."""
    monkeypatch.setattr(Path, "home", lambda: Path("/home/some&body"))
    r = recommendation(evidence={"command": ["/home/some&body/llama-server", "-m", "/home/some&body/m.gguf"]})
    text = page(findings(type_findings(r)))
    assert "~/llama-server" in text
    assert "some&" not in text


@pytest.mark.process
def test_twelve_prompt_types_stay_small():
    """All types with the longest proof of the study `default`; none of them is left out."""
    text = page(findings(*twelve(), record=founding()))
    assert len(text.encode()) < MOST_BYTES
    seen = Seen.of(text)
    assert len([a for a in seen.tags("svg") if "proof" in (a["aria-labelledby"] or "")]) == 12
    assert all(f"The raw numbers of {kind}" in seen.text for kind in PromptType)


@pytest.mark.process
def test_a_page_that_would_be_too_large_says_what_it_left_out(monkeypatch):
    """First the tables of pairs go, then the figures of single types; each says where the rest is."""
    found = findings(*twelve(rounds=2)[:2])
    whole = len(page(found).encode())
    monkeypatch.setattr("autospec.report.html.page.MOST_BYTES", whole)
    without_pairs = page(found)
    assert "pairs are left out to keep this page small" in without_pairs
    assert 'aria-labelledby="m1-t1-proof-title' in without_pairs
    monkeypatch.setattr("autospec.report.html.page.MOST_BYTES", 1000)
    least = page(found)
    assert "The figure of its pairs is left out" in least
    assert len(least) < len(without_pairs) < whole


def test_flags_are_shown_where_drafting_is_enabled(quick):
    """What to type; not for a drafting that stays off, and not where the flags were not recorded."""
    assert "Flags for coding prompts:" in page(findings(type_findings()))
    assert "--spec-draft-n-max 8" in page(findings(type_findings()))
    off = page(findings(type_findings(recommendation(Verdict.DISABLE))))
    assert "Flags for" not in off
    assert DRAFTING.label in off
    assert "Flags for" not in page(findings(type_findings(recommendation(evidence={}))))


def test_a_loss_elsewhere_is_told_first(quick):
    """Enabled, but slower under another condition: the reader learns it beside the gain."""
    slower = LimitCheck(0.8, 0.575, (0.5, 0.66), 8, LimitVerdict.SLOWER)
    r = recommendation(evidence={LIMITS: Limits(temperature=(slower,)).to_json()})
    assert (
        "Beware: coding at temperature 0.8: -42.5 % (slower)."
        in Seen.of(page(findings(type_findings(r)))).text
    )


def test_a_map_beside_n_grams_says_what_it_is_of(quick):
    """The replay of the map is of the draft model alone."""
    found = AcceptanceMap(
        (4, 8), (0.0,), ((AcceptanceCell(2.0, 0.9), AcceptanceCell()),), (8, 0.0), answers=3
    )
    beside = replace(DRAFTING, beside=(Drafting(Mode.NGRAM_SIMPLE, ngram_n=3, ngram_m=8, min_hits=1),))
    for tried, told in ((DRAFTING, False), (beside, True)):
        one = TypeFindings(explain(recommendation(drafting=tried, tried=tried)), accepted=found)
        text = Seen.of(page(findings(one))).text
        assert "3 recorded answers, replayed for each setting" in text
        assert ("without the modes beside it" in text) is told


@pytest.mark.parametrize(
    "prediction",
    [
        {},
        {**PREDICTION, "interval": None},
        {**PREDICTION, "interval": [None, 1.2]},
        {**PREDICTION, "token_ms": 0.0},
        {**PREDICTION, "step_ms": None},
        {**PREDICTION, "verify_ms": [100.0]},
    ],
)
def test_a_prediction_of_another_version_is_left_out_as_far_as_it_is_not_understood(prediction):
    """No figure is drawn of what is missing, and the others are."""
    own = pairs()
    r = recommendation(evidence={"prediction": prediction} if prediction else {})
    explained = explain(replace(r, evidence={}), own)
    text = page(findings(TypeFindings(replace(explained, recommendation=r), own)))
    assert ("m1-forecasts" in text) == ("expected" in prediction)
    curve = bool(prediction) and prediction["token_ms"] > 0 and len(prediction["verify_ms"]) > 1
    assert ("m1-cost1" in text) == curve
    assert "m1-t1-proof" in text


@pytest.mark.parametrize("backend", ["attached", "mlx", "llama-cpp-python"])
def test_other_backends_have_a_page(quick, backend):
    """Without flags, where the server is somebody else's and takes none."""
    text = Seen.of(page(findings(type_findings(recommendation(backend=backend, evidence={"args": []}))))).text
    assert "Drafting pays for coding" in text
    assert "Flags for" not in text


def test_the_page_says_what_verdicts_about_energy_compare(quick):
    """Before their gains, which are of joules; the tables are of speed."""
    frugal = recommendation(aim=Aim.ENERGY, evidence={"energy": {"ratio": 0.8, "parts": ["gpu"], "pairs": 9,
        "off_j_per_token": 2.0, "drafting_j_per_token": 1.6, "interval": None}})  # fmt: skip
    text = Seen.of(page(findings(type_findings(frugal)))).text
    assert "The aim is energy: verdicts compare tokens per joule" in text
    assert "Drafting pays for coding (+25.0 %)." in text
    assert "The aim is energy" not in Seen.of(page(findings(type_findings()))).text
