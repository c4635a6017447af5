"""Launches for users set the drafting, but not what launches for measuring pin."""

from __future__ import annotations

import json

import pytest

from autospec.backends.llama_cpp.embedded import Embedded
from autospec.backends.protocol import LaunchSettings
from autospec.drafting import OFF, Drafting, Mode

DRAFT = Drafting(Mode.DRAFT_MODEL, draft="/models/draft.gguf", n_max=4, n_min=0, p_min=0.5)


@pytest.mark.parametrize("drafting", [OFF, DRAFT])
def test_llama_server(fake, drafting):
    """Slots and prompt cache are its own; only the drafting's arguments are the same."""
    backend = fake()
    measured = backend.command("/models/main.gguf", drafting, LaunchSettings(("-t", "1")))
    served = backend.command("/models/main.gguf", drafting, LaunchSettings(("-t", "1"), serving=True))
    pinned = ["--parallel", "1", "--cache-ram", "0", "--slots"]
    assert "--parallel" in measured
    assert {"--parallel", "--cache-ram", "--slots"} & set(served) == set()
    assert list(served) == _without(list(measured), pinned)


def _without(words: list[str], run: list[str]) -> list[str]:
    """The words without one run of them."""
    at = next(i for i in range(len(words)) if words[i : i + len(run)] == run)
    return words[:at] + words[at + len(run) :]


def test_the_users_own_number_of_slots_stays(fake):
    """What the user sets holds for serving as for measuring."""
    settings = LaunchSettings(("--parallel", "2"), serving=True)
    assert fake().command("/models/main.gguf", OFF, settings).count("--parallel") == 1


def test_embedded(state_dir):
    """As llama-server would by itself: slots as many as it likes, sharing one cache."""
    pytest.importorskip("xllamacpp")
    backend = Embedded(state_dir)
    *_, measured = backend.command("/models/main.gguf", DRAFT, LaunchSettings())
    *_, served = backend.command("/models/main.gguf", DRAFT, LaunchSettings(serving=True))
    *_, chosen = backend.command("/models/main.gguf", DRAFT, LaunchSettings(("-np", "2"), serving=True))
    pins = {"n_parallel", "cache_ram_mib", "cache_idle_slots"}
    assert pins <= set(json.loads(measured))
    assert {k: v for k, v in json.loads(served).items() if k in pins} == {"n_parallel": -1}
    assert json.loads(chosen)["n_parallel"] == 2
    same = [{k: v for k, v in json.loads(fields).items() if k not in pins} for fields in (measured, served)]
    assert same[0] == same[1]


def test_answers_carry_the_name_that_clients_ask_for(fake, state_dir):
    """Not the path of the file; a name of the user's own stays, and one that would be several is left out."""
    named = LaunchSettings(serving=True, served_as="main-1b")
    command = fake().command("/models/main.gguf", OFF, named)
    assert command[command.index("--alias") + 1] == "main-1b"
    own = LaunchSettings(("-a", "mine"), serving=True, served_as="main-1b")
    assert "--alias" not in fake().command("/models/main.gguf", OFF, own)
    several = LaunchSettings(serving=True, served_as="main,1b")
    assert "--alias" not in fake().command("/models/main.gguf", OFF, several)
    pytest.importorskip("xllamacpp")
    *_, fields = Embedded(state_dir).command("/models/main.gguf", OFF, named)
    assert json.loads(fields)["model_alias"] == ["main-1b"]
    *_, fields = Embedded(state_dir).command("/models/main.gguf", OFF, own)
    assert json.loads(fields)["model_alias"] == ["mine"]
