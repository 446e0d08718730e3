from dashboard.latest import latest
from powermean.contracts.metrics import MetricsHistory, Point, Series


def history(**series: list[tuple[int, int, float | None]]) -> MetricsHistory:
    return MetricsHistory(
        series=tuple(
            Series(
                name=name.replace("__", "/"),
                points=tuple(Point(step=s, update=u, value=v) for s, u, v in points),
            )
            for name, points in series.items()
        ),
        seq=1,
    )


def test_the_last_step_by_update_and_the_last_value_by_step() -> None:
    found = latest(
        history(
            p__mean=[(1, 0, 1.0), (2, 0, 1.0), (2, 1, 0.9)],
            grad_norm=[(2, 0, 3.0), (2, 1, None)],
            reward=[(1, -1, 0.3), (2, -1, 0.4)],
        ),
        history(eval__reward=[(0, -1, 0.31)]),
    )
    assert [(row.name, row.step, row.value) for row in found.steps] == [
        ("reward", 2, 0.4),
        ("eval/reward", 0, 0.31),
    ]
    assert found.update_step == 2
    assert found.updates == (0, 1)
    assert {row.name: row.values for row in found.by_update} == {
        "grad_norm": (3.0, None),
        "p/mean": (1.0, 0.9),
    }


def test_unknown_metrics_are_shown_too() -> None:
    found = latest(history(mystery=[(1, -1, 5.0)]))
    assert [(row.name, row.info.meaning) for row in found.steps] == [("mystery", "")]


def test_nothing_yet() -> None:
    found = latest(history(reward=[]))
    assert found.steps == ()
    assert found.by_update == ()
    assert found.update_step is None
