"""Work that takes minutes, outside Celery's threads, which must stay free for urgent tasks."""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger("powermean.worker")


class LongTasks:
    """Runs one task per thread, in order of arrival; a task requested again meanwhile runs once.

    The threads end with the process, and so do the programs tethered to them.
    """

    def __init__(self, threads: int) -> None:
        self._queue: SimpleQueue[tuple[str, Callable[[str], None]]] = SimpleQueue()
        self._asked: set[str] = set()
        self._lock = threading.Lock()
        for number in range(threads):
            threading.Thread(target=self._work, name=f"long-task-{number}", daemon=True).start()

    def put(self, subject: str, work: Callable[[str], None]) -> None:
        """Schedule `work` on the subject."""
        with self._lock:
            if subject in self._asked:
                return
            self._asked.add(subject)
        self._queue.put((subject, work))

    def _work(self) -> None:
        while True:
            subject, work = self._queue.get()
            try:
                work(subject)
            except Exception:  # the boundary of a task: the thread continues, and the server asks again
                log.exception("%s failed", subject)
            finally:
                with self._lock:
                    self._asked.discard(subject)
