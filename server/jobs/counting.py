"""Which rows count.

A new attempt starts at its first step and replaces what earlier attempts wrote from there on: a row counts
iff no later attempt starts at or before its step. The rule is applied when reading, so no order of arrival
loses or duplicates a row.
"""

from sqlalchemy import ColumnElement, Select, and_, exists, select
from sqlalchemy.orm import InstrumentedAttribute, aliased

from server.db.models import Attempt


def counts(
    job_id: InstrumentedAttribute[str], attempt: InstrumentedAttribute[int], step: InstrumentedAttribute[int]
) -> ColumnElement[bool]:
    """The rule for the rows of a table with these columns."""
    later = aliased(Attempt)
    undone: Select[str] = select(later.id).where(
        and_(later.job_id == job_id, later.number > attempt, later.first_step <= step)
    )
    return ~exists(undone)
