"""References to objects in the artefact store."""

from pydantic import Field

from powermean.contracts.base import Contract, Sha256


class ArtefactRef(Contract):
    """One stored object. `key` is relative to the store's root; readers verify `sha256`."""

    key: str = Field(min_length=1, max_length=500, pattern=r"^(\.?[\w@+=-])(\.?[\w/@+=-])*$")
    sha256: Sha256
    size: int = Field(ge=0, description="Bytes.")


class Manifest(Contract):
    """A folder in the store: relative path -> object."""

    files: dict[str, ArtefactRef]
