"""`powermean doctor`: starts the server's and the node's own doctors with the settings that are here."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated

import typer
from pydantic import ValidationError

from powermean.cli.embedded import node_settings, redis_url, server_settings
from powermean.cli.terminal import FAILED, note, plain_failures, say, say_json, say_table
from powermean.contracts.checks import Check, Checkup
from powermean.discovery import running_homes
from powermean.home import Home
from powermean.setting_files import SUFFIX

MODULES = {"server": "server.doctor", "node": "worker.doctor"}


@dataclass(frozen=True)
class Place:
    """One thing to look at, and the settings that are its own."""

    of: str
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
        chosen = [name for name, wanted in (("server", server), ("node", node)) if wanted]
        places = [Place(name, {}) for name in chosen] or _here()
        found = [_looked_at(place) for place in places]
    if json_:
        say_json({"items": found})
    else:
        _show(found)
    if any(check.verdict == "failed" for one in found for check in one.checks):
        raise typer.Exit(FAILED)


def _here() -> list[Place]:
    """What the environment describes; otherwise the service that `powermean up` runs here, or would run."""
    told_by = {"server": "POWERMEAN_DATABASE_URL", "node": "POWERMEAN_NODE_TOKEN"}
    described = [of for of, name in told_by.items() if {name, name + SUFFIX} & os.environ.keys()]
    if described:
        return [Place(of, {}) for of in described]
    home = Home.find()
    others = [] if home.database.exists() or os.environ.get("POWERMEAN_HOME") else running_homes()
    if len(others) == 1:
        (home,) = others
    note(f"Looking at the service in {home.folder}, which {'runs' if home.url else 'does not run'}.")
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


def _looked_at(place: Place) -> Checkup:
    command = [sys.executable, "-m", MODULES[place.of], "--json", *(["--idle"] if place.idle else [])]
    done = subprocess.run(command, env=_environment(place.settings), capture_output=True, text=True)
    try:
        return Checkup.model_validate_json(done.stdout.strip().splitlines()[-1])
    except (ValidationError, IndexError, json.JSONDecodeError):
        why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        broken = Check(name="doctor", verdict="failed", said=f"its program does not start: {why}")
        return Checkup.model_validate({"of": place.of, "checks": [broken]})


def _environment(settings: dict[str, str]) -> dict[str, str]:
    """The environment with these settings: without the files that would stand for them."""
    files = {name + SUFFIX for name in settings}
    return {name: text for name, text in os.environ.items() if name not in files} | settings


def _show(found: list[Checkup]) -> None:
    say_table(
        ("of", "verdict", "what", "found"),
        (
            (one.of, check.verdict, check.name, check.said + (f" -> {check.remedy}" if check.remedy else ""))
            for one in found
            for check in one.checks
        ),
        wrap=("found",),
    )
    counts = {
        verdict: sum(check.verdict == verdict for one in found for check in one.checks)
        for verdict in ("failed", "warning")
    }
    say(f"\n{counts['failed']} failed, {counts['warning']} warnings")
