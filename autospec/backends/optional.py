"""What a backend or a server may be able to do besides `autospec.backends.protocol`; whoever can use it asks with isinstance."""

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
    """A backend that can run models without its HTTP server: its library's own functions, in a child process."""

    def in_process(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> Server:
        """Load a model, and its draft, in a process of their own, which can be asked in token ids.

        Raises:
            UnsupportedError, LaunchError, SpeculationInactiveError: As `Backend.launch`.
        """

    def settings_of_draft(self, settings: LaunchSettings) -> LaunchSettings:
        """Of a launch's settings, those that its draft is computed with too; the others are the main model's."""


@runtime_checkable
class EncodesText(Protocol):
    """A model in token ids that can also turn the text of an answer into ids."""

    def encode_text(self, text: str) -> tuple[int, ...]:
        """The ids of a text, nothing put before it.

        Raises:
            RequestError, ServerDiedError: As `Server.complete`.
        """


@runtime_checkable
class Idles(Protocol):
    """A server that can be asked without drafting while its draft stays loaded, which is not the same as off."""

    def idle(self) -> Server:
        """A view on the same process that drafts nothing."""


@runtime_checkable
class Scores(Protocol):
    """A backend whose draft models something else can read, a whole answer in one evaluation."""

    def scorer(self, model_path: str, n_ctx: int) -> LlamaCppScorer:
        """Load a draft for reading, in a process of its own.

        Args:
            model_path: The draft.
            n_ctx: Most tokens of a prompt with its answer.

        Raises:
            BackendMissingError: What reads is not installed.
            LaunchError: It cannot load the model, or does not run here.
        """


@runtime_checkable
class OnDevices(Protocol):
    """A backend that tells which accelerators it computes on."""

    def devices(self) -> tuple[Device, ...] | None:
        """All that it shows now, none where it computes on the processor; ``None`` where it cannot be asked."""


@runtime_checkable
class Placed(Protocol):
    """A server whose log tells where it put the main model."""

    @property
    def placement(self) -> Placement | None:
        """It; ``None`` where the log does not tell."""
