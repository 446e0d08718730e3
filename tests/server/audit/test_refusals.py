"""A flood of refusals fills no disk, and is counted to the last one."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from powermean.contracts.audit import AuditEvent
from server.audit.refusals import MOST_ALIKE, MOST_KEPT, MOST_KINDS, WINDOW_S, Refusals


def refusal(address: str = "192.0.2.1", actor: str | None = None, status: int = 401) -> AuditEvent:
    return AuditEvent(
        at=datetime.now(UTC), actor=actor, address=address, verb="job.read", request="GET /v1/jobs",
        target="job-1", outcome="refused", status=status,
    )  # fmt: skip


def test_a_few_are_there_at_once_as_they_are() -> None:
    refusals = Refusals(clock=lambda: 0.0)
    given_ = [refusal(), refusal(actor="person-1", status=403)]
    for one in given_:
        refusals.add(one)
    assert refusals.take() == given_
    assert refusals.take() == []


def test_more_of_a_kind_become_one_entry_when_the_minute_ends() -> None:
    now = [0.0]
    refusals = Refusals(clock=lambda: now[0])
    for _ in range(100):
        refusals.add(refusal())
    assert len(refusals.take()) == MOST_ALIKE
    now[0] += WINDOW_S
    (rest,) = refusals.take()
    assert (rest.count, rest.address, rest.target) == (100 - MOST_ALIKE, "192.0.2.1", None)
    refusals.add(refusal())
    assert [one.count for one in refusals.take()] == [1]


@given(st.lists(st.tuples(st.integers(0, 200), st.floats(0, 100), st.booleans()), max_size=400))
def test_all_are_counted_and_few_are_written(arrivals: list[tuple[int, float, bool]]) -> None:
    now, taken, windows = [0.0], [], 1
    refusals = Refusals(clock=lambda: now[0])
    for address, pause, take in arrivals:
        now[0] += pause / 10
        windows = int(now[0] // WINDOW_S) + 1
        refusals.add(refusal(f"192.0.2.{address}"))
        taken += refusals.take() if take else []
    taken += refusals.take(all_of_them=True)
    assert sum(one.count for one in taken) == len(arrivals)
    assert len(taken) <= windows * (MOST_KINDS * (MOST_ALIKE + 1) + 1)


def test_what_could_not_be_written_is_kept_within_bounds() -> None:
    refusals = Refusals(clock=lambda: 0.0)
    refusals.give_back([refusal()] * (MOST_KEPT + 1))
    assert len(refusals.take()) == MOST_KEPT
