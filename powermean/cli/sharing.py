"""Commands about sharing the cluster: quotas, the queue, GPU-hours."""

from datetime import datetime
from typing import Annotated, Any, Literal

import typer

from powermean.cli.choosing import job_id
from powermean.cli.progress import local_time
from powermean.cli.terminal import AsJson, checked, connected, counted, note, say, say_json, say_table
from powermean.cli.times import moment
from powermean.client import Client
from powermean.contracts.sharing import (
    ProjectQuota,
    QueuedJob,
    QuotaChange,
    QuotaList,
    Share,
    UsageRow,
)
from powermean.errors import PowermeanError

NO_LIMIT = "none"


def quota(
    project: Annotated[
        str | None, typer.Argument(metavar="PROJECT", help="The project; default: all of yours.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs that it is guaranteed.")] = None,
    limit: Annotated[
        str | None, typer.Option(metavar="N|none", help="The most GPUs, with borrowed ones.")
    ] = None,
    cpus: Annotated[int | None, typer.Option(help="CPU slots that it is guaranteed.")] = None,
    cpu_limit: Annotated[str | None, typer.Option(metavar="N|none", help="The most CPU slots.")] = None,
    weight: Annotated[
        float | None, typer.Option(help="Its part of what is idle, against other borrowers.")
    ] = None,
    json_: AsJson = False,
) -> None:
    """Show what projects are guaranteed and use; with options an administrator changes one's quota.

    Example: powermean quota team-a --gpus 8 --limit 16
    """
    given = {
        "gpu_quota": gpus,
        "gpu_limit": limit,
        "cpu_quota": cpus,
        "cpu_limit": cpu_limit,
        "weight": weight,
    }
    wanted: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    with connected() as client:
        if not wanted:
            _show_quotas(_of_project(client.quotas(), project), json_)
            return
        if project is None:
            raise PowermeanError("which project's quota?", remedy="Name it: powermean quota team-a --gpus 8")
        for name, option in (("gpu_limit", "--limit"), ("cpu_limit", "--cpu-limit")):
            if name in wanted:
                wanted[name] = _limit(option, wanted[name])
        _change_quota(client, project, wanted, json_)


def _limit(option: str, text: str) -> int | None:
    if text.lower() == NO_LIMIT:
        return None
    try:
        return int(text)
    except ValueError:
        raise PowermeanError(
            f"{option}: {text!a} is no number", remedy=f"Give a number, or {NO_LIMIT} for all that is idle."
        ) from None


def _of_project(found: QuotaList, project: str | None) -> QuotaList:
    items = tuple(one for one in found.items if project in (None, one.project))
    if project is not None and not items:
        raise PowermeanError(f"no project {project}", remedy="`powermean project list` lists yours.")
    return found.model_copy(update={"items": items})


def _show_quotas(found: QuotaList, json_: bool) -> None:
    if json_:
        say_json(found)
        return
    say_table(
        ("project", "GPUs used", "quota", "limit", "CPU slots used", "quota ", "limit ", "weight"),
        ((one.project, *_share(one.gpus), *_share(one.cpu_slots), f"{one.weight:g}") for one in found.items),
        right=("GPUs used", "quota", "limit", "CPU slots used", "quota ", "limit ", "weight"),
    )
    if found.cluster is not None:
        gpus, slots = found.cluster.gpus, found.cluster.cpu_slots
        say(
            f"\ncluster: {gpus.used} of {gpus.total} GPUs used, {gpus.quotas} guaranteed; "
            f"{slots.used} of {slots.total} CPU slots used, {slots.quotas} guaranteed"
        )


def _share(share: Share) -> tuple[str, str, str]:
    borrowed = f" ({share.borrowed} borrowed)" if share.borrowed else ""
    return f"{share.used}{borrowed}", str(share.quota), NO_LIMIT if share.limit is None else str(share.limit)


def _change_quota(client: Client, project: str, wanted: dict[str, Any], json_: bool) -> None:
    (before,) = _of_project(client.quotas(), project).items
    changed = client.change_quota(project, checked(QuotaChange, _as_change(before) | wanted))
    if json_:
        say_json(changed)
        return
    for warning in changed.warnings:
        note(f"Note: {warning}.")
    _show_quotas(QuotaList(items=(ProjectQuota(**dict(changed.model_dump(exclude={"warnings"}))),)), False)


def _as_change(quota: ProjectQuota) -> dict[str, Any]:
    return {
        "gpu_quota": quota.gpus.quota,
        "gpu_limit": quota.gpus.limit,
        "cpu_quota": quota.cpu_slots.quota,
        "cpu_limit": quota.cpu_slots.limit,
        "weight": quota.weight,
        "version": quota.version,
    }


def queue(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB", help="A job's id or name; default: all that wait.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Only jobs of this project.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most jobs to show.")] = 100,
    json_: AsJson = False,
) -> None:
    """List the jobs that wait, in order, and why each waits; for one job all that is known.

    Example: powermean queue arithmetic-smollm2
    """
    with connected() as client:
        chosen = job_id(client, job) if job is not None else None
        found = client.queue(project, chosen, limit)
    if json_:
        say_json(found)
        return
    if chosen is not None:
        _show_waiting(found.items[0])
        return
    say_table(
        ("#", "job", "project", "priority", "needs", "queued at", "why", "starts"),
        (
            (
                str(one.position),
                one.name,
                one.project,
                one.priority,
                one.needs.words,
                local_time(one.since),
                one.reason,
                local_time(one.starts_at) if one.starts_at else "",
            )
            for one in found.items
        ),
        wrap=("job", "why"),
        spare=("project", "queued at"),
        right=("#",),
    )
    if found.others:
        note(f"{counted(found.others)} of other projects wait too.")
    if found.left_out:
        note(f"{counted(found.left_out)} more: raise --limit.")


def _show_waiting(job: QueuedJob) -> None:
    say(f"{job.id}  {job.name}  number {job.position} in the queue, priority {job.priority}")
    say(f"needs {job.needs.words}, queued at {local_time(job.since)}")
    say(f"why: {job.reason}")
    if job.help:
        say(f"what would help: {job.help}")
    if job.position > 1:
        others = f", {job.ahead_others} of others" if job.ahead_others else ""
        say(f"before it: {counted(job.ahead_own)} of your projects{others}")
    if job.starts_at is not None:
        say(f"starts about {local_time(job.starts_at)}" + (f", from {job.basis}" if job.basis else ""))
    else:
        say("when it starts is not known yet")


def usage(
    by: Annotated[
        Literal["person", "project", "job"], typer.Option(help="What the hours are added up by.")
    ] = "project",
    start: Annotated[
        datetime | None,
        typer.Option(
            "--from", parser=moment, metavar="TIME", help="Not before this day or time; default: 30 days ago."
        ),
    ] = None,
    end: Annotated[
        datetime | None,
        typer.Option("--to", parser=moment, metavar="TIME", help="Before this day or time."),
    ] = None,
    project: Annotated[str | None, typer.Option(help="Only what this project held.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Most rows to show.")] = 1000,
    csv: Annotated[bool, typer.Option("--csv", help="Print all rows as CSV, for a spreadsheet.")] = False,
    json_: AsJson = False,
) -> None:
    """Show GPU-hours and CPU-slot-hours by person, project or job; jobs that were deleted count too.

    Example: powermean usage --by person --from 2026-11-01
    """
    with connected() as client:
        if csv:
            say(client.usage_csv(by, start, end, project).replace("\r\n", "\n"), end="")
            return
        found = client.usage(by, start, end, project, limit)
    if json_:
        say_json(found)
        return
    say(f"{local_time(found.start)} to {local_time(found.end)}\n")
    say_table(
        (by, "name", "GPU-hours", "CPU-slot-hours", "jobs"),
        [_used(row) for row in (*found.rows, found.total)],
        wrap=("name",),
        right=("GPU-hours", "CPU-slot-hours", "jobs"),
    )
    if found.left_out:
        note(f"{counted(found.left_out, 'row')} more, which the total has too: raise --limit.")


def _used(row: UsageRow) -> tuple[str, ...]:
    return row.key, row.name or "", f"{row.gpu_hours:,.2f}", f"{row.cpu_slot_hours:,.2f}", str(row.jobs)
