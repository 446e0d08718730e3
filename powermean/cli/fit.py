"""`powermean fit`: the memory that a job's trainer takes, before it is submitted."""

import subprocess
import sys
from typing import Annotated

import typer

from powermean.cli.jobs import SpecFile
from powermean.cli.specs import load_spec
from powermean.cli.terminal import plain_failures


def fit(
    file: SpecFile,
    gpu_memory: Annotated[
        float | None,
        typer.Option(
            metavar="GIB", help="Memory of each GPU in GiB; default: this machine's.", show_default=False
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=0, help="GPUs on each node, one rank for each; by default the spec's.", show_default=False
        ),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Nodes; by default the spec's.", show_default=False)
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of the longest prompt of an uploaded dataset.", show_default=False),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the numbers in bytes, as JSON.")] = False,
) -> None:
    """Estimate a job's memory, and what would make it smaller.

    With several GPUs it is that of each rank. The model must be on this machine, come in a package, or be a
    Qwen2.5 or Qwen3; the prompts must be here too, unless --prompt-tokens stands for them. Exit status 1
    where the job does not fit.

    Example: powermean fit job.yaml --gpus 8 --gpu-memory 80 --prompt-tokens 300
    """
    with plain_failures():
        load_spec(file)
    command = [sys.executable, "-m", "trainer.preflight.fit", str(file)]
    numbers = {"gpu-memory": gpu_memory, "gpus": gpus, "nodes": nodes, "prompt-tokens": prompt_tokens}
    for name, value in numbers.items():
        if value is not None:
            command += [f"--{name}", str(value)]
    if json_:
        command.append("--json")
    raise typer.Exit(subprocess.run(command, check=False).returncode)
