"""The tokens of one recorded trajectory, from its step's segment in the artefact store."""

from dataclasses import dataclass

from powermean.artefacts import ArtefactCorruptError, ArtefactStore
from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.token_records import RecordedTokens
from powermean.token_segments import SegmentCorruptError, read_facts, read_trajectory
from server.db.scoped import ScopedSession
from server.errors import NotFoundError
from server.metrics.trajectories import find_step, no_trajectory


@dataclass(frozen=True)
class StoredTokens:
    """Where a trajectory's tokens are stored."""

    segment: ArtefactRef
    index: int


def find_tokens(session: ScopedSession, job_id: str, step: int, index: int) -> StoredTokens:
    """Raises NotFoundError for an unknown job, step or trajectory, or if its tokens were not recorded."""
    head = find_step(session, job_id, step)
    if index >= head.count:
        raise no_trajectory(head, index)
    if head.tokens is None or index >= head.token_rows:
        recorded = f"those of 0 to {head.token_rows - 1} were" if head.token_rows else "none of the step were"
        raise NotFoundError(
            f"the tokens of trajectory {index} of step {step} were not recorded: {recorded}",
            remedy="record.tokens in the job's spec says how many trajectories per step are recorded.",
        )
    return StoredTokens(ArtefactRef.model_validate(head.tokens), index)


def read_tokens(stored: StoredTokens, store: ArtefactStore) -> RecordedTokens:
    """The record, read with no transaction open. Raises ArtefactMissingError or ArtefactCorruptError."""
    data = store.get_bytes(stored.segment)
    try:
        facts, tokens = read_facts(data), read_trajectory(data, stored.index)
    except SegmentCorruptError as error:
        raise ArtefactCorruptError(
            f"artefact {stored.segment.key} is not a token segment: {error}"
        ) from error
    if tokens is None:
        raise ArtefactCorruptError(f"artefact {stored.segment.key} lacks trajectory {stored.index}")
    return RecordedTokens(facts=facts, tokens=tokens)
