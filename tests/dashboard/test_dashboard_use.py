"""What nodes used over the last hour, as a table and for the charts' script."""

from datetime import UTC, datetime, timedelta
from math import sin

from starlette.testclient import TestClient

from dashboard.use import script_data, table
from powermean.contracts.api import NodeSample
from powermean.contracts.attempts import AttemptUse, GpuUse
from tests.dashboard.test_dashboard_nodes import NODE
from tests.support.fake_api import FakeApi
from tests.support.html_text import parse

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def sample(at: datetime, *gpus: tuple[float | None, int | None], cores: float = 0.0) -> NodeSample:
    return NodeSample(
        at=at,
        gpus=tuple(
            GpuUse(uuid=f"GPU-{number}", utilisation=busy, memory_used_mb=memory)
            for number, (busy, memory) in enumerate(gpus, start=1)
        ),
        attempts=(AttemptUse(attempt_id="job-a.2", cpu=cores, memory_mb=512),),
    )


def used(minutes: int) -> list[NodeSample]:
    """Up to now, with ten minutes without reports; two GPUs."""
    now = datetime.now(UTC).replace(microsecond=0)
    beats = range(6 * minutes, 0, -1)
    return [
        sample(
            now - timedelta(seconds=10 * beat),
            (60 + 35 * sin(beat / 9), 40_000 + 9_000 * (beat % 40 < 20)),
            (45 + 30 * sin(beat / 17), 61_000),
            cores=1.5,
        )
        for beat in beats
        if not 120 < beat < 180
    ]


def test_rows_are_means_of_five_minutes_the_newest_first():
    rows = table(
        [
            sample(NOON, (90, 1000), (None, 2000), cores=1.0),
            sample(NOON + timedelta(seconds=10), (70, 3000), (40, None), cores=2.0),
            sample(NOON + timedelta(minutes=7), (None, None)),
        ]
    )
    assert [row.since for row in rows] == [NOON + timedelta(minutes=7), NOON]
    assert (rows[1].utilisation, rows[1].gpu_memory_mb) == ((90 + 70 + 40) / 3, 3000)
    assert (rows[1].cores, rows[1].memory_mb) == (1.5, 512)
    assert (rows[0].utilisation, rows[0].gpu_memory_mb) == (None, None)


def test_the_script_is_told_of_nodes_that_are_there_and_their_gpus():
    away = NODE.model_copy(update={"id": "away", "alive": False})
    told = script_data([away, NODE], each="gpu")
    assert [one["id"] for one in told["nodes"]] == ["node-a"]
    assert [one["label"] for one in told["nodes"][0]["gpus"]] == ["GPU 0", "GPU 1"]
    assert len(script_data([NODE] * 30, each="node")["nodes"]) == 9


def test_both_pages_have_the_charts_and_the_node_s_page_the_numbers(
    browser: TestClient, api: FakeApi
) -> None:
    api.nodes, api.samples = [NODE], [sample(NOON, (97, 1024), cores=1.5)]
    for path in ("/nodes/node-a", "/cluster"):
        page = parse(browser.get(path).text)
        assert page.one("div", id="use") is not None
    words = parse(browser.get("/nodes/node-a").text).one("main").words
    for said in ("97 %", "1.0 GiB", "1.5"):
        assert said in words
    api.samples = []
    assert "reported nothing in the last hour" in browser.get("/nodes/node-a").text
