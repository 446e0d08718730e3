"""Reads the stored parts of a replay's result, outside any transaction."""

import gzip
import io
import zlib

from pydantic import ValidationError

from powermean.artefacts import ArtefactCorruptError, ArtefactStore
from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.replays import ReplayedTokens, ReplayResult
from powermean.contracts.token_records import TrajectoryTokens
from powermean.token_segments import SegmentCorruptError, read_trajectories
from server.errors import NotFoundError

MAX_RESULT = 256 * 2**20  # bytes, decompressed


def read_result(store: ArtefactStore, ref: ArtefactRef) -> ReplayResult:
    """The numbers. Raises ArtefactMissingError or ArtefactCorruptError."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(store.get_bytes(ref))) as packed:
            return ReplayResult.model_validate_json(packed.read(MAX_RESULT))
    except (OSError, EOFError, zlib.error, ValidationError) as error:
        raise ArtefactCorruptError(f"artefact {ref.key} does not contain a replay: {error}") from error


def read_tokens(
    store: ArtefactStore, recorded: ArtefactRef, replayed: ArtefactRef, index: int
) -> ReplayedTokens:
    """One trajectory under both. Raises NotFoundError, ArtefactMissingError or ArtefactCorruptError."""
    return ReplayedTokens(recorded=_one(store, recorded, index), replayed=_one(store, replayed, index))


def _one(store: ArtefactStore, ref: ArtefactRef, index: int) -> TrajectoryTokens:
    known = []
    try:
        for one in read_trajectories(store.get_bytes(ref)):
            if one.index == index:
                return one
            known.append(one.index)
    except SegmentCorruptError as error:
        raise ArtefactCorruptError(f"artefact {ref.key} does not contain tokens: {error}") from error
    there = f"{len(known)} others have, from {known[0]} to {known[-1]}" if known else "none has"
    raise NotFoundError(f"trajectory {index} has no token records", remedy=f"Ask for another: {there}.")
