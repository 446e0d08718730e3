"""Commands about the priorities of jobs."""

from typing import Annotated

import typer

from powermean.cli.choosing import ChosenJob, job_id
from powermean.cli.style import PLAIN
from powermean.cli.terminal import AsJson, checked, connected, say, say_json, say_table
from powermean.contracts.priorities import PriorityRank

priorities = typer.Typer(help="Priority classes, which specs name.", no_args_is_help=True, **PLAIN)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The class, as in `priority` of a spec.")]


def priority(job: ChosenJob, name: Name, json_: AsJson = False) -> None:
    """Give a job another priority: it goes before others, or behind them.

    Example: powermean priority arithmetic-smollm2 high
    """
    with connected() as client:
        found = client.set_priority(job_id(client, job), name)
    if json_:
        say_json(found)
    else:
        say(f"{found.id} has priority {found.priority}")


@priorities.command("list")
def list_priorities(json_: AsJson = False) -> None:
    """List the classes, the highest first.

    Example: powermean priorities list
    """
    with connected() as client:
        found = client.priorities()
    if json_:
        say_json(found)
        return
    say_table(
        ("name", "value", "who may use it"),
        ((one.name, str(one.value), f"{one.role}s") for one in found.items),
        right=("value",),
    )


@priorities.command("set")
def set_class(
    name: Name,
    value: Annotated[int, typer.Option(help="Higher values go first.")],
    role: Annotated[
        str, typer.Option(help="The least role in a project that may use it: member, maintainer or admin.")
    ] = "member",
    json_: AsJson = False,
) -> None:
    """Make a class, or change one; for administrators.

    Example: powermean priorities set urgent --value 1000 --role admin
    """
    rank = checked(PriorityRank, {"value": value, "role": role})
    with connected() as client:
        made = client.set_priority_class(name, rank)
    if json_:
        say_json(made)
    else:
        say(f"{made.name} has value {made.value}, for {made.role}s")


@priorities.command("remove")
def remove_class(name: Name) -> None:
    """Remove a class that no live job has; for administrators.

    Example: powermean priorities remove urgent
    """
    with connected() as client:
        client.remove_priority_class(name)
    say(f"{name} is removed")
