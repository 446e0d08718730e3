"""How fast the service answers: `python benchmarks/service.py`. Prints each figure beside its goal.

Each section gets a real server of its own (`python -m server`, Redis, an empty database) and asks it by HTTP.
A module of sections (service_jobs, service_metrics) has one thing that this one reads:

    SECTIONS: dict[str, Callable[[Service, bool], Iterable[Figure]]]   # name -> what measures it

The second argument is True for `--tiny`: sizes that say nothing, but run everything. A section that needs no
server stands in ALONE instead, and gets that argument alone.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import service_jobs
import service_metrics
from rollouts_table import Table
from service_rig import DATABASES, Figure, databases, serving

from powermean.cli.signals import raise_on_signals

SECTIONS = {**service_jobs.SECTIONS, **service_metrics.SECTIONS}
ALONE = {**service_jobs.ALONE}


def parsed() -> argparse.Namespace:
    names = (*SECTIONS, *ALONE)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", type=_listed(names), default=names, help=f"of {','.join(names)}")
    parser.add_argument("--databases", type=_listed(DATABASES), default=DATABASES, help="sqlite,postgres")
    parser.add_argument("--tiny", action="store_true", help="quick, says nothing")
    return parser.parse_args()


def _listed(known: tuple[str, ...]):
    def split(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        if unknown := set(chosen) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(known)}")
        return chosen

    return split


def measured(options: argparse.Namespace) -> Iterator[tuple[str, str, Figure]]:
    """Section, database ("-": none) and figure, as they come."""
    for name in options.sections:
        if name in ALONE:
            for figure in ALONE[name](options.tiny):
                yield name, "-", figure
    asked = [name for name in options.sections if name in SECTIONS]
    with tempfile.TemporaryDirectory(prefix="powermean-benchmark-") as scratch, ExitStack() as stack:
        made = databases(options.databases if asked else (), Path(scratch), stack)
        for name in asked:
            for kind, new_url in made.items():
                with serving(new_url(), Path(tempfile.mkdtemp(dir=scratch))) as service:
                    for figure in SECTIONS[name](service, options.tiny):
                        yield name, kind, figure


def load() -> str:
    """How busy the machine is, by its own count."""
    return "load average " + " ".join(f"{one:.1f}" for one in os.getloadavg())


def main() -> None:
    options = parsed()
    raise_on_signals()  # what was started is ended and what was written removed, also on SIGTERM
    print(f"{os.cpu_count()} cores, {load()} at the start", flush=True)
    table = Table("The service", ("section", "database", "figure", "value", "goal", ""), left=3)
    for name, kind, figure in measured(options):
        print(name, kind, *figure.cells(), file=sys.stderr, flush=True)
        table.add(name, kind, *figure.cells())
    print(f"\n{table.text()}\n{load()} at the end")


if __name__ == "__main__":
    main()
