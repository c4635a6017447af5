"""What the contract tests must know of each backend: one row each. Everything else is the same for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from autospec.backends.attached.backend import Attached
from autospec.backends.llama_cpp.embedded import Embedded
from autospec.backends.llama_cpp.python import LlamaCppPython
from autospec.backends.llama_cpp.server import LlamaServer
from autospec.backends.mlx.backend import Mlx
from autospec.backends.protocol import Backend, LaunchSettings
from autospec.drafting import Drafting, Mode
from tests.backends.installed import installed

# One thread: ggml's threads wait for each other by spinning, which takes forever on a machine that is busy.
SETTINGS = LaunchSettings(args=("-c", "2048", "-t", "1"), ready_timeout_s=120.0)
LOOKUP = Drafting(Mode.PROMPT_LOOKUP, n_max=4, ngram_n=2)


@dataclass(frozen=True, slots=True)
class Facts:
    """One backend.

    Attributes:
        make: The backend, given pytest's ``request`` and a state folder; skips the test where it is not installed.
        model: The lab model to launch, by its name among the lab's fixtures.
        drafting: One that proposes something on a text that repeats itself, given the model's path; ``None`` where
            drafting cannot be chosen.
        bad: One whose draft does not exist; ``None`` where no mode has a draft.
        lacks: A drafting of a mode that it does not have.
        settings: For every launch.
        bad_settings: Server arguments that it refuses before anything starts.
        owns: False if somebody else starts and stops its servers.
        extra_settings: Further settings for `backend_for` in a process of its own, by name.
    """

    make: Callable[[pytest.FixtureRequest, Path], Backend]
    model: str = "tiny"
    drafting: Callable[[str], Drafting] | None = None
    bad: Drafting | None = None
    lacks: Drafting = LOOKUP
    settings: LaunchSettings = SETTINGS
    bad_settings: tuple[str, ...] = ("--no-such-flag",)
    owns: bool = True
    extra_settings: Callable[[pytest.FixtureRequest], dict[str, Any]] = field(default=lambda _request: {})


def itself(path: str, **changes: Any) -> Drafting:
    """The main model as its own draft: all that it proposes is accepted."""
    return Drafting(Mode.DRAFT_MODEL, draft=path, **{"n_max": 4, "n_min": 0, "p_min": 0.0, **changes})


def _by_hand(request: pytest.FixtureRequest, _state: Path) -> Backend:
    url, _ = request.getfixturevalue("by_hand")()
    return Attached(url)


FACTS: dict[str, Facts] = {
    "llama-server": Facts(
        lambda request, state: LlamaServer(request.getfixturevalue("llama_server_binary"), state),
        drafting=itself,
        bad=itself("/no/draft.gguf"),
        extra_settings=lambda request: {"llama_server": str(request.getfixturevalue("llama_server_binary"))},
    ),
    "embedded": Facts(
        lambda _request, state: installed(Embedded(state)), drafting=itself, bad=itself("/no/draft.gguf")
    ),
    "mlx": Facts(
        lambda _request, state: installed(Mlx(state)),
        model="mlx_tiny",
        drafting=lambda path: Drafting(Mode.DRAFT_MODEL, draft=path, n_max=2),
        bad=Drafting(Mode.DRAFT_MODEL, draft="/no/draft", n_max=2),
        settings=LaunchSettings(ready_timeout_s=240.0),
    ),
    "llama-cpp-python": Facts(
        lambda _request, state: installed(LlamaCppPython(state)),
        model="smollm2",  # prompt lookup proposes where text repeats, and the tiny model's has no sense
        drafting=lambda _path: LOOKUP,
        lacks=itself("/no/draft.gguf"),
    ),
    "attached": Facts(
        _by_hand,
        lacks=itself("/no/draft.gguf"),
        settings=LaunchSettings(),
        bad_settings=("-ngl", "1"),
        owns=False,
    ),
}
