"""The file that declares pools: each mistake is told with its line and field."""

from pathlib import Path

import pytest

from server.pools.pools_file import PoolsFileError, read_pools_file
from server.pools.start import pool_loops
from server.settings import Settings
from tests.support.service_driver import ServiceDriver

POOL = """\
pools:
  - name: gpu
    kind: slurm
    max: 2
    data_dir: /scratch/powermean
    shape: {gpus: 1}
"""


def read(tmp_path: Path, text: str) -> str:
    """The error of such a file."""
    file = tmp_path / "pools.yaml"
    file.write_text(text)
    with pytest.raises(PoolsFileError) as caught:
        read_pools_file(file)
    return str(caught.value).replace(f"{file}:", "")


def test_a_file(tmp_path: Path):
    (tmp_path / "pools.yaml").write_text(POOL)
    (pool,) = read_pools_file(tmp_path / "pools.yaml").pools
    assert (pool.min, pool.max, pool.node_shape.labels) == (0, 2, {"pool": "gpu"})


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("max: 2", "max: 2\n    min: 3", "5: pools.0.min: is above max (2)"),
        ("max: 2", "max: 2\n    time_limit_s: 600", "5: pools.0.time_limit_s: is not above drain_s (900)"),
        ("gpus: 1", "gpu: 1", "6: pools.0.shape.gpu: there is no such field: did you mean gpus?"),
        ("name: gpu", "name: GPU", "2: pools.0.name: "),
        ("name: gpu", "name: local", "2: pools.0.name: is what nodes without a pool are shown as"),
        ("max: 2", "max: 2\n    environment: {MY-VAR: x}", "5: pools.0.environment.MY-VAR"),
        ("pools:", "pools: [", "2:3: not YAML"),
    ],
)
def test_mistakes(tmp_path: Path, old: str, new: str, error: str):
    assert read(tmp_path, POOL.replace(old, new)).splitlines()[0].startswith(error)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(PoolsFileError, match="can't be read: No such file"):
        read_pools_file(tmp_path / "pools.yaml")


def test_two_pools_of_one_name(tmp_path: Path):
    twice = POOL + POOL.removeprefix("pools:\n")
    assert "pools.1.name: gpu is there twice" in read(tmp_path, twice)


@pytest.mark.parametrize(
    ("changes", "text", "error"),
    [
        ({"host": "0.0.0.0"}, POOL, "server_url is missing"),
        (
            {"redis_url": "redis://:secret@localhost:6379/0"},
            f"server_url: http://10.0.0.1:8700\n{POOL}",
            "redis_url is missing: POWERMEAN_REDIS_URL is on the server's own machine",
        ),
        (
            {},
            POOL.replace("max: 2", "max: 2\n    time_limit_s: 1200"),
            r"pools\.0\.time_limit_s: is too short",
        ),
    ],
)
def test_what_only_the_server_s_settings_tell(
    service: ServiceDriver, tmp_path: Path, changes: dict[str, object], text: str, error: str
):
    file = tmp_path / "pools.yaml"
    file.write_text(text)
    settings: Settings = service.settings.model_copy(update=changes | {"pools_file": file})
    with pytest.raises(PoolsFileError, match=error):
        pool_loops(settings, service.database, "first", "PEM")


@pytest.mark.parametrize(
    "urls",
    ["server_url: http://127.0.0.1:8700", "server_url: http://10.0.0.1:8700\nredis_url: redis://10.0.0.1/0"],
)
def test_redis_is_where_nodes_reach_it(service: ServiceDriver, tmp_path: Path, urls: str):
    file = tmp_path / "pools.yaml"
    file.write_text(f"{urls}\n{POOL}")
    here = {"redis_url": "redis://127.0.0.1:6379/0", "pools_file": file}
    pool_loops(service.settings.model_copy(update=here), service.database, "first", "PEM")
