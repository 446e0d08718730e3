"""Stands in for the trainer: the same files, orders, records and checkpoints, without a model.

Its weights are a hash of all that came before, so that a step that was lost, doubled or done from another
state shows in every number after it.
"""

import argparse
import hashlib
import sys
import time
from pathlib import Path

from powermean.artefacts import ArtefactStore
from powermean.contracts.artefacts import Manifest
from powermean.contracts.attempts import CheckpointCommit, Claim, Finish, JobResult
from powermean.contracts.metrics import WHOLE_STEP, MetricRow
from powermean.contracts.phases import (
    CHECKPOINTING,
    EVALUATING,
    LOADING_MODEL,
    PUBLISHING,
    SAMPLING,
    SAVING_MODEL,
    SCORING,
    UPDATING,
    WAITING_FOR_ENGINE,
    in_step,
)
from trainer.failures import CancelledError, failed
from worker.attempt_dir import SHARED_MEMORY, AttemptDir
from worker.reporter import Reporter
from worker.settings import NodeSettings

SIZE = 100_000  # bytes of the weights
PAUSE_S = 0.08  # of each activity
UPDATES = 4


class StandIn:
    """One attempt."""

    def __init__(self, attempt: AttemptDir, claim: Claim, store: ArtefactStore, reporter: Reporter) -> None:
        self._attempt, self._claim, self._store, self._reporter = attempt, claim, store, reporter
        self._step, self._state = 0, hashlib.sha256(claim.spec.model_dump_json().encode()).digest()

    def train(self) -> Finish:
        self._reporter.phase(LOADING_MODEL)
        if self._claim.resume is not None:
            self._step = self._claim.resume.step
            weights = self._store.get_bytes(self._claim.resume.manifest.files["weights"])
            self._state = weights[:32]
            assert weights == self._weights(), "a damaged checkpoint"
        self._reporter.phase(WAITING_FOR_ENGINE)
        while self._attempt.engine_start() is None:
            time.sleep(0.05)
        if self._reporter.order() == "checkpoint_and_exit":
            return Finish(outcome="checkpointed")
        spec = self._claim.spec
        for step in range(self._step + 1, spec.training.steps + 1):
            self._train_step(step)
            if step % spec.evaluation.every == 0:
                self._do(EVALUATING)
                self._report(WHOLE_STEP, "eval/reward")
            leave = self._reporter.order() == "checkpoint_and_exit" and step < spec.training.steps
            if leave or (step % spec.checkpoints.every == 0 and step < spec.training.steps):
                self._do(CHECKPOINTING)
                owner = f"jobs/{self._claim.job_id}/checkpoints/{self._claim.number}-{step}"
                self._reporter.checkpoint(CheckpointCommit(step=step, manifest=self._stored(owner)))
            if leave:
                return Finish(outcome="checkpointed")
        self._reporter.phase(SAVING_MODEL)
        time.sleep(PAUSE_S)
        model = self._stored(f"jobs/{self._claim.job_id}/model")
        return Finish(outcome="finished", result=JobResult(steps=spec.training.steps, tokens=1, model=model))

    def _train_step(self, step: int) -> None:
        self._step = step
        self._do(SAMPLING)
        self._do(SCORING)
        for update in range(UPDATES):
            self._do(UPDATING)
            self._state = hashlib.sha256(self._state + bytes([step, update])).digest()
            self._report(update, "ratio/mean")
        self._do(PUBLISHING)
        shared = SHARED_MEMORY / f"powermean-{self._attempt.attempt_id}.{step}.weights"
        shared.write_bytes(self._weights())
        time.sleep(PAUSE_S)
        shared.unlink(missing_ok=True)
        self._report(WHOLE_STEP, "reward", "entropy")

    def _do(self, activity: str) -> None:
        if self._reporter.order() == "cancel":
            raise CancelledError
        self._reporter.phase(in_step(self._step, self._claim.spec.training.steps, activity))
        time.sleep(PAUSE_S)

    def _report(self, update: int, *names: str) -> None:
        value = int.from_bytes(self._state[:6]) / 2**48
        self._reporter.metrics(
            [MetricRow(step=self._step, update=update, name=name, value=value) for name in names]
        )

    def _weights(self) -> bytes:
        return (self._state * (SIZE // len(self._state) + 1))[:SIZE]

    def _stored(self, owner: str) -> Manifest:
        return Manifest(files={"weights": self._store.put_bytes(owner, "weights", self._weights())})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--attempt-dir", type=Path, required=True)
    attempt = AttemptDir(parser.parse_args().attempt_dir)
    reporter = Reporter(attempt.path)
    store = ArtefactStore(NodeSettings.read().artefacts_url)
    try:
        end = StandIn(attempt, attempt.claim(), store, reporter).train()
    except CancelledError:
        end = Finish(outcome="cancelled")
    except Exception as error:  # noqa: BLE001  the boundary, as the real one's
        end = failed(error)
    reporter.finish(end)
    return 0 if end.outcome != "failed" else 1


if __name__ == "__main__":
    sys.exit(main())
