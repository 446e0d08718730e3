"""Which rows count.

A new attempt starts at its first step and replaces what earlier attempts wrote from there on: a row counts
iff no later attempt starts at or before its step. The rule is applied when reading, so no order of arrival
loses or duplicates a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from sqlalchemy import ColumnElement, and_, or_, select, true
from sqlalchemy.orm import InstrumentedAttribute, Session

from server.db.models import Attempt


@dataclass(frozen=True)
class Share:
    """An attempt's part of its job's history: its rows of steps below `end` count (None: all of them).

    It has none before `start`: an attempt may complete the step before its first.
    """

    attempt: int
    start: int
    end: int | None
    summarised: int  # its steps below are in metric_blocks


def shares(session: Session, job_id: str) -> list[Share]:
    """The attempts of which rows may count, the first attempt first."""
    query = (
        select(Attempt.number, Attempt.first_step, Attempt.summarised)
        .where(Attempt.job_id == job_id)
        .order_by(Attempt.number.desc())
    )
    newest_first = session.execute(query).all()
    ends = [None, *accumulate((first_step for _, first_step, _ in newest_first), min)]
    found = [
        Share(number, max(first_step - 1, 0), end, summarised)
        for (number, first_step, summarised), end in zip(newest_first, ends, strict=False)
    ]
    return found[::-1]


def counts(
    found: Sequence[Share], attempt: InstrumentedAttribute[int], step: InstrumentedAttribute[int]
) -> ColumnElement[bool]:
    """The rule for the rows of one job in a table with these columns; none is needed for a single attempt."""
    if len(found) <= 1:
        return true()
    return or_(
        *(
            attempt == share.attempt
            if share.end is None
            else and_(attempt == share.attempt, step < share.end)
            for share in found
        )
    )
