"""Which servers are there, which one leads, and that all of them sign with the same keys."""

from datetime import timedelta
from pathlib import Path

import pytest

from server.cluster.leadership import acquire_lead
from server.cluster.presence import ALIVE, SHOWN, Presence
from server.db.models import ServerProcess
from server.start import CannotStartError, prepare
from tests.support.service_driver import ServiceDriver


@pytest.fixture
def kind() -> str:
    return "sqlite"


def server(service: ServiceDriver, name: str, keys: str | None = None) -> Presence:
    """A server that has just said that it is there."""
    own = service.app.state.key_pair.public_pem
    made = Presence(service.database, service.settings, name, keys or own)
    made.turn()
    return made


def ages(service: ServiceDriver, name: str, by: timedelta) -> None:
    with service.database.write() as session:
        session.get_one(ServerProcess, name).seen_at -= by


def listed(service: ServiceDriver) -> dict[str, tuple[bool, bool]]:
    """Whether each is alive and leads."""
    answer = service.person.get("/v1/servers")
    assert answer.status_code == 200
    return {one["id"]: (one["alive"], one["leads"]) for one in answer.json()["items"]}


def test_one_leads_all_are_seen_and_the_dead_for_a_day(service: ServiceDriver):
    first, second = server(service, "first"), server(service, "second")
    with service.database.write() as session:
        acquire_lead(session, "second", service.settings.leader_lease_s)
    assert listed(service) == {"first": (True, False), "second": (True, True)}
    ages(service, "first", ALIVE)
    assert listed(service) == {"first": (False, False), "second": (True, True)}
    ages(service, "first", SHOWN)
    second.turn()
    assert listed(service) == {"second": (True, True)}
    second.leave()
    assert listed(service) == {}
    first.turn()  # as after a long freeze
    assert listed(service) == {"first": (True, False)}


def test_how_many_are_there_is_a_number_for_prometheus(service: ServiceDriver):
    for name in ("first", "second"):
        server(service, name)
    lines = service.person.get("/metrics").text.splitlines()
    assert "powermean_servers_alive 2.0" in lines
    assert "powermean_leads 0.0" in lines


def test_the_list_is_for_those_who_run_the_service(service: ServiceDriver):
    assert service.node.get("/v1/servers").status_code == 403
    assert service.anyone.get("/v1/servers").status_code == 401


def test_a_server_with_other_keys_does_not_start_beside_one_that_lives(
    service: ServiceDriver, tmp_path: Path
):
    other = server(service, "other", keys="of another folder")
    shared = tmp_path / "attempt_token.pub"  # for nodes: engines read it when they start
    shared.write_text("of the server that lives")
    settings = service.settings.model_copy(update={"attempt_public_key": shared})
    with pytest.raises(CannotStartError, match="give all servers the same POWERMEAN_SECRETS_DIR"):
        prepare(settings)
    assert shared.read_text() == "of the server that lives"
    other.leave()
    prepare(service.settings)
    server(service, "other", keys="of another folder")
    ages(service, "other", ALIVE)
    prepare(service.settings)
