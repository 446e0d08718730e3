"""`powermean staleness`: how the objective treats trajectories from older weights."""

from typing import Annotated

import typer

from powermean.cli.choosing import ChosenJob, job_id
from powermean.cli.progress import number, percent
from powermean.cli.terminal import AsJson, connected, say, say_json, say_table
from powermean.contracts.staleness import StalenessRow

COLUMNS = ("stale", "n", "mixed", "first p", "p", "q10", "q90", "N(p)", "N(1)", "clipped", "KL", "w")


def staleness(
    job: ChosenJob,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Number of newest steps to include.")] = 20,
    from_step: Annotated[
        int | None, typer.Option("--from", min=0, help="First step, instead of --steps.")
    ] = None,
    to_step: Annotated[
        int | None, typer.Option("--to", min=0, help="Last step; default: the newest.")
    ] = None,
    json_: AsJson = False,
) -> None:
    """Show p and ESS by staleness: how the objective treats trajectories from older weights.

    stale: weight versions behind; n: trajectories; mixed: those sampled by several weight versions. Means are
    over their last update (first p: over their first); w is a token's importance-sampling ratio before
    truncation.

    Example: powermean staleness job-abc --steps 50
    """
    with connected() as client:
        found = client.staleness(job_id(client, job), steps, from_step, to_step)
    if json_:
        say_json(found)
    elif not found.rows:
        say("No trajectories in these steps.")
    else:
        say_table(
            COLUMNS,
            (cells(row) for row in found.rows),
            right=COLUMNS,
            title=f"steps {found.first_step} to {found.last_step}",
        )


def cells(row: StalenessRow) -> list[str]:
    """A row of the table."""
    counts = (str(row.staleness), str(row.trajectories), str(row.mixed))
    p = (number(value) for value in (row.first.p, row.last.p, row.last.p_q10, row.last.p_q90))
    ess = (number(value, 3) for value in (row.last.ess, row.last.ess_at_1))
    apart = (number(row.sampling_kl, 4), number(row.importance_sampling_ratio, 3))
    return [*counts, *p, *ess, percent(row.last.clip_fraction, 1), *apart]
