"""What is recorded of live traffic: Prometheus metrics, and samples that a thread writes into the store in batches.

`grafana.json` beside this module shows every metric in Grafana.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from autospec.drafting import Drafting
from autospec.measure.measurements import Sample
from autospec.proxy.usage import RequestOutcome, label_of
from autospec.store.database import Store

__all__ = ["CONTENT_TYPE", "Metrics", "SampleWriter", "grafana_dashboard"]

_LOG = logging.getLogger(__name__)

CONTENT_TYPE = CONTENT_TYPE_LATEST

_LABELS = ("model", "prompt_type", "drafting")
_GONE = "client_gone"
# From a cached prompt on a fast machine to a long prompt on a slow one.
_FIRST_BYTE_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_TPS_BUCKETS = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)


class Metrics:
    """Metrics of forwarded requests by model, prompt type and drafting, and of the servers; `status` is `Dispatch.status`."""

    def __init__(
        self,
        in_flight: Callable[[], float],
        lost_samples: Callable[[], float],
        status: Callable[[], Mapping[str, Any]],
    ) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "autospec_requests",
            "Forwarded requests by HTTP status, or `client_gone`, `retried` on another server, or `broken` by the server.",
            (*_LABELS, "status"),
            registry=registry,
        )
        self._probes = Counter(
            "autospec_probes",
            "Health checks, pages and dashboards that were forwarded; they are no requests.",
            ("model", "status"),
            registry=registry,
        )
        self._refused = Counter(
            "autospec_refused_requests",
            "Requests that the proxy itself answered with an error.",
            ("code",),
            registry=registry,
        )
        self._beyond = Counter(
            "autospec_beyond_limit_requests",
            "Forwarded requests beyond a measured limit of their drafting: concurrent, context, temperature.",
            (*_LABELS, "limit"),
            registry=registry,
        )
        self._retries = Counter(
            "autospec_retries", "Requests sent to a second server.", ("model",), registry=registry
        )
        self._wait = Histogram(
            "autospec_wait_seconds",
            "Time that requests waited for a server.",
            ("model",),
            buckets=_FIRST_BYTE_BUCKETS_S,
            registry=registry,
        )
        self._first_byte = Histogram(
            "autospec_first_byte_seconds",
            "Time from sending a request to the first byte of its answer.",
            _LABELS,
            buckets=_FIRST_BYTE_BUCKETS_S,
            registry=registry,
        )
        self._speed = Histogram(
            "autospec_generation_tokens_per_second",
            "Token generation speed of each answer that is long enough to tell it.",
            _LABELS,
            buckets=_TPS_BUCKETS,
            registry=registry,
        )
        self._tokens = Counter(
            "autospec_tokens",
            "Tokens: prompt, predicted, drafted, accepted.",
            (*_LABELS, "kind"),
            registry=registry,
        )
        Gauge("autospec_requests_in_flight", "Requests in progress.", registry=registry).set_function(
            in_flight
        )
        Gauge("autospec_lost_samples", "Samples that could not be stored.", registry=registry).set_function(
            lost_samples
        )
        Gauge("autospec_start_time_seconds", "Unix time of the proxy's start.", registry=registry).set(
            time.time()
        )
        registry.register(_Servers(status))

    def forwarded(self, outcome: RequestOutcome, sample: Sample | None) -> None:
        """Record a request that reached a backend."""
        status = _status(outcome)
        if outcome.is_probe:
            self._probes.labels(outcome.model, status).inc()
            return
        labels = (outcome.model, str(outcome.prompt_type or ""), label_of(outcome.drafting))
        _counter(self._requests, *labels, status).inc()
        if outcome.limit is not None:
            _counter(self._beyond, *labels, str(outcome.limit)).inc()
        _histogram(self._wait, outcome.model).observe(outcome.waited_ms / 1000)
        if outcome.first_byte_ms:
            _histogram(self._first_byte, *labels).observe(outcome.first_byte_ms / 1000)
        if sample is None:
            return
        counts = {
            "prompt": sample.prompt_tokens,
            "predicted": sample.predicted_tokens,
            "drafted": sample.drafted,
            "accepted": sample.accepted,
        }
        for kind, count in counts.items():
            if count:
                _counter(self._tokens, *labels, kind).inc(count)
        if (tps := sample.tps) is not None:
            _histogram(self._speed, *labels).observe(tps)

    def left(self, model: str = "", waited_s: float | None = None, *, is_probe: bool = False) -> None:
        """Record a client that left before a server had its request: while it sent it, or, with a model, while it waited."""
        if is_probe:
            self._probes.labels(model, _GONE).inc()
            return
        _counter(self._requests, model, "", "", _GONE).inc()
        if waited_s is not None:
            _histogram(self._wait, model).observe(waited_s)

    def refused(self, code: str) -> None:
        """Record a request that the proxy itself answered with an error."""
        self._refused.labels(code).inc()

    def retried(self, model: str) -> None:
        """Record a request that was sent to a second server."""
        self._retries.labels(model).inc()

    def exposition(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self._registry)


# `labels` checks and locks each time; a request needs nine of them.
_SERIES = 4096


@lru_cache(_SERIES)
def _counter(of: Counter, *labels: str) -> Counter:
    return of.labels(*labels)


@lru_cache(_SERIES)
def _histogram(of: Histogram, *labels: str) -> Histogram:
    return of.labels(*labels)


def _status(outcome: RequestOutcome) -> str:
    """How an attempt ended, so that an alert can tell a user who pressed Stop from a server that died."""
    if outcome.complete:
        return str(outcome.status)
    if outcome.client_gone:
        return _GONE
    return "retried" if outcome.retried else "broken"


class _Servers(Collector):
    """The queue and the servers, read from the status document when Prometheus asks."""

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        told = self._status()
        yield from _queue_metrics(told.get("queue", {}))
        yield from _server_metrics(told.get("launches", ()), told.get("memory", {}))
        yield from _server_totals(told.get("totals", ()))


def _queue_metrics(queue: Mapping[str, Any]) -> Iterator[Metric]:
    waiting = "Requests that wait for a server."
    yield GaugeMetricFamily("autospec_waiting_requests", waiting, queue.get("waiting", 0))
    limit = "Most requests that may wait; further ones are refused."
    yield GaugeMetricFamily("autospec_waiting_requests_limit", limit, queue.get("limit", 0))
    oldest = "How long the oldest waiting request has waited."
    yield GaugeMetricFamily("autospec_waiting_oldest_seconds", oldest, queue.get("oldest_s", 0))


def _server_metrics(launches: Sequence[Mapping[str, Any]], memory: Mapping[str, Any]) -> Iterator[Metric]:
    servers: Counts[tuple[str, ...]] = Counts((la["model"], _label(la), la["state"]) for la in launches)
    now = GaugeMetricFamily("autospec_servers", "Servers now.", labels=("model", "drafting", "state"))
    for labels, count in servers.items():
        now.add_metric(labels, count)
    yield now
    leases: Counts[tuple[str, ...]] = Counts()
    for launch in launches:
        leases[launch["model"], _label(launch)] += launch["leases"]
    busy = GaugeMetricFamily(
        "autospec_server_requests_in_flight",
        "Requests that servers answer now.",
        labels=("model", "drafting"),
    )
    for labels, count in leases.items():
        busy.add_metric(labels, count)
    yield busy
    expected = "Memory that all servers together are expected to take."
    yield GaugeMetricFamily("autospec_server_memory_bytes", expected, memory.get("launches_bytes", 0))
    limit = "Most memory that servers may take."
    yield GaugeMetricFamily("autospec_server_memory_limit_bytes", limit, memory.get("limit_bytes", 0))


def _server_totals(totals: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    starts = CounterMetricFamily(
        "autospec_server_starts", "Servers started, restarts included.", labels=("model", "drafting")
    )
    failures = CounterMetricFamily(
        "autospec_server_failures",
        "Servers that did not start, died, or were killed by a SIGKILL from elsewhere.",
        labels=("model", "drafting", "cause"),
    )
    for row in totals:
        labels = (row["model"], _label(row))
        starts.add_metric(labels, row["started"])
        for cause in ("did_not_start", "died", "killed"):
            # Also the zeros: `increase` does not see the first event of a series that begins with it.
            failures.add_metric((*labels, cause), row[cause])
    yield starts
    yield failures


def _label(row: Mapping[str, Any]) -> str:
    return Drafting.from_json(row["drafting"]).label


def grafana_dashboard() -> str:
    """The Grafana dashboard, as JSON."""
    return Path(__file__).with_name("grafana.json").read_text(encoding="utf-8")


# Samples that arrive within this time are one transaction. One takes 2 to 3 ms of processor time on a busy machine, whatever its
# size, and while it is written, streams wait for the interpreter's lock. A proxy that is killed loses what it has gathered.
_GATHER_S = 1.0
# Most samples that wait while the database is locked (3 MB). Further ones are dropped and counted.
_WAITING_LIMIT: Final = 10_000
# Pruning is cheap, but it is a write.
_PRUNE_EVERY = 1_000


class SampleWriter:
    """Queues samples, and writes them from a thread; closes the store with itself."""

    def __init__(self, store: Store) -> None:
        self.written = 0
        self.lost = 0
        self._store = store
        self._waiting: queue.SimpleQueue[Sample | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._since_prune = _PRUNE_EVERY  # the first batch prunes what earlier runs left
        self._thread = threading.Thread(target=self._run, name="autospec samples", daemon=True)
        self._thread.start()

    def put(self, sample: Sample) -> None:
        """Queue a sample without waiting."""
        if self._waiting.qsize() >= _WAITING_LIMIT:
            self.lost += 1
        else:
            self._waiting.put(sample)

    def close(self) -> None:
        """Write the queued samples and end; this takes as long as the database does, which may hang."""
        self._closing.set()
        self._waiting.put(None)
        self._thread.join()
        self._store.close()

    def _run(self) -> None:
        # Blocks until there is a sample, so that an idle proxy does not wake the CPU.
        while (first := self._waiting.get()) is not None:
            self._closing.wait(_GATHER_S)
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
        except Exception as error:  # noqa: BLE001 - whatever one batch does, later ones must be written
            self.lost += len(batch)
            _LOG.warning("proxy: %d samples of live traffic were lost: %s", len(batch), error)
            return
        self.written += len(batch)
        self._since_prune += len(batch)
        if self._since_prune >= _PRUNE_EVERY:
            try:
                self._store.prune_samples()
                self._since_prune = 0
            except Exception as error:  # noqa: BLE001 - as above; the next batch prunes
                _LOG.warning("proxy: old samples could not be removed: %s", error)
