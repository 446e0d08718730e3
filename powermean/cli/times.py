"""Times as people type them: on this machine's clock unless they end with a time zone."""

import re
from datetime import datetime, time, timedelta

import typer

_FORMS = "2026-12-01, 2026-12-01T22:00 or 2026-12-01T22:00+01:00"
_CLOCK = re.compile(r"\d{1,2}:\d\d")


def moment(text: str) -> datetime:
    """A day or a time. Raises typer.BadParameter, to which the option's name is added."""
    try:
        at = datetime.fromisoformat(text)
        return at if at.tzinfo is not None else at.astimezone()
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(f"{text!a} is not a time. Write it like {_FORMS}.") from error


def coming(text: str, now: datetime | None = None) -> datetime:
    """As `moment`, or the next time that a clock shows this. `now` has no time zone: this machine's clock."""
    try:
        if not _CLOCK.match(text):
            return moment(text)
        shown = time.fromisoformat(f"0{text}" if text[1] == ":" else text)
    except (ValueError, typer.BadParameter) as error:
        raise typer.BadParameter(f"{text!a} is not a time. Write it like 22:00, {_FORMS}.") from error
    now = now or datetime.now()
    if shown.tzinfo is not None:
        now = now.astimezone(shown.tzinfo)
    at = datetime.combine(now.date(), shown)
    at = at if at > now else at + timedelta(days=1)
    return at if at.tzinfo is not None else at.astimezone()
