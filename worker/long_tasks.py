"""Work that takes minutes, beside Celery's threads: those are to be free for what must not wait."""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger("powermean.worker")


class LongTasks:
    """Does one thing a thread, in the order in which it came; what is asked for again meanwhile is done once.

    The threads end with the process, and with them the programs that are tethered to them.
    """

    def __init__(self, threads: int) -> None:
        self._queue: SimpleQueue[tuple[str, Callable[[str], None]]] = SimpleQueue()
        self._asked: set[str] = set()
        self._lock = threading.Lock()
        for number in range(threads):
            threading.Thread(target=self._work, name=f"long-task-{number}", daemon=True).start()

    def put(self, subject: str, work: Callable[[str], None]) -> None:
        """Do `work` on the subject, soon."""
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
            except Exception:  # a task's boundary: the thread goes on, and the server asks again
                log.exception("%s failed", subject)
            finally:
                with self._lock:
                    self._asked.discard(subject)
