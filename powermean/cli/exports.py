"""Models for other programs: a job's final model or a checkpoint as a folder, or in a hub."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from powermean.calls import ApiError, spec_of
from powermean.cli.choosing import job_id
from powermean.cli.models import download_all
from powermean.cli.terminal import AsJson, connected, note, say, say_json
from powermean.client import Client
from powermean.contracts.api import Job
from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.forks import ExportTask, Origin
from powermean.contracts.job import JobSpec
from powermean.errors import PowermeanError

_AT_STEP = re.compile(r"(?P<job>.+)@(?P<step>best|[0-9]{1,7})", re.DOTALL)
_ADAPTER = "adapter/"  # in the folder of a final model
_PART = ".export"  # in the folder to write: what there is of it so far

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
    """There is nothing to export, or it can't be done here."""


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
        if to.exists() and (not to.is_dir() or any(one.name != _PART for one in to.iterdir())):
            raise ExportError(f"{to} is there already", remedy="Give a new folder, or an empty one.")
        try:
            size = _export(client, chosen, to, adapter)
        except BaseException:
            if (to / _PART).exists():
                note(f"{to} keeps what is downloaded: the same command goes on with it.")
            raise
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

    The token is taken from HF_TOKEN alone, the hub's address from HF_ENDPOINT. The model's folder is made
    under TMPDIR first, which must have room for it.

    Example: powermean push arithmetic-smollm2 my-name/arithmetic
    """
    command = [sys.executable, "-m", "trainer.forks.push", name, *(["--public"] if public else [])]
    with connected() as client, tempfile.TemporaryDirectory(prefix="powermean-") as folder:
        _need("huggingface_hub", "a model is pushed with huggingface_hub, which is not installed here")
        _run(command)  # refuses what it can before anything is downloaded
        _export(client, chosen, Path(folder), adapter)
        url = _run([*command, "--folder", folder, "--message", f"{chosen} from powermean"]).strip()
    if json_:
        say_json({"url": url, "public": public})
    else:
        say(url)


def _export(client: Client, chosen: str, to: Path, adapter: bool) -> int:
    """Write the folder; returns its size in bytes. Until it is whole, all is in its subfolder _PART."""
    at_step = _AT_STEP.fullmatch(chosen)
    job = client.get_job(job_id(client, at_step["job"] if at_step else chosen))
    if adapter and _read(job, "model").model.lora is None:
        raise ExportError(f"{job.id} trained all weights: it has no adapter", remedy="Leave out --adapter.")
    part = to / _PART
    if at_step is None:
        files = _of_model(client.files(job.id).files, adapter)
        _fetch(partial(client.download, job.id), part / "model", files)
    else:
        _convert(client, job, client.checkpoint(job.id, at_step["step"]), part, adapter)
    for made in (part / "model").iterdir():
        made.replace(to / made.name)
    shutil.rmtree(part)
    return sum(file.stat().st_size for file in to.rglob("*") if file.is_file())


def _of_model(files: Mapping[str, ArtefactRef], adapter: bool) -> dict[str, tuple[str, ArtefactRef]]:
    """Of a final model's files, those of the adapter or the others: path in the folder -> (path, object)."""
    return {
        path.removeprefix(_ADAPTER): (path, ref)
        for path, ref in files.items()
        if path.startswith(_ADAPTER) == adapter
    }


def _fetch(
    download: Callable[[str, Path], None], folder: Path, files: Mapping[str, tuple[str, ArtefactRef]]
) -> None:
    """Download what isn't there yet; what a broken-off export of something else left there goes."""
    for file in folder.rglob("*"):
        if file.is_file() and str(file.relative_to(folder)) not in files:
            file.unlink()
    download_all(download, folder, files, note)


def _convert(client: Client, job: Job, origin: Origin, part: Path, adapter: bool) -> None:
    """Download a checkpoint into `part` and have it converted to the folder `model` there."""
    spec = _read(job, "model", "resources.gpus")
    for package in ("torch", "transformers"):
        _need(
            package,
            f"a checkpoint is converted with {package}, which is not installed here",
        )
    own = partial(client.download, job.id, step=str(origin.step))
    _fetch(own, part / job.id, {path: (path, ref) for path, ref in origin.files.files.items()})
    if (base := origin.base) is not None:
        # The job that stored these may be deleted, or have others by now: ask the one that began with them.
        held = partial(client.download_origin, job.id, base.job_id)
        wanted = base.files.files.items()
        files = {path: (path, ref) for path, ref in wanted if not adapter or path == "config.json"}
        _fetch(held, part / base.job_id, files)
    half = spec.model.dtype == "bfloat16" or (spec.model.dtype == "auto" and spec.resources.gpus > 0)
    task = ExportTask(
        origin=origin,
        lora=spec.model.lora if origin.kind == "adapter" else None,
        adapter=adapter,
        dtype="bfloat16" if half else "float32",
    )
    shutil.rmtree(part / "model", ignore_errors=True)
    command = [sys.executable, "-m", "trainer.forks.export", str(part), "--to", str(part / "model")]
    _run(command, task.model_dump_json())


def _read(job: Job, *needed: str) -> JobSpec:
    """The job's spec, if these have the values it ran with: a default may give other weights."""
    try:
        return spec_of(job, *needed)
    except ApiError as error:
        remedy = "Export the final model without --adapter, which needs no spec, or train again as a new job."
        raise ExportError(error.message, code=error.code, remedy=remedy) from error


def _run(command: Sequence[str], given: str = "") -> str:
    """What the program prints. Raises typer.Exit if it fails, which it has explained."""
    done = subprocess.run(command, input=given, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)
    return done.stdout


def _need(package: str, why: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ExportError(why, remedy="Install powermean's training extra: powermean[trainer].")
