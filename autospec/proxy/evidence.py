"""Samples on their way into the store: a thread of their own writes them in batches, never in the path of a byte."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Final

from autospec.errors import StoreError
from autospec.measure.live import Sample
from autospec.store.database import Store

__all__ = ["SampleWriter"]

_LOG = logging.getLogger(__name__)

# What comes within this time is one transaction; drift is looked for in hours.
_GATHER_S = 1.0
# Samples waiting while the database is held by somebody: some 3 MB. Newer ones are dropped and counted.
_WAITING_LIMIT: Final = 10_000
# Pruning reads the table's newest id only, but it is a write.
_PRUNE_EVERY = 1_000
# Closing waits for the last batch; a database that hangs must not keep the proxy from ending.
_CLOSE_TIMEOUT_S = 5.0


class SampleWriter:
    """Takes samples at once and writes them soon.

    Args:
        store: Where to; closed with the writer.
        gather_s: How long a batch is gathered.

    Attributes:
        written: Samples in the store.
        lost: Samples that could not be kept.
    """

    def __init__(self, store: Store, *, gather_s: float = _GATHER_S) -> None:
        self.written = 0
        self.lost = 0
        self._store = store
        self._gather_s = gather_s
        self._waiting: queue.SimpleQueue[Sample | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._since_prune = _PRUNE_EVERY  # the first batch prunes what earlier runs left
        self._thread = threading.Thread(target=self._run, name="autospec samples", daemon=True)
        self._thread.start()

    def put(self, sample: Sample) -> None:
        """Keep a sample; never waits."""
        if self._waiting.qsize() >= _WAITING_LIMIT:
            self.lost += 1
        else:
            self._waiting.put(sample)

    def close(self) -> None:
        """Write what is there and end."""
        self._closing.set()
        self._waiting.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)
        self._store.close()

    def _run(self) -> None:
        # Asleep until there is something: an idle proxy does not wake the machine.
        while (first := self._waiting.get()) is not None:
            self._closing.wait(self._gather_s)
            batch = [first]
            last = False
            while not self._waiting.empty():
                if (sample := self._waiting.get()) is None:
                    last = True
                    break
                batch.append(sample)
            self._write(batch)
            if last:
                return

    def _write(self, batch: list[Sample]) -> None:
        try:
            self._store.add_samples(batch)
            self.written += len(batch)
            self._since_prune += len(batch)
            if self._since_prune >= _PRUNE_EVERY:
                self._store.prune_samples()
                self._since_prune = 0
        except StoreError as error:
            self.lost += len(batch)
            _LOG.warning("proxy: %d samples of live traffic are lost: %s", len(batch), error)
