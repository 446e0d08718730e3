"""Names that people and nodes choose, where they become a part of a path or of a header."""

from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.service_driver import ADMIN_KEY, ServiceDriver, example_spec

PATHS = (
    "../../escaped",
    "/tmp/escaped",
    "..",
    ".",
    "a/../../escaped",
    "..\\escaped",
    "a\x00b",
    "．．/escaped",
)
REFUSED = (400, 404, 405, 422)
LINES = "x\r\nSet-Cookie: stolen=1\r\n\r\n<html>"
ROW = b'{"question": "1 + 1 =", "answer": "2"}\n'


@pytest.fixture
def kind() -> str:
    """What becomes of a name is decided before any database."""
    return "sqlite"


def files(folder: Path) -> set[Path]:
    """What lies outside the service's own folders."""
    inside = {"artefacts", "secrets"}
    return {path for path in folder.rglob("*") if inside.isdisjoint(path.relative_to(folder).parts)}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/v1/projects/default/secrets/{}", {"value": "a value of some length"}),
        ("PUT", "/v1/me/secrets/{}", {"value": "a value of some length"}),
        ("POST", "/v1/projects", {"name": "{}"}),
        ("POST", "/v1/jobs", example_spec(project="{}")),
        ("POST", "/v1/jobs", example_spec(secrets={"HF_TOKEN": "{}"})),
        ("POST", "/v1/keys", {"name": "x", "role": "node", "node": "{}"}),
        ("POST", "/v1/engines", {"name": "{}", "model": {"name": "x"}}),
    ],
)
def test_a_name_that_would_be_a_path_is_refused(
    service: ServiceDriver, name: str, method: str, path: str, body: dict[str, object]
) -> None:
    answer = service.person.request(method, path.format(quote(name, safe="")), json=_filled(body, name))
    assert answer.status_code in REFUSED, answer.text


def _filled(body: object, name: str) -> object:
    if isinstance(body, dict):
        return {key: _filled(value, name) for key, value in body.items()}
    return name if body == "{}" else body


@pytest.mark.parametrize("name", PATHS)
def test_a_node_has_no_path_for_a_name(service: ServiceDriver, name: str) -> None:
    answer = service.node.put(f"/v1/nodes/{quote(name, safe='')}", json={"hostname": "n", "version": "0"})
    assert answer.status_code in REFUSED, answer.text


@pytest.mark.parametrize("name", PATHS)
def test_what_may_be_called_anything_never_becomes_a_path(
    service: ServiceDriver, name: str, tmp_path: Path
) -> None:
    before = files(tmp_path)
    made = service.person.post("/v1/datasets", params={"name": name}, content=ROW)
    job = service.person.post("/v1/jobs", json=example_spec(name=name))
    assert {made.status_code, job.status_code} <= {201, 202, *REFUSED}
    assert {path.name for path in files(tmp_path) - before} <= {"server.db-wal", "server.db-shm"}
    assert not Path("/tmp/escaped").exists()


def test_a_name_with_a_line_break_splits_no_header(service: ServiceDriver) -> None:
    browser = service.browser()
    browser.follow_redirects = False
    for path in (f"/login?next=/{quote(LINES)}", f"/{quote(LINES)}", f"/jobs/{quote(LINES)}"):
        answer = browser.get(path)
        assert "stolen" not in "".join(
            f"{name}{value}" for name, value in answer.headers.items() if name != "location"
        )
        assert "\n" not in answer.headers.get("location", "")
    answer = browser.post("/login", data={"key": ADMIN_KEY, "next": f"/{LINES}"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert [one.partition("=")[0] for one in answer.headers.get_list("set-cookie")] == ["powermean_session"]


@pytest.mark.parametrize(
    "name", ["\u2028next line", "ansi \x1b[2J", "rtl \u202egnp.exe", 'quote"; filename=x']
)
def test_a_browser_s_name_is_kept_without_what_moves_a_cursor(service: ServiceDriver, name: str) -> None:
    browser = service.browser()
    agent = [(b"user-agent", name.encode())]
    opened = browser.post("/v1/sessions", json={"key": ADMIN_KEY}, headers=agent)  # type: ignore[arg-type]
    assert opened.status_code == 201
    (session,) = browser.get("/v1/me/sessions").json()["items"]
    assert session["agent"].isprintable()
