"""How often one may try to sign in, or guess who has an account."""

import hashlib
import math
from collections.abc import Mapping

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.strategies import MovingWindowRateLimiter

from server.errors import TooManyRequestsError
from server.limits import Counts
from server.settings import Settings

# A tenth of a guess a second at one account is nothing against argon2id and twelve characters.
LIMITS: Mapping[str, RateLimitItem] = {
    "address": RateLimitItemPerMinute(60, 5),  # sign-ins of any kind; an office may share one
    "account": RateLimitItemPerMinute(10, 5),  # passwords for one e-mail address, whether it is known or not
    "device": RateLimitItemPerMinute(20, 5),  # new codes for command lines, by address
    "user code": RateLimitItemPerMinute(20, 5),  # codes that a person types, by person
    "member": RateLimitItemPerMinute(
        60, 5
    ),  # members to add, by who asks: the answer says who has an account
}


class Throttle:
    """Counts tries, by kind and by who makes them."""

    def __init__(self, settings: Settings) -> None:
        self._counts = Counts(settings, MovingWindowRateLimiter)

    def count(self, kind: str, who: str) -> None:
        """One more try. Raises TooManyRequestsError above the limit."""
        wait_s = self._counts.wait(LIMITS[kind], kind, _short(who))
        if wait_s is not None:
            raise TooManyRequestsError(max(1, math.ceil(wait_s)))

    def forgive(self, kind: str, who: str) -> None:
        """The try was right: earlier ones count no more."""
        self._counts.clear(LIMITS[kind], kind, _short(who))


def _short(who: str) -> str:
    """What anybody can send is long, or made of the separators of the counter's keys."""
    return hashlib.sha256(who.encode()).hexdigest()
