"""Times on the command line."""

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
import typer

from powermean.cli.times import coming, moment

NOW = datetime(2026, 11, 27, 12)
AHEAD = timezone(timedelta(hours=1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-12-01", datetime(2026, 12, 1).astimezone()),
        ("2026-12-01 22:00", datetime(2026, 12, 1, 22).astimezone()),
        ("2026-12-01T22:00", datetime(2026, 12, 1, 22).astimezone()),
        ("2026-12-01T22:00+01:00", datetime(2026, 12, 1, 22, tzinfo=AHEAD)),
        ("2026-12-01T22:00:30Z", datetime(2026, 12, 1, 22, 0, 30, tzinfo=UTC)),
    ],
)
def test_a_day_or_a_time(text: str, expected: datetime) -> None:
    assert (moment(text), coming(text, NOW)) == (expected, expected)


def test_a_time_of_day_is_the_next_one() -> None:
    assert coming("22:00", NOW) == datetime(2026, 11, 27, 22).astimezone()
    assert coming("11:00", NOW) == datetime(2026, 11, 28, 11).astimezone()
    assert coming("9:00", NOW) == datetime(2026, 11, 28, 9).astimezone()


@pytest.mark.parametrize(
    ("zone", "now", "text", "expected"),
    [
        ("America/New_York", "2026-11-27T22:00", "02:00+00:00", "2026-11-29T02:00+00:00"),
        ("America/New_York", "2026-11-27T22:00", "04:00+00:00", "2026-11-28T04:00+00:00"),
        ("Asia/Tokyo", "2026-11-28T00:30", "22:00+00:00", "2026-11-27T22:00+00:00"),
        ("Europe/Berlin", "2026-11-28T00:30", "23:45+00:00", "2026-11-27T23:45+00:00"),
        ("Europe/Berlin", "2026-10-24T23:00", "22:00", "2026-10-25T22:00+01:00"),  # summer time ends
    ],
)
def test_a_time_of_day_is_the_next_one_where_its_clock_is(
    monkeypatch: pytest.MonkeyPatch, zone: str, now: str, text: str, expected: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert coming(text, datetime.fromisoformat(now)) == datetime.fromisoformat(expected)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "tonight", "22", "2026", "25:00", "2026-13-01", "0001-01-01"])
def test_anything_else_is_refused_with_how_to_write_it(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="Write it like 2026-12-01"):
        moment(text)
    with pytest.raises(typer.BadParameter, match="Write it like 22:00, 2026-12-01"):
        coming(text, NOW)
