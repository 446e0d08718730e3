"""`powermean audit` against a real server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from powermean.audit_chain import verify
from powermean.client import Client
from tests.support.live_server import listening
from tests.support.service_driver import ADMIN_KEY, ServiceDriver, example_spec
from tests.support.terminal import powermean

FORGED_CUT = """UPDATE audit_head SET (cut_seq, cut_hash) = (
    SELECT seq, hash FROM audit_entries WHERE seq = (SELECT max(seq) - 1 FROM audit_entries))"""


@pytest.fixture
def kind() -> str:
    """What the command shows does not depend on the database."""
    return "sqlite"


@pytest.fixture
def served(service: ServiceDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceDriver]:
    """A service in which Ada has done a few things."""
    service.project("vision")
    ada = service.someone(project="vision")
    ada.post("/v1/jobs", json=example_spec())
    ada.delete("/v1/nodes/n")
    with listening(service.app) as url:
        monkeypatch.setenv("POWERMEAN_URL", url)
        monkeypatch.setenv("POWERMEAN_API_KEY", ADMIN_KEY)
        yield service


@pytest.mark.slow
def test_the_list(served: ServiceDriver) -> None:
    said = powermean("audit").output.splitlines()
    assert said[0].split() == ["time", "who", "what", "request", "target", "project", "outcome", "from"]
    assert "Ada" in said[1]
    assert "cluster.change" in said[1]
    assert "refused (403)" in said[1]
    of_project = powermean("audit", "list", "--project", "vision", "--person", "Ada").output.splitlines()
    assert len(of_project) == 2
    assert "POST /v1/jobs" in of_project[1]
    (refused,) = json.loads(powermean("audit", "list", "--refused", "--json").output)["items"]
    assert refused["status"] == 403
    assert powermean("audit", "list", "--until", "2020-01-01").stdout.count("\n") == 1
    few = powermean("audit", "list", "--limit", "2")
    assert "There are more entries" in few.stderr


def test_more_than_the_api_gives_at_once(served: ServiceDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("powermean.cli.audit.PAGE", 2)
    found = json.loads(powermean("audit", "list", "--json").output)
    assert len(found["items"]) > 3
    assert found["next"] is None
    assert [one["seq"] for one in found["items"]] == list(range(len(found["items"]), 0, -1))


@pytest.mark.slow
def test_the_chain_is_walked_against_a_kept_head(served: ServiceDriver, tmp_path: Path) -> None:
    head = tmp_path / "head.json"
    head.write_text(powermean("audit", "head").output)
    whole = powermean("audit", "verify", "--head", str(head))
    assert whole.exit_code == 0
    assert "are unbroken, up to" in whole.output
    with Client() as client:
        assert verify(client.audit_export()).broken is None
    with served.database.write() as session:
        session.execute(text("DROP TRIGGER audit_entries_no_update"))
        session.execute(text("UPDATE audit_entries SET actor_name = 'Eve' WHERE actor_name = 'Ada'"))
    broken = powermean("audit", "verify", "--head", str(head))
    assert broken.exit_code == 1
    assert "was changed" in broken.output
    with served.database.write() as session:
        session.execute(text(FORGED_CUT))
        session.execute(text("DELETE FROM audit_entries WHERE seq <= (SELECT cut_seq FROM audit_head)"))
    for options in ([], ["--head", str(head)]):
        forged = powermean("audit", "verify", *options)
        assert (forged.exit_code, "entry 1 is missing" in forged.output) == (1, True), forged.output
    head.write_text("[]")
    assert "is not a head of the audit log" in powermean("audit", "verify", "--head", str(head)).stderr
