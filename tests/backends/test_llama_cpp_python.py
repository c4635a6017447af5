"""llama-cpp-python: what can be tested where it is not installed. test_contract.py tests its server."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys

import pytest

from autospec.backends.llama_cpp import python as backend
from autospec.backends.llama_cpp import python_child as child
from autospec.backends.protocol import LaunchSettings
from autospec.cells import Build
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import BackendMissingError, UnsupportedError, UsageError, install_line

LOOKUP = Drafting(Mode.PROMPT_LOOKUP, n_max=6, ngram_n=3)
SETTINGS = frozenset({"n_ctx", "n_threads", "n_threads_batch", "n_gpu_layers", "flash_attn", "seed"})


@pytest.fixture
def installed(state_dir, monkeypatch):
    """The backend as if the package were here: only its probe is answered for it."""
    build = Build("llama-cpp-python", "0.3.36", "0" * 16)
    monkeypatch.setattr(backend, "_probe", lambda _state: backend._Package(build, SETTINGS))
    return backend.LlamaCppPython(state_dir)


def test_a_drafting_becomes_both_numbers(installed):
    """The server itself could only be told one."""
    command = installed.command("/m.gguf", LOOKUP, LaunchSettings(("-c", "1024")))
    plain = installed.command("/m.gguf", OFF, LaunchSettings(("-c", "1024")))
    assert plain == (sys.executable, "-m", child.__name__, "--model", "/m.gguf", "--n_ctx", "1024")
    assert command[: len(plain)] == plain
    assert shlex.join(command[len(plain) :]) == (
        "--draft_model prompt-lookup-decoding --draft_model_num_pred_tokens 6 --max_ngram_size 3"
    )


def test_settings_in_both_spellings(installed):
    """Its own, and llama-server's for the commonest; threads for batches follow, as llama-server's do."""
    read = backend.user_settings(("-t", "2", "-ngl", "99", "--flash_attn", "true"), SETTINGS)
    assert read == {"n_threads": "2", "n_threads_batch": "2", "n_gpu_layers": "99", "flash_attn": "true"}
    assert backend.user_settings(("-t", "2", "-tb", "4"), SETTINGS)["n_threads_batch"] == "4"
    assert backend.user_settings(("--n_ctx", "9", "-c", "4"), SETTINGS) == {"n_ctx": "9"}


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("--mlock",), UnsupportedError),
        (("--lora-scaled", "a:0.5"), UnsupportedError),
        (("--mmproj", "eyes.gguf"), UnsupportedError),
        (("--draft_model", "x"), UsageError),
        (("--port", "1"), UsageError),
        (("-c",), UsageError),
        (("4096",), UsageError),
    ],
)
def test_settings_that_cannot_be(args, error):
    """Named, and refused before anything starts."""
    with pytest.raises(error, match=args[0]):
        backend.user_settings(args, SETTINGS)


def test_one_adapter():
    """Its own name for it; a second one would replace the first without a word."""
    known = SETTINGS | {"lora_path"}
    assert backend.user_settings(("--lora", "a.gguf"), known) == {"lora_path": "a.gguf"}
    with pytest.raises(UnsupportedError, match="takes one LoRA adapter"):
        backend.user_settings(("--lora", "a.gguf", "--lora", "b.gguf"), known)


def test_a_mode_that_it_has_not(installed):
    """Prompt lookup is all."""
    with pytest.raises(UnsupportedError, match=r"no mode draft-model") as caught:
        installed.command("/m.gguf", Drafting(Mode.DRAFT_MODEL, draft="/d", n_max=4), LaunchSettings())
    assert caught.value.hint == "It offers: off, prompt-lookup."


def test_not_installed(state_dir, monkeypatch):
    """The line that installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(BackendMissingError, match="not installed") as caught:
        backend.LlamaCppPython(state_dir).capabilities()
    assert install_line("llama-cpp") in caught.value.hint


class Lookup:
    """Proposes three tokens, as ``LlamaPromptLookupDecoding`` does."""

    max_ngram_size = 2

    def __call__(self, input_ids, /):
        """Always the same."""
        return [7, 7, 7]


class Llama:
    """The parts of ``llama_cpp.Llama`` that the meter touches; five tokens in three batches."""

    def __init__(self):
        self.draft_model, self.resets, self.verbose, self.clock = Lookup(), 0, True, 0.0
        self.n_tokens = 0

    def n_ctx(self):
        """Its size."""
        return 512

    def reset(self):
        """Counted."""
        self.resets += 1

    def generate(self, tokens):
        """Proposes as ``Llama.generate`` does: after a batch's tokens have been taken."""
        self.clock += 0.2
        self.n_tokens = len(tokens)
        yield from (1, 2)
        for answer in ((3, 4), (5,)):
            if self.draft_model is not None:
                self.draft_model(tokens)
            self.clock += 0.1
            self.n_tokens += len(answer)
            yield from answer

    def create_chat_completion(self):
        """Not streamed."""
        return {}

    def create_embedding(self, text):
        """No tokens are counted."""
        return [float(len(text))]


def metered(ngram_size=None):
    """A meter over a stand-in, with its clock."""
    llama = Llama()
    if ngram_size is None:
        llama.draft_model = None
    return child.Meter(llama, ngram_size, clock=lambda: llama.clock), llama


def test_times_and_counts():
    """The prompt until the first token; two of five tokens were accepted from six that two proposals made."""
    meter, llama = metered(4)
    assert list(llama.generate([1, 2, 3, 4])) == [1, 2, 3, 4, 5]
    assert meter.timings() == pytest.approx(
        {
            "prompt_n": 4,
            "prompt_ms": 200.0,
            "predicted_n": 5,
            "predicted_ms": 200.0,
            "draft_n": 6,
            "draft_n_accepted": 2,
        }
    )
    assert meter.slot() == {
        "id": 0,
        "n_ctx": 512,
        "is_processing": False,
        "speculative": True,
        "n_tokens": 7,
        "n_answered": 1,
    }
    assert meter._lookup.max_ngram_size == 4


def test_the_slot_moves_while_the_model_works():
    """In an answer that is not streamed, and over a job of embeddings; the proxy took both for a hang after two hours."""
    meter, llama = metered(4)
    seen = [json.dumps(meter.slot())]
    seen += [json.dumps(meter.slot()) for token in llama.generate([1, 2]) if token in (1, 3, 5)]
    for _ in range(2):
        assert llama.create_embedding("two") == [3.0]
        seen.append(json.dumps(meter.slot()))
    assert len(set(seen)) == len(seen)


def test_off_names_no_drafts():
    """As llama.cpp."""
    meter, llama = metered()
    list(llama.generate([1]))
    assert "draft_n" not in meter.timings()
    assert not meter.slot()["speculative"]


@pytest.mark.parametrize(
    ("body", "resets"),
    [(b'{"cache_prompt": false}', 1), (b'{"cache_prompt": true}', 0), (b"{}", 0), (b"not JSON", 0)],
)
def test_cache_prompt(body, resets):
    """What the server ignores is honoured before the app sees the request, which gets its body whole."""
    _, llama = metered()
    seen = []

    async def app(scope, receive, send):
        seen.append((await receive())["body"])
        seen.append((await receive())["type"])
        list(llama.generate([1]))

    parts = [
        {"type": "http.request", "body": body[:3], "more_body": True},
        {"type": "http.request", "body": body[3:]},
        {"type": "http.disconnect"},
    ]

    async def receive():
        return parts.pop(0)

    asyncio.run(child.ColdPrompts(app)({"type": "http", "method": "POST"}, receive, None))
    assert seen == [body, "http.disconnect"]
    assert llama.resets == resets


def test_left_over_variables_are_no_settings(monkeypatch):
    """They would be read, in any case of letters."""
    monkeypatch.setenv("SEED", "7")
    monkeypatch.setenv("Config_File", "/x")
    monkeypatch.setenv("SEEDS", "kept")
    child._forget_environment({"seed", "config_file"})
    assert "SEED" not in os.environ
    assert "Config_File" not in os.environ
    assert os.environ["SEEDS"] == "kept"
