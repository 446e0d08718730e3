"""Models for other programs: a job's final model or a checkpoint as a folder, or in a hub."""

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from powermean.cli.choosing import job_id
from powermean.cli.models import download_all
from powermean.cli.terminal import AsJson, connected, note, say, say_json
from powermean.client import Client
from powermean.contracts.api import Job
from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.forks import ExportTask, Origin
from powermean.errors import PowermeanError

_AT_STEP = re.compile(r"(?P<job>.+)@(?P<step>best|[0-9]{1,7})", re.DOTALL)
_ADAPTER = "adapter/"  # in the folder of a final model

Chosen = Annotated[
    str,
    typer.Argument(
        metavar="JOB[@STEP]",
        help="A job by its id or name; its final model, or its checkpoint of a step, or @best.",
        show_default=False,
    ),
]
AdapterAlone = Annotated[bool, typer.Option("--adapter", help="The LoRA adapter alone, as peft loads it.")]


class ExportError(PowermeanError):
    """There is nothing such to export, or not here."""


def export(
    chosen: Chosen,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write.", show_default=False)],
    adapter: AdapterAlone = False,
    json_: AsJson = False,
) -> None:
    """Write a job's final model or a checkpoint as a Hugging Face folder, or as an adapter.

    `from_pretrained` loads it. A checkpoint is converted on this machine, with PyTorch and with the model
    that the job began with; a final model only has to be downloaded.

    Example: powermean export arithmetic-smollm2@best --to my-model
    """
    with connected() as client:
        size = _export(client, chosen, to, adapter)
    if json_:
        say_json({"folder": str(to), "size": size})
    else:
        say(f"{to} ({size / 1e6:.0f} MB)")


def push(
    chosen: Chosen,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The repository, as OWNER/NAME.", show_default=False)
    ],
    adapter: AdapterAlone = False,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody read it; else it is private.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """Push a job's final model or a checkpoint to a model hub.

    The token is taken from HF_TOKEN alone, the hub's address from HF_ENDPOINT.

    Example: powermean push arithmetic-smollm2 my-name/arithmetic
    """
    with connected() as client, tempfile.TemporaryDirectory(prefix="powermean-") as temporary:
        folder = Path(temporary) / "model"
        _need("huggingface_hub", "a model is pushed with huggingface_hub, which is not installed here")
        _export(client, chosen, folder, adapter)
        command = [sys.executable, "-m", "trainer.forks.push", str(folder), name]
        command += ["--message", f"{chosen} from powermean", *(["--public"] if public else [])]
        pushed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if pushed.returncode:
        raise typer.Exit(pushed.returncode)
    url = pushed.stdout.strip()
    if json_:
        say_json({"url": url, "public": public})
    else:
        say(url)


def _export(client: Client, chosen: str, to: Path, adapter: bool) -> int:
    """Write the folder; returns its size in bytes."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ExportError(f"{to} is there already", remedy="Give a new folder, or an empty one.")
    at_step = _AT_STEP.fullmatch(chosen)
    job = client.get_job(job_id(client, at_step["job"] if at_step else chosen))
    if adapter and job.spec.model.lora is None:
        raise ExportError(f"{job.id} trained all weights: it has no adapter", remedy="Leave out --adapter.")
    if at_step is None:
        download_all(client, job.id, to, _part(client.files(job.id).files, adapter), tell=note)
    else:
        _convert(client, job, client.checkpoint(job.id, at_step["step"]), to, adapter)
    return sum(file.stat().st_size for file in to.rglob("*") if file.is_file())


def _part(files: Mapping[str, ArtefactRef], adapter: bool) -> dict[str, tuple[str, ArtefactRef]]:
    """Of a final model's files, those of the adapter or the others: path in the folder -> (path, object)."""
    return {
        path.removeprefix(_ADAPTER): (path, ref)
        for path, ref in files.items()
        if path.startswith(_ADAPTER) == adapter
    }


def _convert(client: Client, job: Job, origin: Origin, to: Path, adapter: bool) -> None:
    """Download a checkpoint and have it converted."""
    _need("torch", "a checkpoint is converted with PyTorch and transformers, which are not installed here")
    _need("transformers", "a checkpoint is converted with transformers, which is not installed here")
    with tempfile.TemporaryDirectory(prefix="powermean-") as files:
        part: Origin | None = origin
        while part is not None:
            wanted = {path: (path, ref) for path, ref in part.files.files.items()}
            step = None if part.step is None else str(part.step)
            download_all(client, part.job_id, Path(files) / part.job_id, wanted, step=step, tell=note)
            part = part.base
        half = job.spec.model.dtype == "bfloat16" or (
            job.spec.model.dtype == "auto" and job.spec.resources.gpus > 0
        )
        task = ExportTask(
            origin=origin,
            lora=job.spec.model.lora if origin.kind == "adapter" else None,
            adapter=adapter,
            dtype="bfloat16" if half else "float32",
        )
        command = [sys.executable, "-m", "trainer.forks.export", files, "--to", str(to)]
        done = subprocess.run(command, input=task.model_dump_json(), text=True, check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)


def _need(package: str, why: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ExportError(
            why,
            remedy="Install powermean's training extra: powermean[trainer]. To export a final model, none of "
            "that is needed.",
        )
