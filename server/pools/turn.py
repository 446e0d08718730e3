"""A pool's turn: ask its engine what there is, end what is over, ask for what is wanted, let go what is idle.

Each pool has a thread of its own, so one whose engine hangs delays no other. The engine is never asked inside
a transaction. What is wanted is decided under a lock that all pools of a server share, so that no job asks
two pools at once.
"""

import logging
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.contracts.api import JobState
from server.cluster import demand, inventory, line, pilots, state
from server.cluster.clock import ClockWatch
from server.cluster.leadership import keeps_lead, leader
from server.db.models import Job, Pilot, PoolStatus
from server.db.session import Database, changes, database_now
from server.nodes import living_ids
from server.pools import life
from server.pools.backend import Backend, PilotOrder, PilotState, PoolError, Seen, find_pilot
from server.pools.declaration import Pool
from server.pools.sizing import Check, PilotFacts, PoolFacts, Sizes, sizes
from server.replays.repository import any_waiting
from server.settings import Settings

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 5.0  # after an order that the engine refused; doubles with each one more
LONGEST_PAUSE_S = 300.0
UNKNOWN = "its engine does not know it any more"
CANCEL_AGAIN_S = 60.0  # to end a pilot may take its engine that long


class LeadLostError(Exception):
    """Another replica has taken over: this turn is over."""


@dataclass
class Pools:
    """What the pools of one server share."""

    database: Database
    settings: Settings
    holder: str
    pools: Sequence[Pool]
    environment: Mapping[str, str]  # of every pilot's worker
    redis_url: str
    choosing: threading.Lock = field(default_factory=threading.Lock)

    def leads(self, session: Session) -> bool:
        """Whether this replica leads; takes no lock."""
        return leader(session, self.settings.leader_lease_s) == self.holder

    @contextmanager
    def leading(self) -> Iterator[Session]:
        """A transaction during which no other replica takes over."""
        with self.database.write() as session:
            if not keeps_lead(session, self.holder):
                raise LeadLostError
            yield session


class Undeclared:
    """What is left of pools that the file no longer declares. Only the leader's turns have an effect."""

    def __init__(self, shared: Pools) -> None:
        self._shared = shared

    def turn(self) -> None:
        """One pass."""
        shared, names = self._shared, [pool.name for pool in self._shared.pools]
        with shared.database.read() as session:
            if not shared.leads(session):
                return
            known = {*session.scalars(select(PoolStatus.name)), *(one.pool for one in pilots.living(session))}
        if known <= set(names):
            return
        with suppress(LeadLostError), shared.leading() as session:
            life.forget_undeclared(session, shared.settings, names, database_now(session))


class PoolTurn:
    """One pool's turns. Only the leader's have an effect."""

    def __init__(self, shared: Pools, pool: Pool, backend: Backend | None = None) -> None:
        self._shared, self._pool = shared, pool
        self._backend = backend or pool.backend
        self._leads = False
        self._clock = ClockWatch()
        self._missing: set[str] = set()  # pilots that the last list left out
        self._revoked: set[str] = set()  # pilots that the engine was ending when it last listed them
        self._cancelled: dict[str, float] = {}  # when the engine was last told to end a pilot
        self._tokens: dict[str, str] = {}  # of pilots that the engine has not confirmed
        self._refusals = 0  # orders in a row
        self._refused: str | None = None  # the last one, and why
        self._next_order = float("-inf")

    def turn(self) -> None:
        """One pass."""
        shared = self._shared
        with shared.database.read() as session:
            leads_now = shared.leads(session)
            trusted = self._clock.trusts(session)
        if not leads_now:
            self._leads = False
            return
        if not trusted:
            return
        try:
            if not self._leads:
                with shared.leading() as session:
                    life.declare(session, self._pool)
                self._leads, self._missing = True, set()
            self._look_and_act()
        except LeadLostError:
            self._leads = False

    def _look_and_act(self) -> None:
        try:
            seen = self._backend.list()
        except PoolError as silent:
            self._tell(f"{silent}; what runs goes on, and nothing is started")
            return
        self._settle(seen)
        self._decide()
        refused = [self._end(), self._order()]  # each in any case: neither waits for the other
        self._tell("; ".join(dict.fromkeys(filter(None, refused))) or self._why_paused())

    def _settle(self, seen: Sequence[Seen]) -> None:
        """Follow the engine's word; each end has a transaction of its own."""
        with self._shared.database.read() as session:
            ours = pilots.living(session, self._pool.name)
        pairs = ((one.id, find_pilot(one.id, one.external_id, seen)) for one in ours)
        known = {pilot_id: found for pilot_id, found in pairs if found is not None}
        over: dict[str, tuple[str, bool]] = {}
        taken = []  # by its engine, which may know more
        missing = set()
        for pilot in ours:
            found = known.get(pilot.id)
            if found is not None and found.state is PilotState.ENDED:
                over[pilot.id] = self._with_last(pilot, found.reason), found.revoked
                taken += [found] * (found.revoked and pilot.leaves is None)
            elif found is None and (pilot.external_id is not None or pilot.leaves is not None):
                missing.add(pilot.id)
                if pilot.id in self._missing:  # twice in a row: nobody else can say that it is gone
                    revoked = pilot.leaves is not None or pilot.id in self._revoked
                    over[pilot.id] = self._with_last(pilot, UNKNOWN), revoked
        self._missing = missing
        self._revoked &= missing
        self._revoked |= {pilot_id for pilot_id, one in known.items() if one.revoked}
        there = [pilot.id for pilot in ours if pilot.id in known and pilot.id not in over]
        if there:
            with self._shared.leading() as session:
                now = database_now(session)
                for pilot_id in there:
                    pilot = session.get_one(Pilot, pilot_id, with_for_update=True)
                    life.note_seen(session, self._shared.settings, self._pool, pilot, known[pilot_id], now)
        why = self._backend.why(taken) if taken else {}
        for pilot_id, (said, revoked) in over.items():
            words = ": ".join(filter(None, (said, why.get(pilot_id))))
            with self._shared.leading() as session:
                pilot = session.get_one(Pilot, pilot_id, with_for_update=True)
                if (found := known.get(pilot_id)) is not None:
                    pilot.external_id = pilot.external_id or found.external_id
                now = database_now(session)
                life.end(session, self._shared.settings, pilot, words, now, revoked=revoked)
            self._clean(pilot_id)
        self._cancel_strays(seen)

    def _with_last(self, pilot: Pilot, words: str) -> str:
        """With what the engine said while it was ending it: a Job may know less once its pod is gone."""
        is_news = pilot.id in self._revoked and pilot.reason not in words
        return f"{words}; before: {pilot.reason}" if is_news else words

    def _clean(self, pilot_id: str) -> None:
        try:
            self._backend.clean(pilot_id)
        except PoolError as error:
            log.warning("pool %s: not cleaned up after %s: %s", self._pool.name, pilot_id, error)

    def _cancel_strays(self, seen: Sequence[Seen]) -> None:
        """End what runs and should not: a double, where an order's answer got lost, and what was given up.

        What has no row is another server's.
        """
        running = [one for one in seen if one.state is not PilotState.ENDED]
        with self._shared.database.read() as session:
            query = select(Pilot).where(Pilot.id.in_([one.pilot_id for one in running]))
            rows = {one.id: one for one in session.scalars(query)}
        for one in running:
            row = rows.get(one.pilot_id)
            if row is None or (row.state != pilots.ENDED and row.external_id == one.external_id):
                continue
            try:
                self._backend.cancel(one.external_id)
            except PoolError as error:
                log.warning("pool %s: %s, which nobody needs, stays: %s", row.pool, one.external_id, error)

    def _decide(self) -> None:
        """Write down what is wanted, and who is let go. What changes in between is looked at again."""
        with self._shared.choosing:
            with self._shared.database.read() as session:
                now = database_now(session)
                living = self._living(session)
                drained = {
                    one.id
                    for one in living
                    if life.is_drained(session, self._shared.settings, self._pool, one, now)
                }
                late = {
                    one.id: why
                    for one in living
                    if (why := life.waits_too_long(session, self._pool, one, now)) is not None
                }
                wanted, alone = self._sizes(session, now), set[str]()
                if late:  # what only waited for these goes with them: it would wait for the next ones, too
                    with_late, wanted = wanted, self._sizes(session, now, late.keys())
                    alone = with_late.needed - wanted.needed - late.keys()
                idle = {one.id for one in living if one.unneeded_since is not None}
                ours = {one.id for one in living}
            starts = wanted.starts.get(self._pool.name, 0)
            let_go = dict.fromkeys(
                ours & set(wanted.let_go), f"nothing needed it for {self._pool.idle_s:g} s"
            )
            let_go |= dict.fromkeys(drained, "its node was drained") | late
            spare = max(0, len(ours - let_go.keys()) - self._pool.min)
            let_go |= dict.fromkeys(sorted((ours & alone) - let_go.keys())[:spare], life.ALONE)
            if not (starts or let_go or idle != ours - wanted.needed):
                return
            with self._shared.leading() as session:
                now = database_now(session)
                for pilot in self._living(session):
                    if pilot.id in wanted.needed:
                        pilot.unneeded_since = None
                    elif pilot.id in ours:
                        pilot.unneeded_since = pilot.unneeded_since or now
                    if why := let_go.get(pilot.id):
                        gone = life.let_go(session, self._shared.settings, self._pool, pilot, why, now)
                        pilot.failed = gone and pilot.id in late
                for _ in range(starts):
                    life.ask(session, self._pool, now)
                life.prune(session, self._pool.name, now)

    def _living(self, session: Session) -> list[Pilot]:
        return [one for one in pilots.living(session, self._pool.name) if one.leaves is None]

    def _sizes(self, session: Session, now: datetime, late: Collection[str] = ()) -> Sizes:
        """With those that are late as if they had gone, and nothing asked for instead of them just now."""
        queued = [one.job for one in line.queued(session) if one.is_due(now)]
        around = state.read(session, self._shared.settings, queued, now)
        around = replace(around, coming=[one for one in around.coming if one.node.id not in late])
        alive = {node.id for node in around.nodes}
        well = set(session.scalars(select(PoolStatus.name).where(PoolStatus.error.is_(None))))
        facts = []
        for pool in self._shared.pools:
            ours = pool.name == self._pool.name
            facts.append(
                PoolFacts(
                    name=pool.name,
                    shape=pool.node_shape,
                    min=pool.min,
                    max=pool.max,
                    idle_s=pool.idle_s,
                    ready=not late and self._is_ready(session, now) if ours else pool.name in well,
                    pilots=tuple(
                        _facts(session, self._shared.settings, pool, one, alive, now)
                        for one in pilots.living(session, pool.name)
                        if one.id not in late
                    ),
                )
            )
        return sizes(around, facts, self._checks(session))

    def _is_ready(self, session: Session, now: datetime) -> bool:
        """Whether the engine may be asked for more: it has just answered, and no failure is too recent."""
        paused = life.paused_until(session, self._pool.name, now)
        return time.monotonic() >= self._next_order and paused is None

    def _checks(self, session: Session) -> list[Check]:
        """The specs that nobody has checked, one of each kind, and a replay if any waits."""
        query = select(Job.demand).where(Job.state == JobState.VALIDATING).distinct()
        kinds = session.scalars(query.order_by(Job.demand)).all()
        replay = any_waiting(session)
        if not (kinds or replay):
            return []
        living, offline = inventory.known(session, living_ids(session, self._shared.settings))
        return [
            Check(demand.waiting_job("", one, None), frozenset(demand.checkers(one, living, offline)))
            for one in kinds
        ] + [Check(None, frozenset(node.id for node in living if node.closed is None))] * replay

    def _order(self) -> str | None:
        """Ask the engine for what is wanted and not confirmed; what it refused."""
        if time.monotonic() < self._next_order:
            return self._refused
        with self._shared.database.read() as session:
            asked = [one.id for one in self._living(session) if one.external_id is None]
        self._tokens = {one: self._tokens[one] for one in asked if one in self._tokens}
        for pilot_id in asked:
            with self._shared.leading() as session:
                pilot = session.get_one(Pilot, pilot_id, with_for_update=True)
                token = self._tokens.get(pilot_id) or life.new_token(session, pilot)
                order = self._order_for(pilot, token)
            self._tokens[pilot_id] = token
            try:
                external_id = self._backend.submit(order)
            except PoolError as error:
                self._refusals += 1
                pause = min(FIRST_PAUSE_S * 2 ** (self._refusals - 1), LONGEST_PAUSE_S)
                self._next_order, self._refused = time.monotonic() + pause, str(error)
                return self._refused
            self._refusals = 0
            with self._shared.leading() as session:
                pilot = session.get_one(Pilot, pilot_id, with_for_update=True)
                life.confirm(session, pilot, external_id)
        self._refused = None
        return None

    def _order_for(self, pilot: Pilot, token: str) -> PilotOrder:
        pool, shape = self._pool, self._pool.node_shape
        labels = ",".join(f"{name}={value}" for name, value in shape.labels.items())
        environment = {
            **self._shared.environment,
            **pool.environment,
            "POWERMEAN_NODE_ID": pilot.node_id,
            "POWERMEAN_PILOT": pilot.id,
            "POWERMEAN_TERM_GRACE_S": f"{pool.term_grace_s:g}",
            "POWERMEAN_STOP_GRACE_S": f"{pool.drain_s * 0.9:.0f}",
            "POWERMEAN_DATA_DIR": f"{pool.data_dir.rstrip('/')}/{pilot.id}",
            "POWERMEAN_CPU_SLOTS": str(shape.cpu_slots),
            "POWERMEAN_LABELS": labels,
        }
        if not shape.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        secrets = {"POWERMEAN_NODE_TOKEN": token, "POWERMEAN_REDIS_URL": self._shared.redis_url}
        return PilotOrder(pilot.id, pilot.node_id, environment, secrets, shape, pool.time_limit_s)

    def _end(self) -> str | None:
        """Have the engine end those that are let go; what it refused first."""
        refused = None
        with self._shared.database.read() as session:
            leaving = [one for one in pilots.living(session, self._pool.name) if one.leaves is not None]
        told = self._cancelled
        self._cancelled = {one.id: told[one.id] for one in leaving if one.id in told}
        for pilot in leaving:
            since = time.monotonic() - self._cancelled.get(pilot.id, float("-inf"))
            if pilot.external_id is None or since < CANCEL_AGAIN_S:
                continue
            try:
                self._backend.cancel(pilot.external_id)
            except PoolError as error:
                refused = refused or str(error)
                continue
            self._cancelled[pilot.id] = time.monotonic()
        return refused

    def _why_paused(self) -> str | None:
        with self._shared.database.read() as session:
            paused = life.paused_until(session, self._pool.name, database_now(session))
        if paused is None:
            return None
        return f"{paused[1]}; the next one is asked for at {paused[0]:%H:%M:%S} UTC"

    def _tell(self, error: str | None) -> None:
        """Show what is wrong with the pool, or that nothing is any more."""
        said = error[:500] if error is not None else None
        with self._shared.database.read() as session:
            status = session.get(PoolStatus, self._pool.name)
        if status is None or status.error == said:
            return
        with self._shared.leading() as session:
            session.get_one(PoolStatus, self._pool.name).error = said
            changes(session).plan = True
        if said is not None:
            log.warning("pool %s: %s", self._pool.name, said)
        else:
            log.info("pool %s is well again", self._pool.name)


def _facts(
    session: Session, settings: Settings, pool: Pool, pilot: Pilot, alive: Collection[str], now: datetime
) -> PilotFacts:
    return PilotFacts(
        id=pilot.id,
        node_id=pilot.node_id,
        reports=pilot.node_id in alive,
        busy=life.has_work(session, settings, pool, pilot, now),
        asked=pilot.external_id is None,
        leaves=pilot.leaves is not None,
        unneeded_s=life.unneeded_s(session, pool, pilot, now),
    )
