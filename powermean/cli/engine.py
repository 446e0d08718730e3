"""Commands about engine services: declared once, shared by LoRA jobs on one base model."""

from typing import Annotated

import typer

from powermean.cli.style import PLAIN
from powermean.cli.terminal import AsJson, checked, connected, say, say_json, say_table
from powermean.client import Client
from powermean.contracts.engines import EngineService, EngineSpec

engine = typer.Typer(
    help="Engines shared by LoRA jobs on one base model; for administrators.", no_args_is_help=True, **PLAIN
)


@engine.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What people call it.")],
    model: Annotated[
        str | None, typer.Option(help="Registry name of the base model, as in model.name of the jobs.")
    ] = None,
    folder: Annotated[str | None, typer.Option(help="Or its folder, as in model.folder of the jobs.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16; jobs must use the same.")] = "auto",
    gpus: Annotated[int, typer.Option(help="GPUs reserved for it; 0 serves on the CPU.")] = 0,
    max_adapters: Annotated[int, typer.Option(help="LoRA jobs that it serves at the same time.")] = 4,
    max_lora_rank: Annotated[int, typer.Option(help="Largest rank of their adapters.")] = 16,
    max_model_len: Annotated[
        int | None, typer.Option(help="Most tokens of prompt and completion; default: the model's own limit.")
    ] = None,
    node: Annotated[str | None, typer.Option(help="The node to run it; default: any node with vLLM.")] = None,
    project: Annotated[
        list[str] | None,
        typer.Option(help="A project whose jobs may use it, repeated for several; default: all."),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Declare an engine: a node with vLLM keeps it running, and LoRA jobs on its model share it.

    A job takes a slot if one is free (rollout.sharing: auto), waits for one (shared), or never takes one
    (own).

    Example: powermean engine add smol --model HuggingFaceTB/SmolLM2-135M-Instruct --max-adapters 4
    """
    given = {
        "name": name,
        "model": {key: value for key, value in (("name", model), ("folder", folder)) if value is not None},
        "dtype": dtype,
        "gpus": gpus,
        "max_adapters": max_adapters,
        "max_lora_rank": max_lora_rank,
        "max_model_len": max_model_len,
        "node": node,
        "projects": project or (),
    }
    with connected() as client:
        made = client.create_engine(checked(EngineSpec, given))
    if json_:
        say_json(made)
    else:
        say(f"{made.id}  {made.spec.name}: {made.why or made.state}")


@engine.command("list")
def list_engines(json_: AsJson = False) -> None:
    """List the engines: state, where each runs, and its jobs.

    Example: powermean engine list
    """
    with connected() as client:
        found = client.engines()
    if json_:
        say_json(found)
        return
    say_table(
        ("id", "name", "model", "state", "node", "slots", "jobs"),
        (
            (
                one.id,
                one.spec.name,
                one.spec.model.name or one.spec.model.folder or "",
                one.state,
                one.node or "",
                f"{len(one.jobs)} of {one.spec.max_adapters}",
                ", ".join(one.jobs),
            )
            for one in found.items
        ),
        wrap=("name", "model", "jobs"),
    )
    for one in found.items:
        if why := reason(one):
            say(f"{one.spec.name}: {why}")


@engine.command("remove")
def remove(
    engine_or_name: Annotated[str, typer.Argument(metavar="ENGINE", help="Its id or its name.")],
    json_: AsJson = False,
) -> None:
    """Remove an engine: it takes no new jobs and ends when its current ones have ended.

    Example: powermean engine remove smol
    """
    with connected() as client:
        gone = client.remove_engine(engine_id(client, engine_or_name))
    if json_:
        say_json(gone)
        return
    after = f" once its jobs have ended: {', '.join(gone.jobs)}" if gone.jobs else ""
    say(f"{gone.spec.name} stops{after}")


def reason(one: EngineService) -> str | None:
    """An explanation of its state, for people."""
    if one.error is not None:
        return f"{one.error.message} {one.error.remedy or ''}".strip()
    return one.why


def engine_id(client: Client, engine_or_name: str) -> str:
    """The id of the engine with this name, or else what was given."""
    for one in client.engines().items:
        if one.spec.name == engine_or_name:
            return one.id
    return engine_or_name
