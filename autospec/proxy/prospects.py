"""What could be launched: off and what is recommended, with its memory and the time that it takes."""

from __future__ import annotations

from collections.abc import Mapping

from autospec.catalog.context import context_of
from autospec.catalog.model import Model
from autospec.drafting import OFF, Drafting
from autospec.proxy.fleet import Fleet
from autospec.proxy.footprints import draft_of, footprint, launch_seconds
from autospec.proxy.knowledge import Known
from autospec.proxy.needs import Launchable
from autospec.proxy.offers import Engine, Offers
from autospec.proxy.setbacks import Setbacks
from autospec.proxy.terms import Terms

__all__ = ["Prospects"]

_NOTHING = Known()


class Prospects:
    """The launches that are possible.

    Args:
        terms: The limits.
        offers: The models.
        fleet: Knows how long launches took.
        setbacks: Know what is not to be tried.

    Attributes:
        offers: Replaced when the disk was scanned again.
        known: By model name; replaced when there are new recommendations.
    """

    def __init__(self, terms: Terms, offers: Offers, fleet: Fleet, setbacks: Setbacks) -> None:
        self.offers = offers
        self.known: Mapping[str, Known] = {}
        self._terms = terms
        self._fleet = fleet
        self._setbacks = setbacks

    def of(self, name: str) -> Known:
        """What is known of a model."""
        return self.known.get(name, _NOTHING)

    def served(self, name: str) -> tuple[Model, Engine]:
        """A model that is offered, and what serves it."""
        model = self.offers.named(name)
        return model, self.offers.engine(model)

    def launchable(self, model: Model, now_s: float) -> tuple[Launchable, ...]:
        """Off and every recommended drafting that may be launched now."""
        found = [d for d in self.of(model.name).draftings if self._setbacks.allows(model.name, d, now_s)]
        return tuple(self.entry(model.name, drafting) for drafting in (OFF, *found))

    def entry(self, name: str, drafting: Drafting) -> Launchable:
        """One launch with what it takes."""
        model, draft = self.offers.named(name), draft_of(drafting, self.offers.catalog)
        own = model.context_length
        memory = footprint(
            model,
            draft,
            context_of(self._terms.args, own, own or self._terms.context_tokens),
            # MLX computes on copies of its own.
            maps_weights=self._terms.maps_weights and model.format == "gguf",
            limit_bytes=self._terms.memory_bytes,
        )
        took_s = self._fleet.took_s(name, drafting)
        return Launchable(drafting, memory, launch_seconds(model, draft) if took_s is None else took_s)
