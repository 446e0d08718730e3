"""Commands about jobs."""

import time
import uuid
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from powermean.cli.following import follow
from powermean.cli.models import download_model
from powermean.cli.progress import Run, number
from powermean.cli.specs import SpecFileError, load_spec, located, read_file
from powermean.cli.terminal import FAILED, complain, connected, console, plain_failures
from powermean.client import Client
from powermean.contracts.api import Job, JobState, JobSummary
from powermean.home import Home
from powermean.rest import ApiError
from powermean.spec_yaml import to_yaml

LOG_POLL_S = 1.0

SpecFile = Annotated[Path, typer.Argument(help="A job spec in YAML or JSON.", show_default=False)]
JobId = Annotated[str, typer.Argument(help="The job's id, as `powermean list` shows it.", show_default=False)]


def validate(file: SpecFile) -> None:
    """Check a spec without submitting it; mistakes are shown with their lines.

    Example: powermean validate examples/arithmetic-smollm2.yaml
    """
    with plain_failures():
        spec = load_spec(file)
    console.print(f"{file}: valid ({spec.algorithm.name}, {spec.training.steps} steps)", markup=False)


def submit(
    file: SpecFile,
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow the job until it ends.")] = False,
) -> None:
    """Submit a job.

    Example: powermean submit examples/arithmetic-smollm2.yaml --watch
    """
    with plain_failures():
        spec = load_spec(file)
    with connected() as client:
        try:
            job = client.create_job(spec, idempotency_key=uuid.uuid4().hex)
        except ApiError as error:
            if not error.body.fields:
                raise
            raise SpecFileError(file, located(error.body.fields, read_file(file))) from error
        console.print(job.id, markup=False)
        if watch_it:
            finish_with(follow(client, job, console))


def list_jobs(
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs whose name contains this.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Most jobs to show.")] = 20,
) -> None:
    """List jobs, newest first.

    Example: powermean list --state running
    """
    with connected() as client:
        page = client.list_jobs(state=state, name=name, limit=limit)
    table = Table(box=None, pad_edge=False)
    for column in ("id", "name", "state", "algorithm", "step", "reward", "created"):
        table.add_column(column, no_wrap=column == "id")
    for job in page.items:
        created = job.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        steps = f"{job.step}/{job.total_steps}"
        table.add_row(job.id, job.name, job.state, job.algorithm, steps, number(job.last_reward), created)
    console.print(table)
    if page.next:
        console.print("There are more jobs: raise --limit.")


def show(
    job_id: JobId,
    json_: Annotated[bool, typer.Option("--json", help="Print the whole job as JSON.")] = False,
) -> None:
    """Show a job: state, attempts, result, spec.

    Example: powermean show job-abc
    """
    with connected() as client:
        job = client.get_job(job_id)
    if json_:
        console.print(job.model_dump_json(indent=2, by_alias=True), markup=False, soft_wrap=True)
        return
    for line in described(job):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"\n{to_yaml(job.spec)}", markup=False, soft_wrap=True)


def described(job: Job) -> list[str]:
    lines = [
        f"{job.id}  {job.name}",
        f"{job.state}" + (f": {job.phase}" if job.phase else ""),
        f"step {job.step}/{job.total_steps}, last reward {number(job.last_reward)}",
    ]
    lines += [reason(job)] if job.error else []
    for attempt in job.attempts:
        nodes = ", ".join(sorted({part.node_id for part in attempt.allocations}))
        ended = f", {attempt.error.code}: {attempt.error.message}" if attempt.error else ""
        lines.append(
            f"attempt {attempt.number} on {nodes}: {attempt.state}, from step {attempt.first_step}{ended}"
        )
    if job.result:
        before, after = number(job.result.reward_before), number(job.result.reward_after)
        lines.append(f"held-out reward {before} -> {after}; model: powermean download {job.id}")
    return lines


def watch(job_id: JobId) -> None:
    """Follow a job until it ends; exit status 0 if it finished.

    Example: powermean watch job-abc
    """
    with connected() as client:
        finish_with(follow(client, client.get_job(job_id), console))


def finish_with(run: Run) -> None:
    """Turn the job's end into the command's exit status."""
    if run.job.state is JobState.FINISHED:
        return
    complain(f"{run.job.id} {run.job.state}" + (f": {reason(run.job)}" if run.job.error else ""))
    raise typer.Exit(FAILED)


def reason(job: JobSummary) -> str:
    """Why a job failed, in one or two lines."""
    if job.error is None:
        return f"no reason given; see `powermean logs {job.id}`"
    where = f"{job.error.path}: " if job.error.path else ""
    remedy = f"\n{job.error.remedy}" if job.error.remedy else ""
    return f"{job.error.code}: {where}{job.error.message}{remedy}"


def cancel(job_id: JobId) -> None:
    """Cancel a job. Its checkpoints and recorded numbers are kept.

    Example: powermean cancel job-abc
    """
    with connected() as client:
        job = client.cancel_job(job_id)
    console.print(
        f"{job.id} {job.state}" if job.state.final else f"{job.id} is being cancelled", markup=False
    )


def logs(
    job_id: JobId,
    follow_it: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing until the job ends.")
    ] = False,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Number of the attempt; default: the newest.")
    ] = None,
) -> None:
    """Print the log of the trainer and the engine.

    Example: powermean logs job-abc -f
    """
    with connected() as client:
        shown, offset = attempt, 0
        while True:
            over = not follow_it or client.get_job(job_id).state.final
            shown, offset, more = print_logs(client, job_id, shown, offset)
            if (
                attempt is None
                and follow_it
                and not more
                and (new := client.get_job(job_id).attempt) > (shown or 0)
            ):
                shown, offset = new, 0
                continue
            if over and not more:
                return
            if not more:
                time.sleep(LOG_POLL_S)


def print_logs(client: Client, job_id: str, attempt: int | None, offset: int) -> tuple[int | None, int, bool]:
    """Print one part; returns the attempt, the next offset, and whether there was any text."""
    part = client.logs(job_id, attempt, offset)
    typer.echo(part.text, nl=False)
    return part.attempt or attempt, part.next_offset, bool(part.text)


def download(
    job_id: JobId,
    to: Annotated[
        Path | None, typer.Option(help="Folder; default: models/JOB in the service's folder.")
    ] = None,
) -> None:
    """Download a finished job's model: a Hugging Face folder.

    `from_pretrained` can load it.

    Example: powermean download job-abc --to my-model
    """
    folder = to or Home.find().models / job_id
    with connected() as client:
        size = download_model(client, job_id, folder, lambda path: console.print(path, markup=False))
    console.print(f"{folder} ({size / 1e6:.0f} MB)", markup=False, soft_wrap=True)
