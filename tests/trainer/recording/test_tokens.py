"""Token records agree with the trajectory's numbers, and their pieces with its text."""

import gzip
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from powermean.artefacts import ArtefactStore
from powermean.contracts.token_records import TrajectoryTokens
from powermean.contracts.trajectories import TrajectoryBatch, TrajectoryRow, TrajectoryText
from powermean.token_segments import read_facts, read_trajectories
from tests.support.attempts import JOB, Stage
from tests.support.tiny_model import VOCABULARY
from trainer.recording.tokens import pieces, recorded_rows
from worker.attempt_dir import AttemptDir, read_record

TRAINING = {"prompts_per_step": 8, "minibatches": 2, "epochs": 2, "steps": 2}


def segment(folder: Path, step: int, attempt: int = 1) -> bytes:
    (found,) = folder.glob(f"store/jobs/{JOB}/tokens/{attempt}/*-{step:08d}.jsonl.gz")
    return found.read_bytes()


@pytest.fixture(scope="module")
def step(
    tmp_path_factory: pytest.TempPathFactory, model_root: Path
) -> tuple[bytes, tuple[TrajectoryRow, ...]]:
    folder = tmp_path_factory.mktemp("tokens")
    played = Stage(folder, model_root).play(training=TRAINING, record={"tokens": "all"})
    return segment(folder, 2), played.trajectories[2]


@pytest.fixture(scope="module")
def tokens(step: tuple[bytes, tuple[TrajectoryRow, ...]]) -> list[TrajectoryTokens]:
    return list(read_trajectories(step[0]))


@pytest.mark.slow
def test_every_trajectory_is_there_with_its_tokens(
    step: tuple[bytes, tuple[TrajectoryRow, ...]], tokens: list[TrajectoryTokens]
) -> None:
    rows = step[1]
    assert [found.index for found in tokens] == [row.index for row in rows]
    for row, found in zip(rows, tokens, strict=True):
        assert len(found.token_ids) == len(found.pieces) == len(found.sampler_log_probs) == row.length
        trained_by = [seen.update for seen in row.updates] if row.advantage else []
        assert [seen.update for seen in found.updates] == trained_by


@pytest.mark.slow
def test_the_facts_are_those_of_the_updates(
    step: tuple[bytes, tuple[TrajectoryRow, ...]], tokens: list[TrajectoryTokens]
) -> None:
    facts = read_facts(step[0])
    assert facts.step == 2
    assert [(u.update, u.epoch, u.minibatch) for u in facts.updates] == [
        (0, 0, 0),
        (1, 0, 1),
        (2, 1, 0),
        (3, 1, 1),
    ]
    assert [u.trajectories for u in facts.updates] == [32, 32, 32, 32]
    halves = facts.updates[0].tokens + facts.updates[1].tokens
    assert halves == sum(len(found.token_ids) for found in tokens)
    assert {(s.epoch, s.minibatch) for row in step[1] for s in row.updates} == {
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    }


def test_ratios_weights_and_clips_give_the_trajectorys_numbers(
    step: tuple[bytes, tuple[TrajectoryRow, ...]], tokens: list[TrajectoryTokens]
) -> None:
    compared = clipped = 0
    for row, found in zip(step[1], tokens, strict=True):
        numbers = {seen.update: seen for seen in row.updates}
        for seen in found.updates:
            number = numbers[seen.update]
            ratios = [math.exp(x) for x in seen.log_ratio]
            assert min(ratios) == pytest.approx(number.ratio_min, rel=1e-6)
            assert max(ratios) == pytest.approx(number.ratio_max, rel=1e-6)
            assert sum(ratios) / len(ratios) == pytest.approx(number.ratio_mean, rel=1e-5)
            assert number.ratio_min <= number.ratio_clipped_min
            assert number.ratio_clipped_max <= number.ratio_max * (1 + 1e-12)
            assert sum(seen.weight) == pytest.approx(1, abs=1e-6)
            ess = 1 / sum(weight**2 for weight in seen.weight) / row.length
            assert ess == pytest.approx(number.ess, abs=1e-6)
            assert sum(seen.clipped) / row.length == pytest.approx(number.clip_fraction, abs=1e-12)
            compared += 1
            clipped += sum(seen.clipped)
    assert compared > 20
    assert clipped > 0


def test_texts_of_tokens_are_of_the_models_vocabulary(tokens: list[TrajectoryTokens]) -> None:
    assert {piece for found in tokens for piece in found.pieces} <= set(VOCABULARY)


@pytest.mark.parametrize(
    ("wanted", "count"), [("none", 0), (1, 8), (15, 8), (16, 16), (63, 56), (10**6, 64), ("all", 64)]
)
def test_as_many_as_asked_by_whole_groups(wanted: Literal["all", "none"] | int, count: int) -> None:
    assert recorded_rows(wanted, groups=8, group_size=8) == count


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "count"), [("none", 0), (23, 16)])
def test_a_run_stores_as_many_as_asked_and_says_so(
    tmp_path: Path, model_root: Path, wanted: str | int, count: int
) -> None:
    played = Stage(tmp_path, model_root).play(training=TRAINING | {"steps": 1}, record={"tokens": wanted})
    (batch,) = (
        record.body
        for record in map(read_record, AttemptDir(played.folder).spooled())
        if isinstance(record.body, TrajectoryBatch)
    )
    assert batch.token_rows == count
    if not count:
        assert batch.tokens is None
        assert not list(tmp_path.glob(f"store/jobs/{JOB}/tokens/**/*.gz"))
    else:
        assert batch.tokens is not None
        assert batch.tokens.key.startswith(f"jobs/{JOB}/tokens/1/")
        assert batch.texts is not None
        store = ArtefactStore(f"file://{tmp_path}/store")
        found = list(read_trajectories(store.get_bytes(batch.tokens)))
        assert [one.index for one in found] == list(range(count))
        texts = gzip.decompress(store.get_bytes(batch.texts)).splitlines()
        completions = [TrajectoryText.model_validate_json(line).completion for line in texts]
        assert ["".join(one.pieces) for one in found] == completions[:count]
        assert any(completions[:count])


@pytest.mark.slow
def test_an_attempt_that_goes_on_records_the_same_bytes(
    tmp_path: Path, model_root: Path, step: tuple[bytes, tuple[TrajectoryRow, ...]]
) -> None:
    spec = {"training": TRAINING, "record": {"tokens": "all"}}
    stage = Stage(tmp_path, model_root)
    first = stage.play(1, order="checkpoint_and_exit", **spec)
    stage.play(2, resume=first.checkpoints[0], **spec)
    assert segment(tmp_path, 2, attempt=2) == step[0]


def test_a_character_of_several_tokens_belongs_to_its_last_token() -> None:
    data = "né!".encode()

    def decode(ids: object) -> str:
        return bytes(ids).decode(errors="replace")

    assert pieces(data, decode) == ["n", "", "é", "!"]
    assert pieces(data[:2], decode) == ["n", "\ufffd"]


def test_bytes_that_are_no_text_take_linear_time() -> None:
    decoded = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return bytes(ids).decode(errors="replace")

    data = b"a" + b"\xff" * 2000 + "né 🤗!".encode()
    assert "".join(pieces(data, decode)) == data.decode(errors="replace")
    assert decoded < 20 * len(data)
