"""Drafting: equal values have equal keys, JSON comes back, and invalid values are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from autospec.cells import Aim, Build, Cell, Hardware, ModelRef, PromptType
from autospec.drafting import OFF, Drafting, Engine, Mode

MOD = Drafting(Mode.NGRAM_MOD, ngram_n=24, n_max=64, n_min=48)
SIMPLE = Drafting(Mode.NGRAM_SIMPLE, ngram_n=6, ngram_m=24, min_hits=1)
TOGETHER = Drafting(
    Mode.DRAFT_MODEL, draft="/models/d.gguf", n_max=8, n_min=0, p_min=0.75, beside=(MOD, SIMPLE)
)
EXAMPLES = [
    OFF,
    TOGETHER,
    Drafting(Mode.MTP, n_max=3, beside=(MOD,)),
    Drafting(Mode.MTP, n_max=3, beside=(SIMPLE,)),
    Drafting(Mode.DRAFT_MODEL, draft="/models/d.gguf", n_max=8, n_min=0, p_min=0.75),
    Drafting(Mode.DRAFT_MODEL, draft="/models/mlx", n_max=3),
    Drafting(Mode.MTP, n_max=3, n_min=0, p_min=0.0),
    Drafting(Mode.MTP, draft="/models/head.gguf", n_max=3),
    Drafting(Mode.NGRAM_SIMPLE, ngram_n=6, ngram_m=24, min_hits=1),
    Drafting(Mode.NGRAM_MOD, ngram_n=16, n_max=32, n_min=0),
    Drafting(Mode.NGRAM_CACHE, n_max=8, n_min=0),
    Drafting(Mode.PROMPT_LOOKUP, n_max=10, ngram_n=2),
]


@pytest.mark.parametrize("drafting", EXAMPLES, ids=lambda d: d.label)
def test_json_comes_back_as_it_was(drafting):
    """Reading what was written gives an equal value."""
    assert Drafting.from_json(drafting.to_json()) == drafting


def test_keys_are_equal_exactly_when_draftings_are():
    """Keys tell all examples apart."""
    assert len({d.key for d in EXAMPLES}) == len(EXAMPLES)
    assert Drafting.from_json(EXAMPLES[1].to_json()).key == EXAMPLES[1].key


def test_off_is_the_contract_s_smallest_object():
    """Off is a value of its own, with a mode and nothing else."""
    assert OFF.to_json() == {"mode": "off"}
    assert OFF.is_off


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": Mode.OFF, "n_max": 3}, "has no n_max"),
        ({"mode": Mode.DRAFT_MODEL, "n_max": 3}, "needs draft"),
        ({"mode": Mode.DRAFT_MODEL, "draft": "d", "n_max": 0}, "at least 1"),
        ({"mode": Mode.DRAFT_MODEL, "draft": "d", "n_max": 2, "n_min": 3}, "above n_max"),
        ({"mode": Mode.DRAFT_MODEL, "draft": "d", "n_max": 2, "p_min": 1.5}, "between 0 and 1"),
        (
            {"mode": Mode.NGRAM_SIMPLE, "ngram_n": 3, "ngram_m": 3, "min_hits": 1, "p_min": 0.5},
            "has no p_min",
        ),
    ],
)
def test_nonsense_cannot_be_made(arguments, words):
    """A parameter that is missing, out of range or another mode's is refused."""
    with pytest.raises(ValueError, match=words):
        Drafting(**arguments)


def test_unknown_parameter_in_json_is_refused():
    """A document from another version does not lose a parameter silently."""
    with pytest.raises(ValueError, match="unknown drafting parameter"):
        Drafting.from_json({"mode": "off", "depth": 3})


def test_several_modes_are_read_by_old_readers_too():
    """`mode` and the parameters are the first mode's, as before; a new key lists every mode with its own."""
    assert Drafting(Mode.MTP, n_max=3, p_min=0.5, beside=(MOD,)).to_json() == {
        "mode": "mtp",
        "n_max": 3,
        "p_min": 0.5,
        "parts": [
            {"mode": "mtp", "n_max": 3, "p_min": 0.5},
            {"mode": "ngram-mod", "n_max": 64, "n_min": 48, "ngram_n": 24},
        ],
    }
    assert "parts" not in SIMPLE.to_json()


def test_order_of_the_modes_beside_makes_no_difference():
    """Servers ask them in an order of their own."""
    first, *others = TOGETHER.to_json()["parts"]
    turned = Drafting.from_json({**TOGETHER.to_json(), "parts": [first, *others[::-1]]})
    assert turned == TOGETHER
    assert turned.key == TOGETHER.key
    assert TOGETHER.beside == (SIMPLE, MOD)


def test_label_of_several_modes_is_short():
    """The first mode as ever, then matching and proposed tokens of the others."""
    assert TOGETHER.label == "draft-model d n_max=8 p_min=0.75 + ngram-simple 6/24 + ngram-mod 24/64 n_min=48"
    assert Drafting(Mode.MTP, n_max=3, beside=(MOD,)).longest == 64
    assert [d.mode for d in TOGETHER.parts] == [Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE, Mode.NGRAM_MOD]
    assert OFF.parts == (OFF,)
    assert OFF.longest == 0


@pytest.mark.parametrize(
    ("first", "beside", "words"),
    [
        (OFF, (MOD,), "off has no modes beside it"),
        (SIMPLE, (MOD,), "ngram-simple has no modes beside it"),
        (TOGETHER, (MOD, MOD), "only different draft-free modes"),
        (
            TOGETHER,
            (Drafting(Mode.MTP, n_max=3),),
            "only different draft-free modes can be beside draft-model, not mtp",
        ),
        (TOGETHER, (TOGETHER,), "only different draft-free modes"),
    ],
)
def test_what_cannot_draft_together_cannot_be_made(first, beside, words):
    """One mode with a model, and different draft-free ones."""
    with pytest.raises(ValueError, match=words):
        replace(first, beside=beside)


def test_what_the_server_adapts_is_a_part_of_the_drafting():
    """In key, label and JSON; without it, all of them are as they ever were."""
    plain = Drafting(Mode.MTP, n_max=12, n_min=3, p_min=0.0)
    adaptive = replace(plain, engine=Engine.MTP_ADAPTIVE)
    assert adaptive.to_json() == {**plain.to_json(), "engine": "mtp-adaptive"}
    assert "engine" not in plain.to_json()
    assert Drafting.from_json(json.loads(json.dumps(adaptive.to_json()))) == adaptive
    assert adaptive.label == "mtp n_max=12 n_min=3 p_min=0.0 engine=mtp-adaptive"
    assert adaptive.key == "mtp(n_max=12,n_min=3,p_min=0.0,engine=mtp-adaptive)"
    # A reader of another version takes it for an unknown drafting, not for the plain one.
    assert Drafting.understood({**plain.to_json(), "engine": "of-tomorrow"}) is None


@pytest.mark.parametrize(
    ("drafting", "engine"), [(SIMPLE, "autotune"), (OFF, "adaptive"), (TOGETHER, "mtp-adaptive")]
)
def test_an_engine_needs_a_mode_with_a_model(drafting, engine):
    """And the one of MTP needs MTP."""
    with pytest.raises(ValueError, match="has no engine"):
        replace(drafting, engine=Engine(engine))


def test_parts_that_contradict_the_mode_are_refused():
    """A document that someone changed by hand is not half believed."""
    with pytest.raises(ValueError, match="begin with draft-model"):
        Drafting.from_json({"mode": "mtp", "n_max": 3, "parts": TOGETHER.to_json()["parts"]})
    assert Drafting.understood({"mode": "mtp", "n_max": 3, "parts": [7]}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"model": ModelRef("main", "/m", "other")},
        {"prompt_type": PromptType.CHAT},
        {"build": Build("llama-server", "b1", "other")},
        {"hardware": Hardware("other", "chip", 1)},
        {"settings": ("-ngl", "99")},
        {"aim": Aim.ENERGY},
    ],
)
def test_cell_differs_with_each_of_its_parts(change):
    """Model, prompt type, build, hardware, launch settings and aim each make another cell; the path does not."""
    parts = {
        "model": ModelRef("main", "/m", "print"),
        "prompt_type": PromptType.CODING,
        "build": Build("llama-server", "b1", "binary"),
        "hardware": Hardware("machine", "chip", 1),
    }
    cell = Cell(**parts)
    assert Cell(**{**parts, **change}).key != cell.key
    assert Cell(**{**parts, "model": ModelRef("main", "/elsewhere", "print")}).key == cell.key
    assert "main | coding | llama-server b1 | machine" in cell.study_name


def test_cells_for_speed_keep_the_keys_from_before_there_were_aims():
    """What is stored stays what it is for. The keys are those that 5a936b0b computed."""
    build, machine = Build("llama-server", "b1", "f"), Hardware("hw", "c", 1)
    cell = Cell(ModelRef("main", "/m", "print"), PromptType.CODING, build, machine, ("-ngl", "99"))
    assert (cell.key, cell.launch_key) == ("75f53290a1d3", "34f563a376da")
    frugal = replace(cell, aim=Aim.ENERGY)
    assert frugal.launch_key != cell.launch_key
    assert frugal.study_name == f"main | coding | llama-server b1 | hw | energy | {frugal.key}"
