"""Commands about projects and their members."""

from typing import Annotated

import typer

from powermean.cli.progress import local_time
from powermean.cli.style import PLAIN
from powermean.cli.terminal import (
    AsJson,
    Sure,
    checked,
    confirm,
    connected,
    counted,
    say,
    say_json,
    say_table,
)
from powermean.contracts.identity import MemberRequest, NewProject, ProjectChange
from powermean.contracts.storage import Retention
from powermean.errors import PowermeanError
from powermean.sizes import bytes_of, size

project = typer.Typer(
    help="Projects, which keep teams apart, and their members.", no_args_is_help=True, **PLAIN
)

Name = Annotated[str, typer.Argument(metavar="PROJECT", help="The project's name.")]
FOR_EVER = "forever"
Days = Annotated[str | None, typer.Option(metavar="DAYS", help=f"Days from a job's end, or {FOR_EVER}.")]

Someone = Annotated[str, typer.Argument(metavar="PERSON", help="Their e-mail address or id.")]


@project.command("list")
def list_projects(json_: AsJson = False) -> None:
    """List your projects and your role in each; administrators and auditors see all.

    Example: powermean project list
    """
    with connected() as client:
        found = client.projects()
    if json_:
        say_json(found)
        return
    say_table(
        ("name", "title", "your role", "created"),
        ((one.name, one.title, one.role or "", local_time(one.created_at)) for one in found.items),
        wrap=("title",),
        spare=("created",),
    )


@project.command("create")
def create(
    name: Annotated[
        str, typer.Argument(metavar="PROJECT", help="Small letters, digits and hyphens; it never changes.")
    ],
    title: Annotated[str | None, typer.Option(help="What pages call it; default: the name.")] = None,
    json_: AsJson = False,
) -> None:
    """Make a project; for administrators.

    Example: powermean project create team-a --title "Team A"
    """
    with connected() as client:
        wanted = checked(NewProject, {"name": name, "title": title})
        made = client.create_project(wanted.name, wanted.title)
    if json_:
        say_json(made)
    else:
        say(made.name)


@project.command("show")
def show(name: Name, json_: AsJson = False) -> None:
    """Show a project: its title, and your role in it.

    Example: powermean project show team-a
    """
    with connected() as client:
        found = client.get_project(name)
    if json_:
        say_json(found)
        return
    say(found.name if found.title == found.name else f"{found.name}  {found.title}")
    say(f"your role: {found.role}")
    say(f"created {local_time(found.created_at)}")


@project.command("rename")
def rename(
    name: Name,
    title: Annotated[str, typer.Argument(metavar="TITLE", help="What pages call it from now on.")],
    json_: AsJson = False,
) -> None:
    """Change a project's title; its name never changes. For its maintainers.

    Example: powermean project rename team-a "Vision"
    """
    with connected() as client:
        changed = client.change_project(name, checked(ProjectChange, {"title": title}).title)
    if json_:
        say_json(changed)
    else:
        say(f"{changed.name} is now called {changed.title}")


@project.command("delete")
def delete(
    name: Name,
    yes: Sure = False,
    cascade: Annotated[
        bool,
        typer.Option("--cascade", help="Delete all that it holds, too: jobs, models, datasets, secrets."),
    ] = False,
) -> None:
    """Delete a project that holds nothing any more; asks first. For administrators.

    Example: powermean project delete team-a
    """
    with connected() as client:
        confirm(yes, f"Delete project {name}{' with all that it holds' if cascade else ''} for good?")
        client.delete_project(name, cascade=cascade)
    say(f"{name} is deleted")


@project.command("retention")
def retention(
    name: Name,
    texts_days: Days = None,
    tokens_days: Days = None,
    logs_days: Days = None,
    checkpoints_last: Annotated[
        str | None,
        typer.Option(metavar="COUNT", help=f"An ended job's newest checkpoints that stay, or {FOR_EVER}."),
    ] = None,
    checkpoints_best: Annotated[
        bool | None, typer.Option(help="Whether the one with the best held-out reward stays, too.")
    ] = None,
    json_: AsJson = False,
) -> None:
    """Show how long a project keeps what its ended jobs stored, or change it; for its maintainers.

    Example: powermean project retention team-a

    Example: powermean project retention team-a --texts-days 90 --checkpoints-last 1
    """
    given = {
        "texts_days": texts_days,
        "tokens_days": tokens_days,
        "logs_days": logs_days,
        "checkpoints_last": checkpoints_last,
        "checkpoints_best": checkpoints_best,
    }
    given = {rule: value for rule, value in given.items() if value is not None}
    given = {rule: None if value == FOR_EVER else value for rule, value in given.items()}
    with connected() as client:
        changes = checked(Retention, given)
        found = client.retention(name)
        if given:
            changed = {rule: getattr(changes, rule) for rule in given}
            found = client.set_retention(name, found.model_copy(update=changed))
    if json_:
        say_json(found)
        return
    for what, days in (("texts", found.texts_days), ("tokens", found.tokens_days), ("logs", found.logs_days)):
        say(f"{what}: {'until deleted' if days is None else counted(days, 'day') + ' after the job'}")
    best = ", the best" if found.checkpoints_best else ""
    last = found.checkpoints_last
    say(f"checkpoints: {'until deleted' if last is None else f'the last {last}{best} and pinned ones'}")


@project.command("limit")
def limit(
    name: Name,
    most: Annotated[str, typer.Argument(metavar="SIZE", help="Such as 500GB, or none.")],
    json_: AsJson = False,
) -> None:
    """Limit what a project stores; for administrators. At the limit, uploads and new jobs are refused.

    Example: powermean project limit team-a 500GB
    """
    with connected() as client:
        try:
            wanted = None if most == "none" else bytes_of(most)
        except ValueError as error:
            raise PowermeanError(f"the limit {error}, or none") from error
        found = client.limit_storage(name, wanted)
    if json_:
        say_json(found)
        return
    limited = "without a limit" if found.limit is None else f"of {size(found.limit)}"
    say(f"{found.project} stores {size(found.bytes)} {limited}")


@project.command("members")
def members(name: Name, json_: AsJson = False) -> None:
    """List who is in a project.

    Example: powermean project members team-a
    """
    with connected() as client:
        found = client.members(name)
    if json_:
        say_json(found)
        return
    say_table(
        ("id", "name", "e-mail", "role", "state"),
        (
            (one.person_id, one.name, one.email or "", one.role, "active" if one.active else "deactivated")
            for one in found.items
        ),
        wrap=("name", "e-mail"),
        spare=("state",),
    )


@project.command("add-member")
def add_member(
    name: Name,
    someone: Someone,
    role: Annotated[str, typer.Option(help="viewer, member or maintainer.")] = "member",
    json_: AsJson = False,
) -> None:
    """Add a person to a project, or change their role in it; for its maintainers.

    Example: powermean project add-member team-a ada@example.org --role maintainer
    """
    with connected() as client:
        wanted = checked(MemberRequest, {"role": role})
        member = client.set_member(name, someone, wanted.role)
    if json_:
        say_json(member)
    else:
        say(f"{member.name} ({member.email or member.person_id}) is now a {member.role} of {name}")


@project.command("remove-member")
def remove_member(name: Name, someone: Someone) -> None:
    """Take a person out of a project; what they made stays in it. For its maintainers.

    Example: powermean project remove-member team-a ada@example.org
    """
    with connected() as client:
        client.remove_member(name, someone)
    say(f"{someone} is no longer in {name}")
