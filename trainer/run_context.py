"""The parts of a run, and the stopwatch of its steps."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from powermean.artefacts import ArtefactStore
from powermean.contracts.job import JobSpec
from powermean.contracts.metrics import WHOLE_STEP, MetricRow
from powermean.contracts.rollout import Sampling
from trainer.data import Problem, PromptSource
from trainer.learner.checkpoint import Progress
from trainer.learner.learner import Learner
from trainer.rewards.grading import Grader
from trainer.rollouts.sampling import Decode
from trainer.weights.files import Publisher
from trainer.weights.steady_engine import SteadyEngine
from worker.reporter import Reporter

Encode = Callable[[Sequence[Problem]], list[tuple[int, ...]]]


@dataclass
class Run:
    """Everything a run works with. Only `progress` and `measured` change during the run."""

    job_id: str
    attempt: int
    spec: JobSpec
    learner: Learner
    source: PromptSource
    grader: Grader
    engine: SteadyEngine
    weights: Publisher
    reporter: Reporter
    store: ArtefactStore
    scratch: Path
    encode: Encode
    decode: Decode
    end_tokens: frozenset[int]
    save_model: Callable[[Path], None]
    share_left_out: float = 0.0  # of the dataset's rows
    progress: Progress = field(default_factory=Progress)
    measured: dict[str, MetricRow] = field(default_factory=dict)  # the newest of whole steps, by metric

    def report(self, rows: Sequence[MetricRow]) -> None:
        """Spool metrics, and remember those of whole steps."""
        self.reporter.metrics(rows)
        self.measured |= {row.name: row for row in rows if row.update == WHOLE_STEP}

    def sampling(self, seed: int) -> Sampling:
        rollout = self.spec.rollout
        return Sampling(
            temperature=rollout.temperature,
            max_new_tokens=rollout.max_new_tokens,
            stop=rollout.stop,
            seed=seed,
        )


class Stopwatch:
    """Wall time by phase."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started

    def stop(self) -> dict[str, float]:
        """All phases, and the total as `step`."""
        return self.seconds | {"step": time.perf_counter() - self._started}
