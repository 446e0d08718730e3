"""Whole runs with max_staleness 1 on the tiny model: they overlap, learn, and end cleanly in every phase."""

import threading
from collections.abc import Callable
from pathlib import Path
from threading import Condition, Event, RLock

import pytest

from powermean.contracts.rollout import GenerateRequest, GenerateResponse, PublishRequest
from rollout.client import EngineRefusedError, EngineUnreachableError
from tests.support.attempts import JOB, Played, Stage
from tests.support.fake_engine import FakeEngine
from worker.attempt_dir import AttemptDir

pytestmark = pytest.mark.slow

WAIT_S = 60.0
PROMPTS, GROUP, STEPS = 16, 8, 6
ROLLOUT = {"group_size": GROUP, "max_new_tokens": 4, "stop": ["\n"], "max_staleness": 1}
TRAINING = {"steps": STEPS, "prompts_per_step": PROMPTS, "minibatches": 2, "epochs": 2}


class SharedDouble(FakeEngine):
    """Serves two threads, one call at a time. Hooks may stand in the way of a call."""

    def __init__(
        self,
        folder: Path,
        *,
        at_batch: Callable[["SharedDouble", int], None] = lambda _engine, _number: None,
        at_publish: Callable[["SharedDouble", int], None] = lambda _engine, _version: None,
    ) -> None:
        super().__init__(folder, Path("/dev/shm"))
        self.closed = Event()
        self.versions: list[int] = []  # of all that was published, in order
        self.refused = 0  # for want of weights
        self._at_batch, self._at_publish = at_batch, at_publish
        self._folder = folder
        self._asked = self._begun = 0  # rollout batches
        self._empty = False
        self._turn = Condition(RLock())

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        batch = len(request.prompts) == PROMPTS and request.n == GROUP
        if batch:
            self._asked += 1
            self._at_batch(self, self._asked)
        with self._turn:
            self._begun += batch
            self.refused += self._empty
            self._turn.notify_all()
            if self._empty:
                self._asked -= batch  # it comes again
                raise EngineRefusedError(503, "weights_incomplete", "started anew")
            return super().generate(request, timeout_s)

    def publish(self, request: PublishRequest, timeout_s: float) -> None:
        self._at_publish(self, request.version)
        with self._turn:
            if self._empty and request.version == self.version:
                self.version -= 1  # it is taken once more
            super().publish(request, timeout_s)
            self.versions.append(request.version)
            self._empty = False
            self._turn.notify_all()

    def close(self) -> None:
        self.closed.set()

    def until(self, condition: Callable[[], bool]) -> None:
        with self._turn:
            assert self._turn.wait_for(condition, WAIT_S)

    def until_begun(self, batch: int) -> None:
        self.until(lambda: self._begun >= batch)

    def lose_weights(self) -> None:
        """As after a restart: the model is the folder's again."""
        with self._turn:
            self.model = FakeEngine(self._folder, Path("/dev/shm")).model
            self._empty = True

    def hang(self) -> None:
        """Until the client is closed."""
        assert self.closed.wait(WAIT_S)
        raise EngineUnreachableError("http://engine", "closed")


def meanwhile(engine: SharedDouble, version: int) -> None:
    """Weights of step s come when batch s + 1 is under way: in a serial run that would never be."""
    engine.until_begun(min(version + 1, STEPS))


def play(stage: Stage, engine: FakeEngine, number: int = 1, **more: object) -> Played:
    played = stage.play(number, engine=engine, **({"training": TRAINING, "rollout": ROLLOUT} | more))
    assert not [thread for thread in threading.enumerate() if thread.name == "sampler"]
    assert not list(Path("/dev/shm").glob(f"powermean-{JOB}.*"))
    return played


def order(stage: Stage, text: str) -> None:
    AttemptDir(stage.settings.attempt_dir(f"{JOB}.1")).write_order(text)


def code(played: Played) -> str:
    assert played.finish.outcome == "failed"
    assert played.finish.error is not None
    return played.finish.error.code


@pytest.mark.slow
def test_a_run_that_overlaps_learns_from_batches_one_version_old(stage: Stage, tiny_folder: Path) -> None:
    played = play(stage, SharedDouble(tiny_folder, at_publish=meanwhile))
    assert played.finish.outcome == "finished"
    rewards = played.series("reward")
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.15
    versions = {step: {row.weight_version for row in rows} for step, rows in played.trajectories.items()}
    assert versions == {1: {0}} | {step: {step - 2} for step in range(2, STEPS + 1)}
    assert max(played.series("publish/logp_difference_max")) < 1e-4
    # pi_old is the trainer's own at the start of the update: the first ratios are 1 all the same.
    assert [played.metrics[step, 0, "ratio/max"] for step in range(1, STEPS + 1)] == [1.0] * STEPS
    assert all(0 <= queued <= 2 for queued in played.series("sampling/queued"))


@pytest.mark.slow
def test_the_batches_are_those_of_their_steps(stage: Stage, tiny_folder: Path, tmp_path: Path) -> None:
    """Problems and their order come from the seed alone, however far ahead they are sampled."""
    ahead = play(stage, SharedDouble(tiny_folder), rollout=ROLLOUT | {"max_staleness": 3})
    serial = Stage(tmp_path / "serial", tiny_folder.parent).play(
        training=TRAINING, rollout=ROLLOUT | {"max_staleness": 0}
    )
    for step, rows in serial.trajectories.items():
        assert [row.problem for row in rows] == [row.problem for row in ahead.trajectories[step]]
    assert serial.trajectories[1] == ahead.trajectories[1]


def test_dapo_samples_further_rounds_ahead(stage: Stage, tiny_folder: Path) -> None:
    played = play(
        stage,
        SharedDouble(tiny_folder),
        algorithm={"name": "dapo", "sampling_rounds": 3},
        rollout=ROLLOUT | {"group_size": 2},
        training=TRAINING | {"steps": 3},
    )
    assert played.finish.outcome == "finished"
    assert max(played.series("sampling/rounds")) > 1


@pytest.mark.parametrize("batch", [1, 2], ids=["training waits", "training is busy"])
def test_cancelled_while_the_engine_is_at_work_it_stops(stage: Stage, tiny_folder: Path, batch: int) -> None:
    def at_batch(engine: SharedDouble, number: int) -> None:
        if number == batch:
            order(stage, "cancel")
            engine.hang()

    played = play(stage, SharedDouble(tiny_folder, at_batch=at_batch))
    assert played.finish.outcome == "cancelled"
    # The first step may end while the second batch is sampled.
    assert sorted(played.trajectories) in ([], [1])


@pytest.mark.slow
def test_sent_away_it_leaves_what_was_sampled_ahead_and_goes_on_elsewhere(
    stage: Stage, tiny_folder: Path
) -> None:
    def at_batch(engine: SharedDouble, number: int) -> None:
        if number == 3:
            order(stage, "checkpoint_and_exit")
            engine.hang()

    def at_publish(engine: SharedDouble, version: int) -> None:
        meanwhile(engine, min(version, 1))

    first = play(stage, SharedDouble(tiny_folder, at_batch=at_batch, at_publish=at_publish))
    assert first.finish.outcome == "checkpointed"
    last = first.checkpoints[-1].step
    assert last in (1, 2)
    second = play(stage, SharedDouble(tiny_folder), 2, resume=first.checkpoints[-1])
    assert second.finish.outcome == "finished"
    assert sorted(second.trajectories) == list(range(last + 1, STEPS + 1))
    for step, rows in second.trajectories.items():
        assert {row.weight_version for row in rows} <= {max(last, step - 2), step - 1}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError("no more"), "out_of_memory"),
        (EngineUnreachableError("http://engine", "refused"), "engine_unreachable"),
    ],
)
def test_what_fails_in_sampling_is_the_failure_of_the_run(
    stage: Stage, tiny_folder: Path, error: Exception, expected: str
) -> None:
    def at_batch(engine: SharedDouble, number: int) -> None:
        if number == 3:
            raise error

    played = play(stage, SharedDouble(tiny_folder, at_batch=at_batch))
    assert code(played) == expected
    assert sorted(played.trajectories) == [1, 2]  # what was sampled before is trained on


def test_what_fails_in_training_ends_the_sampling_too(stage: Stage, tiny_folder: Path) -> None:
    asked = Event()

    def at_batch(engine: SharedDouble, number: int) -> None:
        if number == 3:
            asked.set()
            engine.hang()

    def at_publish(_engine: SharedDouble, version: int) -> None:
        if version == 2:
            assert asked.wait(WAIT_S)
            raise EngineRefusedError(409, "weights_corrupt", "not what was announced")

    played = play(stage, SharedDouble(tiny_folder, at_batch=at_batch, at_publish=at_publish))
    assert code(played) == "weights_corrupt"


@pytest.mark.slow
def test_weights_lost_while_training_is_busy_come_with_the_next_version(
    stage: Stage, tiny_folder: Path
) -> None:
    def at_batch(engine: SharedDouble, number: int) -> None:
        if number == 3 and not engine.refused:
            engine.lose_weights()

    def at_publish(engine: SharedDouble, version: int) -> None:
        if version == 2:
            engine.until(lambda: engine.refused > 0)

    engine = SharedDouble(tiny_folder, at_batch=at_batch, at_publish=at_publish)
    played = play(stage, engine)
    assert played.finish.outcome == "finished"
    assert engine.versions == [1, 2, 3, 4, 5, 6]
    assert max(played.series("publish/logp_difference_max")) < 1e-4


@pytest.mark.slow
def test_weights_lost_while_training_waits_for_a_batch_are_published_again(
    stage: Stage, tiny_folder: Path
) -> None:
    def at_batch(engine: SharedDouble, number: int) -> None:
        if number == 4 and not engine.refused:
            engine.until(lambda: 3 in engine.versions)
            engine.lose_weights()

    engine = SharedDouble(tiny_folder, at_batch=at_batch)
    played = play(stage, engine)
    assert played.finish.outcome == "finished"
    assert engine.versions == [1, 2, 3, 3, 4, 5, 6]
    assert max(played.series("publish/logp_difference_max")) < 1e-4
    versions = {row.weight_version for row in played.trajectories[4]}
    assert versions == {3}
