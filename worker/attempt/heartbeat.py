"""Heartbeats to the server in a separate thread: they keep the lease and return orders and tokens."""

import threading
import time

from powermean.calls import ApiError, ServerUnreachableError
from powermean.contracts.attempts import Claim, Member, MemberReport, Order
from powermean.contracts.phases import PREPARING_MODEL, is_sampling
from powermean.disk import first_full
from powermean.node_client import AttemptClient
from worker.attempt.supervisor_log import say
from worker.attempt_dir import PHASE_CHARACTERS, AttemptDir

RETRY_S = 1.0
SEVERAL_S = 2.0  # between the beats of a job of several nodes: all of them end when one has failed
BEATS_PER_S = 8  # most of one job, of which each reads the rows of all its nodes


def between_beats(claim: Claim) -> float:
    """Seconds; never more than the server asks for."""
    nodes = claim.spec.resources.nodes
    return claim.beat_s if nodes == 1 else min(claim.beat_s, max(SEVERAL_S, nodes / BEATS_PER_S))


class Heartbeat(threading.Thread):
    """Keeps this node's lease; receives orders, fresh tokens, and where the other nodes are."""

    def __init__(self, client: AttemptClient, attempt: AttemptDir, claim: Claim) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._client = client
        self._attempt = attempt
        self._node_rank = claim.node_rank
        self._beat_s = between_beats(claim)
        self._replicas = claim.spec.rollout.replicas if claim.engine is None else 0
        self._halt = threading.Event()
        self._due = threading.Event()  # the next beat, before its time
        self.phase = PREPARING_MODEL
        self.place: MemberReport | None = None  # where the other nodes find this one
        self.members: tuple[Member, ...] = ()
        self.order: Order = "continue"
        self._written: Order = "continue"  # where the trainer reads it
        self._leaves = False
        self._ordering = threading.Lock()
        self.refused: ApiError | None = None  # the attempt is no longer ours
        self.answered = self._began = time.monotonic()

    def run(self) -> None:
        while not self._halt.is_set():
            try:
                beaten = self._beat()
            except Exception as error:  # noqa: BLE001  the thread's boundary: without beats the attempt lapses
                say(f"heartbeat: {type(error).__name__}: {error}")
                beaten = False
            self._due.wait(self._beat_s if beaten else min(self._beat_s, RETRY_S))
            self._due.clear()

    def halt(self) -> None:
        self._halt.set()
        self._due.set()

    def tell(self, place: MemberReport) -> None:
        """Say where this node is, at once."""
        self.place = place
        self._due.set()

    def leave(self) -> None:
        """This node itself orders to checkpoint and exit; only a cancellation counts more."""
        self._leaves = True
        try:
            self._obey(self.order)
        except OSError as error:  # again at the next call
            say(f"the order to leave was not written: {error}")

    def _obey(self, order: Order) -> None:
        """Hand an order on to the trainer. Raises OSError."""
        with self._ordering:
            if self._leaves and order != "cancel":
                order = "checkpoint_and_exit"
            self.order = order
            if order != self._written:
                self._attempt.write_order(order)
                self._written = order

    def _beat(self) -> bool:
        try:
            reply = self._client.heartbeat(
                self._phase(), self._node_rank, self._member(), time.monotonic() - self._began
            )
        except ServerUnreachableError:
            return False
        except ApiError as error:
            if not error.retryable:
                self.refused = error
                self.halt()
            return False
        self.answered = time.monotonic()
        self._client.renew(reply.token)
        try:
            self._attempt.write_token(reply.token)
        except OSError as error:  # the order below matters more
            say(f"the token was not renewed: {error}")
        self._take(reply.members)
        self._obey(reply.order)
        return True

    def _take(self, members: tuple[Member, ...]) -> None:
        if members != self.members:
            try:
                self._attempt.write_members(members)
            except OSError as error:  # again at the next beat
                say(f"where the other nodes are was not written: {error}")
            else:
                self.members = members

    def _member(self) -> MemberReport | None:
        """Where this node is, with its own engines as soon as they serve."""
        if self.place is None:
            return None
        return self.place.model_copy(update={"engine_urls": self._attempt.engine_urls(self._replicas)})

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
