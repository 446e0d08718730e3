"""`powermean replay`: why a trajectory had this p, and what another objective would make of it."""

import time
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from powermean.cli.terminal import FAILED, complain, connected, console
from powermean.client import Client
from powermean.contracts.replays import (
    TOLERANCE,
    Aggregates,
    Numbers,
    Replay,
    ReplayedTokens,
    ReplayedTrajectory,
    ReplayResult,
    ReplayState,
    ReplaySummary,
    parse_settings,
)
from powermean.contracts.token_records import UpdateTokens

POLL_S = 0.3
PATIENCE_S = 3600.0  # the server gives up long before: POWERMEAN_REPLAY_S
BAR = 12  # cells of the largest weight's bar


def replay(
    job_id: Annotated[
        str, typer.Argument(help="The job's id, as `powermean list` shows it.", show_default=False)
    ],
    step: Annotated[int, typer.Option(min=0, help="A step whose tokens were recorded.", show_default=False)],
    algorithm: Annotated[
        str | None, typer.Option(help="Another objective, e.g. grpo; default: the job's own.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a field of the objective, e.g. clip=0.2; may be repeated."),
    ] = None,
    trajectory: Annotated[
        int | None, typer.Option(min=0, help="Show this trajectory's tokens with both weights.")
    ] = None,
    top: Annotated[int, typer.Option(min=0, max=1000, help="Trajectories to show, most changed first.")] = 10,
    json_: Annotated[bool, typer.Option("--json", help="Print the whole result as JSON.")] = False,
) -> None:
    """Why this p? Recompute a recorded step under its own or another objective.

    Shows p, effective sample size, clip fraction, loss and distance to GRPO as recorded and as replayed.

    Example: powermean replay job-abc --step 12 --algorithm grpo --set clip=0.2
    """
    try:
        given = parse_settings(changes or ())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from error
    with connected() as client:
        asked = client.replay(job_id, step, algorithm, given)
        for used in asked.deprecations:
            complain(used.message)
        found = finished(client, asked)
        if found.state is ReplayState.FAILED or found.summary is None:
            complain(failure(found))
            raise typer.Exit(FAILED)
        if trajectory is not None:
            show_tokens(client.replay_tokens(job_id, found.id, trajectory), as_json=json_)
            return
        result = client.replay_result(job_id, found.id)
    if json_:
        whole = {
            "replay": found.model_dump(mode="json", by_alias=True),
            "trajectories": [one.model_dump(mode="json") for one in result.trajectories],
        }
        console.print_json(data=whole)
    else:
        show(found, result, top)
    if found.summary.reproduces is False:
        complain(f"the replay did not reproduce the recorded numbers to {TOLERANCE:g}")
        raise typer.Exit(FAILED)


def finished(client: Client, asked: Replay) -> Replay:
    """Wait for the replay to end, and say on standard error what it is waiting for."""
    told = None
    deadline = time.monotonic() + PATIENCE_S
    notes = Console(stderr=True, highlight=False)
    while not asked.state.final:
        if asked.phase != told:
            told = asked.phase
            notes.print(f"{asked.id}: {asked.phase}", markup=False, soft_wrap=True)
        if time.monotonic() > deadline:
            complain(f"{asked.id} is still {asked.state}: ask again later")
            raise typer.Exit(FAILED)
        time.sleep(POLL_S)
        asked = client.get_replay(asked.job_id, asked.id)
    return asked


def failure(found: Replay) -> str:
    if found.error is None:
        return f"{found.id} {found.state}"
    remedy = f"\n{found.error.remedy}" if found.error.remedy else ""
    return f"{found.error.code}: {found.error.message}{remedy}"


def show(found: Replay, result: ReplayResult, top: int) -> None:
    """Print the tables of a finished replay."""
    summary = result.summary
    console.print(headline(found, summary), markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, title="recorded -> replayed, by update", title_justify="left")
    for column in ("update", "covered", "p", "ESS", "clipped", "loss", "distance to GRPO"):
        table.add_column(column, no_wrap=True, justify="left" if column == "update" else "right")
    for one in summary.updates:
        covered = f"{one.covered}/{one.trajectories}"
        table.add_row(str(one.update), covered, *changes_of(one.recorded, one.replayed))
    console.print(table)
    if top and result.trajectories:
        console.print(most_changed(result.trajectories, top))


def headline(found: Replay, summary: ReplaySummary) -> str:
    largest = max(summary.largest_difference.items(), key=lambda item: item[1], default=("", 0.0))
    lines = [
        f"step {found.step} of {found.job_id}: {found.recorded.name} -> "
        f"{found.algorithm.name} {found.settings}".rstrip(),
        f"covers {summary.covered} of {summary.trajectories} trajectories with tokens and an advantage",
    ]
    if summary.reproduces is not None:
        verdict = "reproduces" if summary.reproduces else "does NOT reproduce"
        lines.append(
            f"{verdict} the recorded numbers to {TOLERANCE:g}; largest difference {largest[1]:.1e}"
            + (f" ({largest[0]})" if largest[0] else "")
        )
    return "\n".join(lines)


def changes_of(recorded: Aggregates, replayed: Aggregates) -> list[str]:
    names = ("p", "ess", "clip_fraction", "loss", "distance_to_grpo")
    return [arrow(getattr(recorded, name), getattr(replayed, name)) for name in names]


def arrow(before: float | None, after: float | None) -> str:
    """`before -> after`, or one number if they look the same."""
    texts = [precise(value) for value in (before, after)]
    return texts[0] if texts[0] == texts[1] else " -> ".join(texts)


def precise(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def most_changed(trajectories: Sequence[ReplayedTrajectory], top: int) -> Table:
    """Trajectories by their largest change of p, then of loss, each with the update of that change."""
    pairs = [(one, update) for one in trajectories for update in one.updates]
    best: dict[int, tuple[tuple[float, float], int]] = {}
    for place, (one, update) in enumerate(pairs):
        size = change(update.recorded, update.replayed)
        if one.index not in best or size > best[one.index][0]:
            best[one.index] = (size, place)
    ordered = sorted(best.items(), key=lambda item: (-item[1][0][0], -item[1][0][1], item[0]))[:top]
    table = Table(box=None, pad_edge=False, title="most changed trajectories", title_justify="left")
    for column in ("trajectory", "update", "advantage", "p", "ESS", "clipped", "loss"):
        table.add_column(column, no_wrap=True, justify="left" if column == "trajectory" else "right")
    for index, (_, place) in ordered:
        one, update = pairs[place]
        names = ("p", "ess", "clip_fraction", "loss")
        table.add_row(
            str(index),
            str(update.update),
            arrow(one.advantage, one.advantage_replayed),
            *[arrow(getattr(update.recorded, name), getattr(update.replayed, name)) for name in names],
        )
    return table


def change(recorded: Numbers, replayed: Numbers) -> tuple[float, float]:
    """Absolute change of p and of the loss."""
    return tuple(  # type: ignore[return-value]
        0.0 if before is None or after is None else abs(after - before)
        for before, after in ((recorded.p, replayed.p), (recorded.loss, replayed.loss))
    )


def show_tokens(found: ReplayedTokens, *, as_json: bool) -> None:
    """Print each update's tokens with both weights as bars; clipped tokens are marked."""
    if as_json:
        console.print_json(data=found.model_dump(mode="json"))
        return
    console.print(f"trajectory {found.recorded.index}, {len(found.recorded.pieces)} tokens", markup=False)
    replayed = {one.update: one for one in found.replayed.updates}
    for recorded in found.recorded.updates:
        if recorded.update in replayed:
            console.print(token_table(found.recorded.pieces, recorded, replayed[recorded.update]))


def token_table(pieces: Sequence[str], recorded: UpdateTokens, replayed: UpdateTokens) -> Table:
    table = Table(box=None, pad_edge=False, title=f"update {recorded.update}", title_justify="left")
    for column in ("token", "log-ratio", "recorded weight", "", "replayed weight", ""):
        table.add_column(column, no_wrap=True, justify="right" if column == "log-ratio" else "left")
    largest = max((*recorded.weight, *replayed.weight), default=0.0)
    for place, piece in enumerate(pieces):
        table.add_row(
            Text(printable(piece)),
            f"{recorded.log_ratio[place]:+.4f}",
            *weight_cells(recorded, place, largest),
            *weight_cells(replayed, place, largest),
        )
    return table


def weight_cells(update: UpdateTokens, place: int, largest: float) -> tuple[Text, Text]:
    weight = update.weight[place]
    cells = round(BAR * weight / largest) if largest > 0 else 0
    clipped = " clipped" if update.clipped[place] else ""
    return Text("█" * cells or "·"), Text(f"{weight:.4f}{clipped}")


def printable(piece: str) -> str:
    """The token's text in quotes, with control characters escaped."""
    return "'" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in piece) + "'"
