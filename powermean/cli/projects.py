"""Commands about projects and their members."""

from typing import Annotated

import typer

from powermean.cli.progress import local_time
from powermean.cli.style import PLAIN
from powermean.cli.terminal import AsJson, checked, connected, say, say_json, say_table
from powermean.contracts.identity import MemberRequest, NewProject

project = typer.Typer(
    help="Projects, which keep teams apart, and their members.", no_args_is_help=True, **PLAIN
)

Name = Annotated[str, typer.Argument(metavar="PROJECT", help="The project's name.")]
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
