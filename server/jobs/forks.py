"""Jobs that train on from another job's weights: what `model.from` stands for, and who trains on from whom.

The files are the parent's own objects. A row for each job that they belong to keeps them in the store for as
long as the fork is there, whatever becomes of the parent or its checkpoint.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.contracts.artefacts import Manifest
from powermean.contracts.forks import Fork, Origin
from powermean.contracts.job import JobSpec
from powermean.contracts.models import LoraSpec
from server.db.models import Checkpoint, ForkedFiles, Job
from server.errors import InvalidInputError, NotFoundError
from server.jobs import repository
from server.jobs.best import best_of
from server.jobs.events import lock_job
from server.jobs.stored_spec import SpecRefusedError, chosen

PATH = "model.from"
SHOWN = 100  # forks of a job
_STEPS_SHOWN = 20
# Of a checkpoint: what a fork does not take. Files of other names may be its weights.
_LEFT_OUT = ("optimizer", "random")
_WITHOUT_IT = (
    "Give a checkpoint by its step instead of best, the final model, which has an adapter merged, or another "
    "model."
)
_OF_ANY_FORK = ("model.name", "model.folder")  # whatever the parent stored, a fork of it needs them


def resolve(session: Session, spec: JobSpec, project: str) -> Origin | None:
    """What the spec's `model.from` stands for; None for a model by name or folder.

    The parent stays locked, so that nothing it stored goes before the transaction ends.

    Raises:
        InvalidInputError: the caller sees no such job, it is another project's, it has no such checkpoint or
            no model, the spec's adapter is another than the checkpoint's, or this version refuses a field of
            the parent's spec that says what there is to begin with.
    """
    if spec.model.from_ is None:
        return None
    parent_id, _, step = spec.model.from_.partition("@")
    try:
        parent = lock_job(session, parent_id)
        origin = found_at(session, parent, step or None)
        adapter = chosen(parent.spec, "model.lora") if origin.kind == "adapter" else None
    except NotFoundError as error:
        raise InvalidInputError.at(PATH, error.message, error.remedy) from error
    except SpecRefusedError as error:
        remedy = "Give another model." if error.field in _OF_ANY_FORK else _WITHOUT_IT
        raise InvalidInputError.at(PATH, f"{parent_id}: {error.message}", remedy) from error
    if parent.project_id != project:
        raise InvalidInputError.at(
            PATH,
            f"{parent_id} belongs to project {parent.project_id}, this job to {project}",
            f"Set project: {parent.project_id}.",
        )
    if spec.rollout.sharing == "shared" and not origin.over_first_model:
        why = f"no declared engine serves the model of {spec.model.from_}, which this job begins with"
        raise InvalidInputError.at("rollout.sharing", why, "Set it to auto or own.")
    if adapter is not None:
        _check_adapter(spec.model.lora, adapter, spec.model.from_)
    return origin


def found_at(session: Session, job: Job, step: str | None) -> Origin:
    """A job's final model, or its checkpoint of a step (a number, or `best`) without the optimiser's state.

    Raises NotFoundError, which says what the job has instead, or SpecRefusedError.
    """
    return _of_model(session, job) if step is None else _of_checkpoint(session, job, step)


def remember(session: Session, job: Job, origin: Origin) -> None:
    """Note where a new job begins, and keep the files that it needs."""
    job.forked_from, job.forked_step = origin.job_id, origin.step
    job.origin = origin.model_dump(mode="json", by_alias=True)
    files: dict[str, list[dict[str, Any]]] = defaultdict(list)
    part: Origin | None = origin
    while part is not None:
        files[part.job_id] += [ref.model_dump(mode="json") for ref in part.files.files.values()]
        part = part.base
    session.add_all(ForkedFiles(job_id=job.id, owner=owner, files=refs) for owner, refs in files.items())


def origin_of(job: Job) -> Origin | None:
    """Where a job's weights come from, if that is another job."""
    return Origin.model_validate(job.origin) if job.origin else None


def forks(session: Session, job_id: str) -> tuple[Fork, ...]:
    """The jobs that began with this one's weights, the newest first."""
    query = select(Job.id, Job.name, Job.state, Job.forked_step).where(Job.forked_from == job_id)
    found = session.execute(query.where(Job.deleted_at.is_(None)).order_by(Job.id.desc()).limit(SHOWN))
    return tuple(Fork(job=job, name=name, state=state, step=step) for job, name, state, step in found)


def _of_model(session: Session, parent: Job) -> Origin:
    if not parent.result:
        found = repository.checkpoints(session, parent.id)
        what = f"{parent.id} is {parent.state} and has no final model"
        raise NotFoundError(what, remedy=_which(parent, found))
    files = {
        path: ref
        for path, ref in Manifest.model_validate(parent.result["model"]).files.items()
        if not path.startswith("adapter/")  # it is merged into the model
    }
    if not files:
        found = repository.checkpoints(session, parent.id)
        raise NotFoundError(f"the final model of {parent.id} was deleted", remedy=_which(parent, found))
    return _origin(parent, "model", None, files)


def _of_checkpoint(session: Session, parent: Job, step: str) -> Origin:
    found = repository.checkpoints(session, parent.id)  # a later attempt's comes first
    if step == "best":
        checkpoint, which = best_of(parent, found), "with a value of checkpoints.best"
    else:
        checkpoint, which = next((one for one in found if one.step == int(step)), None), f"of step {step}"
    if checkpoint is None:
        raise NotFoundError(f"{parent.id} has no checkpoint {which}", remedy=_which(parent, found))
    files = {
        path: ref
        for path, ref in Manifest.model_validate(checkpoint.manifest).files.items()
        if not path.startswith(_LEFT_OUT)
    }
    has_adapter = parent.spec["model"].get("lora") is not None
    return _origin(parent, "adapter" if has_adapter else "weights", checkpoint.step, files)


def _origin(
    parent: Job, kind: Literal["model", "weights", "adapter"], step: int | None, files: dict[str, Any]
) -> Origin:
    before = origin_of(parent)
    base = None
    if kind == "adapter" and before is not None:
        base = before.base if before.kind == "adapter" else before
    return Origin(
        job_id=parent.id,
        step=step,
        kind=kind,
        files=Manifest(files=files),
        name=before.name if before else chosen(parent.spec, "model.name"),
        folder=before.folder if before else chosen(parent.spec, "model.folder"),
        base=base,
    )


def _which(parent: Job, found: Sequence[Checkpoint]) -> str:
    """What the job has to train on from."""
    steps = sorted({one.step for one in found})
    if steps:
        some = ", ".join(map(str, steps[-_STEPS_SHOWN:]))
        return f"It has checkpoints of steps {some}: give {parent.id}@{steps[-1]}, for example."
    if parent.result and parent.result["model"]["files"]:
        return f"It has a final model: give {parent.id}."
    return "It has no checkpoint either; a running job saves the first after checkpoints.every steps."


def _check_adapter(given: LoraSpec | None, of_parent: LoraSpec, source: str) -> None:
    wanted = of_parent.model_dump(exclude={"dropout"})
    if given is not None and given.model_dump(exclude={"dropout"}) == wanted:
        return
    shape = ", ".join(f"{name} {_plain(value)}" for name, value in wanted.items())
    raise InvalidInputError.at(
        "model.lora",
        f"{source} is a checkpoint of an adapter with {shape}" + ("" if given else ", and lora is not given"),
        "Give model.lora the same values, or train on from the final model, which has the adapter merged.",
    )


def _plain(value: object) -> str:
    return (", ".join(map(str, value)) or "()") if isinstance(value, tuple | list) else str(value)
