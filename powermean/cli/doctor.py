"""`powermean doctor`: starts the server's and the node's own doctors with the settings that are here."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from subprocess import PIPE
from tempfile import TemporaryFile
from typing import Annotated, Literal

import typer
from pydantic import ValidationError

from powermean.checks import failed, line, within
from powermean.cli.embedded import node_settings, redis_url, server_settings
from powermean.cli.terminal import FAILED, note, plain_failures, say, say_json
from powermean.contracts.checks import Check, Checkup
from powermean.discovery import running_homes
from powermean.home import Home
from powermean.setting_files import SUFFIX

MODULES = {"server": "server.doctor", "node": "worker.doctor"}
SILENT_S = 330.0  # longer than any look may take
Part = Literal["server", "node"]


@dataclass(frozen=True)
class Place:
    """One thing to look at, and the settings that are its own."""

    of: Part
    settings: dict[str, str]
    idle: bool = False  # it is not meant to run now


def doctor(
    node: Annotated[bool, typer.Option("--node", help="The node that the environment describes.")] = False,
    server: Annotated[
        bool, typer.Option("--server", help="The server that the environment describes.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Check the server or the node on this machine from its own settings, and say what to do.

    Without an option it looks at what is here. The exit status is 1 if anything failed.

    Example: powermean doctor
    """
    with plain_failures():
        asked: dict[Part, bool] = {"server": server, "node": node}
        chosen = [of for of, wanted in asked.items() if wanted]
        places = [Place(of, {}) for of in chosen] or _here()
        found = [Checkup(of=place.of, checks=tuple(_looked_at(place, quiet=json_))) for place in places]
    if json_:
        say_json({"items": found})
    count = Counter(check.verdict for one in found for check in one.checks)
    if not json_:
        say(f"\n{count['failed']} failed, {count['warning']} warnings")
    if count["failed"]:
        raise typer.Exit(FAILED)


def _here() -> list[Place]:
    """What the environment describes; otherwise the service that `powermean up` runs here, or would run."""
    told_by: dict[Part, str] = {"server": "POWERMEAN_DATABASE_URL", "node": "POWERMEAN_NODE_TOKEN"}
    described = [of for of, name in told_by.items() if {name, name + SUFFIX} & os.environ.keys()]
    if described:
        return [Place(of, {}) for of in described]
    home = Home.find()
    others = [] if home.database.exists() or os.environ.get("POWERMEAN_HOME") else running_homes()
    if len(others) == 1:
        (home,) = others
    state = "runs" if home.url else "is starting" if home.locked else "does not run"
    note(f"Looking at the service in {home.folder}, which {state}.")
    shared = _redis(home) if home.url else {}
    at = {"POWERMEAN_PORT": home.url.rpartition(":")[2]} if home.url else {}
    token = _text(home, "node.token")
    return [
        Place("server", server_settings(home) | shared | at, idle=not home.url),
        Place(
            "node",
            node_settings(home, home.url or "http://127.0.0.1:8700", token) | shared,
            idle=not home.url,
        ),
    ]


def _redis(home: Home) -> dict[str, str]:
    """Where the running service's Redis is."""
    port = re.search(r"^port (\d+)$", _text(home, "redis.conf"), re.MULTILINE)
    return {"POWERMEAN_REDIS_URL": redis_url(_text(home, "redis.password"), int(port[1]))} if port else {}


def _text(home: Home, name: str) -> str:
    try:
        return (home.secrets / name).read_text().strip()
    except OSError:
        return ""


def _looked_at(place: Place, *, quiet: bool) -> Iterator[Check]:
    """What its program finds, said as it comes unless `quiet`."""
    for check in _found(place):
        if not quiet:
            say(line(place.of, check))
        yield check


def _found(place: Place) -> Iterator[Check]:
    command = [sys.executable, "-m", MODULES[place.of], "--json", *(["--idle"] if place.idle else [])]
    environment = _environment(place.settings)
    with TemporaryFile("w+") as errors:
        program = subprocess.Popen(command, env=environment, stdout=PIPE, stderr=errors, text=True)
        output, status = program.stdout, 0
        assert output is not None
        try:
            for text in within(SILENT_S, lambda: output):
                try:
                    check = Check.model_validate_json(text)
                except ValidationError:  # a library's own words
                    continue
                status |= check.verdict == "failed"
                yield check
            if program.wait(SILENT_S) != status:
                errors.seek(0)
                why = (errors.read().strip().splitlines() or [f"exit status {program.returncode}"])[-1]
                yield failed("doctor", f"its program broke off: {why}")
        except (TimeoutError, subprocess.TimeoutExpired):
            yield failed("doctor", f"its program has said nothing for {SILENT_S:g} s")
        finally:
            program.kill()


def _environment(settings: dict[str, str]) -> dict[str, str]:
    """The environment with these settings: without the files that would stand for them."""
    files = {name + SUFFIX for name in settings}
    return {name: text for name, text in os.environ.items() if name not in files} | settings
