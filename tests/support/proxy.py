"""A TCP proxy for tests: spreads connections over servers, and cuts, delays or swallows what they carry."""

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, get_args

Mode = Literal["pass", "cut", "delay", "swallow"]
MODES: tuple[Mode, ...] = get_args(Mode)
CHUNK = 65_536
CONNECT_S = 2.0


class Proxy:
    """Listens on a free port of loopback, in a thread of its own.

    Each connection goes to the next of the `targets` (ports) that takes it, as behind a load balancer. Mode
    `cut` resets open connections and refuses new ones; `delay` holds each piece back for `delay_s`; `swallow`
    takes everything and passes nothing on, as a network that drops packets does: the bytes are held back,
    and arrive when the mode is `pass` again, if both ends have waited for so long.
    """

    def __init__(self, targets: Sequence[int], delay_s: float = 0.5) -> None:
        self.targets = list(targets)
        self.delay_s = delay_s
        self._mode: Mode = "pass"
        self._turn = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _listen(self) -> asyncio.Server:
        self._passing = asyncio.Event()
        self._passing.set()
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._loop.call_soon_threadsafe(self._change, mode)

    def _change(self, mode: Mode) -> None:
        self._mode = mode
        (self._passing.clear if mode == "swallow" else self._passing.set)()
        if mode == "cut":
            for writer in self._open:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        self._open.add(writer)
        try:
            if self._mode == "cut":
                return
            await self._passing.wait()
            other = await self._connect()
            if other is None:
                return
            ends.append(other[1])
            self._open.add(other[1])
            await asyncio.gather(self._pump(reader, other[1]), self._pump(other[0], writer))
        except asyncio.CancelledError:
            return  # closed; asyncio would print what is raised
        finally:
            for end in ends:
                self._open.discard(end)
                end.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        targets = list(self.targets)
        for _ in targets:
            self._turn += 1
            port = targets[self._turn % len(targets)]
            with suppress(OSError, TimeoutError):
                return await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), CONNECT_S)
        return None

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await source.read(CHUNK):
                if self._mode == "delay":
                    await asyncio.sleep(self.delay_s)
                await self._passing.wait()
                sink.write(piece)
                await sink.drain()
            sink.write_eof()

    def close(self) -> None:
        """Repeating it has no effect."""
        if self._loop.is_closed():
            return

        async def end() -> None:
            self._change("cut")
            self._server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
