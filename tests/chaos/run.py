"""`make chaos`: python -m tests.chaos.run --seed 7 --faults 200 --jobs 30 [--json report.json]."""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from tempfile import mkdtemp

import torch

from tests.chaos.campaign import Campaign
from tests.chaos.faults import FAULTS
from tests.support.tiny_model import shared_model_root


def main() -> int:
    parser = argparse.ArgumentParser(description="Inject faults while jobs run, and look for what is lost.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=30)
    parser.add_argument("--only", action="append", default=[], choices=sorted(FAULTS), metavar="FAULT")
    parser.add_argument("--models", type=Path, help="a folder to keep the tiny model in for the next run")
    parser.add_argument("--json", type=Path, help="write the report here, too")
    given = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    torch.set_num_threads(1)  # more only wait for each other where the machine does other things, too
    folder = Path(mkdtemp(prefix="chaos-"))
    print(f"seed {given.seed}: {given.faults} faults over at least {given.jobs} jobs; files in {folder}")
    models = given.models or folder
    models.mkdir(exist_ok=True)
    campaign = Campaign(
        folder / "cluster",
        shared_model_root(models),
        given.seed,
        given.faults,
        given.jobs,
        only=tuple(given.only),
    )
    verdict = campaign.run()
    print(table(campaign))
    if given.json:
        given.json.write_text(json.dumps(report(campaign), indent=1))
    return 0 if verdict.good else 1


def table(campaign: Campaign) -> str:
    """Markdown: the faults by kind, then what was looked for."""
    kinds: dict[str, list[frozenset[str]]] = defaultdict(list)
    for one in campaign.injected:
        kinds[one.kind].append(one.hit.jobs)
    lines = ["", "| fault | injected | jobs affected |", "|---|---|---|"]
    lines += [
        f"| {kind} | {len(hits)} | {len(frozenset().union(*hits))} |" for kind, hits in sorted(kinds.items())
    ]
    lines += [f"| all | {len(campaign.injected)} | |", "", "| looked for | found |", "|---|---|"]
    lines += [f"| {kind} | {len(wrong)} |" for kind, wrong in campaign.verdict.found.items()]
    lines += ["", *(f"- {kind}: {one}" for kind, wrong in campaign.verdict.found.items() for one in wrong)]
    return "\n".join(lines)


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
