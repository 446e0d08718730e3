"""Why things that a project's storage lists can't be deleted now, so that nobody is offered what is refused.

The refusals themselves are in deletion.py and, of datasets, in server/artefacts/datasets.py.
"""

from collections import Counter

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from powermean.contracts.api import JobState
from powermean.contracts.replays import ReplayState
from powermean.contracts.storage import ProjectStorage, StoredThing
from server.db.models import Checkpoint, Job, Replay

_LIVE = [state for state in JobState if not state.final]


def with_reasons(session: Session, storage: ProjectStorage) -> ProjectStorage:
    """The storage, whose largest things say why they can't be deleted."""
    jobs = {thing.id for thing in storage.largest if thing.kind != "datasets"}
    live = _live(session, jobs)
    newest = _newest_checkpoints(session, set(live))
    replayed = _replayed(session, jobs - set(live))
    datasets = _trained_on(session, {thing.id for thing in storage.largest if thing.kind == "datasets"})

    def reason(thing: StoredThing) -> str | None:
        state = live.get(thing.id)
        match thing.kind:
            case "datasets":
                count = datasets[thing.id]
                return f"{count} job{'s train' if count > 1 else ' trains'} on it" if count else None
            case "checkpoints":
                return (
                    f"the job is {state} and resumes from it" if newest.get(thing.id) == thing.step else None
                )
            case "models":
                return None
        if state:
            return f"the job is {state}"
        return "a replay of the job is running" if thing.id in replayed else None

    largest = tuple(thing.model_copy(update={"in_use": reason(thing)}) for thing in storage.largest)
    return storage.model_copy(update={"largest": largest})


def _live(session: Session, jobs: set[str]) -> dict[str, str]:
    """The states of those jobs that have not ended."""
    query = select(Job.id, Job.state).where(Job.id.in_(jobs), Job.state.in_(_LIVE))
    return dict(session.execute(query).all())


def _newest_checkpoints(session: Session, jobs: set[str]) -> dict[str, int]:
    query = select(Checkpoint.job_id, func.max(Checkpoint.step)).where(Checkpoint.job_id.in_(jobs))
    return dict(session.execute(query.group_by(Checkpoint.job_id)).all())


def _replayed(session: Session, jobs: set[str]) -> set[str]:
    query = select(Replay.job_id).where(Replay.job_id.in_(jobs), Replay.state == ReplayState.RUNNING)
    return set(session.scalars(query))


def _trained_on(session: Session, datasets: set[str]) -> Counter[str]:
    """How many jobs that have not ended train on each of the datasets."""
    dataset = Job.spec["data"]["dataset"].as_string()
    return Counter(session.scalars(select(dataset).where(Job.state.in_(_LIVE), dataset.in_(datasets))))
