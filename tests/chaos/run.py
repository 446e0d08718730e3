"""`make chaos`: python -m tests.chaos.run --seed 7 --faults 200 --jobs 30 [--json report.json]."""

import argparse
import json
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from tempfile import mkdtemp

from tests.chaos.campaign import Campaign
from tests.chaos.faults import FAULTS


def main() -> int:
    parser = argparse.ArgumentParser(description="Inject faults while jobs run, and look for what is lost.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=30)
    parser.add_argument("--stand-ins", action="store_true", help="no model is trained: a tenth of the time")
    parser.add_argument("--only", action="append", default=[], choices=sorted(FAULTS), metavar="FAULT")
    parser.add_argument("--models", type=Path, help="a folder to keep the tiny model in for the next run")
    parser.add_argument("--json", type=Path, help="write the report here, too")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # everything is stopped and removed, as by Ctrl-C
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    folder = Path(mkdtemp(prefix="chaos-"))
    print(f"seed {given.seed}: {given.faults} faults over at least {given.jobs} jobs; files in {folder}")
    root = None if given.stand_ins else model_root(given.models or folder)
    only = tuple(given.only)
    campaign = Campaign(folder / "cluster", root, given.seed, given.faults, given.jobs, only=only)
    verdict = campaign.run()
    print(table(campaign))
    if given.json:
        given.json.write_text(json.dumps(report(campaign), indent=1))
    if verdict.good:
        shutil.rmtree(folder)
    return 0 if verdict.good else 1


def model_root(folder: Path) -> Path:
    """A folder with the tiny model, which is trained if it is not there yet."""
    import torch

    from tests.support.tiny_model import shared_model_root

    torch.set_num_threads(1)  # more only wait for each other where the machine does other things, too
    folder.mkdir(exist_ok=True)
    return shared_model_root(folder)


def table(campaign: Campaign) -> str:
    """Markdown: the faults by kind and by moment, then what was looked for."""
    jobs: dict[str, set[str]] = {kind: set() for kind in campaign.only or sorted(FAULTS)}
    for one in campaign.injected:
        jobs[one.kind] |= one.hit.jobs
    times = Counter(one.kind for one in campaign.injected)
    moments = Counter(one.moment or "no moment in particular" for one in campaign.injected)
    found = campaign.verdict.found
    return "\n".join(
        (
            *("", "| fault | injected | jobs affected |", "|---|---|---|"),
            *(f"| {kind} | {times[kind]} | {len(hit)} |" for kind, hit in jobs.items()),
            f"| all | {len(campaign.injected)} | {len(set().union(*jobs.values()))} |",
            *("", "| moment of the attempt aimed at | faults |", "|---|---|"),
            *(f"| {moment} | {count} |" for moment, count in moments.most_common()),
            *("", f"| looked for, in {campaign.judged} jobs | found |", "|---|---|"),
            *(f"| {kind} | {len(wrong)} |" for kind, wrong in found.items()),
            *("", *(f"- {kind}: {one}" for kind, wrong in found.items() for one in wrong)),
        )
    )


def report(campaign: Campaign) -> dict[str, object]:
    return {
        "seed": campaign.seed,
        "found": campaign.verdict.found,
        "injected": [
            {"number": one.number, "fault": one.kind, "at_s": round(one.at_s, 1), "hit": one.hit.what}
            | {"jobs": sorted(one.hit.jobs)}
            for one in campaign.injected
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
