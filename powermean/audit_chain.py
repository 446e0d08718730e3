"""The hash chain of the audit log: each entry's hash covers the entry and the hash before it.

Pure functions over entries, so that whoever has an export can check it without the server.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC

import jwt

from powermean.contracts.audit import AuditCut, AuditEntry, AuditEvent, AuditHead
from powermean.tokens import ALGORITHM, ISSUER

START = "0" * 64  # `previous` of the first entry
AUDIENCE, CUT_AUDIENCE = "powermean-audit", "powermean-audit-cut"


@dataclass(frozen=True)
class Break:
    """The first place where the log is not what was written."""

    seq: int
    what: str


@dataclass(frozen=True)
class Verdict:
    """How far the log reaches, and where it is broken, if it is."""

    entries: int  # number of the last one
    hash: str
    broken: Break | None = None
    first: int = 1  # the entry that the walk began with

    def said(self, head: AuditHead | None) -> str:
        """In a line, for whoever asked on the command line."""
        if self.broken is not None:
            return f"entry {self.broken.seq} {self.broken.what}"
        against = f"up to {head.seq} as signed" if head else "but no signed head says where they end"
        if self.first > 1:
            return (
                f"entries {self.first} to {self.entries} are unbroken, {against}; those before are archived"
            )
        return f"{self.entries} entries are unbroken, {against}"


def entry_hash(entry: AuditEvent, seq: int, previous: str) -> str:
    """The sha256 of the entry as canonical JSON: sorted keys, no spaces, UTC; what is not set is left out,
    so that a field that is added later changes no old hash."""
    fields = entry.model_dump(exclude={"hash"}, exclude_none=True)
    fields |= {"seq": seq, "previous": previous}
    fields["at"] = entry.at.astimezone(UTC).isoformat(timespec="microseconds")
    if not fields["detail"]:
        del fields["detail"]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def linked(event: AuditEvent, seq: int, previous: str) -> AuditEntry:
    """The event as the log's entry number `seq`."""
    return AuditEntry(**dict(event), seq=seq, previous=previous, hash=entry_hash(event, seq, previous))


def verify(
    entries: Iterable[AuditEntry], head: AuditHead | None = None, cut: AuditCut | None = None
) -> Verdict:
    """Walk the log, oldest first: all of it, or what comes after `cut`, before which it was archived.

    With an earlier head, entries missing at the end are found, too.
    """
    last, previous = (cut.seq, cut.hash) if cut is not None else (0, START)
    first, at_head = last + 1, previous
    for entry in entries:
        broken = _break_at(entry, last, previous)
        if broken is not None:
            return Verdict(last, previous, broken, first)
        last, previous = entry.seq, entry.hash
        if head is not None and last == head.seq:
            at_head = previous
    return Verdict(last, previous, _break_before(head, first, last, at_head), first)


def _break_at(entry: AuditEntry, last: int, previous: str) -> Break | None:
    if entry.seq != last + 1:
        return Break(last + 1, f"is missing: after entry {last} comes {entry.seq}")
    if entry.hash != entry_hash(entry, entry.seq, entry.previous):
        return Break(entry.seq, "was changed: its hash is another one's")
    if entry.previous != previous:
        return Break(
            max(last, 1), f"was changed, removed or inserted: entry {entry.seq} followed another one"
        )
    return None


def _break_before(head: AuditHead | None, first: int, last: int, at_head: str) -> Break | None:
    if head is None or head.seq == 0:
        return None
    if head.seq < first - 1:
        return Break(head.seq, "is archived, so the signed head can't be compared: name the archives, too")
    if last < head.seq:
        return Break(last + 1, f"is missing: the signed head names entry {head.seq}")
    if at_head != head.hash:
        return Break(head.seq, "is not the one that the signed head names: the log was rewritten")
    return None


def sign_head(private_key_pem: str, seq: int, hash_: str, cut: AuditCut | None = None) -> AuditHead:
    """The head with a signature."""
    return AuditHead(
        seq=seq, hash=hash_, signature=_signature(private_key_pem, AUDIENCE, seq, hash_), cut=cut
    )


def sign_cut(private_key_pem: str, seq: int, hash_: str) -> AuditCut:
    """The cut with a signature. Nobody else gets one: heads, which are given out, do not serve as cuts."""
    return AuditCut(seq=seq, hash=hash_, signature=_signature(private_key_pem, CUT_AUDIENCE, seq, hash_))


def _signature(private_key_pem: str, audience: str, seq: int, hash_: str) -> str:
    claims = {"iss": ISSUER, "aud": audience, "seq": seq, "hash": hash_}
    return jwt.encode(claims, private_key_pem, algorithm=ALGORITHM)


def is_signed(signed: AuditHead | AuditCut, public_key_pem: str) -> bool:
    """Whether the owner of this key signed just this head or cut."""
    audience = CUT_AUDIENCE if isinstance(signed, AuditCut) else AUDIENCE
    try:
        claims = jwt.decode(
            signed.signature, public_key_pem, algorithms=[ALGORITHM], audience=audience, issuer=ISSUER
        )
    except jwt.InvalidTokenError:
        return False
    return (claims.get("seq"), claims.get("hash")) == (signed.seq, signed.hash)
