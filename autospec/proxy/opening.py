"""From settings to a supervisor that is ready to lend."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from autospec.backends.registry import backend_for
from autospec.cells import Hardware
from autospec.hardware import identify
from autospec.proxy.offers import Offers, engines_of, read_offers
from autospec.proxy.supervisor import Supervisor
from autospec.proxy.terms import Sources, Terms
from autospec.proxy.threads import in_thread
from autospec.recommendations import Recommendation
from autospec.settings import Settings
from autospec.store.database import open_store
from autospec.store.reader import newest_recommendation, read_recommendations

__all__ = ["open_supervisor"]

_log = logging.getLogger(__name__)


async def open_supervisor(
    settings: Settings, machine_is_free: Callable[[], Awaitable[object]] | None = None
) -> Supervisor:
    """Probe the backends, scan the disk, read the recommendations. Starts no server yet.

    Args:
        settings: For backends, models, storage and limits.
        machine_is_free: Awaited before each launch.

    Raises:
        AutospecError: Settings that cannot be meant, a backend that was named and is not there, a database that cannot
            be read.
    """
    hardware = await in_thread(identify)
    terms = Terms.of(settings, hardware)

    def offers() -> Offers:
        # The backends are probed each time: a build may be replaced while the proxy runs.
        return read_offers(settings, *engines_of(settings, backend_for))

    def save(recommendation: Recommendation, machine: Hardware, cell_key: str) -> None:
        store = open_store(settings.storage)
        try:
            store.save_recommendation(recommendation, machine, cell_key)
        finally:
            store.close()

    sources = Sources(
        hardware=hardware,
        offers=offers,
        newest=lambda: newest_recommendation(settings.storage),
        recommendations=lambda: read_recommendations(settings.storage, _log.warning),
        save=save,
        machine_is_free=machine_is_free,
    )
    return await Supervisor.start(terms, sources)
