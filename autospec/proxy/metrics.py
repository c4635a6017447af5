"""The numbers behind ``GET /autospec/metrics``, in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from autospec.measure.live import Sample
from autospec.proxy.outcome import Outcome

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

_LABELS = ("model", "prompt_type", "drafting")
# From a cached prompt on a fast machine to a long one on a slow machine.
_FIRST_BYTE_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_TPS_BUCKETS = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)


class Metrics:
    """Counts of everything that was forwarded; per model, prompt type and drafting.

    Args:
        in_flight: How many requests are being answered now.
        lost_samples: How many samples could not be kept.
    """

    def __init__(self, in_flight: Callable[[], float], lost_samples: Callable[[], float]) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "autospec_requests",
            "Requests forwarded, by what became of them.",
            (*_LABELS, "status"),
            registry=registry,
        )
        self._refused = Counter(
            "autospec_refused_requests",
            "Requests that the proxy answered with an error of its own.",
            ("code",),
            registry=registry,
        )
        self._retries = Counter(
            "autospec_retries", "Requests sent to a second server.", ("model",), registry=registry
        )
        self._wait = Histogram(
            "autospec_wait_seconds",
            "Time that a request waited for a server.",
            ("model",),
            buckets=_FIRST_BYTE_BUCKETS_S,
            registry=registry,
        )
        self._first_byte = Histogram(
            "autospec_first_byte_seconds",
            "Time from sending a request to its answer's first byte.",
            _LABELS,
            buckets=_FIRST_BYTE_BUCKETS_S,
            registry=registry,
        )
        self._speed = Histogram(
            "autospec_generation_tokens_per_second",
            "Speed of generation of each answer.",
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
        Gauge("autospec_requests_in_flight", "Requests now.", registry=registry).set_function(in_flight)
        Gauge("autospec_lost_samples", "Samples that could not be stored.", registry=registry).set_function(
            lost_samples
        )

    def forwarded(self, outcome: Outcome, sample: Sample | None) -> None:
        """Count one request that reached a backend."""
        labels = (outcome.model, str(outcome.prompt_type or ""), outcome.drafting.label)
        status = str(outcome.status) if outcome.complete else "broken"
        self._requests.labels(*labels, status).inc()
        self._wait.labels(outcome.model).observe(outcome.waited_ms / 1000)
        if outcome.first_byte_ms:
            self._first_byte.labels(*labels).observe(outcome.first_byte_ms / 1000)
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
                self._tokens.labels(*labels, kind).inc(count)
        if sample.predicted_ms > 0:
            self._speed.labels(*labels).observe(1000 * sample.predicted_tokens / sample.predicted_ms)

    def refused(self, code: str) -> None:
        """Count one request that the proxy answered with an error of its own."""
        self._refused.labels(code).inc()

    def retried(self, model: str) -> None:
        """Count one request that went to a second server."""
        self._retries.labels(model).inc()

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)
