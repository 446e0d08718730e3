"""What projects are guaranteed, may borrow and use now, and changes of it by administrators."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from powermean.contracts.api import FieldError
from powermean.contracts.sharing import (
    ChangedQuota,
    ClusterShare,
    ClusterTotals,
    ProjectQuota,
    QuotaChange,
    QuotaList,
    Share,
)
from server.cluster import engines, inventory
from server.db.models import Attempt, Job, Project
from server.db.session import changes
from server.errors import ConflictError
from server.identity.callers import Caller
from server.jobs import allocations
from server.nodes import living_ids
from server.settings import Settings

Held = Mapping[str, tuple[int, int]]  # project -> GPUs and CPU slots
_NOTHING = (0, 0)


def list_quotas(session: Session, settings: Settings, caller: Caller) -> QuotaList:
    """Of the projects that the caller sees; with the cluster's totals for those who see all of them."""
    query = select(Project).where(Project.deleted_at.is_(None)).order_by(Project.id)
    if caller.visible is not None:
        query = query.where(Project.id.in_(caller.visible))
    projects, held = session.scalars(query).all(), held_by_project(session)
    return QuotaList(
        items=tuple(_view(project, held) for project in projects),
        cluster=_totals(session, settings, projects, held) if caller.visible is None else None,
    )


def change(session: Session, settings: Settings, project: str, wanted: QuotaChange) -> ChangedQuota:
    """Replace a project's quotas, unless somebody else changed them since the caller read them.

    Raises ConflictError with the present values.
    """
    values = wanted.model_dump(exclude={"version", "weight"})
    same = (Project.id == project, Project.quota_version == wanted.version)
    changed = session.execute(
        update(Project)
        .where(*same)
        .values(**values, share_weight=wanted.weight, quota_version=Project.quota_version + 1)
        .returning(Project.id)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    row = session.get_one(Project, project, populate_existing=True)
    if changed is None and not _is_repeated(row, wanted):
        raise _changed_meanwhile(row)
    changes(session).plan = True
    held = held_by_project(session)
    everyone = session.scalars(select(Project).where(Project.deleted_at.is_(None))).all()
    totals = _totals(session, settings, everyone, held)
    return ChangedQuota(**dict(_view(row, held)), warnings=_warnings(totals))


def held_by_project(session: Session) -> Held:
    """How many GPUs and CPU slots the jobs of each project hold."""
    gpus: dict[str, set[tuple[str, str]]] = defaultdict(set)  # attempt -> (node, GPU)
    slots: dict[str, set[str]] = defaultdict(set)  # attempt -> nodes
    for part in allocations.held(session):
        if part.gpu_uuids:
            gpus[part.attempt_id].update((part.node_id, uuid) for uuid in part.gpu_uuids)
        elif part.engine_id is None:
            slots[part.attempt_id].add(part.node_id)
    if not gpus and not slots:
        return {}
    owners = select(Attempt.id, Job.project_id).join(Job, Job.id == Attempt.job_id)
    owners = owners.where(Attempt.id.in_(gpus.keys() | slots.keys()))
    found: dict[str, tuple[int, int]] = {}
    for attempt, project in session.execute(owners):
        before = found.get(project, _NOTHING)
        found[project] = (before[0] + len(gpus[attempt]), before[1] + len(slots[attempt]))
    return found


def _view(project: Project, held: Held) -> ProjectQuota:
    gpus, slots = held.get(project.id, _NOTHING)
    return ProjectQuota(
        project=project.id,
        title=project.title,
        gpus=Share(quota=project.gpu_quota, limit=project.gpu_limit, used=gpus),
        cpu_slots=Share(quota=project.cpu_quota, limit=project.cpu_limit, used=slots),
        weight=project.share_weight,
        version=project.quota_version,
    )


def _totals(session: Session, settings: Settings, projects: Sequence[Project], held: Held) -> ClusterTotals:
    living, _ = inventory.known(session, living_ids(session, settings))
    shared = sum(len(uuids) for uuids in engines.gpus_held(session).values())
    return ClusterTotals(
        gpus=ClusterShare(
            total=sum(node.gpus for node in living),
            used=sum(gpus for gpus, _ in held.values()) + shared,
            quotas=sum(project.gpu_quota for project in projects),
        ),
        cpu_slots=ClusterShare(
            total=sum(node.cpu_slots for node in living),
            used=sum(slots for _, slots in held.values()),
            quotas=sum(project.cpu_quota for project in projects),
        ),
    )


def _warnings(totals: ClusterTotals) -> tuple[str, ...]:
    """Quotas may promise more than there is, since nodes come and go; whoever promises it is told."""
    return tuple(
        f"all quotas add up to {share.quotas} {what}, {share.quotas - share.total} more than the "
        f"{share.total} that the connected nodes have"
        for share, what in ((totals.gpus, "GPUs"), (totals.cpu_slots, "CPU slots"))
        if share.quotas > share.total
    )


def _is_repeated(row: Project, wanted: QuotaChange) -> bool:
    """Whether this change was made already: its answer got lost, and it was sent again."""
    return _present(row) == wanted.model_dump(exclude={"version"}) | {"version": wanted.version + 1}


def _present(row: Project) -> dict[str, float | None]:
    return {
        "gpu_quota": row.gpu_quota,
        "gpu_limit": row.gpu_limit,
        "cpu_quota": row.cpu_quota,
        "cpu_limit": row.cpu_limit,
        "weight": row.share_weight,
        "version": row.quota_version,
    }


def _changed_meanwhile(row: Project) -> ConflictError:
    present = _present(row)
    return ConflictError(
        f"somebody else changed the quota of project {row.id}",
        remedy="Look at what it is now, then send your change with this version.",
        fields=[
            FieldError(path=name, message=f"is now {'none' if value is None else value}")
            for name, value in present.items()
        ],
    )
