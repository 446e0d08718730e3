"""The table of renamed fields, paths, commands and methods. The old names work until 1.0.

contracts/renaming.py reads and sends fields under both names. server/routes/deprecations.py answers old
paths, cli/main.py runs old commands, and the clients have old methods. docs/deprecations.md is generated from
here.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

GONE_IN = "1.0"
SINCE = datetime(2026, 11, 26, tzinfo=UTC)


@dataclass(frozen=True)
class Renamed:
    """A new name and its old one; `where` tells people what was renamed."""

    where: str
    old: str
    new: str


_ALGORITHM = "`algorithm` in a spec, `set` in a replay"
_TRAJECTORY = "a trajectory, a row of `/staleness`"

# A field has the same old name in every contract.
FIELDS = (
    Renamed(_ALGORITHM, "sampler_weight", "importance_sampling_correction"),
    Renamed(_ALGORITHM, "sampler_weight_cap", "importance_sampling_clip_max"),
    Renamed(_TRAJECTORY, "token_weight", "importance_sampling_ratio"),
    Renamed("a trajectory", "sequence_weight", "sequence_importance_sampling_ratio"),
    Renamed(_TRAJECTORY, "sampler_weight", "applied_importance_sampling_ratio"),
    Renamed(_TRAJECTORY, "lag", "staleness"),
)
PATHS = (Renamed("path", "/v1/jobs/{job_id}/lag", "/v1/jobs/{job_id}/staleness"),)
COMMANDS = (Renamed("command", "lag", "staleness"),)
METHODS = (Renamed("`Client`, `AsyncClient`", "lag", "staleness"),)


def notice(old: str, new: str) -> str:
    """The message for users of the old name."""
    return f"{old} is now {new}; the old name works until {GONE_IN}"


def renamed(old: str, method: Callable[P, R]) -> Callable[P, R]:
    """The method under its old name: `lag = renamed("lag", staleness)`."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        warnings.warn(notice(old, method.__name__), DeprecationWarning, stacklevel=2)
        return method(*args, **kwargs)

    return call
