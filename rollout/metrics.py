"""The rollout service's metrics, as Prometheus text."""

from fastapi import Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from powermean.contracts.rollout import EngineState, GenerateRequest, GenerateResponse

_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300)


class EngineMetrics:
    """The numbers of one service."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._prompt_tokens = Counter(
            "powermean_rollout_prompt_tokens_total",
            "Prompt tokens, counted once per request.",
            registry=registry,
        )
        self._completion_tokens = Counter(
            "powermean_rollout_completion_tokens_total", "Sampled tokens.", registry=registry
        )
        self._completions = Counter(
            "powermean_rollout_completions_total",
            "Completions, by how they ended.",
            ["finish"],
            registry=registry,
        )
        self._generate_seconds = Histogram(
            "powermean_rollout_generate_seconds",
            "Engine time of a request.",
            registry=registry,
            buckets=_SECONDS,
        )
        self._publish_seconds = Histogram(
            "powermean_rollout_publish_seconds",
            "Time from a publish's arrival until its weights are in use.",
            registry=registry,
            buckets=_SECONDS,
        )
        self._requests = Gauge(
            "powermean_rollout_requests", "Requests running or waiting.", registry=registry
        )
        self._version = Gauge("powermean_rollout_weight_version", "Version served.", registry=registry)
        self._attempt = Gauge("powermean_rollout_attempt", "Attempt served.", registry=registry)
        self._adapters = Gauge(
            "powermean_rollout_adapters", "Jobs with a LoRA adapter here.", registry=registry
        )

    def generated(self, request: GenerateRequest, response: GenerateResponse, seconds: float) -> None:
        """Count an answered request, which took `seconds` of the engine's time."""
        self._prompt_tokens.inc(sum(map(len, request.prompts)))
        for group in response.completions:
            for completion in group:
                self._completion_tokens.inc(len(completion.token_ids))
                self._completions.labels(completion.finish_reason).inc()
        self._generate_seconds.observe(seconds)

    def published(self, seconds: float) -> None:
        """Count an accepted publish."""
        self._publish_seconds.observe(seconds)

    def response(self, state: EngineState, requests: int, engines_own: str) -> Response:
        """All metrics as of now; `engines_own` is Prometheus text too."""
        self._requests.set(requests)
        self._version.set(state.version)
        self._attempt.set(state.attempt)
        self._adapters.set(state.adapters.taken if state.adapters is not None else 0)
        return Response(
            generate_latest(self._registry) + engines_own.encode(), media_type=CONTENT_TYPE_LATEST
        )
