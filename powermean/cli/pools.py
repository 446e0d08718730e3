"""Commands about pools: where nodes come from when there is work."""

from typing import Annotated

import typer

from powermean.cli.progress import local_time
from powermean.cli.style import PLAIN
from powermean.cli.terminal import AsJson, connected, counted, note, say, say_json, say_table
from powermean.contracts.pools import PoolView, Shape

pool = typer.Typer(
    help="Pools: where nodes come from when there is work. A file of the server declares them.",
    no_args_is_help=True,
    **PLAIN,
)
Name = Annotated[str, typer.Argument(metavar="POOL", help="Its name in the list of pools.")]


@pool.command("list")
def list_pools(json_: AsJson = False) -> None:
    """List the pools, and what each has.

    Example: powermean pool list
    """
    with connected() as client:
        found = client.pools()
    if json_:
        say_json(found)
        return
    say_table(
        ("pool", "kind", "nodes", "on the way", "min", "max", "a node has"),
        (
            (
                one.name,
                one.kind,
                str(one.nodes),
                str(max(0, sum(one.states.values()) - one.nodes)) if one.shape is not None else "",
                str(one.min) if one.shape is not None else "",
                "" if one.max is None else str(one.max),
                _shape(one.shape) if one.shape is not None else "",
            )
            for one in found.items
        ),
        wrap=("a node has",),
        right=("nodes", "on the way", "min", "max"),
    )
    for one in found.items:
        _tell_error(one)


@pool.command("show")
def show(name: Name, json_: AsJson = False) -> None:
    """Show a pool: its nodes, those on the way, and the last that have ended, with the reasons.

    Example: powermean pool show gpu
    """
    with connected() as client:
        found = client.get_pool(name)
    if json_:
        say_json(found)
        return
    if found.shape is None:
        say(f"{found.name}  nodes join by themselves, {found.nodes} so far: `powermean nodes` lists them")
        return
    say(f"{found.name}  {found.kind}, {counted(found.nodes, 'node')}, from {found.min} to {found.max}")
    say(f"a node has {_shape(found.shape)}")
    _tell_error(found)
    say_table(
        ("node", "state", "id there", "asked for", "ends", "reason"),
        (
            (
                one.node,
                one.state,
                one.external_id or "",
                local_time(one.created_at),
                local_time(end) if (end := one.ended_at or one.ends_at) is not None else "",
                one.reason,
            )
            for one in found.pilots
        ),
        wrap=("reason",),
    )


def _tell_error(one: PoolView) -> None:
    if one.error is not None:
        note(f"{one.name}: {one.error}")


def _shape(shape: Shape) -> str:
    """`8 H100 GPUs, 1 CPU slot`."""
    parts = [counted(shape.gpus, f"{shape.gpu_type} GPU".strip())] if shape.gpus else []
    parts.append(counted(shape.cpu_slots, "CPU slot"))
    return ", ".join(parts)
