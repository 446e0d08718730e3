"""The numbers behind progress lines."""

from powermean.cli.progress import Run, clock, step_line
from powermean.contracts.api import Event
from powermean.contracts.health import Finding, JobHealth, Level
from powermean.contracts.metrics import MetricRow
from tests.support.sample_jobs import job


def row(step: int, name: str, value: float | None, update: int = -1) -> MetricRow:
    return MetricRow(step=step, update=update, name=name, value=value)


def run() -> Run:
    """Two minibatches, two epochs: updates 2 and 3 are the late ones."""
    started = Run.of(job(total_steps=4))
    for step in (1, 2):
        p = [row(step, "p/mean", value, update) for update, value in enumerate((1.0, 0.99, 0.9, 0.8))]
        started.add([*p, row(step, "reward", 0.25 * step), row(step, "time/step", 10.0)])
    return started


def test_late_updates_are_those_after_the_first_pass() -> None:
    late = run().late(1, "p/mean")
    assert late is not None
    assert abs(late - 0.85) < 1e-12


def test_a_job_whose_spec_the_server_cannot_read_is_followed() -> None:
    assert Run.of(job(spec=None)).minibatches == 1


def test_with_a_single_pass_all_updates_count() -> None:
    single = Run.of(job())
    single.add([row(1, "p/mean", 1.0, 0), row(1, "p/mean", 0.5, 1)])
    assert single.late(1, "p/mean") == 0.75


def test_a_step_is_announced_once() -> None:
    following = run()
    assert following.new_steps() == [1, 2]
    assert following.new_steps() == []


def test_a_rewind_forgets_and_announces_again() -> None:
    following = run()
    following.new_steps()
    following.take(Event(seq=9, kind="rewind", data={"attempt": 2, "from_step": 2}))
    assert following.steps == [1]
    rows = [row(2, "time/step", 5.0).model_dump()]
    following.take(Event(seq=10, kind="metrics", data={"attempt": 2, "rows": rows}))
    assert following.new_steps() == [2]


def test_time_left_is_that_of_the_steps_to_come() -> None:
    assert run().seconds_left == 20.0


def test_a_line_holds_what_was_asked_for_and_dashes_for_what_is_missing() -> None:
    line = step_line(run(), 2)
    assert line.startswith("step 2/4  reward 0.50  p 0.850 (q10 -, - below 0.95)")
    assert line.endswith("left 0:20")


def test_a_step_without_an_update_says_so_in_place_of_dashes() -> None:
    following = run()
    following.add([row(3, "reward", 0.75), row(3, "time/step", 4.0)])
    line = step_line(following, 3)
    assert line.startswith("step 3/4  reward 0.75  no update: equal rewards in every group")
    assert "p -" not in line


def test_not_finite_values_are_left_out() -> None:
    following = run()
    following.add([row(2, "ess/mean", None, 3)])
    assert following.late(2, "ess/mean") is None


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.6, 187, 3723)] == ["0:00", "1:00", "3:07", "1:02:03"]


def health_of(*findings: tuple[str, Level, str]) -> JobHealth:
    told = tuple(Finding(code=code, level=level, message=message) for code, level, message in findings)
    return JobHealth(level=told[0].level, first_step=1, last_step=9, findings=told)


def test_a_finding_is_news_when_it_comes_or_changes_its_level_not_with_every_number() -> None:
    following = run()
    assert following.new_findings() == []  # nothing is known yet
    news = []
    for health in (
        health_of(("too_few_steps", "ok", "2 of 5")),
        health_of(("healthy", "ok", "p 0.97")),
        health_of(("healthy", "ok", "p 0.96")),
        health_of(("clipping", "watch", "12 %")),
        health_of(("clipping", "watch", "13 %")),
        health_of(("clipping", "bad", "40 %")),
        health_of(("clipping", "bad", "41 %"), ("cut_off", "watch", "31 %")),
        health_of(("healthy", "ok", "p 0.95")),
    ):
        following.health = health
        news.append([one.message for one in following.new_findings()])
        assert following.new_findings() == []
    assert news == [[], ["p 0.97"], [], ["12 %"], [], ["40 %"], ["31 %"], ["p 0.95"]]
