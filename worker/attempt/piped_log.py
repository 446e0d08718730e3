"""The log of a program whose output is changed on its way to the disk: secrets go, a prefix comes."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from powermean.contracts.secrets import SecretValues
from worker.attempt.supervisor_log import say
from worker.redaction import Redactor

PIECE = 1 << 16  # bytes
LAST_S = 10.0  # for what a program's end leaves in the pipe


class PipedLog(threading.Thread):
    """Appends to `log` what is written to its pipe, until all writers are gone.

    The secrets are taken out of it. With a prefix, lines are written one by one, as several programs have the
    same log.
    """

    def __init__(self, log: Path, secrets: SecretValues, prefix: str = "") -> None:
        super().__init__(name="piped log", daemon=True)
        self._log = log
        self._redactor = Redactor(secrets.values())
        self._prefix = prefix.encode()
        self._line = b""  # begun, not yet written
        self._reading, self._writing = os.pipe()

    @contextmanager
    def writing(self) -> Iterator[int]:
        """The end of the pipe for the program, which has it once it has started; the thread then runs."""
        try:
            yield self._writing
        finally:
            os.close(self._writing)
            self.start()

    def run(self) -> None:
        with open(self._reading, "rb", buffering=0) as pipe:
            while piece := pipe.read(PIECE):
                self._append(self._by_lines(self._redactor.feed(piece)))
            self._append(self._by_lines(self._redactor.rest(), last=True))

    def finish(self) -> None:
        """Returns when the log is whole. All writers must have ended."""
        self.join(LAST_S)

    def _by_lines(self, text: bytes, *, last: bool = False) -> bytes:
        """Whole lines with the prefix; what has been begun is kept for later, unless it has grown long."""
        if not self._prefix:
            return text
        whole, newline, begun = (self._line + text).rpartition(b"\n")
        lines = whole.split(b"\n") if newline else []
        if begun and (last or len(begun) >= PIECE):
            lines, begun = [*lines, begun], b""
        self._line = begun
        return b"".join(self._prefix + line + b"\n" for line in lines)

    def _append(self, text: bytes) -> None:
        """Write; what the disk has no room for is lost, as a program's own writing would be."""
        if not text:
            return
        try:
            with self._log.open("ab") as log:
                log.write(text)
        except OSError as error:
            say(f"not logged: {error}")
