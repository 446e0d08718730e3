"""Uploaded JSONL datasets: checked line by line, stored once by content."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from powermean.contracts.api import Dataset as DatasetView
from powermean.contracts.api import DatasetList, FieldError, JobState
from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.jsonl import JsonlError, check_line
from powermean.contracts.text import mended
from server.db.inserts import insert_new, upsert
from server.db.models import Dataset, Garbage, Job
from server.db.scoped import ScopedSession
from server.db.session import database_now
from server.errors import ConflictError, InvalidInputError, NotFoundError
from server.identity.callers import Caller
from server.identity.projects import keep

MAX_LINE = 4 * 2**20  # bytes
MAX_ERRORS = 20
MAX_FIELDS = 1000  # different ones in a dataset
MAX_FIELD_NAME = 200  # characters


@dataclass(frozen=True)
class Examined:
    """What is known about a file whose lines are all rows."""

    rows: int
    fields: tuple[str, ...]  # fields that every row has, in the first row's order
    lacking: dict[str, int]  # every other field -> the first line without it
    sha256: str

    def dataset_id(self, project: str) -> str:
        """The same content gives the same id in a project, and tells nothing about another's."""
        return f"ds-{hashlib.sha256(f'{project}/{self.sha256}'.encode()).hexdigest()[:24]}"


def examine(path: Path, required: Collection[str] = ()) -> Examined:
    """Read the file once, in bounded memory.

    Raises InvalidInputError, naming the first lines that are not rows or lack a field of `required`.
    """
    wrong: list[FieldError] = []
    fields = _Fields()
    digest, number = hashlib.sha256(), 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE + 1):
            digest.update(line)
            number += 1
            try:
                fields.take(number, _row(number, line, required))
            except JsonlError as error:
                wrong.append(FieldError(path=f"line {error.line}", message=error.message))
                if len(wrong) == MAX_ERRORS:
                    break
                _skip_rest(file, line)
    if wrong:
        first = wrong[0]
        raise InvalidInputError(
            f"{first.path}: {first.message}",
            remedy="Each line must be one JSON object; nothing was stored.",
            fields=wrong,
        )
    if not number:
        raise InvalidInputError.at("file", "the dataset has no rows", "Send one JSON object per line.")
    return Examined(
        rows=number,
        fields=tuple(name for name in fields.lacking if name in fields.common),
        lacking={name: line for name, line in fields.lacking.items() if name not in fields.common},
        sha256=digest.hexdigest(),
    )


class _Fields:
    """The fields of the rows so far. A row costs as much as it has fields, whatever came before."""

    def __init__(self) -> None:
        self.common: set[str] = set()  # those that every row has
        self.lacking: dict[str, int] = {}  # every field -> the first line without it, if there is one

    def take(self, number: int, row: Mapping[str, object]) -> None:
        """The next row. Raises JsonlError if there are too many fields."""
        for name in row:
            if name not in self.lacking:
                if len(name) > MAX_FIELD_NAME:
                    raise JsonlError(number, f"a field's name is longer than {MAX_FIELD_NAME} characters")
                if len(self.lacking) == MAX_FIELDS:
                    raise JsonlError(
                        number, f"field {name!r} is one more than the {MAX_FIELDS} that a dataset has"
                    )
                self.lacking[name] = 1
                if number == 1:
                    self.common.add(name)
        lost = self.common - {name for name, value in row.items() if value is not None}
        self.common -= lost
        self.lacking |= dict.fromkeys(lost, number)


def _row(number: int, line: bytes, required: Collection[str]) -> dict[str, object]:
    if len(line) > MAX_LINE:
        raise JsonlError(number, f"longer than {MAX_LINE} bytes")
    return check_line(number, line, required)


def _skip_rest(file: BinaryIO, line: bytes) -> None:
    """Read to the end of a line that is too long to hold."""
    while line and not line.endswith(b"\n"):
        line = file.readline(MAX_LINE)


def find(session: ScopedSession, dataset_id: str) -> DatasetView:
    """One dataset. Raises NotFoundError."""
    row = session.get(Dataset, dataset_id)
    if row is None:
        raise _no_dataset(dataset_id)
    return view(row)


def page(session: ScopedSession, project: str | None, cursor: str | None, limit: int) -> DatasetList:
    """Up to `limit` datasets (of a project), newest first, and the cursor of the next page.

    Raises InvalidInputError: the cursor is not one of ours.
    """
    query = select(Dataset).order_by(Dataset.created_at.desc(), Dataset.id).limit(limit + 1)
    if project is not None:
        query = query.where(Dataset.project_id == project)
    if cursor is not None:
        created, dataset_id = _read_cursor(cursor)
        same_time = and_(Dataset.created_at == created, Dataset.id > dataset_id)
        query = query.where(or_(Dataset.created_at < created, same_time))
    found = session.scalars(query).all()
    rest = _write_cursor(found[limit - 1]) if len(found) > limit else None
    return DatasetList(items=tuple(view(row) for row in found[:limit]), next=rest)


def _write_cursor(last: Dataset) -> str:
    return f"{last.created_at.isoformat()}/{last.id}"


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    created, _, dataset_id = cursor.partition("/")
    try:
        return datetime.fromisoformat(created).astimezone(UTC), dataset_id
    except (ValueError, OverflowError) as error:
        raise InvalidInputError.at(
            "cursor", "not a cursor of this list", "Take it from `next` of the previous page."
        ) from error


def add(
    session: ScopedSession, caller: Caller, project: str, name: str, found: Examined, ref: ArtefactRef
) -> DatasetView:
    """Store the dataset; one of the project with the same content keeps its id, name and file.

    Raises InvalidInputError: the project was deleted meanwhile.
    """
    keep(session, project)
    row = {
        "id": found.dataset_id(project),
        "project_id": project,
        "name": name,
        "rows": found.rows,
        "fields": list(found.fields),
        "lacking": found.lacking,
        "artefact": ref.model_dump(mode="json"),
        "sha256": found.sha256,
        "created_by": caller.person_id,
        "created_at": database_now(session),
    }
    if not insert_new(session, Dataset, row, unique=("project_id", "sha256")):
        discard(session, ref)
    query = select(Dataset).where(Dataset.project_id == project, Dataset.sha256 == found.sha256)
    return view(session.scalars(query).one())


def remove(session: ScopedSession, dataset_id: str) -> None:
    """Delete the dataset; its file becomes garbage.

    Raises NotFoundError, or ConflictError naming the jobs that have not ended and train on it.
    """
    row = session.get(Dataset, dataset_id, with_for_update=True)
    if row is None:
        raise _no_dataset(dataset_id)
    live = [state for state in JobState if not state.final]
    trains = select(Job.id).where(Job.state.in_(live), Job.spec["data"]["dataset"].as_string() == dataset_id)
    if job_ids := session.scalars(trains.order_by(Job.id).limit(MAX_ERRORS)).all():
        jobs = "job" if len(job_ids) == 1 else "jobs"
        raise ConflictError(
            f"{jobs} {', '.join(job_ids)} train{'s' if len(job_ids) == 1 else ''} on dataset {dataset_id}",
            remedy="Wait until they have ended, or cancel them.",
            fields=[FieldError(path=f"jobs.{job_id}", message="has not ended") for job_id in job_ids],
        )
    discard(session, ArtefactRef.model_validate(row.artefact))
    session.delete(row)


def discard(session: Session, ref: ArtefactRef) -> None:
    """Let the leader remove a file, unless a dataset refers to it."""
    upsert(session, Garbage, [{"key": ref.key, "created_at": database_now(session)}])


def view(row: Dataset) -> DatasetView:
    """The dataset as the API returns it; older versions stored names that are not Unicode."""
    ref = ArtefactRef.model_validate(row.artefact)
    return DatasetView(
        id=row.id,
        name=mended(row.name),
        rows=row.rows,
        fields=tuple(mended(name) for name in row.fields),
        sha256=ref.sha256,
        size=ref.size,
        project=row.project_id,
        created_by=row.created_by,
        created_at=row.created_at,
    )


def _no_dataset(dataset_id: str) -> NotFoundError:
    return NotFoundError(f"no dataset {dataset_id}", remedy="GET /v1/datasets lists the datasets.")
