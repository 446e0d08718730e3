"""The artefact store: checkpoints, models, datasets, logs and texts."""

from powermean.artefacts.errors import (
    ArtefactCorruptError,
    ArtefactError,
    ArtefactKeyInvalidError,
    ArtefactMissingError,
    ArtefactStoreFullError,
    ArtefactStoreUnavailableError,
)
from powermean.artefacts.folder import MARKER, TEMPORARY_FOLDER
from powermean.artefacts.keys import check_key
from powermean.artefacts.store import CHUNK, ArtefactStore, StoredObject

__all__ = [
    "CHUNK",
    "MARKER",
    "TEMPORARY_FOLDER",
    "ArtefactCorruptError",
    "ArtefactError",
    "ArtefactKeyInvalidError",
    "ArtefactMissingError",
    "ArtefactStore",
    "ArtefactStoreFullError",
    "ArtefactStoreUnavailableError",
    "StoredObject",
    "check_key",
]
