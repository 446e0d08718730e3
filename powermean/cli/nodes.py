"""Commands about nodes: what they are and run, and taking them out of service and back."""

from datetime import datetime
from typing import Annotated

import typer

from powermean.cli.progress import local_time
from powermean.cli.style import PLAIN
from powermean.cli.terminal import AsJson, connected, note, say, say_json, say_table
from powermean.cli.times import coming
from powermean.contracts.api import NodeView

node = typer.Typer(
    help="Nodes: what they are and run. Administrators take them out of service and back.",
    no_args_is_help=True,
    **PLAIN,
)
Name = Annotated[str, typer.Argument(metavar="NODE", help="Its id in the list of nodes.")]
Reason = Annotated[
    str | None, typer.Option(help="Why, for people: jobs that wait for the node say it. Default: your name.")
]


def nodes(json_: AsJson = False) -> None:
    """List the cluster's nodes and what they run.

    Example: powermean nodes
    """
    list_nodes(json_)


@node.command("list")
def list_nodes(json_: AsJson = False) -> None:
    """List the cluster's nodes and what they run.

    Example: powermean node list
    """
    with connected() as client:
        found = client.nodes()
    if json_:
        say_json(found)
        return
    say_table(
        ("id", "host", "state", "GPUs", "CPU slots", "engines", "attempts"),
        (
            (
                one.id,
                one.hostname,
                _state(one),
                _gpus(one),
                str(one.cpu_slots),
                ", ".join(one.engines),
                ", ".join(one.attempts),
            )
            for one in found.items
        ),
        wrap=("host", "state", "engines", "attempts"),
        right=("CPU slots",),
    )
    for one in found.items:
        if one.rival is not None:
            note(
                f"{one.id}: another worker, on host {one.rival.hostname}, tried to use this name at "
                f"{local_time(one.rival.at)}; give each a POWERMEAN_NODE_ID of its own"
            )


@node.command("show")
def show(name: Name, json_: AsJson = False) -> None:
    """Show a node: its state, labels, GPUs with their health, and what runs there.

    Example: powermean node show gpu-7
    """
    with connected() as client:
        found = client.get_node(name)
    if json_:
        say_json(found)
        return
    say(f"{found.id}  on host {found.hostname}, {_state(found)}, seen {local_time(found.seen_at)}")
    if found.labels:
        say("labels: " + ", ".join(f"{label}={value}" for label, value in sorted(found.labels.items())))
    say(f"CPU slots: {found.cpu_slots}; engines: {', '.join(found.engines) or 'none'}")
    if found.gpus:
        say_table(
            ("GPU", "name", "memory", "used", "busy", "heat", "health"),
            (
                (
                    gpu.uuid,
                    gpu.name,
                    _gib(gpu.memory_mb),
                    _gib(gpu.memory_used_mb),
                    "" if gpu.utilisation is None else f"{gpu.utilisation:.0f} %",
                    "" if gpu.temperature_c is None else f"{gpu.temperature_c} °C",
                    gpu.unhealthy or "well",
                )
                for gpu in found.gpus
            ),
            wrap=("name", "health"),
            spare=("used", "heat"),
            right=("memory", "used", "busy", "heat"),
        )
    used = {one.attempt_id: f": {one.cpu:.1f} cores, {_gib(one.memory_mb)}" for one in found.use}
    for attempt_id in found.attempts:
        say(f"runs {attempt_id}{used.get(attempt_id, '')}")
    if found.other_attempts:
        say(f"runs {found.other_attempts} of other projects")
    for uuid in found.missing_gpus:
        note(f"{uuid} is held by an attempt, and the node does not report it any more")
    for unread in found.blind:
        note(f"not seen there: {unread}")


@node.command("cordon")
def cordon(name: Name, reason: Reason = None, json_: AsJson = False) -> None:
    """Give a node nothing new; what runs there goes on.

    Example: powermean node cordon gpu-7 --reason "fan is loud"
    """
    with connected() as client:
        _tell(client.cordon_node(name, reason), json_)


@node.command("drain")
def drain(
    name: Name,
    reason: Reason = None,
    at: Annotated[
        datetime | None,
        typer.Option(
            parser=coming,
            metavar="TIME",
            help="When to begin, such as 22:00 or 2026-12-01T22:00, on this machine's clock unless it ends "
            "with a time zone (+01:00). Default: at once.",
        ),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Empty a node: its jobs save a checkpoint at their next step and go on elsewhere.

    Example: powermean node drain gpu-7 --at 22:00 --reason "kernel update"
    """
    with connected() as client:
        _tell(client.drain_node(name, reason, at), json_)


@node.command("uncordon")
def uncordon(name: Name, json_: AsJson = False) -> None:
    """Open a node again, also one that drains or will.

    Example: powermean node uncordon gpu-7
    """
    with connected() as client:
        _tell(client.uncordon_node(name), json_)


@node.command("remove")
def remove(name: Name) -> None:
    """Remove a node that is gone for good. One that is alive or runs attempts is refused.

    Example: powermean node remove gpu-7
    """
    with connected() as client:
        client.remove_node(name)
    say(f"{name} is removed")


def _tell(found: NodeView, json_: bool) -> None:
    if json_:
        say_json(found)
    else:
        say(f"{found.id} is {_state(found)}")


def _state(one: NodeView) -> str:
    """In words: `alive, draining (kernel update)`."""
    words = ["offline" if not one.alive else "disk full" if one.full_disk else "alive"]
    if one.closed is not None:
        words.append(f"{'drained' if one.drained else one.closed} ({one.closed_reason})")
    if one.drain_at is not None and one.closed != "draining":
        words.append(f"drains from {local_time(one.drain_at)} on ({one.closed_reason})")
    return ", ".join(words)


def _gpus(one: NodeView) -> str:
    ill = sum(gpu.unhealthy is not None for gpu in one.gpus)
    return f"{len(one.gpus)}, {ill} unhealthy" if ill else str(len(one.gpus))


def _gib(mebibytes: int | None) -> str:
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes else ""
