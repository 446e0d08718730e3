"""An engine of pools in memory: it starts, ends and forgets pilots when the test says so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from server.pools.backend import PilotOrder, PilotState, PoolError, Seen


@dataclass
class FakeEngine:
    """`down`: every call fails. `loses_answers`: it takes orders, and the answer doesn't arrive."""

    pilots: dict[str, Seen] = field(default_factory=dict)  # by external id
    orders: list[PilotOrder] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    down: str | None = None
    refuses: str | None = None
    keeps: str | None = None  # the external id of a pilot that it refuses to end
    loses_answers: bool = False
    knows: dict[str, str] = field(default_factory=dict)  # why it ended a pilot, by external id

    def submit(self, order: PilotOrder) -> str:
        self._check()
        if self.refuses:
            raise PoolError(self.refuses)
        self.orders.append(order)
        external_id = str(len(self.orders))
        self.pilots[external_id] = Seen(order.pilot_id, external_id, PilotState.PENDING, "Priority")
        if self.loses_answers:
            raise PoolError("no answer within 30 s")
        return external_id

    def cancel(self, external_id: str) -> None:
        self._check()
        if external_id == self.keeps:
            raise PoolError(f"scancel: {external_id} stays")
        self.cancelled.append(external_id)
        if external_id in self.pilots:
            self.end(external_id, "CANCELLED", revoked=True)

    def why(self, ended: Sequence[Seen]) -> Mapping[str, str]:
        assert all(one.revoked for one in ended)
        return {one.pilot_id: self.knows[one.external_id] for one in ended if one.external_id in self.knows}

    def clean(self, pilot_id: str) -> None:
        self._check()

    def list(self) -> Sequence[Seen]:
        self._check()
        return list(self.pilots.values())

    def run(self, external_id: str, ends_at: datetime | None = None) -> str:
        """The pilot has its allocation; the name of its node."""
        self._change(external_id, state=PilotState.RUNNING, reason="RUNNING", ends_at=ends_at)
        return self.pilots[external_id].pilot_id

    def end(self, external_id: str, reason: str, revoked: bool = False) -> None:
        self._change(external_id, state=PilotState.ENDED, reason=reason, ends_at=None, revoked=revoked)

    def _change(self, external_id: str, **changes: object) -> None:
        self.pilots[external_id] = replace(self.pilots[external_id], **changes)  # type: ignore[arg-type]

    def _check(self) -> None:
        if self.down:
            raise PoolError(self.down)
