"""Commands about people: who am I, who is here, and letting somebody in."""

from typing import Annotated

import typer

from powermean.cli.progress import local_time
from powermean.cli.style import PLAIN
from powermean.cli.terminal import AsJson, checked, connected, note, say, say_json, say_table
from powermean.client import Client
from powermean.contracts.api import LoginCode
from powermean.contracts.identity import NewPerson, Person, PersonChange
from powermean.errors import PowermeanError

person = typer.Typer(
    help="People and service accounts: who is here, letting somebody in; for administrators.",
    no_args_is_help=True,
    **PLAIN,
)

Someone = Annotated[str, typer.Argument(metavar="PERSON", help="Their e-mail address or id.")]


def whoami(json_: AsJson = False) -> None:
    """Show who you are here: your account, your projects and what your key allows.

    Example: powermean whoami
    """
    with connected() as client:
        me = client.me()
    if json_:
        say_json(me)
        return
    say(f"{me.name}  {me.email or me.id}")
    if me.cluster_role:
        say(f"{me.cluster_role} of the whole service")
    for project, role in me.projects.items():
        default = ", your default project" if project == me.default_project else ""
        say(f"{role} of {project}{default}")
        if me.allowed.get(project, role) != role:
            note(f"Your key allows less in {project}: what a {me.allowed[project]} may.")


@person.command("list")
def list_people(json_: AsJson = False) -> None:
    """List all accounts, with their roles.

    Example: powermean person list
    """
    with connected() as client:
        found = client.people()
    if json_:
        say_json(found)
        return
    say_table(
        ("id", "name", "e-mail", "state", "cluster", "projects"),
        (
            (
                one.id,
                one.name,
                one.email or "",
                "active" if one.active else "deactivated",
                one.cluster_role or "",
                ", ".join(f"{project} ({role})" for project, role in one.projects.items()),
            )
            for one in found.items
        ),
        wrap=("name", "e-mail", "projects"),
        spare=("cluster",),
    )


@person.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What people call them.")],
    email: Annotated[str | None, typer.Option(help="Their e-mail address, unique here.")] = None,
    project: Annotated[
        str | None, typer.Option(help="Their first project; default: the only one, if there is one alone.")
    ] = None,
    role: Annotated[str, typer.Option(help="Their role in it: viewer, member or maintainer.")] = "member",
    cluster_role: Annotated[
        str | None, typer.Option(help="admin may do everything, auditor reads everything; default: neither.")
    ] = None,
    service: Annotated[
        bool, typer.Option("--service", help="A service account for a program: it gets keys, and no link.")
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the account and the link that lets them in, as JSON.")
    ] = False,
) -> None:
    """Add a person; prints a one-time link that signs them in.

    Example: powermean person add Ada --email ada@example.org --project team-a --role member

    Example: powermean person add "nightly runs" --service --project team-a
    """
    kind = "service" if service else "person"
    given = {"name": name, "email": email, "role": role, "cluster_role": cluster_role, "kind": kind}
    with connected() as client:
        wanted = checked(NewPerson, given | {"project": project})
        made = client.add_person(wanted.model_copy(update={"project": project or _only_project(client)}))
        code = None if service else client.invite_person(made.id)
    if json_:
        say_json({"person": made, "link": code and code.url, "expires_at": code and code.expires_at})
        return
    if code is None:
        say(made.id)
        note(f"Make its key with `powermean key create NAME --for {made.id}`.")
        return
    _say_link(made.name, code)
    if not made.projects and not made.cluster_role:
        who = made.email or made.id
        note(f"{made.name} is in no project yet: `powermean project add-member PROJECT {who}` adds them.")


def _only_project(client: Client) -> str | None:
    found = client.projects().items
    return found[0].name if len(found) == 1 else None


@person.command("change")
def change(
    someone: Someone,
    name: Annotated[str | None, typer.Option(help="What people call them.")] = None,
    email: Annotated[
        str | None, typer.Option(help="Their e-mail address; with it they can sign in by password.")
    ] = None,
    cluster_role: Annotated[str | None, typer.Option(help="admin, auditor, or none.")] = None,
    default_project: Annotated[str | None, typer.Option(help="Where their jobs go by default.")] = None,
    json_: AsJson = False,
) -> None:
    """Change an account; what is left out stays.

    Example: powermean person change person-administrator --email root@example.org
    """
    given = {"name": name, "email": email, "cluster_role": cluster_role, "default_project": default_project}
    given = {field: value for field, value in given.items() if value is not None}
    with connected() as client:
        if not given:
            raise PowermeanError("say what to change, such as --email")
        changed = client.change_person(someone, checked(PersonChange, given))
    _say_changed(changed, "is changed", json_)


@person.command("invite")
def invite(someone: Someone, json_: AsJson = False) -> None:
    """Print a new one-time link that signs them in.

    Example: powermean person invite ada@example.org
    """
    with connected() as client:
        code = client.invite_person(someone)
    if json_:
        say_json(code)
    else:
        _say_link(someone, code)


@person.command("deactivate")
def deactivate(someone: Someone, json_: AsJson = False) -> None:
    """Shut somebody out: their keys and sessions end at once. What they made stays.

    Example: powermean person deactivate ada@example.org
    """
    with connected() as client:
        changed = client.change_person(someone, PersonChange(active=False))
    _say_changed(changed, "is deactivated: their keys and sessions have ended", json_)


@person.command("activate")
def activate(someone: Someone, json_: AsJson = False) -> None:
    """Let somebody in again: they sign in and make keys anew.

    Example: powermean person activate ada@example.org
    """
    with connected() as client:
        changed = client.change_person(someone, PersonChange(active=True))
    _say_changed(changed, "is active again", json_)


def _say_changed(changed: Person, what: str, json_: bool) -> None:
    if json_:
        say_json(changed)
    else:
        say(f"{changed.name} ({changed.email or changed.id}) {what}")


def _say_link(who: str, code: LoginCode) -> None:
    """The link alone on standard output, so that a script can take it."""
    say(code.url)
    note(f"Send this link to {who}: it signs them in, once, until {local_time(code.expires_at)}.")
