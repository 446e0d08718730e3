"""Commands about nodes, datasets and signing in."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from powermean.cli.terminal import connected, console

node = typer.Typer(help="Remove nodes that are gone for good; for administrators.", no_args_is_help=True)
datasets = typer.Typer(help="JSONL datasets for jobs with `data.kind: jsonl`.", no_args_is_help=True)


@datasets.command("upload")
def upload(
    file: Annotated[Path, typer.Argument(help="JSON objects, one per line.", exists=True, dir_okay=False)],
    name: Annotated[str | None, typer.Option(help="What people call it; default: the file's name.")] = None,
) -> None:
    """Upload a dataset; prints the id for `data.dataset`.

    Example: powermean datasets upload questions.jsonl --name questions
    """
    with connected() as client:
        dataset = client.upload_dataset(file, name)
    console.print(f"{dataset.id}  {dataset.rows} rows, fields: {', '.join(dataset.fields)}", markup=False)


@datasets.command("list")
def list_datasets() -> None:
    """List datasets, newest first.

    Example: powermean datasets list
    """
    with connected() as client:
        found = client.datasets().items
    table = Table(box=None, pad_edge=False)
    for column in ("id", "name", "rows", "fields", "created"):
        table.add_column(column, no_wrap=column == "id")
    for dataset in found:
        created = dataset.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(dataset.id, dataset.name, str(dataset.rows), ", ".join(dataset.fields), created)
    console.print(table)


def nodes() -> None:
    """List the cluster's nodes and what they run.

    Example: powermean nodes
    """
    with connected() as client:
        found = client.nodes().items
    table = Table(box=None, pad_edge=False)
    for column in ("id", "host", "state", "GPUs", "CPU slots", "engines", "attempts"):
        table.add_column(column)
    for one in found:
        state = "offline" if not one.alive else "disk full" if one.full_disk else "alive"
        table.add_row(
            one.id,
            one.hostname,
            state,
            str(len(one.gpus)),
            str(one.cpu_slots),
            ", ".join(one.engines),
            ", ".join(one.attempts),
        )
    console.print(table)


@node.callback()
def _node() -> None:
    """Without this, typer would make the only command the group."""


@node.command("remove")
def remove(name: Annotated[str, typer.Argument(help="Its id in the list of nodes.")]) -> None:
    """Remove a node that is gone for good. One that is alive or runs attempts is refused.

    Example: powermean node remove gpu-7
    """
    with connected() as client:
        client.remove_node(name)
    console.print(f"{name} is removed", markup=False)


def login() -> None:
    """Print a one-time link that opens the dashboard, signed in.

    Example: powermean login
    """
    with connected() as client:
        code = client.login_code()
        console.print(f"{client.url}/login/{code.code}", markup=False, soft_wrap=True)
        minutes = code.expires_at.astimezone().strftime("%H:%M")
    console.print(f"It works once, until {minutes}.", markup=False)
