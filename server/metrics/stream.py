"""Live events of jobs for many clients (server-sent events).

The database is the truth: a client first gets what it has missed from there, then follows. One follower per
job reads and encodes new events once and hands the same bytes to every client. Wake-ups (commits of this
process, Redis for those of other servers) only make it fast; a slow poll covers lost wake-ups.

A client that falls behind is cut off and resumes by Last-Event-ID. When a job ends, its stream ends after
`event: end`; a browser that then reconnects with Last-Event-ID gets a 204 and stops. A stream that ends for
another reason says `event: reconnect` first.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass, field, replace

from anyio import CapacityLimiter, to_thread
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from server.db.models import Job
from server.db.session import Changes, Database
from server.errors import NotFoundError, UnavailableError
from server.metrics.event_log import Page, read_page
from server.metrics.wakeups import RedisWakeups

COALESCE_S = 0.1
POLL_S = 1.0
KEEP_ALIVE_S = 15.0
STREAM_LIFETIME_S = 3600.0  # then the client reconnects
BACKLOG = 64  # how many batches a client may lag behind
READERS = 4  # threads that read for streams; many streams must leave some for requests

HELLO = b"retry: 2000\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
END = b"event: end\ndata: {}\n\n"
RECONNECT = b"retry: 100\nevent: reconnect\ndata: {}\n\n"  # there is more, on another connection

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Subscription:
    """A client's subscription to its job's follower. None in the queue ends the stream."""

    batches: asyncio.Queue[Page | None] = field(default_factory=lambda: asyncio.Queue(BACKLOG))

    def offer(self, batch: Page) -> bool:
        """Hand over new events; False if the client was too far behind and has been cut off."""
        try:
            self.batches.put_nowait(batch)
        except asyncio.QueueFull:
            self.end()
            return False
        return True

    def end(self) -> None:
        """Drop what is queued and end the stream; the client resumes after what it has received."""
        while not self.batches.empty():
            self.batches.get_nowait()
        self.batches.put_nowait(None)


@dataclass(eq=False)
class Channel:
    """The follower of one job; `cursor` is the last number handed to its clients."""

    job_id: str
    cursor: int
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    clients: set[Subscription] = field(default_factory=set)
    task: asyncio.Task[None] | None = None


class EventHub:
    """All streams of one server process. Lives in its event loop; `notify` may come from any thread."""

    def __init__(self, database: Database, redis_url: str, most_streams: int) -> None:
        self._database = database
        self._most_streams = most_streams
        self._wakeups = RedisWakeups(redis_url, database.tell, self._wake_all)
        self._channels: dict[str, Channel] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readers: CapacityLimiter | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._retired = False
        database.listen(self.notify)

    @property
    def clients(self) -> int:
        """How many streams are open; call from any thread."""
        return sum(len(channel.clients) for channel in tuple(self._channels.values()))

    async def start(self) -> None:
        """Start polling and listening; call once, in the server's event loop."""
        self._loop = asyncio.get_running_loop()
        self._readers = CapacityLimiter(READERS)
        work = (self._poll(), self._wakeups.listen(), self._wakeups.publish())
        self._tasks = [asyncio.create_task(one) for one in work]

    def retire(self) -> None:
        """End all streams, and each that begins: the clients resume at another server, or a later one."""
        self._retired = True
        self.end_streams()

    async def stop(self) -> None:
        """End all streams and tasks."""
        self._loop = None
        self.end_streams()
        followers = [channel.task for channel in self._channels.values() if channel.task is not None]
        for task in (*self._tasks, *followers):
            task.cancel()
        await asyncio.gather(*self._tasks, *followers, return_exceptions=True)
        await self._wakeups.close()

    def end_streams(self) -> None:
        """End all streams; their clients come again."""
        for channel in self._channels.values():
            for client in channel.clients:
                client.end()

    def notify(self, changed: Changes) -> None:
        """Wake the followers of these jobs, here and in the other servers, which are also told the rest."""
        loop = self._loop
        if loop is None or loop.is_closed() or not (changed.jobs or changed.plan or changed.callers):
            return
        loop.call_soon_threadsafe(self._spread, replace(changed, jobs=set(changed.jobs)))

    async def first_page(self, job_id: str, after: int) -> Page:
        """The first page of a stream.

        Raises NotFoundError, or UnavailableError if there are too many streams.
        """
        if self._readers is None:
            raise UnavailableError("the event streams have not started")
        if self.clients >= self._most_streams:
            raise UnavailableError(
                "too many event streams are open", remedy="Ask again later, or poll /metrics."
            )
        return await self._read(job_id, after)

    async def stream(self, job_id: str, first: Page) -> AsyncGenerator[bytes, None]:
        """The frames from `first` on: from the database up to the follower's position, then live."""
        client = Subscription()
        channel = self._join(job_id, first.latest, client)
        follower_at = channel.cursor
        ends_at = time.monotonic() + STREAM_LIFETIME_S
        try:
            yield HELLO
            position, page = first.start, first
            while True:
                if frames := page.after(position):
                    yield frames
                position = page.upto
                if page.ended:
                    yield END
                    return
                if position >= follower_at:
                    break
                page = await self._read(job_id, position)
            async for frames in self._follow(client, position, ends_at):
                yield frames
        finally:
            self._leave(channel, client)

    async def _follow(self, client: Subscription, position: int, ends_at: float) -> AsyncIterator[bytes]:
        while time.monotonic() < ends_at:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    batch = await client.batches.get()
            except TimeoutError:
                yield KEEP_ALIVE
                continue
            if batch is None:
                break
            if frames := batch.after(position):
                yield frames
            position = max(position, batch.upto)
            if batch.ended:
                yield END
                return
        yield RECONNECT

    def _join(self, job_id: str, latest: int, client: Subscription) -> Channel:
        channel = self._channels.get(job_id)
        if channel is None:
            channel = self._channels[job_id] = Channel(job_id, cursor=latest)
            channel.task = asyncio.create_task(self._run(channel))
            channel.wake.set()
        channel.clients.add(client)
        if self._retired:
            client.end()
        return channel

    def _leave(self, channel: Channel, client: Subscription) -> None:
        channel.clients.discard(client)
        if not channel.clients and self._channels.get(channel.job_id) is channel:
            del self._channels[channel.job_id]
            if channel.task is not None:
                channel.task.cancel()

    async def _run(self, channel: Channel) -> None:
        """Read new events once, hand them to all clients, and pause briefly so that more accumulate."""
        while True:
            await channel.wake.wait()
            channel.wake.clear()
            try:
                batch = await self._read(channel.job_id, channel.cursor)
            except (SQLAlchemyError, NotFoundError) as error:
                log.warning("can't read the events of %s, trying again: %s", channel.job_id, error)
                await asyncio.sleep(POLL_S)
                channel.wake.set()
                continue
            channel.cursor = batch.upto
            if batch.frames or batch.ended:
                channel.clients = {client for client in channel.clients if client.offer(batch)}
            if batch.upto < batch.latest:
                channel.wake.set()
            else:
                await asyncio.sleep(COALESCE_S)

    async def _read(self, job_id: str, after: int) -> Page:
        def read() -> Page:
            with self._database.read() as session:
                return read_page(session, job_id, after)

        return await to_thread.run_sync(read, limiter=self._readers)

    async def _poll(self) -> None:
        """Poll for what lost wake-ups missed."""
        while True:
            await asyncio.sleep(POLL_S)
            if not self._channels:
                continue
            try:
                latest = await to_thread.run_sync(self._latest, tuple(self._channels), limiter=self._readers)
            except SQLAlchemyError as error:
                log.warning("can't poll for events, trying again: %s", error)
                continue
            self._wake(job_id for job_id, seq in latest.items() if self._behind(job_id, seq))

    def _behind(self, job_id: str, seq: int) -> bool:
        channel = self._channels.get(job_id)
        return channel is not None and channel.cursor < seq

    def _wake(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            if channel := self._channels.get(job_id):
                channel.wake.set()

    def _wake_all(self) -> None:
        self._wake(tuple(self._channels))

    def _spread(self, changed: Changes) -> None:
        self._wake(changed.jobs)
        if not changed.elsewhere:
            self._wakeups.tell(changed)

    def _latest(self, job_ids: tuple[str, ...]) -> dict[str, int]:
        with self._database.read() as session:
            found = session.execute(select(Job.id, Job.seq).where(Job.id.in_(job_ids)))
            return dict(found.all())
