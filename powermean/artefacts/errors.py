"""What can go wrong with an artefact store."""

from collections.abc import Iterator
from contextlib import contextmanager

from powermean.disk import is_full
from powermean.errors import PowermeanError


class ArtefactError(PowermeanError):
    """Something is wrong with the store or in it."""

    code = "artefact_error"


class ArtefactKeyInvalidError(ArtefactError):
    """An owner or key that does not name a place inside the store."""

    code = "artefact_key_invalid"


class ArtefactMissingError(ArtefactError):
    """No such object: deleted by retention, or never put."""

    code = "artefact_missing"


class ArtefactCorruptError(ArtefactError):
    """The object's bytes are not the ones that were stored."""

    code = "artefact_corrupt"
    remedy = "restore the object from a backup, or resume from another checkpoint"


class ArtefactStoreFullError(ArtefactError):
    """No space left."""

    code = "artefact_store_full"
    retryable = True
    remedy = "free space in the artefact store, or keep fewer checkpoints"


class ArtefactStoreUnavailableError(ArtefactError):
    """The store can't be reached or refuses access."""

    code = "artefact_store_unavailable"
    retryable = True
    remedy = "check POWERMEAN_ARTEFACTS_URL, its permissions and the connection"


@contextmanager
def as_artefact_errors(key: str) -> Iterator[None]:
    """What the operating system or fsspec says of the object is raised as an ArtefactError."""
    try:
        yield
    except FileNotFoundError as error:
        raise ArtefactMissingError(f"no artefact {key}") from error
    except OSError as error:
        if is_full(error):
            raise ArtefactStoreFullError(f"no space left to store {key}") from error
        raise ArtefactStoreUnavailableError(f"the artefact store failed at {key}: {error}") from error
