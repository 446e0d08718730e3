"""Commands about jobs."""

import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from powermean.calls import ApiError
from powermean.cli.choosing import ChosenJob, job_id, newest
from powermean.cli.described import check_on, load_cluster
from powermean.cli.following import follow, held_out
from powermean.cli.models import download_model
from powermean.cli.progress import local_time, number
from powermean.cli.specs import check_model, load_spec, located
from powermean.cli.terminal import (
    FAILED,
    AsJson,
    complain,
    connected,
    counted,
    note,
    plain_failures,
    say,
    say_json,
    say_table,
)
from powermean.client import Client
from powermean.contracts.api import AttemptNode, CheckpointView, Job, JobPage, JobState, JobSummary
from powermean.home import Home
from powermean.spec_files import SpecFileError, read_file
from powermean.spec_yaml import to_yaml, with_project

STATES = ", ".join(JobState)

SpecFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="A job spec in YAML or JSON.", show_default=False)
]
AsEvents = Annotated[bool, typer.Option("--json", help="Print the API's own events, as lines of JSON.")]


def validate(
    file: SpecFile,
    cluster: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A cluster to check it on, e.g. examples/clusters/one-node.yaml: nodes, GPUs, their memory.",
            show_default=False,
        ),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="With --cluster: tokens of the longest prompt of an uploaded dataset.")
    ] = 1024,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the spec with all its defaults, as JSON.")
    ] = False,
) -> None:
    """Check a spec without submitting it; mistakes are shown with their lines.

    The model is looked for on this machine and in the hub. What needs it, such as the lengths of prompts, a
    node checks before the job is queued. With --cluster the server's planner and the node's checks of memory
    say what they would say there; the model may then be any Qwen2.5 or Qwen3.

    Example: powermean validate examples/arithmetic-smollm2.yaml
    """
    with plain_failures():
        spec = load_spec(file)
        if cluster is None:
            check_model(file, spec)
        else:
            check_on(load_cluster(cluster), file, spec, prompt_tokens)
    if json_:
        say_json(spec)
        return
    say(f"{file}: valid ({spec.algorithm.name}, {counted(spec.training.steps, 'step')})")


def submit(
    file: SpecFile,
    project: Annotated[
        str | None, typer.Option(help="The project that it belongs to; default: the spec's, or yours.")
    ] = None,
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow the job until it ends.")] = False,
    json_: AsJson = False,
) -> None:
    """Submit a job; prints its id.

    Example: powermean submit examples/arithmetic-smollm2.yaml --watch
    """
    with plain_failures():
        text = _text_for(file, project)
    with connected() as client:
        try:
            job = client.create_job_from_text(text, idempotency_key=uuid.uuid4().hex)
        except ApiError as error:
            if not error.body.fields:
                raise
            raise SpecFileError(file, located(error.body.fields, read_file(file))) from error
        if json_:
            say_json(job, indent=None if watch_it else 2)
        else:
            say(job.id)
        if watch_it:
            follow_to_the_end(client, job, json_)


def _text_for(file: Path, project: str | None) -> str:
    """The file's text, checked, and with the project that it is submitted to. Raises SpecFileError."""
    named = load_spec(file).project
    text = read_file(file)
    if project is None:
        return text.text
    if named not in (None, project):
        why = f"project: the file says {named}, and --project {project} (Leave one of them out.)"
        raise SpecFileError(file, [(text.line_of("project"), why)])
    return with_project(text.text, project)


def list_jobs(
    state: Annotated[
        JobState | None, typer.Option(metavar="STATE", help=f"Only jobs in this state: {STATES}.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs whose name contains this.")] = None,
    project: Annotated[str | None, typer.Option(help="Only jobs of this project.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs to show.")] = 20,
    json_: AsJson = False,
) -> None:
    """List jobs, newest first.

    Example: powermean list --state running
    """
    with connected() as client:
        found, rest = newest(
            lambda cursor, most: client.list_jobs(
                state=state, name=name, project=project, cursor=cursor, limit=most
            ),
            limit,
        )
    if json_:
        say_json(JobPage(items=found, next=rest))
        return
    say_table(
        ("id", "name", "project", "state", "algorithm", "step", "reward", "created"),
        (
            (
                job.id,
                job.name,
                job.project,
                job.state,
                job.algorithm,
                f"{job.step}/{job.total_steps}",
                number(job.last_reward),
                local_time(job.created_at),
            )
            for job in found
        ),
        wrap=("name",),
        spare=("project", "algorithm", "created"),
        right=("step", "reward"),
    )
    if rest:
        note("There are more jobs: raise --limit.")


def show(job: ChosenJob, json_: AsJson = False) -> None:
    """Show a job: state, attempts, result, spec.

    Example: powermean show arithmetic-smollm2
    """
    with connected() as client:
        found = client.get_job(job_id(client, job))
        spec = client.job_text(found.id).text if found.spec is None else to_yaml(found.spec)
        has_best = found.spec is not None and found.spec.checkpoints.best is not None
        kept = client.checkpoints(found.id).items if has_best and not json_ else ()
    if json_:
        say_json(found)
        return
    say("\n".join(described(found, kept)))
    say(f"\n{spec}", end="" if spec.endswith("\n") else "\n")


def _how(node: AttemptNode) -> str:
    """How one of several nodes is doing."""
    if node.error is not None:
        return f"{node.outcome}: {node.error.code}: {node.error.message}"
    return node.outcome or ("not claimed" if node.claimed_at is None else "claimed")


def described(job: Job, kept: Iterable[CheckpointView] = ()) -> list[str]:
    lines = [
        f"{job.id}  {job.name}",
        f"{job.state}" + (f": {job.phase}" if job.phase else ""),
        f"project {job.project}, submitted {local_time(job.created_at)}"
        + (f" by {who}" if (who := job.owner or job.created_by) else ""),
        f"priority {job.priority}"
        + (f", gave way {counted(job.preemptions, 'time')}" if job.preemptions else ""),
        f"step {job.step}/{job.total_steps}, last reward {number(job.last_reward)}",
    ]
    lines += [f"forked from {job.forked_from}"] if job.forked_from else []
    for fork in job.forks:
        at = "the final model" if fork.step is None else f"step {fork.step}"
        lines.append(f"forked by {fork.job}  {fork.name} ({fork.state}), from {at}")
    lines += [
        f"spec: {one.path}: {one.message} (another version stored it"
        f"{'' if job.spec is None else '; the default is shown'})"
        for one in job.spec_refused
    ]
    lines += [f"ended early by {job.ended_by}"] if job.ended_by else []
    lines += [reason(job)] if job.error else []
    for attempt in job.attempts:
        nodes = ", ".join(sorted({part.node_id for part in attempt.allocations}))
        why = f"{attempt.error.code}: {attempt.error.message}" if attempt.error else attempt.reason
        how = f"{attempt.outcome or attempt.state}, from step {attempt.first_step}"
        lines.append(f"attempt {attempt.number} on {nodes}: {how}" + (f": {why}" if why else ""))
        lines += [f"  node {one.node_rank}, {one.node_id}: {_how(one)}" for one in attempt.nodes]
        if attempt.ordered_at:
            freed = f", freed {local_time(attempt.freed_at)}" if attempt.freed_at else ""
            told = "" if attempt.ended_at else f" ({attempt.order_reason})"
            lines.append(f"  ordered to stop {local_time(attempt.ordered_at)}{told}{freed}")
    before, after = job.held_out_before, job.held_out
    if job.result:
        before, after = job.result.reward_before, job.result.reward_after
    if after is not None:
        problems = job.spec.evaluation.problems if job.spec else None
        lines.append(held_out(f"{number(before)} -> {number(after)}", problems))
    lines += [
        f"best checkpoint: step {one.step}, {one.metric} {number(one.value, 4)}" for one in kept if one.best
    ]
    lines += [f"model: powermean download {job.id}"] if job.result else []
    return lines


def watch(job: ChosenJob, json_: AsEvents = False) -> None:
    """Follow a job until it ends; exit status 0 if it finished.

    Example: powermean watch arithmetic-smollm2
    """
    with connected() as client:
        follow_to_the_end(client, client.get_job(job_id(client, job)), json_)


def follow_to_the_end(client: Client, job: Job, json_: bool) -> None:
    """Show the job's progress, or its events as lines of JSON; its end becomes the exit status."""
    if not json_:
        finish_with(follow(client, job).job)
        return
    for event in client.events(job.id):
        say_json(event, indent=None)
    finish_with(client.get_job(job.id))


def finish_with(job: JobSummary) -> None:
    """Turn the job's end into the command's exit status."""
    if job.state is JobState.FINISHED:
        return
    complain(f"{job.id} {job.state}" + (f": {reason(job)}" if job.error else ""))
    raise typer.Exit(FAILED)


def reason(job: JobSummary) -> str:
    """Why a job failed: a line for each mistake, and the remedy."""
    if job.error is None:
        return f"no reason given; see `powermean logs {job.id}`"
    where = f"{job.error.path}: " if job.error.path else ""
    if job.error.message.startswith(where):  # of several mistakes each line begins with its field
        where = ""
    remedy = f"\n{job.error.remedy}" if job.error.remedy else ""
    return f"{job.error.code}: {where}{job.error.message}{remedy}"


def cancel(job: ChosenJob, json_: AsJson = False) -> None:
    """Cancel a job. Its checkpoints and recorded numbers are kept.

    Example: powermean cancel arithmetic-smollm2
    """
    with connected() as client:
        found = client.cancel_job(job_id(client, job))
    how = found.state if found.state is JobState.CANCELLED else f"had ended already: {found.state}"
    _tell(found, how if found.state.final else "is being cancelled", json_)


def pause(job: ChosenJob, json_: AsJson = False) -> None:
    """Pause a job: it saves a checkpoint at the end of its step and frees its GPUs.

    A job that waits for a place is paused at once.

    Example: powermean pause arithmetic-smollm2
    """
    with connected() as client:
        found = client.pause_job(job_id(client, job))
    when = "after its step" if found.state is JobState.RUNNING else "after the check of its spec"
    _tell(found, f"pauses {when}" if found.pause_requested else found.state, json_)


def resume(job: ChosenJob, json_: AsJson = False) -> None:
    """Resume a paused job: it waits for a place, and goes on from its last checkpoint.

    Example: powermean resume arithmetic-smollm2
    """
    with connected() as client:
        found = client.resume_job(job_id(client, job))
    _tell(found, found.state, json_)


def _tell(job: Job, how: str, json_: bool) -> None:
    """Print the job after an order: what became of it, or all of it."""
    if json_:
        say_json(job)
    else:
        say(f"{job.id} {how}")


def logs(
    job: ChosenJob,
    follow_it: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing until the job ends.")
    ] = False,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Number of the attempt; default: the newest.")
    ] = None,
    node_rank: Annotated[
        int | None, typer.Option(min=0, help="Log of which node; default: 0, the first.")
    ] = None,
    json_: AsJson = False,
) -> None:
    """Print the log of the trainer and the engine.

    Example: powermean logs arithmetic-smollm2 -f
    """
    empty = True
    with connected() as client:
        for part in client.log(job_id(client, job), attempt, follow=follow_it, node_rank=node_rank):
            empty = False
            if json_:
                say_json(part, indent=None)
            else:
                say(part.text, end="")
    if empty:
        note("The log is empty.")


def download(
    job: ChosenJob,
    to: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder; default: models/ID in the service's folder."),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Download a finished job's model: a Hugging Face folder.

    `from_pretrained` can load it.

    Example: powermean download arithmetic-smollm2 --to my-model
    """
    with connected() as client:
        chosen = job_id(client, job)
        folder = to or Home.find().models / chosen
        size = download_model(client, chosen, folder, note)
    if json_:
        say_json({"folder": str(folder), "size": size})
    else:
        say(f"{folder} ({size / 1e6:.0f} MB)")
