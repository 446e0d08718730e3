"""How often one may try to sign in. In process: each replica counts for itself."""

import hashlib
import math
import time
from collections.abc import Mapping

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from server.errors import TooManyRequestsError

# A tenth of a guess a second at one account is nothing against argon2id and twelve characters.
LIMITS: Mapping[str, RateLimitItem] = {
    "address": RateLimitItemPerMinute(60, 5),  # sign-ins of any kind; an office may share one
    "account": RateLimitItemPerMinute(10, 5),  # passwords for one e-mail address, whether it is known or not
    "device": RateLimitItemPerMinute(20, 5),  # new codes for command lines, by address
    "user code": RateLimitItemPerMinute(20, 5),  # codes that a person types, by person
}


class Throttle:
    """Counts tries, by kind and by who makes them."""

    def __init__(self, limits: Mapping[str, RateLimitItem] = LIMITS) -> None:
        self._limits = limits
        self._counts = MovingWindowRateLimiter(MemoryStorage())

    def count(self, kind: str, who: str) -> None:
        """One more try. Raises TooManyRequestsError above the limit."""
        limit, name = self._limits[kind], _short(who)
        if not self._counts.hit(limit, kind, name):
            resets = self._counts.get_window_stats(limit, kind, name).reset_time
            raise TooManyRequestsError(max(1, math.ceil(resets - time.time())))

    def forgive(self, kind: str, who: str) -> None:
        """The try was right: earlier ones count no more."""
        self._counts.clear(self._limits[kind], kind, _short(who))


def _short(who: str) -> str:
    """What anybody can send is long, or made of the separators of the counter's keys."""
    return hashlib.sha256(who.encode()).hexdigest()
