"""Tells the other servers over Redis which jobs have news; best effort, since streams also poll."""

import asyncio
import logging
from collections.abc import Callable, Iterable

import redis.asyncio
from redis.exceptions import RedisError

from powermean.contracts.names import EVENTS_CHANNEL

RETRY_S = 2.0
LISTEN_S = 5.0
TIMEOUT_S = 10.0
TELL_EVERY_S = 0.05  # jobs that report meanwhile share a message

log = logging.getLogger(__name__)


class RedisWakeups:
    """Publishes job ids and receives those of all servers. Lives in one event loop."""

    def __init__(
        self, url: str, heard: Callable[[Iterable[str]], None], connected: Callable[[], None]
    ) -> None:
        """`connected` is called whenever listening begins, because earlier messages were missed."""
        self._redis = redis.asyncio.from_url(url, socket_connect_timeout=TIMEOUT_S, socket_timeout=TIMEOUT_S)
        self._heard = heard
        self._connected = connected
        self._owed: set[str] = set()
        self._owing = asyncio.Event()

    def tell(self, job_ids: Iterable[str]) -> None:
        """Publish these ids soon."""
        self._owed.update(job_ids)
        self._owing.set()

    async def publish(self) -> None:
        """Publish queued ids until cancelled; drops what Redis does not accept, since the others poll."""
        while True:
            await self._owing.wait()
            self._owing.clear()
            job_ids, self._owed = self._owed, set()
            try:
                await self._redis.publish(EVENTS_CHANNEL, " ".join(job_ids))
                await asyncio.sleep(TELL_EVERY_S)
            except (RedisError, OSError) as error:
                log.warning("can't wake the other servers' streams: %s", error)
                await asyncio.sleep(RETRY_S)

    async def listen(self) -> None:
        """Pass on what any server publishes, until cancelled; reconnects when the connection is lost."""
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
                            self._heard(message["data"].decode().split())
            except (RedisError, OSError) as error:
                log.warning("no wake-ups from other servers until Redis is back: %s", error)
                await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()
