"""What Prometheus is told. Names that begin with ``te_`` are text-embeddings-inference's."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from snugtune.serve.batcher import BatchInfo

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = tuple(0.0005 * 2**k for k in range(18))  # .5 ms to 65 s
_SIZES = tuple(float(2**k) for k in range(13))
_TOKENS = tuple(float(2**k) for k in range(19))


def snugtune_version() -> str:
    """Of the installed package."""
    try:
        return version("snugtune")
    except PackageNotFoundError:
        return "unknown"


class Metrics:
    """All counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(name, what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, what, labels, buckets=buckets, registry=registry)

        self.http = counter(
            "snugtune_http_requests", "Requests by route and status code.", "method", "route", "code"
        )
        self.requests = counter("te_request_count", "Requests for predictions.", "method")
        self.successes = counter("te_request_success", "Those that were answered.", "method")
        self.failures = counter("te_request_failure", "Those that were not, by reason.", "err")
        self.duration = histogram("te_request_duration", "Seconds of an answered request.", _SECONDS)
        self.tokenization = histogram(
            "te_request_tokenization_duration", "Seconds of tokenization per text.", _SECONDS
        )
        self.queue = histogram("te_request_queue_duration", "Seconds in the queue.", _SECONDS)
        self.inference = histogram(
            "te_request_inference_duration", "Seconds of the batch a text was in.", _SECONDS
        )
        self.input_length = histogram("te_request_input_length", "Tokens of a text as read.", _TOKENS)
        self.batch_size = histogram("te_batch_next_size", "Texts of a batch.", _SIZES, "model")
        self.batch_tokens = histogram("te_batch_next_tokens", "Tokens of a batch.", _TOKENS, "model")
        self.batch_seconds = histogram("snugtune_batch_seconds", "Seconds of a batch.", _SECONDS, "model")
        self.padding = counter("snugtune_padding_tokens", "Tokens computed that are only padding.", "model")
        self.dropped = counter(
            "snugtune_dropped_texts",
            "Texts dropped before they were computed: late or gone.",
            "model",
            "reason",
        )
        self.failed_texts = counter("snugtune_failed_texts", "Texts that could not be computed.", "model")
        self.reloads = counter("snugtune_reloads", "Changed run folders, loaded or not.", "model", "outcome")
        self.queue_size = Gauge("te_queue_size", "Texts that wait.", ["model"], registry=registry)
        self.queue_tokens = Gauge(
            "snugtune_queue_tokens", "Tokens that wait or are computed.", ["model"], registry=registry
        )
        self.in_house = Gauge(
            "snugtune_texts_in_house", "Texts taken on and not yet answered.", ["model"], registry=registry
        )
        self.loaded_at = Gauge(
            "snugtune_run_loaded_timestamp_seconds", "When the served version was loaded.", ["model"],
            registry=registry,
        )  # fmt: skip
        build = Gauge("snugtune_build_info", "Always 1.", ["version", "python"], registry=registry)
        build.labels(snugtune_version(), platform.python_version()).set(1)

    def watch(
        self, model: str, size: Callable[[], int], tokens: Callable[[], int], house: Callable[[], int]
    ) -> None:
        """Read these whenever the page is asked for."""
        self.queue_size.labels(model).set_function(size)
        self.queue_tokens.labels(model).set_function(tokens)
        self.in_house.labels(model).set_function(house)

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class ModelMetrics:
    """The batcher's observer of one model."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._size = metrics.batch_size.labels(model)
        self._tokens = metrics.batch_tokens.labels(model)
        self._seconds = metrics.batch_seconds.labels(model)
        self._padding = metrics.padding.labels(model)
        self._dropped = {reason: metrics.dropped.labels(model, reason) for reason in ("late", "gone")}
        self._failed = metrics.failed_texts.labels(model)

    def on_batch(self, info: BatchInfo) -> None:
        """Counted."""
        self._size.observe(info.texts)
        self._tokens.observe(info.tokens)
        self._seconds.observe(info.seconds)
        self._padding.inc(info.padded_tokens - info.tokens)

    def on_dropped(self, reason: str, texts: int) -> None:
        """Counted."""
        self._dropped[reason].inc(texts)

    def on_failure(self, texts: int) -> None:
        """Counted."""
        self._failed.inc(texts)
