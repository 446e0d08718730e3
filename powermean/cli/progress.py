"""The state of a run as built from its events: the numbers behind every progress line."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from powermean.contracts.api import Event, Job, JobSummary
from powermean.contracts.health import Finding, JobHealth, Level
from powermean.contracts.metrics import WHOLE_STEP, MetricRow
from powermean.health import verdict
from powermean.means import known_mean, late_mean

TIMES = ("generate", "score", "grade", "update", "publish", "record")
SHOWN = (
    "reward",
    "eval/reward",
    "tokens_per_second",
    "time/step",
    *(f"time/{part}" for part in (*TIMES, "checkpoint")),
    "p/mean",
    "p/q10",
    "p/share_below_0.95",
    "ess/mean",
    "clip_fraction/mean",
)


@dataclass
class Run:
    """A job being followed: its latest summary and its metrics by (step, update, name)."""

    job: JobSummary
    minibatches: int
    problems: int | None  # the most that an evaluation has
    values: dict[tuple[int, int], dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    announced: int = 0  # the last step that has been shown
    evaluated: int = -1  # the last evaluation that has been shown
    health: JobHealth | None = None
    told: frozenset[tuple[str, Level]] = frozenset({("too_few_steps", "ok")})  # the verdict at the last call

    @classmethod
    def of(cls, job: Job) -> "Run":
        spec = job.spec
        return cls(job, spec.training.minibatches if spec else 1, spec.evaluation.problems if spec else None)

    def add(self, rows: Iterable[MetricRow]) -> None:
        for row in rows:
            if row.value is not None:
                self.values[row.step, row.update][row.name] = row.value

    def take(self, event: Event) -> None:
        """Bring the run up to date with an event."""
        if event.kind == "metrics":
            rows = event.data["rows"]
            assert isinstance(rows, list)
            self.add(MetricRow.model_validate(row) for row in rows)
        elif event.kind == "state":
            self.job = JobSummary.model_validate(event.data)
        elif event.kind == "rewind":
            from_step = int(str(event.data["from_step"]))
            for key in [key for key in self.values if key[0] >= from_step]:
                del self.values[key]
            self.announced = min(self.announced, max(0, from_step - 1))
            self.evaluated = min(self.evaluated, from_step - 1)

    def value(self, step: int, name: str) -> float | None:
        """A metric of the whole step."""
        return self.values.get((step, WHOLE_STEP), {}).get(name)

    def late(self, step: int, name: str) -> float | None:
        """Mean over the step's updates after the first pass, when ratios differ from 1; else over all."""
        updates = [(u, v[name]) for (s, u), v in self.values.items() if s == step and u >= 0 and name in v]
        return late_mean(updates, self.minibatches) if updates else None

    @property
    def steps(self) -> list[int]:
        """Trained steps with all their numbers."""
        return sorted(
            s for (s, u), v in self.values.items() if u == WHOLE_STEP and s > 0 and "time/step" in v
        )

    def new_steps(self) -> list[int]:
        """Steps not announced yet; they count as announced from now on."""
        fresh = [step for step in self.steps if step > self.announced]
        if fresh:
            self.announced = fresh[-1]
        return fresh

    @property
    def evaluations(self) -> list[tuple[int, float]]:
        return sorted((s, v["eval/reward"]) for (s, _), v in self.values.items() if "eval/reward" in v)

    def new_evaluations(self) -> list[tuple[int, float]]:
        """Evaluations not announced yet; they count as announced from now on."""
        fresh = [(step, value) for step, value in self.evaluations if step > self.evaluated]
        if fresh:
            self.evaluated = fresh[-1][0]
        return fresh

    def new_findings(self) -> list[Finding]:
        """Findings that are new, or at a different level, since the last call."""
        if self.health is None:
            return []
        before, self.told = self.told, verdict(self.health)
        return [one for one in self.health.findings if (one.code, one.level) not in before]

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the mean duration of the last steps."""
        time = known_mean(self.value(step, "time/step") for step in self.steps[-5:])
        return None if time is None else time * max(0, self.job.total_steps - self.steps[-1])

    def mean(self, name: str) -> float | None:
        """Mean over all trained steps."""
        return known_mean(self.value(step, name) for step in self.steps)

    def late_mean(self, name: str) -> float | None:
        return known_mean(self.late(step, name) for step in self.steps)


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def clock(seconds: float | None) -> str:
    """Minutes and seconds: 3:07, 1:02:03."""
    if seconds is None:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def local_time(when: datetime) -> str:
    """To the minute, on this machine's clock."""
    return when.astimezone().strftime("%Y-%m-%d %H:%M")


def step_line(run: Run, step: int) -> str:
    """A step in one line, as plain text."""
    total = run.job.total_steps
    objective = [
        f"p {number(run.late(step, 'p/mean'), 3)} (q10 {number(run.late(step, 'p/q10'))},"
        f" {percent(run.late(step, 'p/share_below_0.95'))} below 0.95)",
        f"ESS {number(run.late(step, 'ess/mean'), 3)}",
        f"clip {percent(run.late(step, 'clip_fraction/mean'), 1)}",
    ]
    if all(run.late(step, name) is None for name in ("p/mean", "ess/mean", "clip_fraction/mean")):
        objective = ["no update: equal rewards in every group"]
    parts = [
        f"step {step:>{len(str(total))}}/{total}",
        f"reward {number(run.value(step, 'reward'))}",
        *objective,
        f"{number(run.value(step, 'tokens_per_second'), 0)} tok/s",
        f"{number(run.value(step, 'time/step'), 1)} s",
        f"left {clock(run.seconds_left)}",
    ]
    return "  ".join(parts)
