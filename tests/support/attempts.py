"""Attempts at a job in the test's own process, with an engine beside them."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from powermean.artefacts import ArtefactStore
from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.attempts import CheckpointCommit, Claim, Finish
from powermean.contracts.forks import Origin
from powermean.contracts.job import JobSpec
from powermean.contracts.metrics import MetricRow
from powermean.contracts.trajectories import TrajectoryBatch, TrajectoryRow
from rollout.client import RolloutClient
from tests.support.fake_engine import FakeAdapterEngine, FakeEngine
from tests.support.tiny_model import tiny_spec
from trainer.ranks.world import World
from trainer.run import Connection, run_attempt
from trainer.weights.engine_pool import EnginePool
from worker.attempt_dir import AttemptDir, read_record
from worker.reporter import Reporter
from worker.settings import NodeSettings

JOB = f"job-{os.getpid()}"  # it names files in /dev/shm, which all test runs of this machine share


@dataclass(frozen=True)
class Played:
    """How an attempt ended and what it left in its spool."""

    finish: Finish
    metrics: dict[tuple[int, int, str], float | None]
    trajectories: dict[int, tuple[TrajectoryRow, ...]]
    checkpoints: list[CheckpointCommit]
    kinds: list[str]
    folder: Path

    def series(self, name: str) -> list[float | None]:
        return [value for (_, _, found), value in sorted(self.metrics.items()) if found == name]


class Leaving(Reporter):
    """Of an attempt that is ordered to leave in its first step."""

    def trajectories(self, batch: TrajectoryBatch) -> None:
        super().trajectories(batch)
        self._attempt.write_order("checkpoint_and_exit")


class Stage:
    """Where attempts run: one node, one store, one model root."""

    def __init__(self, folder: Path, model_root: Path) -> None:
        self.folder = folder
        self.settings = NodeSettings(
            artefacts_url=f"file://{folder}/store", data_dir=folder / "node", model_roots=(model_root,)
        )
        self.store = ArtefactStore(self.settings.artefacts_url)
        self.store.make()  # as the server does
        self._model = model_root / "tiny"

    def claim(
        self,
        number: int,
        *,
        resume: CheckpointCommit | None = None,
        dataset: ArtefactRef | None = None,
        origin: Origin | None = None,
        **spec: object,
    ) -> Claim:
        """An attempt at the tiny spec, parts of which `spec` replaces."""
        return Claim(
            attempt_id=f"{JOB}.{number}",
            job_id=JOB,
            number=number,
            spec=JobSpec.model_validate(tiny_spec("tiny", **spec)),
            allocations=(),
            token="secret",
            lease_s=60,
            beat_s=10,
            resume=resume,
            dataset=dataset,
            origin=origin,
        )

    def play(
        self,
        number: int = 1,
        resume: CheckpointCommit | None = None,
        order: str = "continue",
        at_once: bool = False,
        engine: FakeEngine | None = None,
        rows: Sequence[dict[str, str]] = (),
        max_model_len: int | None = None,
        world: World = World(),
        origin: Origin | None = None,
        **spec: object,
    ) -> Played:
        """Run an attempt to its end. `spec` replaces parts of the tiny spec; `rows` are its dataset's.

        The order to leave comes in the attempt's first step unless `at_once`, another one before it.
        """
        dataset = None
        if rows:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            dataset = self.store.put_bytes("datasets/d", "rows.jsonl", text.encode())
            spec = {"data": {"kind": "jsonl", "dataset": "ds-1", "held_out": 0.2}} | spec
        claim = self.claim(number, resume=resume, dataset=dataset, origin=origin, **spec)
        path = self.settings.attempt_dir(claim.attempt_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        attempt = AttemptDir.create(path, claim)
        leaves = order == "checkpoint_and_exit" and not at_once
        attempt.write_order("continue" if leaves else order)
        serving = engine or FakeEngine(self._model, Path("/dev/shm"))
        state = serving.health() if isinstance(serving, RolloutClient) else serving

        @contextmanager
        def connect(_: AttemptDir) -> Iterator[Connection]:
            yield Connection(
                EnginePool([serving]),
                on_this_host=True,
                methods=getattr(state, "methods", ("store", "shm")),
                adapters=isinstance(serving, FakeAdapterEngine),
                max_model_len=max_model_len,
            )

        reporter = Leaving(path) if leaves else Reporter(path)
        finish = run_attempt(attempt, self.settings, reporter, connect, world)
        return played(finish, attempt)


def played(finish: Finish, attempt: AttemptDir) -> Played:
    """Read the attempt's spool."""
    metrics: dict[tuple[int, int, str], float | None] = {}
    trajectories: dict[int, tuple[TrajectoryRow, ...]] = {}
    checkpoints, kinds = [], []
    for path in attempt.spooled():
        record = read_record(path)
        kinds.append(record.kind)
        match record.kind:
            case "metrics":
                for row in record.body.rows:
                    assert _key(row) not in metrics, f"{_key(row)} was reported twice"
                    metrics[_key(row)] = row.value
            case "trajectories":
                trajectories[record.body.step] = record.body.rows
            case "checkpoints":
                checkpoints.append(record.body)
    return Played(finish, metrics, trajectories, checkpoints, kinds, attempt.path)


def _key(row: MetricRow) -> tuple[int, int, str]:
    return row.step, row.update, row.name


def error_of(finish: Finish) -> dict[str, object]:
    assert finish.error is not None
    return json.loads(finish.error.model_dump_json())
