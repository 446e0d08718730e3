"""`powermean login --server` and what follows, against a server on a socket."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from powermean.servers import read_servers, servers_file
from server.db.models import DeviceSignIn
from tests.support.accounts import with_password
from tests.support.live_server import listening
from tests.support.service_driver import ServiceDriver, error_of
from tests.support.terminal import powermean

pytestmark = pytest.mark.slow


@pytest.fixture
def kind() -> str:
    return "sqlite"


@pytest.fixture
def url(service: ServiceDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("POWERMEAN_SERVER", "")  # what --server sets is undone after the test
    for name in ("POWERMEAN_URL", "POWERMEAN_API_KEY", "POWERMEAN_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("server.identity.device.INTERVAL_S", 0.05)
    with listening(service.app) as address:
        yield address


def say(service: ServiceDriver, browser, *, approve: bool) -> threading.Thread:
    """A person who enters the code once there is one."""

    def decide() -> None:
        for _ in range(200):
            with service.database.read() as session:
                waiting = session.scalars(
                    select(DeviceSignIn.user_code).where(DeviceSignIn.state == "pending")
                ).all()
            if waiting:
                answer = browser.post(f"/v1/device-codes/{waiting[0]}/decision", json={"approve": approve})
                assert answer.status_code == 200, error_of(answer)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=decide)
    thread.start()
    return thread


def sign_in(service: ServiceDriver, browser, url: str, *more: str):
    thread = say(service, browser, approve=True)
    done = powermean("login", "--server", url, *more)
    thread.join()
    return done


def test_a_command_line_signs_in_works_and_signs_out(service: ServiceDriver, url: str) -> None:
    browser = with_password(service)
    done = sign_in(service, browser, f"{url}/", "--name", "lab")
    assert done.exit_code == 0, done.output
    assert f"{url}/device" in done.output
    assert f"Signed in to {url} as Ada" in done.output
    saved = read_servers().named("lab")
    assert saved.key not in done.output
    assert servers_file().stat().st_mode & 0o777 == 0o600
    assert powermean("list").exit_code == 0
    (listed,) = json.loads(powermean("servers", "--json").output)
    assert (listed["name"], listed["default"], listed["person"]) == ("lab", True, "Ada")
    assert saved.key not in powermean("servers").output + json.dumps(listed)
    out = powermean("logout")
    assert f"Signed out of {url}" in out.output
    assert read_servers().servers == {}
    assert service.client(saved.key).get("/v1/me").status_code == 401
    assert powermean("logout").exit_code == 1


def test_servers_have_names(service: ServiceDriver, url: str) -> None:
    browser = with_password(service)
    for name in ("lab", "home"):
        assert sign_in(service, browser, url, "--name", name).exit_code == 0
    both = read_servers()
    assert both.default == "home"
    assert both.named("lab").key != both.named("home").key
    told = powermean("nodes")
    assert "Using the server home" in told.output
    assert "Using the server" not in powermean("--server", "lab", "nodes").output
    wrong = powermean("--server", "elsewhere", "nodes")
    assert wrong.exit_code == 1
    assert "known: home, lab" in wrong.output


def test_signing_in_again_ends_the_key_that_it_replaces(service: ServiceDriver, url: str) -> None:
    browser = with_password(service)
    sign_in(service, browser, url)
    first = read_servers().named("default").key
    sign_in(service, browser, url)
    assert service.client(first).get("/v1/me").status_code == 401
    assert service.client(read_servers().named("default").key).get("/v1/me").status_code == 200


def test_a_refusal_leaves_nothing(service: ServiceDriver, url: str) -> None:
    thread = say(service, with_password(service), approve=False)
    done = powermean("login", "--server", url)
    thread.join()
    assert done.exit_code == 1
    assert "the code was refused" in done.output
    assert not servers_file().exists()


def test_a_key_that_has_ended_is_forgotten_all_the_same(service: ServiceDriver, url: str) -> None:
    browser = with_password(service)
    sign_in(service, browser, url)
    browser.delete(f"/v1/keys/{read_servers().named('default').key_id}")
    assert powermean("logout").exit_code == 0
    assert read_servers().servers == {}


def test_without_a_server_login_is_the_one_time_link(service: ServiceDriver, url: str) -> None:
    sign_in(service, with_password(service), url)
    link = powermean("login").output.split()[0]
    assert link.startswith(f"{url}/login/")
    code = link.rpartition("/")[2]
    assert service.anyone.post("/v1/sessions", json={"code": code}).json()["name"] == "Ada"
