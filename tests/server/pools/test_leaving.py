"""A node whose worker was told to end: whoever ends it does so, and is named for it."""

from datetime import timedelta

from server.db.models import Node, Pilot
from server.db.session import database_now
from server.pools import life
from server.pools.pools_file import PoolsFile
from tests.support.service_driver import ServiceDriver

POOL = {"name": "cpu", "kind": "slurm", "max": 1, "idle_s": 60, "shape": {}, "data_dir": "/tmp/pilots"}


def test_a_drained_node_whose_worker_leaves_is_left_to_whoever_ends_it(service: ServiceDriver) -> None:
    (pool,) = PoolsFile.model_validate({"pools": [POOL]}).pools
    service.report("cpu-1")
    assert service.person.post("/v1/nodes/cpu-1/drain", json={"reason": "new disks"}).status_code == 200
    for leaving in (True, False):
        with service.database.write() as session:
            now = database_now(session)
            node = session.get_one(Node, "cpu-1")
            node.report = node.report | {"leaving": leaving}
            pilot = Pilot(id="cpu-1", pool="cpu", node_id="cpu-1", unneeded_since=now - timedelta(seconds=61))
            assert life.is_drained(session, service.settings, pool, pilot, now) != leaving
            assert life.unneeded_s(session, pool, pilot, now) == (61 - pool.term_grace_s if leaving else 61)
