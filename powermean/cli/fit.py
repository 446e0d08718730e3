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
        typer.Option(metavar="GIB", help="GiB of the GPU; by default this machine's.", show_default=False),
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of the longest prompt of an uploaded dataset.", show_default=False),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the numbers in bytes, as JSON.")] = False,
) -> None:
    """Estimate a job's memory, and what would make it smaller.

    The model must be on this machine or come in a package; the prompts too, unless --prompt-tokens stands for
    them. Exit status 1 where the job does not fit.

    Example: powermean fit job.yaml --gpu-memory 80
    """
    with plain_failures():
        load_spec(file)
    command = [sys.executable, "-m", "trainer.preflight.fit", str(file)]
    if gpu_memory is not None:
        command += ["--gpu-memory", str(gpu_memory)]
    if prompt_tokens is not None:
        command += ["--prompt-tokens", str(prompt_tokens)]
    if json_:
        command.append("--json")
    raise typer.Exit(subprocess.run(command, check=False).returncode)
