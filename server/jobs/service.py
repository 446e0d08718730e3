"""What people do with jobs, and the check of a spec by a node."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.allowed_models import AllowedModels, allowed_model, refusal
from powermean.contracts.api import Job as JobView
from powermean.contracts.api import JobState, SpecSource
from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.attempts import JobError, ValidationResult, ValidationTask
from powermean.contracts.data import JsonlSource
from powermean.contracts.job import JobSpec
from powermean.contracts.jsonl import TemplateError, template_fields
from powermean.contracts.names import VALIDATE_TASK
from powermean.contracts.revisions import OF_SPECS, without_later
from powermean.spec_yaml import to_yaml
from server import outbox
from server.db.inserts import insert_new
from server.db.models import Job, Person
from server.db.scoped import ScopedSession
from server.db.session import changes, database_now
from server.errors import ConflictError, ForbiddenError, InvalidInputError
from server.identity.callers import Caller
from server.identity.projects import choose, keep
from server.jobs import attempts, forks, priorities, repository
from server.jobs.demand import demand_of
from server.jobs.events import first_events, lock_job
from server.jobs.limits import judged_here
from server.jobs.states import (
    CHECKING,
    NO_STORE,
    change_phase,
    change_state,
    record_state,
    state_of,
    summary_data,
)
from server.jobs.stored_spec import is_same, readable
from server.jobs.views import job_view, runnable_spec
from server.usage import check_room, storage_limit
from server.vault.secrets import check as check_secrets

ONE_OF_A_KEY = ("created_by", "project_id", "idempotency_key")
_INSTEAD = "Submit its spec again as a new job."


@dataclass(frozen=True)
class Submitted:
    """A job, and whether this request created it (a repeated one did not)."""

    job: JobView
    new: bool


class RoomUnknownError(Exception):
    """Whether the project has room for more has to be summed first (`check_storage`)."""


def submit(
    session: ScopedSession,
    caller: Caller,
    spec: JobSpec,
    text: str,
    idempotency_key: str | None,
    allowed: AllowedModels = (),
    *,
    has_room: bool = False,
) -> Submitted:
    """Accept a job, or find the one that the same person submitted to the project under the same key.

    `text` is what the spec was read from; it is kept for people who edit and submit it again. `has_room` says
    that `check_storage` found none of the project's limits reached.

    Raises:
        InvalidInputError: there is no such project, secret or priority, the model or the priority is not
            allowed, there is nothing to train on from, or the spec's dataset does not exist or lacks a field.
        ForbiddenError: the caller may not submit to the project.
        ConflictError: the key was used for a different spec.
        RoomUnknownError: the project may store only so much, and `has_room` is not given.
    """
    project = choose(session, caller, "job.submit", spec.project)
    keep(session, project)
    row = new_row(caller.person_id, project, spec, text, idempotency_key, database_now(session))
    job = Job(**row)  # not the session's: for the views
    if not insert_new(session, Job, row, unique=ONE_OF_A_KEY):
        earlier = repository.job_by_idempotency_key(session, caller.person_id, project, idempotency_key or "")
        return _repeated(session, earlier, spec, text)
    if not has_room and storage_limit(session, project) is not None:
        raise RoomUnknownError
    origin = forks.resolve(session, spec, project)
    check_model(origin.name if origin else spec.model.name, allowed)
    if origin is not None:
        job = session.get_one(Job, job.id)
        job.demand = demand_of(spec, origin)
        forks.remember(session, job, origin)
    if why := priorities.objection(session, caller, project, spec.priority):
        raise InvalidInputError.at("priority", why, "GET /v1/priorities says who may use which.")
    check_dataset(session, spec, project)
    check_secrets(session, spec, project, caller.person_id)
    outbox.owe(session, VALIDATE_TASK, None, job.id, job.created_at)
    first_events(session, [(job, summary_data(job))])
    return Submitted(job_view(job, None, spec=spec), new=True)


def check_storage(session: ScopedSession, caller: Caller, spec: JobSpec) -> None:
    """Refuse a new job of a project that stores as much as it may, while the database is not held for it.

    Raises QuotaExceededError, and as submit().
    """
    check_room(session, choose(session, caller, "job.submit", spec.project))


def new_row(
    person_id: str, project: str, spec: JobSpec, text: str, idempotency_key: str | None, now: datetime
) -> dict[str, Any]:
    """The columns of a job that is submitted now."""
    asked = json.dumps(without_later(spec, OF_SPECS), sort_keys=True)
    return {
        "id": repository.new_job_id(),
        "name": spec.name,
        "project_id": project,
        "state": JobState.VALIDATING,
        "spec": spec.model_dump(mode="json"),
        "spec_text": text,
        "demand": demand_of(spec),
        "priority": spec.priority,
        "limits": judged_here(spec.limits),
        "algorithm": spec.algorithm.name,
        "total_steps": spec.training.steps,
        "step": 0,
        "phase": CHECKING,
        "seq": 1,
        "attempt": 0,
        "restarts": 0,
        "cancel_requested": False,
        "pause_requested": False,
        "preemptions": 0,
        "idempotency_key": idempotency_key,
        "spec_sha256": hashlib.sha256(asked.encode()).hexdigest(),  # servers of 0.1.0 compare it
        "created_by": person_id,
        "created_at": now,
    }


def _repeated(session: ScopedSession, earlier: Job, spec: JobSpec, text: str) -> Submitted:
    if not is_same(earlier.spec, earlier.spec_text, spec, text):
        raise ConflictError(
            f"the Idempotency-Key was used for job {earlier.id} with a different spec",
            remedy="Use a new key for a different spec.",
        )
    return Submitted(_view(session, earlier), new=False)


def check_model(name: str | None, allowed: AllowedModels) -> None:
    """Raises InvalidInputError for a model that the administrator has not allowed."""
    if name is not None and allowed_model(name, allowed) is None:
        raise InvalidInputError.at("model.name", *refusal(allowed))


def check_dataset(session: ScopedSession, spec: JobSpec, project: str) -> None:
    """Check that the project has the spec's dataset and that every row has the fields that the spec uses.

    Raises:
        InvalidInputError: naming the spec's field and the dataset's fields.
    """
    if not isinstance(spec.data, JsonlSource):
        return
    dataset = repository.get_dataset(session, spec.data.dataset, keep=True)
    if dataset is None:
        named = repository.dataset_named(session, spec.data.dataset, project)
        remedy = (
            f"That is the name of {named}: write the id." if named else "GET /v1/datasets lists the datasets."
        )
        raise InvalidInputError.at("data.dataset", f"no dataset {spec.data.dataset}", remedy)
    if dataset.project_id != project:
        raise InvalidInputError.at(
            "data.dataset",
            f"{spec.data.dataset} belongs to project {dataset.project_id}, the job to {project}",
            f"Upload it to {project}, or set project: {dataset.project_id}.",
        )
    there = ", ".join(dataset.fields) or "none"
    remedy = f"Fields that every row of the dataset has: {there}."
    try:
        wanted = template_fields(spec.data.prompt)
    except TemplateError as error:
        raise InvalidInputError.at(
            "data.prompt", str(error), "Write {{ and }} for literal braces."
        ) from error
    for path, fields in (("data.prompt", sorted(wanted)), ("data.answer_field", [spec.data.answer_field])):
        for field in fields:
            if field not in dataset.fields:
                line = dataset.lacking.get(field, 1)
                raise InvalidInputError.at(path, f"line {line}: no field {field!r}", remedy)


def show(session: ScopedSession, job_id: str) -> JobView:
    """A job with its spec, attempts, result and its submitter's name."""
    job = repository.get_job(session, job_id)
    owner = session.scalar(select(Person.name).where(Person.id == job.created_by))
    return _view(session, job).model_copy(update={"owner": owner})


def _view(session: Session, job: Job) -> JobView:
    found = forks.forks(session, job.id) if job.attempt else ()  # before that there is nothing to fork
    return job_view(job, repository.seconds_left(session, job), found)


def source(session: ScopedSession, job_id: str) -> SpecSource:
    """The text that the job was submitted as; for a job older than that, what differs from the defaults, or
    all of it as stored if this version refuses a part.
    """
    job = repository.find_job(session, job_id)
    if job.spec_text:
        return SpecSource(text=job.spec_text)
    spec, refused = readable(job.spec, JobSpec)
    if spec is None or refused:
        return SpecSource(text=json.dumps(job.spec, indent=2))
    return SpecSource(text=to_yaml(spec, changed_only=True))


def cancel(session: ScopedSession, job_id: str, name: str) -> JobView:
    """Stop a job: at once if nothing runs, otherwise by an order in its next heartbeat's reply."""
    job = lock_job(session, job_id)
    if not state_of(job).final and not job.cancel_requested:
        if state_of(job) is JobState.RUNNING:
            job.cancel_requested = True
            attempts.order_cancel(session, job, f"cancelled by {name}", database_now(session))
            record_state(session, job)
        else:
            attempts.withdraw(session, job)
            outbox.settle(session, job.id, database_now(session))
            job.cancel_requested = True
            change_state(session, job, JobState.CANCELLED)
    return _view(session, job)


def pause(session: ScopedSession, job_id: str, name: str) -> JobView:
    """Have a job leave its place at the end of its step, and wait until somebody resumes it.

    At once if nothing runs; a spec that a node is checking is checked first. Raises ConflictError: the job
    has ended or is ending.
    """
    job = lock_job(session, job_id)
    state = state_of(job)
    if why := _ended(state) or _ending(session, job):
        raise ConflictError(f"job {job_id} {why}: it can't be paused", remedy=_INSTEAD)
    if state is not JobState.PAUSED and not job.pause_requested:
        job.pause_requested = True
        reason = f"paused by {name}"
        if state is JobState.QUEUED:
            change_state(session, job, JobState.PAUSED, reason)
        elif not attempts.order_stop(session, job, reason, database_now(session), cause="paused"):
            record_state(session, job)
    return _view(session, job)


def resume(session: ScopedSession, job_id: str) -> JobView:
    """Queue a paused job again; of one that is about to pause, the attempt still leaves first.

    No effect on a job that is not paused. Raises ConflictError: the job has ended or is being cancelled.
    """
    job = lock_job(session, job_id)
    state = state_of(job)
    if why := _ended(state):
        raise ConflictError(f"job {job_id} {why}: it can't be resumed", remedy=_INSTEAD)
    if job.cancel_requested:
        raise ConflictError(f"job {job_id} is being cancelled: it can't be resumed", remedy=_INSTEAD)
    if state is JobState.PAUSED:
        job.not_before = None
        change_state(session, job, JobState.QUEUED, "waiting for the scheduler")
    elif job.pause_requested:
        job.pause_requested = False
        record_state(session, job)
    return _view(session, job)


def set_priority(session: ScopedSession, caller: Caller, job_id: str, name: str) -> JobView:
    """Give a live job another priority. Raises InvalidInputError, ForbiddenError, or ConflictError."""
    job = lock_job(session, job_id)
    if why := _ended(state_of(job)):
        raise ConflictError(f"job {job_id} {why}: its priority can't be changed", remedy=_INSTEAD)
    if why := priorities.objection(session, caller, job.project_id, name):
        raise ForbiddenError(why, remedy="GET /v1/priorities says who may use which.")
    if job.priority != name:
        job.priority = name
        changes(session).plan = True
        record_state(session, job)
    return _view(session, job)


def _ending(session: Session, job: Job) -> str | None:
    if job.cancel_requested:
        return "is being cancelled"
    return "has reached a limit and is finishing" if attempts.finishes(session, job) else None


def _ended(state: JobState) -> str | None:
    return f"has ended ({state})" if state.final else None


def dataset_ref(session: Session, spec: JobSpec) -> ArtefactRef | None:
    """Where the spec's dataset is stored."""
    if not isinstance(spec.data, JsonlSource):
        return None
    dataset = repository.get_dataset(session, spec.data.dataset)
    return ArtefactRef.model_validate(dataset.artefact) if dataset is not None else None


def validation_task(session: Session, job_id: str) -> tuple[ValidationTask, Job]:
    """What a node should check, and whose it is.

    Raises:
        ConflictError: the job is not waiting for a check.
        SpecRefusedError: this version refuses a part of the spec.
    """
    job = repository.get_job(session, job_id)
    if state_of(job) is not JobState.VALIDATING:
        raise ConflictError(
            f"job {job_id} is {job.state}: there is nothing to check", remedy="Drop the task."
        )
    spec = runnable_spec(job)
    dataset, origin = dataset_ref(session, spec), forks.origin_of(job)
    return ValidationTask(job_id=job_id, spec=spec, dataset=dataset, origin=origin), job


def accept_validation(session: Session, job_id: str, result: ValidationResult) -> None:
    """Queue the job, or fail it with what the node found. A second result has no effect.

    A node that only could not use the artefact store says nothing about the spec: it is asked again.
    """
    job = lock_job(session, job_id)
    if state_of(job) is not JobState.VALIDATING:
        return
    if result.store_error is not None and not result.errors:
        change_phase(session, job, f"{NO_STORE}{result.store_error}"[:200], database_now(session))
        return
    outbox.settle(session, job_id, database_now(session))
    if not result.errors:
        job.longest_sequence = result.tokens
        if job.pause_requested:
            change_state(session, job, JobState.PAUSED, "paused")
        else:
            change_state(session, job, JobState.QUEUED, "waiting for the scheduler")
        return
    job.error = _combined(result.errors).model_dump(mode="json")
    change_state(session, job, JobState.FAILED)


def _combined(errors: tuple[JobError, ...]) -> JobError:
    """Combine several errors into one, because a job has only one."""
    first = errors[0]
    if len(errors) == 1:
        return first
    lines = [f"{error.path}: {error.message}" if error.path else error.message for error in errors]
    return JobError(code=first.code, message="\n".join(lines), path=first.path, remedy=first.remedy)
