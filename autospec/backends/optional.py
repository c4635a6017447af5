"""Optional abilities of backends and servers, besides `autospec.backends.protocol`. Callers check with isinstance."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from autospec.backends.llama_cpp.scorer import LlamaCppScorer
from autospec.backends.placement import Placement
from autospec.backends.protocol import LaunchSettings, Server
from autospec.drafting import Drafting
from autospec.hardware.gpu import Device

__all__ = ["EncodesText", "Idles", "InProcess", "OnDevices", "Placed", "Scores"]


@runtime_checkable
class InProcess(Protocol):
    """A backend that can run models without its HTTP server, by its library's functions in a child process."""

    def in_process(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> Server:
        """Load a model and its draft in a child process that can be asked in token ids.

        Raises:
            UnsupportedError, LaunchError, SpeculationInactiveError: As `Backend.launch`.
        """

    def settings_of_draft(self, settings: LaunchSettings) -> LaunchSettings:
        """Those of a launch's settings that also apply to its draft model."""


@runtime_checkable
class EncodesText(Protocol):
    """A model in token ids that can also tokenize the text of an answer."""

    def encode_text(self, text: str) -> tuple[int, ...]:
        """The token ids of a text, without a first token.

        Raises:
            RequestError, ServerDiedError: As `Server.complete`.
        """


@runtime_checkable
class Idles(Protocol):
    """A server that can answer without drafting while its draft stays loaded, which differs from the baseline."""

    def idle(self) -> Server:
        """A view on the same process that drafts nothing."""


@runtime_checkable
class Scores(Protocol):
    """A backend whose draft models a scorer can read: a whole answer in one evaluation."""

    def scorer(self, model_path: str, n_ctx: int) -> LlamaCppScorer:
        """Load a draft for reading in a child process; `n_ctx` is the most tokens of a prompt with its answer.

        Raises:
            BackendMissingError: The scorer's library is not installed.
            LaunchError: It cannot load the model, or does not run here.
        """


@runtime_checkable
class OnDevices(Protocol):
    """A backend that lists the accelerators that it computes on."""

    def devices(self) -> tuple[Device, ...] | None:
        """All devices now, empty if it computes on the CPU; ``None`` if it cannot list them."""


@runtime_checkable
class Placed(Protocol):
    """A server whose log shows the main model's place."""

    @property
    def placement(self) -> Placement | None:
        """The place; ``None`` if the log does not show it."""
