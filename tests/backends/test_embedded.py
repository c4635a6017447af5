"""llama-server's arguments as xllamacpp's fields."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from autospec.backends.llama_cpp import embedded
from autospec.backends.llama_cpp.embedded import TYPES, Embedded, drafting_fields, user_fields
from autospec.backends.protocol import LaunchSettings
from autospec.catalog.gguf import read_gguf
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import UnsupportedError, UsageError
from tests.backends.installed import installed
from tests.catalog.making import write_adapter, write_projector

# A red square of one pixel, as PNG.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="


def test_user_arguments_become_fields():
    """Numbers, switches, negations and enum members."""
    fields = user_fields(("-c", "8192", "--no-mmap", "-fa", "on", "-ctk", "q8_0", "-ngl", "all", "-nocb"))
    assert fields == {
        "n_ctx": 8192,
        "load_mode": {"enum": "llama_load_mode", "name": "LLAMA_LOAD_MODE_NONE"},
        "flash_attn_type": {"enum": "llama_flash_attn_type", "name": "LLAMA_FLASH_ATTN_TYPE_ENABLED"},
        "cache_type_k": {"enum": "ggml_type", "name": "GGML_TYPE_Q8_0"},
        "n_gpu_layers": -2,
        "cont_batching": False,
    }


def test_batch_threads_follow_threads():
    """As llama-server does, unless they are given."""
    assert user_fields(("-t", "4"))["cpuparams_batch.n_threads"] == 4
    assert user_fields(("-tb", "8", "-t", "4"))["cpuparams_batch.n_threads"] == 8


def test_template_kwargs_are_kept_as_json():
    """llama.cpp keeps each value as JSON text."""
    fields = user_fields(("--chat-template-kwargs", '{"enable_thinking": false}'))
    assert fields == {"default_template_kwargs": {"enable_thinking": "false"}}


def test_what_cannot_be_set_is_named():
    """With the way out."""
    with pytest.raises(UnsupportedError, match="cannot set --grammar") as caught:
        user_fields(("--grammar", "root ::= 1"))
    assert "install llama-server" in caught.value.hint


def adapter(path, scale=1.0):
    """An adapter as the child reads it."""
    return {"object": "CommonAdapterLoraInfo", "path": path, "scale": scale}


def test_adapters_add_up():
    """In the order of the flags, as the config gives them; a path may have a colon."""
    fields = user_fields(
        ("--lora", "a.gguf,b.gguf", "-t", "1", "--lora-scaled", "C:/c.gguf:0.5", "--lora", "d")
    )
    assert fields["lora_adapters"] == [
        adapter("a.gguf"),
        adapter("b.gguf"),
        adapter("C:/c.gguf", 0.5),
        adapter("d"),
    ]


def test_a_projector_is_loaded():
    """Or none, where the user says so."""
    assert user_fields(("-mm", "eyes.gguf", "--no-mmproj-offload")) == {
        "mmproj.path": "eyes.gguf",
        "mmproj_use_gpu": False,
    }
    assert user_fields(("--no-mmproj",)) == {"no_mmproj": True}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("-c",), "-c needs a value"),
        (("-c", "many"), "'many' of -c cannot be read"),
        (("--lora-scaled", "a.gguf"), "must be PATH:SCALE"),
        (("--lora-scaled", "a.gguf:loud"), "cannot be read"),
        (("-ctk", "q9"), "one of f32, f16"),
        (("--chat-template-kwargs", "[]"), "must be a JSON object"),
        (("--port", "1"), "--port cannot be passed"),
        (("8192",), "'8192' is not an option"),
    ],
)
def test_wrong_usage(args, said):
    """Each slip is told before anything starts."""
    with pytest.raises(UsageError, match=said):
        user_fields(args)


def test_off_sets_nothing():
    """`off` is the absence of speculation."""
    assert drafting_fields(OFF) == {}


def test_draft_model_is_pinned():
    """Type, file and all three limits."""
    fields = drafting_fields(Drafting(Mode.DRAFT_MODEL, draft="/d.gguf", n_max=8, p_min=0.5))
    assert fields == {
        "speculative.types": [{"enum": "common_speculative_type", "name": TYPES[Mode.DRAFT_MODEL]}],
        "speculative.draft.n_max": 8,
        "speculative.draft.n_min": 0,
        "speculative.draft.p_min": 0.5,
        "speculative.draft.mparams.path": "/d.gguf",
    }


def test_ngram_map_has_its_own_struct():
    """The struct's name is the mode's."""
    fields = drafting_fields(Drafting(Mode.NGRAM_MAP_K4V, ngram_n=8, ngram_m=16, min_hits=2))
    assert fields["speculative.ngram_map_k4v.size_m"] == 16


def test_several_modes_are_a_list_of_types():
    """Each mode's fields stand beside the others'."""
    mod = Drafting(Mode.NGRAM_MOD, ngram_n=16, n_max=32, n_min=8)
    fields = drafting_fields(Drafting(Mode.MTP, n_max=3, beside=(mod,)))
    assert [t["name"] for t in fields["speculative.types"]] == [TYPES[Mode.MTP], TYPES[Mode.NGRAM_MOD]]
    assert fields["speculative.draft.n_max"] == 3
    assert fields["speculative.ngram_mod.n_max"] == 32


def test_other_backends_modes_are_refused():
    """prompt-lookup is llama-cpp-python's."""
    with pytest.raises(UnsupportedError, match="prompt-lookup"):
        drafting_fields(Drafting(Mode.PROMPT_LOOKUP, n_max=10, ngram_n=2))


@pytest.mark.parametrize(
    ("metal", "library", "told"),
    [
        (True, b"\0ggml_metal_init\0", True),
        (True, b"\0MTLResidencySetDescriptor\0", False),
        (False, b"\0ggml_metal_init\0", False),
    ],
)
def test_a_wheel_that_lets_go_of_the_model_on_a_mac_says_so(monkeypatch, tmp_path, metal, library, told):
    """Wheels that are built with an older SDK lack Metal's residency sets; a later wheel may have them."""
    file = tmp_path / "xllamacpp.abi3.so"
    file.write_bytes(library)
    answer = {"library": str(file), "version": "2026.10.11549", "types": [], "devices": []}
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(embedded, "ask_child", lambda *_, **__: answer)
    monkeypatch.setattr(embedded, "on_metal", lambda: metal)
    notes = Embedded(tmp_path).capabilities().notes
    assert any("residency" in note for note in notes) is told


def test_an_adapter_and_a_projector_are_loaded(lab_models, tmp_path):
    """By the real server: it lists the adapter with its scale, answers behind an image, and drafts with both."""
    model = read_gguf(lab_models.tiny)
    write_adapter(tmp_path / "a.gguf", model.embedding_length)
    write_projector(tmp_path / "eyes.gguf", model.embedding_length)
    args = (
        "-t",
        "1",
        "-c",
        "512",
        "--lora-scaled",
        f"{tmp_path}/a.gguf:0.5",
        "--mmproj",
        f"{tmp_path}/eyes.gguf",
    )
    drafting = Drafting(Mode.DRAFT_MODEL, draft=str(lab_models.tiny), n_max=2, n_min=0, p_min=0.0)
    server = installed(Embedded(tmp_path)).launch(str(model.path), drafting, LaunchSettings(args))
    try:
        [adapter] = httpx.get(f"{server.base_url}/lora-adapters", trust_env=False, timeout=20).json()
        assert (Path(adapter["path"]).name, adapter["scale"]) == ("a.gguf", 0.5)
        question = {"type": "text", "text": "What is it?"}
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
        answer = httpx.post(
            f"{server.base_url}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": [question, image]}], "max_tokens": 8},
            trust_env=False,
            timeout=60,
        ).raise_for_status()
        assert answer.json()["timings"]["draft_n"] > 0
    finally:
        server.stop()
