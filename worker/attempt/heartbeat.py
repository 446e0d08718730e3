"""Heartbeats to the server in a separate thread: they keep the lease and return orders and tokens."""

import threading
import time

from powermean.contracts.attempts import Order
from powermean.contracts.phases import PREPARING_MODEL, is_sampling
from powermean.disk import first_full
from powermean.node_client import AttemptClient
from powermean.rest import ApiError, ServerUnreachableError
from worker.attempt.supervisor_log import say
from worker.attempt_dir import PHASE_CHARACTERS, AttemptDir

RETRY_S = 1.0


class Heartbeat(threading.Thread):
    """Keeps the lease; receives orders and fresh tokens."""

    def __init__(self, client: AttemptClient, attempt: AttemptDir, beat_s: float) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._client = client
        self._attempt = attempt
        self._beat_s = beat_s
        self._halt = threading.Event()
        self.phase = PREPARING_MODEL
        self.order: Order = "continue"
        self._written: Order = "continue"  # where the trainer reads it
        self.refused: ApiError | None = None  # the attempt is no longer ours
        self.answered = time.monotonic()

    def run(self) -> None:
        while not self._halt.is_set():
            try:
                beaten = self._beat()
            except Exception as error:  # noqa: BLE001  the thread's boundary: without beats the attempt lapses
                say(f"heartbeat: {type(error).__name__}: {error}")
                beaten = False
            self._halt.wait(self._beat_s if beaten else min(self._beat_s, RETRY_S))

    def halt(self) -> None:
        self._halt.set()

    def _beat(self) -> bool:
        try:
            reply = self._client.heartbeat(self._phase())
        except ServerUnreachableError:
            return False
        except ApiError as error:
            if not error.retryable:
                self.refused = error
                self._halt.set()
            return False
        self.answered = time.monotonic()
        self._client.renew(reply.token)
        try:
            self._attempt.write_token(reply.token)
        except OSError as error:  # the order below matters more
            say(f"the token was not renewed: {error}")
        self.order = reply.order
        if reply.order != self._written:
            self._attempt.write_order(reply.order)
            self._written = reply.order
        return True

    def _phase(self) -> str:
        """What people should know: that the disk is full, before what the trainer says."""
        try:
            if first_full([self._attempt.path]):
                return "the node's disk is full"
            self._attempt.ballast.hold()
            phase = self._attempt.phase(self.phase)
            count = self._attempt.completions() if is_sampling(phase) else None
            return f"{phase}, {count} completions"[:PHASE_CHARACTERS] if count else phase
        except OSError as error:  # a lease must not depend on a disk
            say(f"the phase is not known: {error}")
            return self.phase
