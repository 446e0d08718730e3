"""A job's history of metrics, as the API's readers have it."""

from typing import Any

from powermean.contracts.metrics import MetricsHistory
from server.metrics.history import history_fields


def metrics_history(*asked: Any) -> MetricsHistory:
    """What history_fields finds."""
    return MetricsHistory.model_validate(history_fields(*asked))
