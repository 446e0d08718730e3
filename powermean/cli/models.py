"""Downloads a finished job's model."""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from powermean.client import Client
from powermean.contracts.artefacts import ArtefactRef
from powermean.errors import PowermeanError


class DamagedFileError(PowermeanError):
    """A downloaded file differs from the one that the job stored."""


def download_model(
    client: Client, job_id: str, folder: Path, tell: Callable[[str], None] | None = None
) -> int:
    """Download all files of the final model into `folder`, verified; returns their size in bytes.

    Correct files that already exist are kept.
    """
    files = client.files(job_id).files
    download_all(
        partial(client.download, job_id), folder, {path: (path, ref) for path, ref in files.items()}, tell
    )
    return sum(ref.size for ref in files.values())


def download_all(
    download: Callable[[str, Path], None],
    folder: Path,
    files: Mapping[str, tuple[str, ArtefactRef]],
    tell: Callable[[str], None] | None = None,
) -> None:
    """Download files into `folder`, verified; those that are there already and right are kept.

    `files`: path in the folder -> (what `download` takes, the object). Raises DamagedFileError.
    """
    root = folder.resolve()
    for path, (source, ref) in sorted(files.items()):
        target = (root / path).resolve()
        if not target.is_relative_to(root):
            raise DamagedFileError(f"{path} would lie outside {root}")
        if target.is_file() and digest(target) == ref.sha256:
            continue
        if tell:
            tell(path)
        download(source, target)
        if digest(target) != ref.sha256:
            target.unlink()
            raise DamagedFileError(f"{path} was damaged in transit: try again")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
