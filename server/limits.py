"""How many requests a caller may make: by person, by node or attempt, and by address without a valid key.

Counted in Redis where several servers may share the database (Postgres), otherwise in this process. Redis
only counts: while it is away each server counts for itself.
"""

import logging
import math
import time
from collections.abc import Callable
from typing import Literal

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import FixedWindowRateLimiter
from redis.exceptions import RedisError

from server.errors import TooManyRequestsError
from server.settings import Settings

log = logging.getLogger(__name__)

REDIS_TIMEOUT_S = 0.5
REDIS_PAUSE_S = 10.0  # without Redis, after it has failed

Kind = Literal["person", "node", "stranger"]
_SAID: dict[Kind, str] = {
    "person": "with this person's keys and sessions",
    "node": "from this node or attempt",
    "stranger": "without a valid key from this address",
}


class RateLimits:
    """The rates of one server process. Any thread may ask; an answer may wait for Redis."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates: dict[Kind, RateLimitItem] = {
            "person": parse(settings.rate_person),
            "node": parse(settings.rate_node),
            "stranger": parse(settings.rate_stranger),
        }
        self._here = FixedWindowRateLimiter(MemoryStorage())
        self._shared = None if settings.on_sqlite else _in_redis(settings.redis_url)
        self._clock = clock
        self._alone_until = float("-inf")

    @property
    def shared(self) -> bool:
        """Whether several servers count together, so that `count` waits for Redis."""
        return self._shared is not None

    def count(self, kind: Kind, who: str) -> None:
        """One more request. Raises TooManyRequestsError if it is one too many."""
        wait_s = self._ask(self._rates[kind], kind, who)
        if wait_s is not None:
            said = f"too many requests {_SAID[kind]}: the limit is {self._rates[kind]}"
            raise TooManyRequestsError(max(1, math.ceil(wait_s)), said)

    def _ask(self, rate: RateLimitItem, *who: str) -> float | None:
        """Seconds until there is room again; None: there is."""
        if self._shared is not None and self._clock() >= self._alone_until:
            try:
                return _wait(self._shared, rate, *who)
            except RedisError as error:
                self._alone_until = self._clock() + REDIS_PAUSE_S
                log.warning("Redis can't count requests, each server does so for itself: %s", error)
        return _wait(self._here, rate, *who)


def _wait(limiter: FixedWindowRateLimiter, rate: RateLimitItem, *who: str) -> float | None:
    if limiter.hit(rate, *who):
        return None
    return limiter.get_window_stats(rate, *who).reset_time - time.time()


def _in_redis(url: str) -> FixedWindowRateLimiter:
    storage = RedisStorage(
        url,
        key_prefix="powermean:rates",
        socket_timeout=REDIS_TIMEOUT_S,
        socket_connect_timeout=REDIS_TIMEOUT_S,
    )
    return FixedWindowRateLimiter(storage)
