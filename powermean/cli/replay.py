"""`powermean replay`: why a trajectory had this p, and what another objective would make of it."""

import time
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from powermean.cli.choosing import ChosenJob, job_id
from powermean.cli.terminal import (
    FAILED,
    AsJson,
    complain,
    connected,
    counted,
    note,
    say,
    say_json,
    say_table,
)
from powermean.client import Client
from powermean.contracts.replays import (
    TOLERANCE,
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
    job: ChosenJob,
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
    json_: AsJson = False,
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
        chosen = job_id(client, job)
        asked = client.replay(chosen, step, algorithm, given)
        for used in asked.deprecations:
            complain(used.message)
        found = finished(client, asked)
        if found.state is ReplayState.FAILED or found.summary is None:
            complain(failure(found))
            raise typer.Exit(FAILED)
        if trajectory is not None:
            show_tokens(client.replay_tokens(chosen, found.id, trajectory), as_json=json_)
            return
        result = client.replay_result(chosen, found.id)
    if json_:
        say_json({"replay": found, "trajectories": result.trajectories})
    else:
        show(found, result, top)
    if found.summary.reproduces is False:
        complain(f"the replay did not reproduce the recorded numbers to {TOLERANCE:g}")
        raise typer.Exit(FAILED)


def finished(client: Client, asked: Replay) -> Replay:
    """Wait for the replay to end, and say on standard error what it is waiting for."""
    told = None
    deadline = time.monotonic() + PATIENCE_S
    while not asked.state.final:
        if asked.phase != told:
            told = asked.phase
            note(f"{asked.id}: {asked.phase}")
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
    """Print the tables of a finished replay: what was recorded, and below it what the replay made of it."""
    summary = result.summary
    say(headline(found, summary))
    numbers = ("p", "ESS", "clipped", "loss", "distance to GRPO")
    rows: list[Sequence[str]] = []
    for one in summary.updates:
        names = ("p", "ess", "clip_fraction", "loss", "distance_to_grpo")
        sides = [[precise(getattr(side, name)) for name in names] for side in (one.recorded, one.replayed)]
        rows += beside((str(one.update), f"{one.covered}/{one.trajectories}"), sides)
    say_table(("update", "covered", "", *numbers), rows, right=numbers, title="\nby update")
    if top and result.trajectories:
        show_most_changed(result.trajectories, top)


def headline(found: Replay, summary: ReplaySummary) -> str:
    largest = max(summary.largest_difference.items(), key=lambda item: item[1], default=("", 0.0))
    lines = [
        f"step {found.step} of {found.job_id}: {found.recorded.name} -> "
        f"{found.algorithm.name} {found.settings}".rstrip(),
        f"covers {summary.covered} of {summary.trajectories} trajectories with tokens and an advantage",
    ]
    lines += [
        f"{one.path}: {one.message} (another version stored it; the default is shown)"
        for one in found.refused
    ]
    if summary.reproduces is not None:
        verdict = "reproduces" if summary.reproduces else "does NOT reproduce"
        lines.append(
            f"{verdict} the recorded numbers to {TOLERANCE:g}; largest difference {largest[1]:.1e}"
            + (f" ({largest[0]})" if largest[0] else "")
        )
    return "\n".join(lines)


def beside(place: Sequence[str], sides: Sequence[Sequence[str]]) -> Iterator[Sequence[str]]:
    """Rows for a place's recorded and replayed numbers; one row if they look the same."""
    recorded, replayed = sides
    if recorded == replayed:
        yield (*place, "both", *recorded)
    else:
        yield (*place, "recorded", *recorded)
        yield (*("" for _ in place), "replayed", *replayed)


def precise(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def show_most_changed(trajectories: Sequence[ReplayedTrajectory], top: int) -> None:
    """Trajectories by their largest change of p, then of loss, each with the update of that change."""
    pairs = [(one, update) for one in trajectories for update in one.updates]
    best: dict[int, tuple[tuple[float, float], int]] = {}
    for place, (one, update) in enumerate(pairs):
        size = change(update.recorded, update.replayed)
        if one.index not in best or size > best[one.index][0]:
            best[one.index] = (size, place)
    ordered = sorted(best.items(), key=lambda item: (-item[1][0][0], -item[1][0][1], item[0]))[:top]
    numbers = ("advantage", "p", "ESS", "clipped", "loss")
    rows: list[Sequence[str]] = []
    for index, (_, place) in ordered:
        one, update = pairs[place]
        names = ("p", "ess", "clip_fraction", "loss")
        sides = [
            [precise(advantage), *(precise(getattr(side, name)) for name in names)]
            for advantage, side in (
                (one.advantage, update.recorded),
                (one.advantage_replayed, update.replayed),
            )
        ]
        rows += beside((str(index), str(update.update)), sides)
    title = "\nmost changed trajectories"
    say_table(("trajectory", "update", "", *numbers), rows, right=numbers, title=title)


def change(recorded: Numbers, replayed: Numbers) -> tuple[float, float]:
    """Absolute change of p and of the loss."""
    return tuple(  # type: ignore[return-value]
        0.0 if before is None or after is None else abs(after - before)
        for before, after in ((recorded.p, replayed.p), (recorded.loss, replayed.loss))
    )


def show_tokens(found: ReplayedTokens, *, as_json: bool) -> None:
    """Print each update's tokens with both weights as bars; clipped tokens are marked."""
    if as_json:
        say_json(found)
        return
    say(f"trajectory {found.recorded.index}, {counted(len(found.recorded.pieces), 'token')}")
    replayed = {one.update: one for one in found.replayed.updates}
    both = [one for one in found.recorded.updates if one.update in replayed]
    if not both:
        say("No update took it: the rewards of its group were equal, or its minibatch is not covered.")
    for recorded in both:
        show_update(found.recorded.pieces, recorded, replayed[recorded.update])


def show_update(pieces: Sequence[str], recorded: UpdateTokens, replayed: UpdateTokens) -> None:
    largest = max((*recorded.weight, *replayed.weight), default=0.0)
    say_table(
        ("token", "log-ratio", "recorded weight", "", "replayed weight", ""),
        (
            (
                f"'{piece}'",
                f"{recorded.log_ratio[place]:+.4f}",
                *weight_cells(recorded, place, largest),
                *weight_cells(replayed, place, largest),
            )
            for place, piece in enumerate(pieces)
        ),
        wrap=("token",),
        right=("log-ratio",),
        title=f"\nupdate {recorded.update}",
    )


def weight_cells(update: UpdateTokens, place: int, largest: float) -> tuple[str, str]:
    weight = update.weight[place]
    cells = round(BAR * weight / largest) if largest > 0 else 0
    clipped = " clipped" if update.clipped[place] else ""
    return "█" * cells or "·", f"{weight:.4f}{clipped}"
