"""openapi.json at the root of the repository: `python -m server.openapi` writes it, `--check` compares it."""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from fastapi.openapi.utils import get_openapi

from server.app import create_app
from server.routes.api import api_routes
from server.settings import Settings

FILE = Path(__file__).parent.parent / "openapi.json"


def schema() -> dict[str, Any]:
    """The schema of the REST API, from the code."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            database_url=f"sqlite:///{folder}/none.db",
            artefacts_url=f"file://{folder}/artefacts",
            secrets_dir=Path(folder) / "secrets",
            scheduler=False,
        )
        app = create_app(settings)
    return get_openapi(title=app.title, version=app.version, description=app.description, routes=api_routes())


def as_text(document: dict[str, Any]) -> str:
    """The document in its committed form."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Write the file, or check that it matches the code; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m server.openapi", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the file does not match the code")
    text = as_text(schema())
    if not parser.parse_args(arguments).check:
        FILE.write_text(text)
        return 0
    if FILE.exists() and FILE.read_text() == text:
        return 0
    print(
        f"{FILE.name} does not match the code: run `python -m server.openapi` and commit it",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
