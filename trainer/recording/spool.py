"""Passes a step's report to the supervisor and the artefact store."""

import logging

from powermean.contracts.trajectories import TrajectoryBatch
from trainer.recording.report import StepReport
from trainer.recording.rows import log_line, step_metrics, text_segment, token_segment, trajectory_rows
from trainer.run_context import Run

log = logging.getLogger(__name__)


def record(run: Run, report: StepReport, count: int) -> None:
    """Spool metrics and trajectories; store texts, and the tokens of the first `count` trajectories."""
    texts_at = tokens_at = None
    name = f"{report.step:08d}.jsonl.gz"
    if run.spec.record.texts:
        texts_at = run.store.put_bytes(
            f"jobs/{run.job_id}/texts/{run.attempt}", name, text_segment(report, run.spec.rollout.stop)
        )
    if count:
        segment = token_segment(report, count, run.decode)
        tokens_at = run.store.put_bytes(f"jobs/{run.job_id}/tokens/{run.attempt}", name, segment)
    rows = step_metrics(report)
    run.report(rows)
    log.info("step %d: %s", report.step, log_line(rows))
    run.reporter.trajectories(
        TrajectoryBatch(
            step=report.step,
            rows=tuple(trajectory_rows(report)),
            texts=texts_at,
            tokens=tokens_at,
            token_rows=count,
        )
    )
