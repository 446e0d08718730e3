"""Whatever is done to the audit log afterwards, the walk along its chain names the first place."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powermean.audit_chain import START, Break, is_signed, linked, sign_head, verify
from powermean.contracts.audit import AuditEntry, AuditEvent
from powermean.tokens import KeyPair, ensure_key_pair

LENGTH = 8


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return ensure_key_pair(tmp_path_factory.mktemp("secrets"))


def event(number: int) -> AuditEvent:
    return AuditEvent(
        at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number),
        actor="person-1",
        verb="job.submit",
        request="POST /v1/jobs",
        target=f"job-{number}",
        outcome="allowed",
    )


def log_of(events: list[AuditEvent], first: int = 1, previous: str = START) -> list[AuditEntry]:
    entries = []
    for seq, one in enumerate(events, first):
        entries.append(linked(one, seq, previous))
        previous = entries[-1].hash
    return entries


LOG = log_of([event(number) for number in range(LENGTH)])


def test_an_untouched_log_is_whole(pair: KeyPair) -> None:
    verdict = verify(LOG, sign_head(pair.private_pem, 5, LOG[4].hash))
    assert (verdict.entries, verdict.hash, verdict.broken) == (LENGTH, LOG[-1].hash, None)


@given(place=st.integers(1, LENGTH))
def test_a_changed_entry_is_named(place: int) -> None:
    changed = LOG[place - 1].model_copy(update={"target": "job-of-others"})
    broken = verify([*LOG[: place - 1], changed, *LOG[place:]]).broken
    assert broken is not None
    assert (broken.seq, broken.what) == (place, "was changed: its hash is another one's")


@given(place=st.integers(1, LENGTH - 1))
def test_a_changed_entry_with_a_hash_to_fit_is_named(place: int) -> None:
    forged = linked(event(99), place, LOG[place - 2].hash if place > 1 else START)
    broken = verify([*LOG[: place - 1], forged, *LOG[place:]]).broken
    assert broken is not None
    assert broken.seq == place


@given(place=st.integers(1, LENGTH - 1))
def test_a_removed_entry_is_named(place: int) -> None:
    broken = verify([*LOG[: place - 1], *LOG[place:]]).broken
    assert broken == Break(place, f"is missing: after entry {place - 1} comes {place + 1}")


@given(place=st.integers(1, LENGTH))
def test_an_inserted_entry_is_named(place: int) -> None:
    """The entries after it are renumbered, and given hashes that fit but for the one before."""
    forged = linked(event(99), place, LOG[place - 2].hash if place > 1 else START)
    moved = [linked(event(one.seq - 1), one.seq + 1, one.previous) for one in LOG[place - 1 :]]
    broken = verify([*LOG[: place - 1], forged, *moved]).broken
    assert broken is not None
    assert broken.seq == place


@given(kept=st.integers(0, LENGTH - 1))
def test_entries_missing_at_the_end_are_found_by_the_head_alone(pair: KeyPair, kept: int) -> None:
    head = sign_head(pair.private_pem, LENGTH, LOG[-1].hash)
    assert verify(LOG[:kept]).broken is None
    assert verify(LOG[:kept], head).broken == Break(
        kept + 1, f"is missing: the signed head names entry {LENGTH}"
    )


@given(first=st.integers(1, LENGTH))
def test_a_log_rewritten_to_its_end_is_found_by_the_head_alone(pair: KeyPair, first: int) -> None:
    before = LOG[: first - 1]
    rewritten = log_of(
        [event(100 + number) for number in range(LENGTH)], first, before[-1].hash if before else START
    )
    assert verify([*before, *rewritten]).broken is None
    broken = verify([*before, *rewritten], sign_head(pair.private_pem, LENGTH, LOG[-1].hash)).broken
    assert broken is not None
    assert broken.seq == LENGTH


def test_every_field_is_in_the_hash() -> None:
    """So that nobody adds a field that can be changed unseen."""
    full = AuditEvent(
        at=datetime(2026, 1, 1, tzinfo=UTC), actor="a", actor_name="b", key_id="c", address="d", verb="e",
        request="f", target="g", project="h", outcome="refused", status=403, count=2, detail={"role": "i"},
        request_id="j",
    )  # fmt: skip
    other = {
        "at": datetime(2026, 1, 2, tzinfo=UTC), "outcome": "allowed", "status": 401, "count": 3,
        "detail": {"role": "x"},
    }  # fmt: skip
    hashes = {linked(full, 1, START).hash}
    for name in AuditEvent.model_fields:
        hashes.add(linked(full.model_copy(update={name: other.get(name, "x")}), 1, START).hash)
    assert len(hashes) == len(AuditEvent.model_fields) + 1


def test_a_head_is_signed_for_what_it_says(pair: KeyPair, tmp_path: Path) -> None:
    head = sign_head(pair.private_pem, 5, LOG[4].hash)
    assert is_signed(head, pair.public_pem)
    assert not is_signed(head.model_copy(update={"seq": 4}), pair.public_pem)
    assert not is_signed(head.model_copy(update={"signature": "x.y.z"}), pair.public_pem)
    assert not is_signed(head, ensure_key_pair(tmp_path).public_pem)
