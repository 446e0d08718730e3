"""Commands about the audit log."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from powermean import audit_archive
from powermean.cli.progress import local_time
from powermean.cli.style import PLAIN
from powermean.cli.terminal import FAILED, AsJson, connected, note, say, say_json, say_table
from powermean.cli.times import moment
from powermean.contracts.audit import AuditEntry, AuditHead, AuditPage, Outcome
from powermean.errors import PowermeanError

PAGE = 500  # the most that the API gives at once

audit = typer.Typer(help="Who did what on the service, and whether the log of it is whole.", **PLAIN)


class NoHeadError(PowermeanError):
    """A file that should hold the audit log's signed head holds something else."""


@audit.callback(invoke_without_command=True)
def _audit(context: typer.Context) -> None:
    """`powermean audit` alone lists the newest entries."""
    if context.invoked_subcommand is None:
        list_entries()


@audit.command("list")
def list_entries(
    project: Annotated[str | None, typer.Option(help="One project's; for its maintainers.")] = None,
    person: Annotated[str | None, typer.Option(help="Id or name of who did it.")] = None,
    verb: Annotated[str | None, typer.Option(help="Such as job.submit, or job for all about jobs.")] = None,
    refused: Annotated[bool, typer.Option("--refused", help="What was not allowed.")] = False,
    since: Annotated[
        datetime | None, typer.Option(parser=moment, metavar="TIME", help="Not before this day or time.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(parser=moment, metavar="TIME", help="Before this day or time.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most entries to show.")] = 50,
    json_: AsJson = False,
) -> None:
    """List who did what, newest first.

    Example: powermean audit list --project vision --since 2026-11-01 --refused
    """
    outcome: Outcome | None = "refused" if refused else None
    found: tuple[AuditEntry, ...] = ()
    before: int | None = None
    with connected() as client:
        while len(found) < limit and (not found or before is not None):
            most = min(PAGE, limit - len(found))
            page = client.audit(project, person, verb, outcome, since, until, before, most)
            found, before = found + page.items, page.next
            if before is None:
                break
    if json_:
        say_json(AuditPage(items=found, next=before))
        return
    say_table(
        ("time", "who", "what", "request", "target", "project", "outcome", "from"),
        (
            (
                local_time(one.at),
                one.who,
                one.verb,
                one.request,
                one.target or "",
                one.project or "",
                _outcome(one),
                one.address or "",
            )
            for one in found
        ),
        wrap=("who", "request", "target"),
    )
    if before is not None:
        note("There are more entries: raise --limit, or narrow it down.")


@audit.command("head")
def head() -> None:
    """Print the log's newest entry, signed, as JSON: keep it on another machine.

    Example: powermean audit head > audit-head.json
    """
    with connected() as client:
        say_json(client.audit_head(), indent=None)


@audit.command("verify")
def verify(
    kept: Annotated[
        Path | None,
        typer.Option("--head", metavar="FILE", help="A head that was kept.", exists=True, dir_okay=False),
    ] = None,
    archives: Annotated[
        list[Path] | None,
        typer.Option(
            "--archive",
            metavar="FILE",
            help="What was archived, the oldest first: the walk begins there.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
) -> None:
    """Walk the whole log and name the first entry that was changed, removed or inserted.

    Example: powermean audit verify --head audit-head.json

    Example: powermean audit verify --archive audit-1-5000.jsonl --archive audit-5001-9000.jsonl
    """
    with connected() as client:
        earlier = _read_head(kept) if kept is not None else None
        cut = client.audit_head().cut
        verdict = audit_archive.verify(archives or [], client.audit_export(), earlier, cut)
    say(verdict.said(earlier))
    if verdict.broken is not None:
        raise typer.Exit(FAILED)


def _read_head(file: Path) -> AuditHead:
    try:
        return AuditHead.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise NoHeadError(
            f"{file} is not a head of the audit log: `powermean audit head` prints one"
        ) from error


def _outcome(entry: AuditEntry) -> str:
    if entry.outcome == "allowed":
        return "allowed"
    times = f" x {entry.count}" if entry.count > 1 else ""
    return f"refused ({entry.status}){times}"
