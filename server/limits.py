"""How many requests a caller may make: by person, by node or attempt, and by address without a valid key.

Counted in Redis where several servers may share the database (Postgres), otherwise in this process. Redis
only counts: while it is away each server counts for itself.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeVar

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import FixedWindowRateLimiter, RateLimiter
from redis.exceptions import RedisError

from server.errors import TooManyRequestsError
from server.settings import Settings

log = logging.getLogger(__name__)

REDIS_TIMEOUT_S = 0.5
REDIS_PAUSE_S = 10.0  # without Redis, after it has failed
FORGET_S = 10.0  # between two looks for counters whose time is over

T = TypeVar("T")
Kind = Literal["person", "node", "stranger"]
_SAID: dict[Kind, str] = {
    "person": "with this person's keys and sessions",
    "node": "from this node or attempt",
    "stranger": "without a valid key from this address",
}


class _Memory(MemoryStorage):
    """The library's counters start a thread with nearly every request, to forget old ones; these do without.

    Only the counters of fixed windows: what has no counter is asked for rarely.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counting = threading.RLock()
        self._forget_at = 0.0

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """See Storage."""
        with self._counting:
            now = time.time()
            if now >= self._forget_at:
                self._forget_at = now + FORGET_S
                for old in [old for old, end in list(self.expirations.items()) if end <= now]:
                    self.clear(old)
            if self.get(key) == 0:
                self.expirations[key] = now + expiry
            self.storage[key] += amount
            return self.storage[key]

    def get(self, key: str) -> int:
        """See Storage. It forgets a counter whose time is over."""
        with self._counting:
            return super().get(key)


class Counts:
    """What one server process counts, together with the others that share its database.

    Any thread may ask; an answer may wait for Redis.
    """

    def __init__(
        self,
        settings: Settings,
        strategy: type[RateLimiter] = FixedWindowRateLimiter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._here = strategy(_Memory())
        self._shared = None if settings.on_sqlite else strategy(_in_redis(settings.redis_url))
        self._clock = clock
        self._alone_until = float("-inf")

    @property
    def shared(self) -> bool:
        """Whether several servers count together, so that answers wait for Redis."""
        return self._shared is not None

    def wait(self, rate: RateLimitItem, *who: str) -> float | None:
        """Count one more; the seconds until there is room again, or None: there is."""
        return self._ask(partial(_wait, rate=rate, who=who))

    def clear(self, rate: RateLimitItem, *who: str) -> None:
        """What was counted counts no more."""
        self._ask(lambda limiter: limiter.clear(rate, *who))

    def _ask(self, question: Callable[[RateLimiter], T]) -> T:
        if self._shared is not None and self._clock() >= self._alone_until:
            try:
                return question(self._shared)
            except RedisError as error:
                self._alone_until = self._clock() + REDIS_PAUSE_S
                log.warning("Redis can't count requests, each server does so for itself: %s", error)
        return question(self._here)


class RateLimits:
    """The rates of requests."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates: dict[Kind, RateLimitItem] = {
            "person": parse(settings.rate_person),
            "node": parse(settings.rate_node),
            "stranger": parse(settings.rate_stranger),
        }
        self._counts = Counts(settings, clock=clock)

    @property
    def shared(self) -> bool:
        """Whether `count` waits for Redis."""
        return self._counts.shared

    def count(self, kind: Kind, who: str) -> None:
        """One more request. Raises TooManyRequestsError if it is one too many."""
        wait_s = self._counts.wait(self._rates[kind], kind, who)
        if wait_s is not None:
            said = f"too many requests {_SAID[kind]}: the limit is {self._rates[kind]}"
            raise TooManyRequestsError(max(1, math.ceil(wait_s)), said)


def _wait(limiter: RateLimiter, rate: RateLimitItem, who: tuple[str, ...]) -> float | None:
    if limiter.hit(rate, *who):
        return None
    return limiter.get_window_stats(rate, *who).reset_time - time.time()


def _in_redis(url: str) -> RedisStorage:
    return RedisStorage(
        url,
        key_prefix="powermean:rates",
        socket_timeout=REDIS_TIMEOUT_S,
        socket_connect_timeout=REDIS_TIMEOUT_S,
    )
