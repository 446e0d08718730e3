"""Remedies in the words of the pages: the API's speak of its own paths, which nobody here can follow."""

_ON_PAGES = {
    "GET /v1/jobs lists the jobs.": "Start from the list of jobs.",
    "GET /v1/datasets lists the datasets.": "`powermean datasets` in a terminal lists them.",
    "GET /v1/engines lists the engines.": "The cluster's page lists the engines.",
    "GET /v1/nodes lists the nodes.": "The cluster's page lists the nodes.",
    "GET /v1/keys lists the keys.": "An administrator can list them.",
    "GET /v1/jobs/{id}/files lists them.": "The job's overview lists its files.",
    "GET /v1/jobs/{id}/replays lists a job's replays.": "Start from the step's page: it lists its replays.",
    "Ask for a new one: `powermean login`, or POST /v1/login-codes.": (
        "Ask for a new link: `powermean login` in a terminal prints one."
    ),
    "openapi.json describes the API.": "Start from the list of jobs.",
    "Use a new key for a different spec.": "Open the form anew and submit again.",
}


def on_pages(remedy: str) -> str:
    """The remedy as a page says it."""
    return _ON_PAGES.get(remedy, remedy)
