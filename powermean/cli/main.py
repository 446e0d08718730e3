"""The `powermean` command."""

from typing import Annotated

import typer

from powermean import __version__
from powermean.cli import cluster, demo, jobs, service

app = typer.Typer(
    name="powermean",
    help="Train language models by group-based reinforcement learning, on a service of your own.\n\n"
    "powermean demo shows it all; powermean up starts the service to stay. The other commands talk to "
    "it, or to POWERMEAN_URL with POWERMEAN_API_KEY.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


app.command("up")(service.up)
app.command("demo")(demo.demo)
app.command("submit")(jobs.submit)
app.command("validate")(jobs.validate)
app.command("list")(jobs.list_jobs)
app.command("show")(jobs.show)
app.command("watch")(jobs.watch)
app.command("cancel")(jobs.cancel)
app.command("logs")(jobs.logs)
app.command("download")(jobs.download)
app.command("nodes")(cluster.nodes)
app.command("login")(cluster.login)
app.add_typer(cluster.datasets, name="datasets")
