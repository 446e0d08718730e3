"""The `powermean` command."""

import os
import re
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from powermean import __version__, deprecations
from powermean.cli.style import PLAIN

# Name: where the command is, and its line in the list (the first line of its help; a test compares them).
COMMANDS = {
    "up": ("powermean.cli.service:up", "Start the service on this machine and keep it running until Ctrl-C."),
    "demo": ("powermean.cli.demo:demo", "Train a real model with PMPO on this machine and watch it."),
    "submit": ("powermean.cli.jobs:submit", "Submit a job; prints its id."),
    "validate": (
        "powermean.cli.jobs:validate",
        "Check a spec without submitting it; mistakes are shown with their lines.",
    ),
    "fit": ("powermean.cli.fit:fit", "Estimate a job's memory, and what would make it smaller."),
    "list": ("powermean.cli.jobs:list_jobs", "List jobs, newest first."),
    "show": ("powermean.cli.jobs:show", "Show a job: state, attempts, result, spec."),
    "watch": ("powermean.cli.jobs:watch", "Follow a job until it ends; exit status 0 if it finished."),
    "cancel": ("powermean.cli.jobs:cancel", "Cancel a job. Its checkpoints and recorded numbers are kept."),
    "pause": (
        "powermean.cli.jobs:pause",
        "Pause a job: it saves a checkpoint at the end of its step and frees its GPUs.",
    ),
    "resume": (
        "powermean.cli.jobs:resume",
        "Resume a paused job: it waits for a place, and goes on from its last checkpoint.",
    ),
    "priority": (
        "powermean.cli.priorities:priority",
        "Give a job another priority: it goes before others, or behind them.",
    ),
    "delete": (
        "powermean.cli.storage:delete",
        "Delete ended jobs with their numbers, logs, checkpoints and models; asks first.",
    ),
    "logs": ("powermean.cli.jobs:logs", "Print the log of the trainer and the engine."),
    "staleness": (
        "powermean.cli.staleness:staleness",
        "Show p and ESS by staleness: how the objective treats trajectories from older weights.",
    ),
    "replay": (
        "powermean.cli.replay:replay",
        "Why this p? Recompute a recorded step under its own or another objective.",
    ),
    "download": ("powermean.cli.jobs:download", "Download a finished job's model: a Hugging Face folder."),
    "export": (
        "powermean.cli.exports:export",
        "Write a job's final model or a checkpoint as a Hugging Face folder, or as an adapter.",
    ),
    "push": ("powermean.cli.exports:push", "Push a job's final model or a checkpoint to a model hub."),
    "checkpoints": ("powermean.cli.storage:checkpoints", "A job's checkpoints: list, delete, pin."),
    "datasets": ("powermean.cli.datasets:datasets", "JSONL datasets for jobs with `data.kind: jsonl`."),
    "nodes": ("powermean.cli.nodes:nodes", "List the cluster's nodes and what they run."),
    "node": (
        "powermean.cli.nodes:node",
        "Nodes: what they are and run. Administrators take them out of service and back.",
    ),
    "pool": (
        "powermean.cli.pools:pool",
        "Pools: where nodes come from when there is work. A file of the server declares them.",
    ),
    "server": (
        "powermean.cli.server:server",
        "The service's server processes: which are there, and which one leads.",
    ),
    "priorities": ("powermean.cli.priorities:priorities", "Priority classes, which specs name."),
    "top": (
        "powermean.cli.top:top",
        "Show running jobs, the GPUs of each node and the head of the queue, live until Ctrl-C.",
    ),
    "queue": (
        "powermean.cli.sharing:queue",
        "List the jobs that wait, in order, and why each waits; for one job all that is known.",
    ),
    "quota": (
        "powermean.cli.sharing:quota",
        "Show what projects are guaranteed and use; with options an administrator changes one's quota.",
    ),
    "usage": (
        "powermean.cli.sharing:usage",
        "Show GPU-hours and CPU-slot-hours by person, project or job; jobs that were deleted count too.",
    ),
    "engine": (
        "powermean.cli.engine:engine",
        "Engines shared by LoRA jobs on one base model; for administrators.",
    ),
    "audit": (
        "powermean.cli.audit:audit",
        "Who did what on the service, and whether the log of it is whole.",
    ),
    "secret": (
        "powermean.cli.secret:secret",
        "Secrets for jobs, such as tokens of model hubs; their values are never shown.",
    ),
    "project": ("powermean.cli.projects:project", "Projects, which keep teams apart, and their members."),
    "person": (
        "powermean.cli.people:person",
        "People and service accounts: who is here, letting somebody in; for administrators.",
    ),
    "key": ("powermean.cli.keys:key", "API keys, for scripts and other machines."),
    "whoami": (
        "powermean.cli.people:whoami",
        "Show who you are here: your account, your projects and what your key allows.",
    ),
    "storage": ("powermean.cli.storage:storage", "Show what a project stores, and its largest things."),
    "backup": (
        "powermean.cli.backup:backup",
        "Back up the service that you run on this machine, while it runs.",
    ),
    "restore": (
        "powermean.cli.backup:restore",
        "Restore a backup into a service's folder; then start it with `powermean up`.",
    ),
    "doctor": (
        "powermean.cli.doctor:doctor",
        "Check the server or the node on this machine from its own settings, and say what to do.",
    ),
    "gc": (
        "powermean.cli.storage:gc",
        "Remove files that nothing refers to any more, once they are a day old; for administrators.",
    ),
    "login": (
        "powermean.cli.signin:login",
        "Print a one-time link that opens the dashboard, or sign in at a server.",
    ),
    "logout": (
        "powermean.cli.signin:logout",
        "Sign this command line out of a server: its key is revoked and forgotten.",
    ),
    "servers": (
        "powermean.cli.signin:servers",
        "List the servers that this command line is signed in to.",
    ),
}
OLD_COMMANDS = {one.old: one.new for one in deprecations.COMMANDS}


def _say_what_was_meant(error: typer.BadParameter) -> None:
    """A value that is none of an option's, in the words of other wrong values."""
    said = re.fullmatch(r"(?:Value error, )?'(.*)' is not one of ('.*')\.", error.message)
    if said:
        given, known = said[1], said[2].split("'")[1::2]
        meant = import_module("powermean.field_errors").did_you_mean(given, known)
        error.message = f"'{given}' is not one of {', '.join(known)}{meant}"


class LazyGroup(TyperGroup):
    """Imports a command when it is called: listing the commands needs neither HTTP nor contracts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.commands: dict[str, Any] = dict.fromkeys(COMMANDS)  # "did you mean" chooses among these

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in OLD_COMMANDS:
            old, cmd_name = cmd_name, OLD_COMMANDS[cmd_name]
            notice = deprecations.notice(f"powermean {old}", f"powermean {cmd_name}")
            typer.echo(f"powermean: {notice}", err=True)
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        found = getattr(import_module(module), attribute)
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(**PLAIN)
            alone.command(cmd_name)(found)
            found = alone
        return typer.main.get_command(found)

    def invoke(self, ctx: Any) -> Any:
        """What went wrong in a way that we know is said in a line, wherever it happens."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            _say_what_was_meant(error)
            raise
        except Exception as error:
            known = sys.modules.get("powermean.errors")  # not imported: then it can't be one of them
            if known is None or not isinstance(error, known.PowermeanError):
                raise
            with import_module("powermean.cli.terminal").plain_failures():
                raise

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


app = typer.Typer(
    name="powermean",
    cls=LazyGroup,
    help="Train language models by group-based reinforcement learning on a self-hosted service.\n\n"
    "`powermean demo` shows everything once; `powermean up` starts the service. The other commands talk to "
    "the service that you run on this machine, to a server that you signed in to with "
    "`powermean login --server URL`, or to POWERMEAN_URL with POWERMEAN_API_KEY.",
    no_args_is_help=True,
    **PLAIN,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="NAME",
            help="A server that you signed in to; default: POWERMEAN_SERVER, or the last one.",
        ),
    ] = None,
) -> None:
    if server is not None:
        os.environ["POWERMEAN_SERVER"] = server
