"""Which servers share the database: each writes every few seconds that it is there."""

import hashlib
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from powermean import __version__
from powermean.contracts.api import ServerList, ServerView
from server.cluster.leadership import leader
from server.db.inserts import upsert
from server.db.models import ServerProcess
from server.db.session import Database, database_now
from server.settings import Settings

BEAT_S = 5.0
ALIVE = timedelta(seconds=15)
SHOWN = timedelta(days=1)  # after its death


def new_id() -> str:
    """A name for this process that no other one has had."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"


def fingerprint(public_pem: str) -> str:
    """By which servers see that they have the same key pair."""
    return hashlib.sha256(public_pem.encode()).hexdigest()


@dataclass
class Presence:
    """This server's row."""

    database: Database
    settings: Settings
    id: str
    public_pem: str

    def turn(self) -> None:
        """Say that this server is there, and forget those that have been dead for long."""
        with self.database.write() as session:
            now = database_now(session)
            row = {
                "id": self.id,
                "name": f"{socket.gethostname()[:60]}:{self.settings.port}",
                "version": __version__,
                "key_sha256": fingerprint(self.public_pem),
                "started_at": now,
                "seen_at": now,
            }
            upsert(session, ServerProcess, [row], replace=("seen_at",))
            session.execute(delete(ServerProcess).where(ServerProcess.seen_at < now - SHOWN))

    def leave(self) -> None:
        """This server stops."""
        with self.database.write() as session:
            session.execute(delete(ServerProcess).where(ServerProcess.id == self.id))


def list_servers(session: Session, settings: Settings) -> ServerList:
    """Those that are there, and those that have died since yesterday; the oldest first."""
    now, leads = database_now(session), leader(session, settings.leader_lease_s)
    rows = session.scalars(select(ServerProcess).order_by(ServerProcess.started_at, ServerProcess.id))
    return ServerList(
        items=tuple(
            ServerView(
                id=row.id,
                name=row.name,
                version=row.version,
                started_at=row.started_at,
                seen_at=row.seen_at,
                alive=now - row.seen_at < ALIVE,
                leads=row.id == leads,
            )
            for row in rows
        )
    )


def count_alive(session: Session) -> int:
    """How many servers are there."""
    recent = ServerProcess.seen_at > database_now(session) - ALIVE
    return session.scalar(select(func.count()).where(recent)) or 0


def with_other_keys(session: Session, public_pem: str) -> str | None:
    """The name of a living server whose key pair is another one."""
    query = select(ServerProcess.name).where(
        ServerProcess.seen_at > database_now(session) - ALIVE,
        ServerProcess.key_sha256 != fingerprint(public_pem),
    )
    return session.scalars(query.limit(1)).first()
