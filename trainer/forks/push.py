"""Uploads a model's folder to a hub: python -m trainer.forks.push NAME --folder FOLDER

`powermean push` runs it. The token is the one in the environment (HF_TOKEN), the hub that of HF_ENDPOINT.
"""

import argparse
import os
import sys
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils.tqdm import disable_progress_bars

from powermean.contracts.secrets import HUB_TOKENS
from trainer.failures import TrainingError


def main() -> int:
    """Upload a folder and print the repository's address; without --folder, only check that it may."""
    parser = argparse.ArgumentParser(prog="python -m trainer.forks.push", description=main.__doc__)
    parser.add_argument("name", help="OWNER/NAME of the repository")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--public", action="store_true", help="for everybody to read")
    parser.add_argument("--message", default="Upload from powermean", help="of the commit")
    options = parser.parse_args()
    disable_progress_bars()
    try:
        hub = checked_hub(options.name, public=options.public)
        if options.folder is not None:
            print(push(hub, options.folder, options.name, public=options.public, message=options.message))
    except (TrainingError, HfHubHTTPError, HFValidationError, OSError) as error:
        remedy = getattr(error, "remedy", None)
        print(f"error: {error}" + (f"\nremedy: {remedy}" if remedy else ""), file=sys.stderr)
        return 1
    return 0


def checked_hub(name: str, *, public: bool) -> HfApi:
    """The hub, with the environment's token; whether that may write only shows when it does.

    Raises TrainingError (no_hub_token, public_repository, private_repository), and the hub's own errors.
    """
    token = next((os.environ[one] for one in HUB_TOKENS if os.environ.get(one)), None)
    if token is None:
        raise TrainingError(
            "no_hub_token",
            f"{HUB_TOKENS[0]} is not set: the hub takes uploads from accounts alone",
            remedy="set it to a token that may write",
        )
    hub = HfApi(token=token)
    hub.whoami()
    found = _is_public(hub, name)
    if public and found is False:
        raise TrainingError(
            "private_repository",
            f"{name} already exists and is private; a push doesn't change that",
            remedy="push without --public, and make it public on the hub if that is meant",
        )
    if not public and found:
        raise TrainingError(
            "public_repository",
            f"{name} is there already, and everybody may read it",
            remedy="push with --public if that is meant, or choose another name",
        )
    return hub


def push(hub: HfApi, folder: Path, name: str, *, public: bool, message: str) -> str:
    """Upload the folder's files to the repository, which is made if there is none; returns its address.

    Raises the hub's own errors.
    """
    made = hub.create_repo(name, private=not public, exist_ok=True)
    hub.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    return str(made)


def _is_public(hub: HfApi, name: str) -> bool | None:
    """None: there is no such repository."""
    try:
        return not hub.repo_info(name).private
    except RepositoryNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
