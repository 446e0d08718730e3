"""Sends the attempt's records and log to the server, in a separate thread."""

import threading
import time

from powermean.artefacts import ArtefactStoreFullError
from powermean.calls import ApiError, FencedError, ServerUnreachableError
from powermean.contracts.attempts import Finish, FinishRecord, JobError, LogChunk
from powermean.node_client import AttemptClient
from worker.attempt.supervisor_log import say
from worker.attempt_dir import AttemptDir, SpoolError, read_record

SHIP_EVERY_S = 0.3
LOG_CHUNK = 200_000  # bytes


def clean(raw: bytes) -> str:
    """Text of the same length in bytes; invalid UTF-8 becomes question marks, so offsets stay right."""
    text = raw.decode(errors="surrogateescape")
    return "".join("?" if "\udc80" <= c <= "\udcff" else c for c in text)


def complete(raw: bytes) -> bytes:
    """`raw` without an incomplete character at its end."""
    for back in range(1, min(4, len(raw)) + 1):
        byte = raw[-back]
        if byte & 0xC0 == 0xC0:  # the first byte of a longer character
            wanted = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return raw[:-back] if wanted > back else raw
        if byte < 0x80:
            return raw
    return raw


class Shipper(threading.Thread):
    """Posts the spool's records in order, each until it is acknowledged, and new text of the log."""

    def __init__(self, client: AttemptClient, attempt: AttemptDir, node_rank: int = 0) -> None:
        super().__init__(name="shipper", daemon=True)
        self._client = client
        self._attempt = attempt
        self._node_rank = node_rank
        self._halt = threading.Event()
        self._log_offset = 0
        self.finish: Finish | None = None  # the trainer's last record, kept for the supervisor
        self.refused: JobError | None = None  # a record that the server will never accept

    def run(self) -> None:
        while not self._halt.wait(SHIP_EVERY_S):
            try:
                self.ship()
            except Exception as error:  # noqa: BLE001  the thread's boundary: the next look may go better
                say(f"not sent: {type(error).__name__}: {error}")

    def halt(self) -> None:
        """Returns when no post is in progress."""
        self._halt.set()
        if self.is_alive():
            self.join()

    def ship(self) -> bool:
        """Send what there is. True if nothing is left to send."""
        try:
            return self._ship_spool() and self._ship_log()
        except ServerUnreachableError:
            return False
        except FencedError:
            return False  # the next heartbeat reports it, too
        except ApiError as error:
            if not error.retryable and error.status != 401:
                self._refuse(str(error))
            return False
        except SpoolError as error:
            self._refuse(str(error))
            return False
        except OSError as error:
            say(f"not sent: {error}")
            return False

    def ship_log(self, limit_s: float) -> None:
        """Send the rest of the log, and nothing else, within this time."""
        deadline = time.monotonic() + limit_s
        try:
            while not self._ship_log() and time.monotonic() < deadline:
                pass
        except (ApiError, ServerUnreachableError, OSError) as error:
            say(f"the end of the log was not sent: {error}")

    def close_log(self, text: str, limit_s: float) -> None:
        """Let the log end with a line of the supervisor's, and send it."""
        try:
            with self._attempt.log.open("a") as log:
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} supervisor: {text}\n")
        except OSError as error:
            say(f"not logged: {error}")
        self.ship_log(limit_s)

    def _refuse(self, why: str) -> None:
        self.refused = JobError(
            code="record_refused",
            message=f"The server refused a record of the trainer: {why}",
            remedy="Server and node must run the same version.",
        )

    def _ship_spool(self) -> bool:
        for path in self._attempt.spooled():
            record = read_record(path)
            if isinstance(record, FinishRecord):
                self.finish = record.body
                return True
            self._client.post_record(record.kind, record.body)
            path.unlink()
        return True

    def _ship_log(self) -> bool:
        """Send at most one chunk, so that records never wait for a long log."""
        if not self._attempt.log.exists():
            return True
        with self._attempt.log.open("rb") as log:
            log.seek(self._log_offset)
            raw = complete(log.read(LOG_CHUNK))
        if not raw:
            return True
        try:
            self._client.post_log(
                LogChunk(offset=self._log_offset, text=clean(raw), node_rank=self._node_rank)
            )
        except ApiError as error:
            if error.body.code != ArtefactStoreFullError.code:
                raise
            return True  # there is no room for it: the end of the attempt must not wait for that
        self._log_offset += len(raw)
        return len(raw) < LOG_CHUNK - 4
