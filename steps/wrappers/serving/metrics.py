"""What a served model counts, in Prometheus's text format at /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..engines.scheduler import Scheduler
from ..engines.sequence import Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# The name that requests to paths which are no routes are counted by.
OTHER = "other"


class Metrics:
    """The metrics of one served model."""

    def __init__(self, scheduler: Scheduler, context_length: int) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "phi3_requests", "Requests by route and status", ("route", "status"), registry=registry
        )
        self._prompt = Counter("phi3_prompt_tokens", "Tokens of the prompts", registry=registry)
        self._reused = Counter(
            "phi3_reused_prompt_tokens",
            "Those that were computed before, for another prompt",
            registry=registry,
        )
        self._completion = Counter("phi3_completion_tokens", "Tokens that were generated", registry=registry)
        self._first = Histogram(
            "phi3_time_to_first_token_seconds", "From a request to its first token", registry=registry, buckets=SECONDS
        )
        self._token = Histogram(
            "phi3_time_per_token_seconds", "Between two tokens, by completion", registry=registry, buckets=SECONDS
        )
        full = scheduler.engine.max_batch_size * context_length
        capacity = min(full, scheduler.engine.cache_tokens or full)
        gauges = {
            "phi3_queue_length": ("Completions that wait for a place in the batch", lambda: scheduler.waiting),
            "phi3_batch_size": ("Completions in the batch", lambda: scheduler.running),
            "phi3_cache_tokens": ("Tokens in the key-value cache", lambda: scheduler.cached_tokens),
            "phi3_cache_use_ratio": (
                "Tokens in the key-value cache, of those that it may have",
                lambda: scheduler.cached_tokens / capacity,
            ),
        }
        for name, (description, read) in gauges.items():
            Gauge(name, description, registry=registry).set_function(read)
        scheduler.on_finished = self._count_completion

    def count_request(self, route: str, status: int) -> None:
        """Count a request that was answered."""
        self._requests.labels(route, str(status)).inc()

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def _count_completion(self, sequence: Sequence) -> None:
        """Count a completion that has ended, or whose client has left."""
        self._prompt.inc(len(sequence.prompt))
        self._reused.inc(sequence.reused)
        self._completion.inc(len(sequence.tokens))
        if len(sequence.times) > 1:
            begun, first, last = sequence.times
            self._first.observe(first - begun)
            if len(sequence.tokens) > 1:
                self._token.observe((last - first) / (len(sequence.tokens) - 1))
