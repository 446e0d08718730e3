"""Heartbeats to the server in a separate thread: they keep the lease and return orders and tokens."""

import threading
import time

from pydantic import ValidationError

from powermean.contracts.attempts import Order
from powermean.contracts.phases import PREPARING_MODEL
from powermean.node_client import AttemptClient
from powermean.rest import ApiError, ServerUnreachableError
from worker.attempt.supervisor_log import say
from worker.attempt_dir import AttemptDir

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
        self.refused: ApiError | None = None  # the attempt is no longer ours
        self.answered = time.monotonic()

    def run(self) -> None:
        while not self._halt.is_set():
            try:
                beaten = self._beat()
            except (OSError, ValidationError) as error:  # a full disk, an unreadable answer
                say(f"heartbeat: {error}")
                beaten = False
            self._halt.wait(self._beat_s if beaten else min(self._beat_s, RETRY_S))

    def halt(self) -> None:
        self._halt.set()

    def _beat(self) -> bool:
        try:
            reply = self._client.heartbeat(self._attempt.phase(self.phase))
        except ServerUnreachableError:
            return False
        except ApiError as error:
            if not error.retryable:
                self.refused = error
                self._halt.set()
            return False
        self.answered = time.monotonic()
        self._client.renew(reply.token)
        self._attempt.write_token(reply.token)
        if reply.order != self.order:
            self._attempt.write_order(reply.order)
            self.order = reply.order
        return True
