"""The log of a program that has secrets: its output passes through here before it reaches the disk."""

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


class RedactedLog(threading.Thread):
    """Appends to `log` what is written to its pipe, without the secrets, until all writers are gone."""

    def __init__(self, log: Path, secrets: SecretValues) -> None:
        super().__init__(name="redacted log", daemon=True)
        self._log = log
        self._redactor = Redactor(secrets.values())
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
                self._append(self._redactor.feed(piece))
            self._append(self._redactor.rest())

    def finish(self) -> None:
        """Returns when the log is whole. All writers must have ended."""
        self.join(LAST_S)

    def _append(self, text: bytes) -> None:
        """Write; what the disk has no room for is lost, as a program's own writing would be."""
        try:
            with self._log.open("ab") as log:
                log.write(text)
        except OSError as error:
            say(f"not logged: {error}")
