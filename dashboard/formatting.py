"""Numbers, times and texts for people. Pure functions; templates use them as filters."""

import re
from datetime import UTC, datetime

from markupsafe import Markup, escape

from powermean.contracts.api import JobState, JobSummary

MINUTE, HOUR, DAY = 60, 3600, 86400


def number(value: float | None) -> str:
    """Four significant digits, or a dash for no number. static/js/format.js does the same."""
    if value is None:
        return "–"
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}" if abs(value) < 1e15 else f"{value:.3e}"
    size = abs(value)
    if size >= 1e6 or size < 1e-4:
        return f"{value:.2e}"
    decimals = 0 if size >= 10_000 else 1 if size >= 1000 else 2 if size >= 100 else 3 if size >= 1 else 4
    return f"{value:,.{decimals}f}"


def signed(value: float | None) -> str:
    """A number with its sign, for advantages and the like."""
    text = number(value)
    return f"+{text}" if value is not None and value > 0 else text.replace("-", "−")


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def duration(seconds: float | None) -> str:
    """Two units at most: 45 s, 3 min 20 s, 2 h 5 min, 4 d 3 h."""
    if seconds is None:
        return "–"
    whole = max(0, round(seconds))
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    if whole < DAY:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"
    return f"{whole // DAY} d {whole % DAY // HOUR} h"


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """How long ago, or in how long, in one unit."""
    if moment is None:
        return "–"
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds <= -MINUTE:
        unit, length = next(one for one in (("d", DAY), ("h", HOUR), ("min", MINUTE)) if -seconds >= one[1])
        return f"in {round(-seconds / length)} {unit}"
    if seconds < 5:
        return "just now"
    for unit, length in (("d", DAY), ("h", HOUR), ("min", MINUTE)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return f"{int(seconds)} s ago"


def moment(value: datetime | None) -> Markup:
    """A <time> element: relative text, with the exact time (UTC) on hover."""
    if value is None:
        return Markup("–")
    exact = value.astimezone(UTC)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        exact.isoformat(timespec="seconds"), exact.strftime("%Y-%m-%d %H:%M:%S UTC"), ago(value)
    )


_BROWSERS = (  # the more particular ones first: each says that it is all of those below it
    ("Edg/", "Edge"),
    ("OPR/", "Opera"),
    ("Firefox/", "Firefox"),
    ("Chrome/", "Chrome"),
    ("Safari/", "Safari"),
)
_SYSTEMS = ("Android", "iPhone", "iPad", "Windows", "Mac OS", "Linux")


def browser_name(agent: str | None) -> str:
    """What people call a browser, from its User-Agent header; unknown ones by their own words."""
    if not agent:
        return "not known"
    name = next((name for mark, name in _BROWSERS if mark in agent), agent[:60])
    system = next((one for one in _SYSTEMS if one in agent), None)
    return f"{name} on {system}" if system is not None and name != agent[:60] else name


def elapsed(started: datetime | None, finished: datetime | None, now: datetime | None = None) -> str:
    """How long something has run, or ran."""
    if started is None:
        return "–"
    return duration(((finished or now or datetime.now(UTC)) - started).total_seconds())


_INVISIBLE = re.compile(
    r"( +)|(\n)|(\t)|([\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff])"
)


def visible(text: str) -> Markup:
    """Escaped text with visible white space, and with control and direction characters spelled out.

    Spaces, tabs and line breaks stay in the text (styles draw a mark over them), so copying gives the
    original.
    """

    def mark(match: re.Match[str]) -> str:
        spaces, line_end, tab, control = match.groups()
        if spaces:
            return f'<i class="sp">{spaces}</i>'
        if line_end:
            return '<i class="nl">\n</i>'
        return '<i class="tab">\t</i>' if tab else f'<i class="ctl">U+{ord(control):04X}</i>'

    return Markup(_INVISIBLE.sub(mark, str(escape(text))))  # noqa: S704 - escaped first; the marks are ours


def state_class(state: str) -> str:
    """CSS class of a job's state; unknown states look neutral."""
    return f"state-{state}" if state in set(JobState) else "state-queued"


def state_word(job: JobSummary) -> str:
    """A job's state in a word; one that is about to change says so."""
    if job.state.final:
        return job.state.value
    return "cancelling" if job.cancel_requested else "pausing" if job.pause_requested else job.state.value
