"""Tells the other servers over Redis what this one has committed; best effort, since all of them also poll.

A message is words: ids of jobs with news, `+plan` or `+callers` (see Changes), and `@` with the sender's id.
Servers take words that they do not know for jobs that nobody follows.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable

import redis.asyncio
from redis.exceptions import RedisError

from powermean.contracts.names import EVENTS_CHANNEL
from server.db.session import Changes

RETRY_S = 2.0
LISTEN_S = 5.0
TIMEOUT_S = 10.0
HEALTH_S = 10
TELL_EVERY_S = 0.05  # jobs that report meanwhile share a message

_FLAGS = ("plan", "callers")

log = logging.getLogger(__name__)


class RedisWakeups:
    """Publishes what this server committed, and receives what others did. Lives in one event loop."""

    def __init__(self, url: str, heard: Callable[[Changes], None], connected: Callable[[], None]) -> None:
        """`connected` is called whenever listening begins, because earlier messages were missed."""
        self._redis = redis.asyncio.from_url(
            url,
            socket_connect_timeout=TIMEOUT_S,
            socket_timeout=TIMEOUT_S,
            health_check_interval=HEALTH_S,  # a host that vanished says nothing, as a quiet one does
        )
        self._heard = heard
        self._connected = connected
        self._me = f"@{secrets.token_hex(4)}"
        self._owed: set[str] = set()
        self._owing = asyncio.Event()

    def tell(self, changed: Changes) -> None:
        """Publish these soon."""
        self._owed.update(changed.jobs)
        self._owed.update(f"+{what}" for what in _FLAGS if getattr(changed, what))
        self._owing.set()

    async def publish(self) -> None:
        """Publish what is owed until cancelled; drops what Redis does not accept, since the others poll."""
        while True:
            await self._owing.wait()
            self._owing.clear()
            words, self._owed = self._owed, set()
            try:
                await self._redis.publish(EVENTS_CHANNEL, " ".join((self._me, *words)))
                await asyncio.sleep(TELL_EVERY_S)
            except (RedisError, OSError) as error:
                log.warning("can't wake the other servers: %s", error)
                await asyncio.sleep(RETRY_S)

    async def listen(self) -> None:
        """Pass on what other servers publish, until cancelled; reconnects when the connection is lost."""
        while True:
            try:
                async with self._redis.pubsub() as subscription:
                    await subscription.subscribe(EVENTS_CHANNEL)
                    while True:
                        message = await subscription.get_message(timeout=LISTEN_S)
                        if message is None:
                            continue
                        if message["type"] == "subscribe":
                            self._connected()
                        else:
                            self._read(message["data"].decode(errors="replace").split())
            except (RedisError, OSError) as error:
                log.warning("no wake-ups from other servers until Redis is back: %s", error)
                await asyncio.sleep(RETRY_S)

    def _read(self, words: list[str]) -> None:
        if self._me in words:
            return
        jobs = {word for word in words if word[0] not in "+@"}
        flags = {what: f"+{what}" in words for what in _FLAGS}
        self._heard(Changes(jobs=jobs, elsewhere=True, **flags))

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()
