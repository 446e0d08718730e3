"""References to objects in the artefact store."""

from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from powermean.contracts.base import Contract, Sha256


def _inside(path: str) -> str:
    if path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError("must be a path inside the folder")
    return path


FilePath = Annotated[
    str,
    StringConstraints(min_length=1, max_length=300, pattern=r"^[^\x00-\x1f\x7f\\]+$"),
    AfterValidator(_inside),
]


class ArtefactRef(Contract):
    """One stored object. `key` is relative to the store's root; readers verify `sha256`."""

    key: str = Field(min_length=1, max_length=500, pattern=r"^(\.?[\w@+=-])(\.?[\w/@+=-])*$")
    sha256: Sha256
    size: int = Field(ge=0, description="Bytes.")


class Manifest(Contract):
    """A folder in the store: relative path -> object."""

    files: dict[FilePath, ArtefactRef]
