"""Servers that the user started: a real llama-server, and stand-ins for those that cannot run here."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack

import pytest

from autospec.backends.attached.backend import KEY_VARIABLE, Attached
from autospec.backends.attached.kinds import FoundServer, ServerKind, find_out, model_name
from autospec.backends.process import free_port
from autospec.backends.protocol import LaunchSettings, Request
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import (
    BackendMissingError,
    LaunchError,
    ServerDiedError,
    SpeculationInactiveError,
    UnsupportedError,
    UsageError,
)
from tests.backends.fake_attached import (
    LM_STUDIO,
    LM_STUDIO_V1,
    MLX_OMNI,
    OLD_LLAMA_SERVER,
    OTHER,
    ROUTER,
    VLLM,
    FakeAttached,
    running,
)

QUESTION = Request(messages=({"role": "user", "content": "Say something."},), max_tokens=16, timeout_s=60.0)
NOTHING = LaunchSettings()
MAIN = "/lmstudio/Qwen2.5-7B-Instruct-GGUF/Qwen2.5-7B-Instruct-Q4_K_M.gguf"
SMALL = "/lmstudio/Qwen2.5-0.5B-Instruct-GGUF/Qwen2.5-0.5B-Instruct-Q8_0.gguf"
LM_DRAFT = Drafting(Mode.DRAFT_MODEL, draft=SMALL, n_max=16, n_min=0, p_min=0.75)
OMNI_DRAFT = Drafting(Mode.DRAFT_MODEL, draft="/mlx/small", n_max=2, n_min=0)
OLD_DRAFT = Drafting(Mode.DRAFT_MODEL, draft="/models/d.gguf", n_max=8, n_min=0, p_min=0.4)


@pytest.fixture
def stand_in():
    """Starts a stand-in; ends it after the test."""
    with ExitStack() as started:
        yield lambda pages, *faults: started.enter_context(running(FakeAttached(pages, *faults)))


def test_lm_studio_takes_the_draft_with_the_request(stand_in):
    """Models by the names that it lists, its own route for its counts, and nothing launched in between."""
    server = stand_in(LM_STUDIO)
    attached = Attached(server.url)
    abilities = attached.capabilities()
    assert abilities.build.version == "LM Studio unknown"
    assert abilities.modes == {Mode.OFF, Mode.DRAFT_MODEL}
    assert abilities.drafting_per_request
    assert abilities.only == (16, 0.75)
    off = attached.launch(MAIN, OFF, NOTHING)
    drafted = off.with_drafting(LM_DRAFT)
    assert drafted.with_drafting(LM_DRAFT) is drafted
    server.bodies.clear()
    first, second = off.complete(QUESTION), drafted.complete(QUESTION)
    assert (first.drafted, second.drafted, second.accepted) == (None, 4, 2)
    (path, _, plain), (_, _, body) = server.bodies
    assert path == "/api/v0/chat/completions"
    assert (plain["model"], body["draft_model"]) == ("qwen2.5-7b-instruct", "qwen2.5-0.5b-instruct")
    assert "draft_model" not in plain
    assert drafted.command[-1] == "draft_model=qwen2.5-0.5b-instruct"


def test_a_draft_that_proposes_nothing_is_not_measured(stand_in):
    """LM Studio may ignore a draft that does not fit."""
    attached = Attached(stand_in(LM_STUDIO, "dead-draft").url)
    with pytest.raises(SpeculationInactiveError, match="does not draft although"):
        attached.launch(MAIN, LM_DRAFT, NOTHING)


def test_a_server_that_drafts_although_off(stand_in):
    """Set so in its own window, say."""
    with pytest.raises(SpeculationInactiveError, match="drafts although drafting is off"):
        Attached(stand_in(LM_STUDIO, "drafts-always").url).launch(MAIN, OFF, NOTHING)


def test_another_number_of_tokens_cannot_be_asked_for(stand_in):
    """What a request cannot say is not recorded as if it had."""
    with pytest.raises(UnsupportedError, match=r"always drafts with n_max 16 and p_min 0\.75"):
        Attached(stand_in(LM_STUDIO).url).command(
            MAIN, Drafting(Mode.DRAFT_MODEL, draft=SMALL, n_max=4, p_min=0.0), NOTHING
        )


def test_a_model_that_it_does_not_list(stand_in):
    """Named, with those that it lists."""
    with pytest.raises(UnsupportedError, match=r"does not list Llama\.gguf; it lists qwen2\.5-7b"):
        Attached(stand_in(LM_STUDIO).url).command("/m/Llama.gguf", OFF, NOTHING)


LMS = "/Users/ana/.lmstudio/models"
Q4 = "Qwen3-4B-Instruct-2507-Q4_K_M.gguf"
DEVSTRAL = "Devstral-Small-2-24B-Instruct-2512"
HUB = "/home/ana/.cache/huggingface/hub"


@pytest.mark.parametrize(
    ("path", "listed", "name"),
    [
        # The date, and what says nothing of the model.
        (f"/m/{Q4}", ("qwen/qwen3-4b", "qwen/qwen3-4b-2507"), "qwen/qwen3-4b-2507"),
        (f"/m/{Q4}", ("qwen/qwen3-4b-2507",), "qwen/qwen3-4b-2507"),
        (f"/m/{Q4}", ("qwen/qwen3-4b", "qwen/qwen3-4b-thinking-2507"), None),
        (f"/m/{Q4}", ("qwen/qwen3-4b",), None),
        ("/m/Qwen_Qwen3-4B-Instruct-2507-Q4_K_M.gguf", ("qwen/qwen3-4b-2507",), "qwen/qwen3-4b-2507"),
        (f"{LMS}/c/Qwen3-30B-A3B-Instruct-2507-MLX-4bit", ("qwen/qwen3-30b-a3b-2507",), "qwen/qwen3-30b-a3b-2507"),
        ("/m/Qwen3-30B-A3B-UD-IQ3_XXS-00001-of-00003.gguf", ("qwen/qwen3-30b-a3b",), "qwen/qwen3-30b-a3b"),
        ("/m/gemma-3-12b-it-qat-4bit", ("google/gemma-3-4b", "google/gemma-3-12b"), "google/gemma-3-12b"),
        ("/m/Llama-3.2-3B-Instruct.Q8_0.gguf", ("llama3.2:3b", "llama3.2:1b"), "llama3.2:3b"),
        ("/m/gpt-oss-20b-MXFP4.gguf", ("openai/gpt-oss-20b", "openai/gpt-oss-120b"), "openai/gpt-oss-20b"),
        (f"{HUB}/models--mlx-community--Qwen3-8B-4bit/snapshots/0a1b", ("qwen3-8b", "qwen3-4b"), "qwen3-8b"),
        # A size that the name leaves out.
        (f"/m/{DEVSTRAL}-Q8_0.gguf", ("mistralai/devstral-small-2-2512",), "mistralai/devstral-small-2-2512"),
        (f"/m/{DEVSTRAL}-Q8_0.gguf", ("mistralai/devstral-small-2507",), None),
        ("/m/Qwen3-4B-Q8_0.gguf", ("qwen3-8b",), None),
        # Variants are other models.
        ("/m/Qwen3-4B-Thinking-Q8_0.gguf", ("qwen/qwen3-4b",), None),
        ("/m/phi-4-mini-instruct-Q8_0.gguf", ("phi-4",), None),
        ("/m/Llama-3.1-8B-Q8_0.gguf", ("llama-3-8b",), None),
        ("/m/Qwen3-Coder-30B-A3B-Instruct-Q8_0.gguf", ("qwen/qwen3-coder-30b",), "qwen/qwen3-coder-30b"),
        # What the name has and the file has not.
        ("/m/Qwen2.5-7B-Q8_0.gguf", ("qwen2.5-7b-instruct",), None),
        ("/m/Qwen2.5-7B-Instruct-Q8_0.gguf", ("qwen2.5-7b", "qwen2.5-7b-instruct"), "qwen2.5-7b-instruct"),
        ("/m/gemma-3-4b-it-qat-Q4_0.gguf", ("google/gemma-3-4b", "gemma-3-4b-qat"), "gemma-3-4b-qat"),
        ("/m/Qwen3-8B-Q4_K_M.gguf", ("qwen/qwen3-8b@q8_0",), None),
        ("/m/Qwen3-8B-Q4_K_S.gguf", ("qwen3-8b@q4_k_m",), None),
        ("/m/Qwen3-8B-Q4_K_M.gguf", ("qwen3-8b@q8_0", "qwen3-8b@q4_k_m"), "qwen3-8b@q4_k_m"),
        ("/m/Qwen3-8B-Q4_K_M.gguf", ("qwen3-8b@q4_k_m", "qwen3-8b"), "qwen3-8b@q4_k_m"),
        # LM Studio's own folder: it lists the model under some name.
        (f"{LMS}/c/r/Mistral-Small-3.2-24B-Instruct-2506-Q4_K_M.gguf", ("mistralai/mistral-small-3.2",), "mistralai/mistral-small-3.2"),
        ("/m/Mistral-Small-3.2-24B-Instruct-2506-Q4_K_M.gguf", ("mistralai/mistral-small-3.2",), None),
        ("/home/ana/.cache/lm-studio/models/c/r/Magistral-Small-2509-Q8_0.gguf", ("magistral-small",), "magistral-small"),
        # A file that its folder names, and names of two publishers.
        ("/m/Qwen3-8B-GGUF/model.gguf", ("qwen/qwen3-8b",), "qwen/qwen3-8b"),
        ("/m/Qwen3-8B-Thinking-GGUF/model.gguf", ("qwen/qwen3-8b",), None),
        (f"{LMS}/unsloth/Qwen3-8B-GGUF/Qwen3-8B-Q8_0.gguf", ("qwen/qwen3-8b", "unsloth/qwen3-8b"), "unsloth/qwen3-8b"),
        ("/m/Qwen3-8B-Q8_0.gguf", ("lm-studio/qwen3-8b", "unsloth/qwen3-8b"), None),
        ("/m/Qwen3-8B-Q8_0.gguf", ("\u6a21\u578b",), None),
        # Its own words come first.
        ("/m/a-8b.gguf", ("a-8b", "a-8b.gguf", "/m/a-8b.gguf", "b"), "/m/a-8b.gguf"),
    ],
)  # fmt: skip
def test_the_servers_name_for_a_file(path, listed, name):
    """The one name that means this model, or none: other dates, sizes and variants are other models."""
    found = FoundServer(ServerKind.LM_STUDIO, models=listed)
    if name is not None:
        assert model_name(path, found) == name
        return
    with pytest.raises(UnsupportedError, match="does not list"):
        model_name(path, found)


def _entries(pages: dict, **of_another) -> dict:
    """The answer with a loaded model for embeddings, and `of_another` in each language model."""
    (route, page), *_ = pages.items()
    ((key, models),) = [(key, value) for key, value in page.items() if isinstance(value, list)]
    changed = [
        {**e, **of_another}
        if e["type"] == "llm"
        else {**e, "state": "loaded", "compatibility_type": "gguf", "loaded_instances": [{"id": "nomic"}]}
        for e in models
    ]
    return {**pages, route: {**page, key: changed}}


@pytest.mark.parametrize("pages", [LM_STUDIO, LM_STUDIO_V1])
@pytest.mark.parametrize(("kind", "only"), [("mlx", (2, None)), ("gguf", (16, 0.75))])
def test_a_loaded_model_for_embeddings_says_nothing_of_drafting(pages, kind, only):
    """LM Studio brings one, which is a GGUF file; an MLX model beside it drafts as MLX does."""
    found = find_out(_entries(pages, compatibility_type=kind, format=kind).get)
    assert found.kind is ServerKind.LM_STUDIO
    assert found.only == only


def test_lm_studio_does_not_draft_while_it_batches(stand_in):
    """lmstudio-bug-tracker 1519: a fault of its settings, which the hint names, and no launch to be repeated."""
    attached = Attached(stand_in(LM_STUDIO, "batches").url)
    off = attached.launch(MAIN, OFF, NOTHING)
    with pytest.raises(SpeculationInactiveError, match="LM Studio cannot draft with draft-model") as caught:
        off.with_drafting(LM_DRAFT)
    assert caught.value.hint == (
        "In LM Studio set the model's number of concurrent predictions to 1 and load it again."
    )


def test_mlx_omni_server(stand_in):
    """A top-level ``draft_model``, folders as names, two tokens, no counts."""
    server = stand_in(MLX_OMNI)
    attached = Attached(f"{server.url}/v1/")
    assert attached.capabilities().only == (2, None)
    assert not attached.capabilities().tells_drafts
    attached.launch("/mlx/main", OMNI_DRAFT, NOTHING).complete(QUESTION)
    path, _, body = server.bodies[-1]
    assert (path, body["model"], body["draft_model"]) == ("/v1/chat/completions", "/mlx/main", "/mlx/small")


def test_an_old_llama_server_takes_limits(stand_in):
    """n_max 0 is off; what may be proposed goes with the request, and the prompt cache is on or nothing would be."""
    server = stand_in(OLD_LLAMA_SERVER)
    attached = Attached(server.url)
    off = attached.launch("/disk/main.gguf", OFF, NOTHING)
    drafted = off.with_drafting(OLD_DRAFT)
    server.bodies.clear()
    assert (off.complete(QUESTION).drafted, drafted.complete(QUESTION).drafted) == (0, 4)
    plain, body = (sent for _, _, sent in server.bodies)
    assert plain["speculative.n_max"] == 0
    assert (body["speculative.n_max"], body["speculative.p_min"]) == (8, 0.4)
    assert body["cache_prompt"]
    limits = ("speculative.n_max=8", "speculative.n_min=0", "speculative.p_min=0.4")
    assert attached.drafting_args("/disk/main.gguf", OLD_DRAFT, NOTHING) == limits
    simple = Drafting(Mode.NGRAM_SIMPLE, ngram_n=2, ngram_m=8, min_hits=1)
    with pytest.raises(UnsupportedError, match=r"cannot ask for draft-model .* \+ ngram-simple 2/8"):
        off.with_drafting(dataclasses.replace(OLD_DRAFT, beside=(simple,)))
    assert attached.drafting_args("/disk/main.gguf", OFF, NOTHING) == ()


def test_lm_studio_without_its_older_route(stand_in):
    """Its models are found by `/api/v1`, whose chat takes no draft model: OpenAI's route is asked."""
    server = stand_in(LM_STUDIO_V1)
    attached = Attached(server.url)
    assert attached.capabilities().build.version == "LM Studio unknown"
    assert attached.capabilities().only == (2, None)
    drafting = dataclasses.replace(LM_DRAFT, n_max=2, p_min=None)
    done = attached.launch(MAIN, OFF, NOTHING).with_drafting(drafting).complete(QUESTION)
    assert (done.drafted, done.accepted) == (4, 2)
    path, _, body = server.bodies[-1]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["draft_model"]) == ("qwen2.5-7b-instruct", "qwen2.5-0.5b-instruct")


def test_vllm_is_measured_with_its_draft_counts(stand_in):
    """By name and version; its drafting is fixed when it starts."""
    attached = Attached(stand_in(VLLM, "drafts-always").url)
    abilities = attached.capabilities()
    assert abilities.build.version == "vLLM 0.28.1"
    assert abilities.measures_only
    assert any("--per-request-spec-decode-metrics" in note for note in abilities.notes)
    done = attached.as_it_runs().launch("/m/Qwen3-8B", OFF, NOTHING).complete(QUESTION)
    assert (done.drafted, done.accepted) == (4, 2)


def test_a_router_says_that_it_is_one(stand_in):
    """Nothing is loaded to find that out."""
    server = stand_in(ROUTER)
    abilities = Attached(server.url).capabilities()
    assert abilities.build.version == "llama-server router b7400-abc"
    assert "It is llama.cpp's router. It has 6 models, 1 loaded." in abilities.notes
    loading = [path for path in server.looked if "model=" in path and "autoload=false" not in path]
    assert not loading


def test_a_model_behind_a_router(stand_in):
    """It is asked for by the router's name; the limits are its own server's, and its slot is emptied."""
    server = stand_in(ROUTER)
    attached = Attached(server.url)
    off = attached.launch("/disk/main.gguf", OFF, NOTHING)
    drafted = off.with_drafting(dataclasses.replace(OLD_DRAFT, n_max=8))
    server.bodies.clear()
    assert (off.complete(QUESTION).drafted, drafted.complete(QUESTION).drafted) == (0, 4)
    assert [(body["model"], body["speculative.n_max"]) for _, _, body in server.bodies] == [
        ("main", 0),
        ("main", 8),
    ]
    assert set(server.erased) == {"main"}
    assert off.command == (server.url, "model=main", "speculative.n_max=0")


def test_a_model_that_the_router_loads_first(stand_in):
    """Its server has no draft, so a request cannot ask for one."""
    attached = Attached(stand_in(ROUTER).url)
    server = attached.launch("/models/small.gguf", OFF, NOTHING)
    assert server.complete(QUESTION).drafted == 0
    assert server.command[1:] == ("model=small",)
    with pytest.raises(UnsupportedError, match="cannot ask for draft-model"):
        attached.launch("/models/small.gguf", OLD_DRAFT, NOTHING)


def test_of_several_presets_of_a_file_the_one_that_does_not_draft(stand_in):
    """Their command lines tell, before any is loaded."""
    server = Attached(stand_in(ROUTER).url).launch("/models/two.gguf", OFF, NOTHING)
    assert server.command[1:] == ("model=twice",)


@pytest.mark.parametrize(
    ("path", "error", "said"),
    [
        ("/m/nobody.gguf", UnsupportedError, r"router does not have nobody\.gguf; it has main, small"),
        ("/models/same.gguf", UnsupportedError, "under several names: same-a, same-b"),
        ("/models/main.gguf", LaunchError, "router does not load main"),
    ],
)
def test_a_model_that_the_router_cannot_give(stand_in, path, error, said):
    """In one sentence, with what there is."""
    pages = {page: value for page, value in ROUTER.items() if page != "/props?model=main"}
    with pytest.raises(error, match=said):
        Attached(stand_in(pages).url).launch(path, OFF, NOTHING)


@pytest.mark.parametrize("odd", [None, [], "x", 3, {"data": 1}, {"data": [1, {"id": "m", "status": []}]}])
@pytest.mark.parametrize(
    "page", ["/props", "/v1/models", "/slots", "/api/v0/models", "/api/v1/models", "/version"]
)
@pytest.mark.parametrize(
    ("pages", "kinds"),
    [
        (ROUTER, {"llama-server router", "OpenAI-compatible server", None}),
        (VLLM, {"vLLM", "LM Studio", "OpenAI-compatible server", None}),
        (LM_STUDIO, {"LM Studio", "OpenAI-compatible server"}),
        (LM_STUDIO_V1, {"LM Studio", "OpenAI-compatible server"}),
        (OLD_LLAMA_SERVER, {"llama-server", None}),
    ],
)
def test_documents_of_another_shape(pages, kinds, page, odd):
    """Whatever one page says, the server is of a kind that the others name, or nobody."""
    found = find_out({**pages, page: odd}.get)
    assert (found.kind if found else None) in kinds


def test_any_other_server_is_measured_only(stand_in):
    """Nothing can be set, so nothing is pretended."""
    attached = Attached(stand_in(OTHER).url)
    assert attached.capabilities().measures_only
    assert attached.capabilities().modes == {Mode.OFF}
    done = attached.as_it_runs().launch("/m/GPT-OSS-20B.gguf", OFF, NOTHING).complete(QUESTION)
    assert (done.text, done.predicted_tokens, done.drafted) == ("abc", 3, None)
    with pytest.raises(UnsupportedError, match="cannot ask for draft-model"):
        attached.command("/m/gpt-oss-20b.gguf", OLD_DRAFT, NOTHING)


def test_the_key_is_sent_and_not_shown(stand_in, monkeypatch):
    """From the environment alone."""
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    server = stand_in(LM_STUDIO)
    made = Attached(server.url).launch(MAIN, OFF, NOTHING)
    assert server.bodies[-1][1] == "Bearer secret"
    assert "secret" not in " ".join(made.command)


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("", BackendMissingError, "No server is attached"),
        ("localhost:1234", UsageError, "not the address of a server"),
        ("http://192.0.2.7:1234", UsageError, r"192\.0\.2\.7 is another machine"),
        ("http://example.org", UsageError, "is another machine"),
    ],
)
def test_addresses_that_cannot_be(url, error, said):
    """Refused before anything is sent."""
    with pytest.raises(error, match=said):
        Attached(url).capabilities()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_nobody_answers(host):
    """A sentence with the address."""
    with pytest.raises(BackendMissingError, match="No OpenAI-compatible server answers at http"):
        Attached(f"http://{host}:{free_port()}").capabilities()


def test_server_arguments_make_no_sense(stand_in):
    """It runs already; the context that tune adds by itself is passed over."""
    attached = Attached(stand_in(LM_STUDIO).url)
    attached.command(MAIN, OFF, LaunchSettings(("-c", "4096")))
    with pytest.raises(UsageError, match="-ngl cannot be given to a server that is already running"):
        attached.command(MAIN, OFF, LaunchSettings(("-c", "4096", "-ngl", "99")))


def test_a_real_llama_server_without_a_draft(by_hand, lab_models):
    """Off is in force, its times are its own, and it runs on after it was stopped."""
    url, process = by_hand()
    attached = Attached(url)
    assert attached.capabilities().measures_only
    server = attached.launch(str(lab_models.tiny), OFF, NOTHING)
    done = server.complete(QUESTION)
    assert 0 < done.predicted_ms <= done.wall_ms
    assert done.prompt_tokens > 1
    assert done.drafted == 0
    assert process.pid in server.pids
    assert server.with_drafting(OLD_DRAFT) is None
    server.stop()
    assert process.poll() is None
    assert server.complete(QUESTION).text == done.text


def test_a_real_llama_server_with_a_draft(by_hand, lab_models):
    """It says that it speculates: measured as it runs, never as off."""
    draft = ("--model-draft", str(lab_models.tiny), "--spec-type", "draft-simple", "--spec-draft-n-max", "4")
    url, _ = by_hand(*draft)
    attached = Attached(url)
    with pytest.raises(SpeculationInactiveError, match="drafts although drafting is off"):
        attached.launch(str(lab_models.tiny), OFF, NOTHING)
    running = attached.as_it_runs()
    assert running.launch(str(lab_models.tiny), OFF, NOTHING).complete(QUESTION).drafted > 0


def test_a_real_llama_server_with_another_model(by_hand):
    """Its measurements would be filed under the wrong name."""
    url, _ = by_hand()
    with pytest.raises(UnsupportedError, match=r"runs SmolLM2-Tiny.*\.gguf, not other\.gguf"):
        Attached(url).launch("/m/other.gguf", OFF, NOTHING)


def test_a_real_server_that_is_gone(by_hand, lab_models):
    """Told as a death, though its process is not ours."""
    url, process = by_hand()
    server = Attached(url).launch(str(lab_models.tiny), OFF, NOTHING)
    process.kill()
    process.wait()
    with pytest.raises(ServerDiedError, match="stopped listening"):
        server.complete(QUESTION)


def test_a_real_router(router_by_hand, lab_models):
    """b11434: it names its models, and each is measured as its preset says; nothing of it is the router's own."""
    tiny, drafted = lab_models.tiny, lab_models.fast_main
    url = router_by_hand(
        f"[plain]\nmodel = {tiny}\n\n[drafted]\nmodel = {drafted}\nspec-type = ngram-simple\n"
    )
    attached = Attached(url)
    abilities = attached.capabilities()
    assert abilities.build.version.startswith("llama-server router ")
    assert abilities.measures_only
    server = attached.launch(str(tiny), OFF, NOTHING)
    done = server.complete(QUESTION)
    assert done.predicted_ms > 0
    assert done.drafted == 0
    assert server.command == (url, "model=plain")
    # The router's children do the work: their load is this server's own.
    assert len(server.pids) > 1
    with pytest.raises(SpeculationInactiveError, match="drafts although drafting is off"):
        attached.launch(str(drafted), OFF, NOTHING)
    running = attached.as_it_runs().launch(str(drafted), OFF, NOTHING)
    assert running.complete(QUESTION).predicted_tokens > 0
    with pytest.raises(UnsupportedError, match="router does not have other"):
        attached.launch("/m/other.gguf", OFF, NOTHING)


def test_a_first_request_that_fails(stand_in):
    """A launch that failed, in the server's own words."""
    with pytest.raises(LaunchError, match=r"failed its first request: .*the model is not loaded"):
        Attached(stand_in(OTHER, "refuses").url).launch("/m/gpt-oss-20b.gguf", OFF, NOTHING)
