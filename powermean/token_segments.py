"""Token records, one stored object per step: gzipped JSON lines, floats as base64 of little-endian float32.

The first line is the step's StepFacts; each further line is a trajectory. Base64 keeps every bit of a float32
and is read several times faster than decimal digits.
"""

import base64
import gzip
import io
import json
import sys
import zlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from powermean.contracts.token_records import StepFacts, TrajectoryTokens
from powermean.errors import PowermeanError

MAX_LINE = 64 * 2**20  # bytes of one trajectory, unpacked
_FLOATS = ("sampler_log_probs", "old_log_probs", "log_ratio", "weight")


class SegmentCorruptError(PowermeanError):
    """The bytes are not a token segment, or only part of one."""

    code = "tokens_corrupt"


def write_segment(facts: StepFacts, trajectories: Sequence[TrajectoryTokens]) -> bytes:
    """The segment; equal records give equal bytes."""
    lines = [facts.model_dump_json()]
    lines += [json.dumps(_packed(trajectory.model_dump())) for trajectory in trajectories]
    return gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)


def read_facts(data: bytes) -> StepFacts:
    """The step's facts. Raises SegmentCorruptError."""
    try:
        return StepFacts.model_validate_json(next(_lines(data)))
    except (StopIteration, ValidationError) as error:
        raise SegmentCorruptError(f"no facts of a step: {error}") from error


def read_trajectories(data: bytes) -> Iterator[TrajectoryTokens]:
    """Yields the trajectories in order. Raises SegmentCorruptError."""
    for record in _records(data):
        yield _trajectory(record)


def read_trajectory(data: bytes, index: int) -> TrajectoryTokens | None:
    """Unpacks only this trajectory; None if the segment lacks it. Raises SegmentCorruptError."""
    for record in _records(data):
        if record.get("index") == index:
            return _trajectory(record)
    return None


def _records(data: bytes) -> Iterator[dict[str, Any]]:
    """The trajectories, still packed."""
    lines = _lines(data)
    next(lines, None)
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise SegmentCorruptError(f"no tokens of a trajectory: {error}") from error
        if not isinstance(record, dict):
            raise SegmentCorruptError("no tokens of a trajectory: not an object")
        yield record


def _trajectory(record: dict[str, Any]) -> TrajectoryTokens:
    try:
        return TrajectoryTokens.model_validate(_unpacked(record))
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # ValidationError is a ValueError
        raise SegmentCorruptError(f"no tokens of a trajectory: {error}") from error


def _lines(data: bytes) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as lines:
            while line := lines.readline(MAX_LINE):
                if not line.endswith(b"\n"):
                    raise SegmentCorruptError("a line is cut off or longer than allowed")
                yield line
    except (OSError, EOFError, zlib.error) as error:
        raise SegmentCorruptError(f"not gzip: {error}") from error


def _packed(record: dict[str, Any]) -> dict[str, Any]:
    """Floats as base64, bools as a string of 0 and 1, in the trajectory and in its updates."""
    packed = dict(record)
    for name, value in record.items():
        if value is None:
            continue
        if name in _FLOATS:
            numbers = array("f", value)
            if sys.byteorder == "big":
                numbers.byteswap()
            packed[name] = base64.b64encode(numbers.tobytes()).decode()
        elif name == "clipped":
            packed[name] = "".join("1" if clipped else "0" for clipped in value)
        elif name == "updates":
            packed[name] = [_packed(update) for update in value]
    return packed


def _unpacked(record: dict[str, Any]) -> dict[str, Any]:
    unpacked = dict(record)
    for name, value in record.items():
        if value is None:
            continue
        if name in _FLOATS:
            numbers = array("f")
            numbers.frombytes(base64.b64decode(value, validate=True))
            if sys.byteorder == "big":
                numbers.byteswap()
            unpacked[name] = tuple(numbers)
        elif name == "clipped":
            unpacked[name] = tuple(flag == "1" for flag in value)
        elif name == "updates":
            unpacked[name] = tuple(_unpacked(update) for update in value)
    return unpacked
