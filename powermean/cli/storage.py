"""Commands about what projects store: deleting jobs and checkpoints, and what takes the space."""

from collections.abc import Iterator
from typing import Annotated

import typer

from powermean.cli.choosing import ChosenJob, job_id
from powermean.cli.progress import local_time, number
from powermean.cli.style import PLAIN
from powermean.cli.terminal import AsJson, Sure, confirm, connected, note, say, say_json, say_table
from powermean.client import Client
from powermean.contracts.api import CheckpointView
from powermean.contracts.storage import Collected
from powermean.errors import PowermeanError
from powermean.sizes import size

_SHOWN = 20  # removed objects that are named

checkpoints = typer.Typer(help="A job's checkpoints: list, delete, pin.", no_args_is_help=True, **PLAIN)

ChosenStep = Annotated[
    int, typer.Argument(metavar="STEP", min=0, help="The step after which it was saved.", show_default=False)
]


def delete(
    jobs: Annotated[
        list[str],
        typer.Argument(metavar="JOB...", help="Ids, or names that only one job has.", show_default=False),
    ],
    yes: Sure = False,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Delete replays of them that still wait, too.")
    ] = False,
) -> None:
    """Delete ended jobs with their numbers, logs, checkpoints and models; asks first.

    Example: powermean delete arithmetic-smollm2
    """
    with connected() as client:
        chosen = [client.get_job(job_id(client, job)) for job in jobs]
        for job in chosen:
            note(f"{job.id}  {job.name}  {job.state}")
        confirm(yes, f"Delete {len(chosen)} job{'s' if len(chosen) > 1 else ''} for good?")
        for job in chosen:
            client.delete_job(job.id, cascade=cascade)
            say(f"{job.id} is deleted")


@checkpoints.command("list")
def list_checkpoints(job: ChosenJob, json_: AsJson = False) -> None:
    """List the checkpoints that a job keeps, oldest first.

    Example: powermean checkpoints list arithmetic-smollm2
    """
    with connected() as client:
        found = client.checkpoints(job_id(client, job))
    if json_:
        say_json(found)
        return
    say_table(
        ("step", "attempt", "size", "kept", "saved"),
        (
            (
                str(one.step),
                str(one.attempt),
                size(one.size),
                ", ".join(_kept(one)),
                local_time(one.created_at),
            )
            for one in found.items
        ),
        right=("step", "attempt", "size"),
    )


def _kept(checkpoint: CheckpointView) -> Iterator[str]:
    """Why a checkpoint is kept, unless it is one of the newest."""
    if checkpoint.pinned:
        yield "pinned"
    if checkpoint.best:
        yield f"best: {checkpoint.metric} {number(checkpoint.value)}"


@checkpoints.command("delete")
def delete_checkpoint(job: ChosenJob, step: ChosenStep, yes: Sure = False) -> None:
    """Delete a checkpoint; asks first.

    Example: powermean checkpoints delete arithmetic-smollm2 20
    """
    with connected() as client:
        chosen = job_id(client, job)
        confirm(yes, f"Delete the checkpoint of {chosen} after step {step} for good?")
        client.delete_checkpoint(chosen, step)
    say(f"the checkpoint of {chosen} after step {step} is deleted")


@checkpoints.command("pin")
def pin(job: ChosenJob, step: ChosenStep) -> None:
    """Keep a checkpoint, whatever the spec or the project's retention says.

    Example: powermean checkpoints pin arithmetic-smollm2 20
    """
    with connected() as client:
        client.pin_checkpoint(chosen := job_id(client, job), step)
    say(f"the checkpoint of {chosen} after step {step} is pinned")


@checkpoints.command("unpin")
def unpin(job: ChosenJob, step: ChosenStep) -> None:
    """Let a pinned checkpoint go again.

    Example: powermean checkpoints unpin arithmetic-smollm2 20
    """
    with connected() as client:
        client.unpin_checkpoint(chosen := job_id(client, job), step)
    say(f"the checkpoint of {chosen} after step {step} is not pinned any more")


def storage(
    project: Annotated[
        str | None, typer.Option("--project", metavar="PROJECT", help="Default: your default project.")
    ] = None,
    json_: AsJson = False,
) -> None:
    """Show what a project stores, and its largest things.

    Example: powermean storage --project team-a
    """
    with connected() as client:
        name = project or client.me().default_project
        if name is None:
            raise PowermeanError("you have no default project: name one with --project")
        found = client.storage(name)
    if json_:
        say_json(found)
        return
    limit = f" of {size(found.limit)}" if found.limit is not None else ""
    over = ": over its limit, so uploads and new jobs are refused" if found.over_limit else ""
    say(f"{found.project} stores {size(found.bytes)}{limit}{over}\n")
    say_table(
        ("kind", "size", "count"),
        ((use.kind, size(use.bytes), str(use.count)) for use in found.uses),
        right=("size", "count"),
    )
    if found.largest:
        say("")
        say_table(
            ("largest", "size", "id", "name", "step", "in use"),
            (
                (
                    one.kind,
                    size(one.bytes),
                    one.id,
                    one.name,
                    "" if one.step is None else str(one.step),
                    one.in_use or "",
                )
                for one in found.largest
            ),
            wrap=("name", "in use"),
            right=("size", "step"),
        )


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    json_: AsJson = False,
) -> None:
    """Remove files that nothing refers to any more, once they are a day old; for administrators.

    Example: powermean gc --dry-run
    """
    with connected() as client:
        total = _collect(client, dry_run)
    if json_:
        say_json(total)
        return
    for key in total.keys:
        say(key)
    if total.objects > len(total.keys):
        say(f"and {total.objects - len(total.keys):,} more")
    verb = "would be removed" if dry_run else "removed"
    say(
        f"{verb}: {total.objects:,} of {total.looked_at:,} objects ({size(total.bytes)}), "
        f"{total.rows:,} old messages"
    )


def _collect(client: Client, dry_run: bool) -> Collected:
    """Go through the whole store, part by part; the totals."""
    total = client.collect_garbage(dry_run=dry_run)
    while total.next is not None:
        note(f"{total.looked_at:,} objects looked at, {total.objects:,} that nothing refers to")
        part = client.collect_garbage(dry_run=dry_run, after=total.next)
        total = Collected(
            dry_run=dry_run,
            looked_at=total.looked_at + part.looked_at,
            objects=total.objects + part.objects,
            bytes=total.bytes + part.bytes,
            rows=total.rows + part.rows,
            keys=(total.keys + part.keys)[:_SHOWN],
            next=part.next,
        )
    return total
