"""The small form of `make chaos`: the same code, a dozen faults over three jobs that train no model.

test_kills.py has the real trainer and engine.
"""

from pathlib import Path

import pytest

from tests.chaos.campaign import Campaign

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.postgres,
    pytest.mark.timeout(900),
]
# One of each family; what takes an attempt's life costs another start, so there are few of those.
FAMILIES = (
    "leader killed",
    "server frozen",
    "worker killed",
    "trainer killed",
    "Redis killed, back empty",
    "Postgres restarted at once",
    "start message doubled",
    "clock forward",
    "clock back",
    "network cut",
    "network swallows",
    "paused and resumed",
)


def test_a_dozen_faults_lose_nothing(tmp_path: Path) -> None:
    faults = len(FAMILIES)
    campaign = Campaign(tmp_path / "cluster", None, seed=1, faults=faults, jobs=3, kinds=1, only=FAMILIES)
    verdict = campaign.run()
    assert verdict.found, "nothing was looked for"
    assert {kind: wrong for kind, wrong in verdict.found.items() if wrong} == {}
    assert len(campaign.injected) == len(FAMILIES)
