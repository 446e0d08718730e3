"""Segments keep every bit of what was recorded."""

import gzip
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powermean.contracts.token_records import StepFacts, TrajectoryTokens, UpdateFacts, UpdateTokens
from powermean.token_segments import (
    SegmentCorruptError,
    read_facts,
    read_trajectories,
    read_trajectory,
    write_segment,
)

FACTS = StepFacts(
    step=3,
    progress=0.5,
    mean_reward=0.25,
    reward_std=0.43,
    max_new_tokens=8,
    updates=(UpdateFacts(update=0, epoch=0, minibatch=0, trajectories=2, tokens=5),),
)
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def trajectories(draw: st.DrawFn) -> TrajectoryTokens:
    length = draw(st.integers(0, 6))

    def floats() -> tuple[float, ...]:
        return tuple(draw(st.lists(FLOAT32, min_size=length, max_size=length)))

    flags = tuple(draw(st.lists(st.booleans(), min_size=length, max_size=length)))
    update = UpdateTokens(update=0, log_ratio=floats(), weight=floats(), clipped=flags)
    return TrajectoryTokens(
        index=draw(st.integers(0, 10**6)),
        token_ids=tuple(range(length)),
        pieces=tuple(draw(st.lists(st.text(max_size=5), min_size=length, max_size=length))),
        sampler_log_probs=floats(),
        old_log_probs=draw(st.one_of(st.none(), st.just(floats()))),
        updates=(update,) if draw(st.booleans()) else (),
    )


@given(st.lists(trajectories(), max_size=4))
def test_what_was_written_is_read(records: list[TrajectoryTokens]) -> None:
    data = write_segment(FACTS, records)
    assert read_facts(data) == FACTS
    assert list(read_trajectories(data)) == records
    assert write_segment(FACTS, records) == data


def test_a_float_keeps_its_bits() -> None:
    value = struct.unpack("<f", struct.pack("<f", 0.1))[0]
    record = TrajectoryTokens(index=0, token_ids=(1,), pieces=("a",), sampler_log_probs=(value,))
    (found,) = read_trajectories(write_segment(FACTS, [record]))
    assert found.sampler_log_probs == (value,)


def test_one_trajectory_is_read_alone() -> None:
    records = [
        TrajectoryTokens(index=index, token_ids=(index,), pieces=("a",), sampler_log_probs=(-0.5,))
        for index in (0, 2, 10)
    ]
    data = write_segment(FACTS, records)
    assert [read_trajectory(data, record.index) for record in records] == records
    assert read_trajectory(data, 1) is None


@pytest.mark.parametrize("line", ['{"index": 1, "weight": "***"}', "[1]", "{"])
def test_a_broken_trajectory_is_refused_when_it_is_asked_for_alone(line: str) -> None:
    data = gzip.compress(f"{FACTS.model_dump_json()}\n{line}\n".encode())
    with pytest.raises(SegmentCorruptError, match="tokens"):
        read_trajectory(data, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not gzip",
        gzip.compress(b"{}\n"),
        gzip.compress(b'{"index": 1}'),
        write_segment(FACTS, [])[:-12],
    ],
    ids=["nothing", "not gzip", "no facts", "a line of another kind", "cut off"],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(SegmentCorruptError):
        read_facts(data)


def test_a_broken_trajectory_is_refused() -> None:
    data = gzip.compress((FACTS.model_dump_json() + '\n{"index": 1, "weight": "***"}\n').encode())
    with pytest.raises(SegmentCorruptError, match="tokens"):
        list(read_trajectories(data))
