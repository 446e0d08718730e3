"""What to do about an error, in the terms of whoever reads it.

The API's remedies name its calls. The command line has commands for them, and the dashboard has pages: each
sentence that names a call stands here with what those say instead.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Remedy:
    """One remedy for readers of the API, of a terminal and of a page."""

    api: str
    terminal: str
    page: str


REMEDIES = (
    Remedy(
        "GET /v1/jobs lists the jobs.",
        "`powermean list` lists the jobs.",
        "The page Jobs lists them all.",
    ),
    Remedy(
        "GET /v1/datasets lists the datasets.",
        "`powermean datasets list` lists the datasets.",
        "`powermean datasets list` lists the datasets.",
    ),
    Remedy(
        "GET /v1/engines lists the engines.",
        "`powermean engine list` lists the engines.",
        "The page Cluster lists the engines.",
    ),
    Remedy(
        "GET /v1/nodes lists the nodes.",
        "`powermean nodes` lists the nodes.",
        "The page Cluster lists the nodes.",
    ),
    Remedy(
        "GET /v1/pools lists the pools.",
        "`powermean pool list` lists the pools.",
        "The page Cluster lists the pools.",
    ),
    Remedy(
        "GET /v1/projects lists yours.",
        "`powermean project list` lists yours.",
        "The page Projects lists yours.",
    ),
    Remedy(
        "GET /v1/priorities says who may use which.",
        "`powermean priorities list` says who may use which.",
        "`powermean priorities list` says who may use which.",
    ),
    Remedy(
        "GET /v1/priorities lists them.",
        "`powermean priorities list` lists them.",
        "`powermean priorities list` lists them.",
    ),
    Remedy(
        "GET /v1/jobs/{id} says what it does.",
        "`powermean show JOB` says what it does.",
        "The job's page says what it does.",
    ),
    Remedy(
        "GET /v1/people lists the people.",
        "Administrators find people with `powermean person list`, and add them with `powermean person add`.",
        "Administrators find people on the page People, and add them there.",
    ),
    Remedy(
        "GET /v1/jobs/{id}/checkpoints lists the checkpoints that are kept.",
        "`powermean checkpoints list JOB` lists the checkpoints that are kept.",
        "The project's page Storage lists the checkpoints that are kept.",
    ),
    Remedy(
        "GET /v1/keys lists the keys.",
        "`powermean key list` lists the keys.",
        "`powermean key list` lists the keys.",
    ),
    Remedy(
        "GET /v1/jobs/{id}/files lists them.",
        "`powermean download JOB` fetches those that there are.",
        "`powermean download JOB` fetches those that there are.",
    ),
    Remedy(
        "GET /v1/jobs/{id}/checkpoints/{step}/files lists them.",
        "`powermean export JOB@STEP --to FOLDER` fetches those that there are.",
        "`powermean export JOB@STEP --to FOLDER` fetches those that there are.",
    ),
    Remedy(
        "GET /v1/jobs/{id}/replays lists a job's replays.",
        "`powermean replay JOB --step N` asks for one.",
        "The job's page Replays lists them.",
    ),
    Remedy(
        "A finished job has one; its checkpoints are under /checkpoints.",
        "A finished job has one: `powermean show JOB` says how far it is.",
        "A finished job has one.",
    ),
    Remedy(
        "Ask again later, or poll /metrics.",
        "Try again later.",
        "Close other pages of this service, and reload this one.",
    ),
    Remedy(
        "Ask for a new one: `powermean login`, or POST /v1/login-codes.",
        "Ask for a new one: `powermean login`.",
        "Ask for a new one: `powermean login`.",
    ),
    Remedy(
        "Send `Authorization: Bearer <key>`, or sign in at /login.",
        "Sign in with `powermean login --server URL`, or set POWERMEAN_API_KEY to a key of yours.",
        "Sign in.",
    ),
    Remedy(
        "GET /v1/me/sessions lists yours.",
        "The page Account lists yours.",
        "The page Account lists yours.",
    ),
    Remedy(
        "Start again at /login.",
        "Start again on the page that signs you in.",
        "Start again.",
    ),
    Remedy(
        "Sign in again at /login.",
        "Set POWERMEAN_API_KEY to a key of yours.",
        "Sign in again.",
    ),
    Remedy(
        "openapi.json describes the API.",
        "Are server and command of the same version? `powermean --version` prints the command's.",
        "Start from the list of jobs.",
    ),
)


def spoken(text: str, reader: Literal["terminal", "page"]) -> str:
    """The text with each of the API's remedies in the reader's terms."""
    for one in REMEDIES:
        text = text.replace(one.api, one.terminal if reader == "terminal" else one.page)
    return text
