"""Projects, their members and people on the pages of a real service, as each of its roles sees them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from dashboard.viewer import Viewer
from powermean.contracts.identity import ProjectRole, Role
from server.db.migrate import migrate
from server.db.session import Database
from server.settings import Settings
from tests.support.html_text import Element, parse
from tests.support.sample_jobs import job
from tests.support.sample_people import me, project
from tests.support.service_driver import ADMIN_KEY, ServiceDriver, example_spec

HOST = "127.0.0.1"
HERE = {"Origin": f"http://{HOST}"}
HOSTILE = '<script>alert("x")</script>'
LOOK_ALIKE = "аdministrator"  # its first letter is Cyrillic


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database to copy."""
    file = tmp_path_factory.mktemp("database") / "server.db"
    database = Database(f"sqlite:///{file}")
    migrate(database)
    database.close()
    return file


@pytest.fixture
def service(migrated: Path, tmp_path: Path) -> Iterator[ServiceDriver]:
    """A service with the projects default and team-a."""
    driver = ServiceDriver(
        Settings(
            database_url=f"sqlite:///{shutil.copy(migrated, tmp_path)}",
            redis_url="redis://127.0.0.1:1/0",
            artefacts_url=f"file://{tmp_path / 'artefacts'}",
            secrets_dir=tmp_path / "secrets",
            bootstrap_admin_key=ADMIN_KEY,
            scheduler=False,
        )
    )
    driver.project("team-a")
    yield driver
    driver.close()


def browser(service: ServiceDriver, **proof: str) -> TestClient:
    """A signed-in browser."""
    made = TestClient(service.app, base_url=HERE["Origin"], headers=HERE, follow_redirects=False)
    answer = made.post("/v1/sessions", json=proof)
    assert answer.status_code == 201, answer.text
    return made


@pytest.fixture
def admin(service: ServiceDriver) -> TestClient:
    return browser(service, key=ADMIN_KEY)


def someone(service: ServiceDriver, name: str = "Ada", **wanted: object) -> tuple[str, TestClient]:
    """A person's id, and their browser."""
    account = {"name": name, "email": f"{len(name)}@example.org", "project": "team-a"} | wanted
    made = service.person.post("/v1/people", json=account).raise_for_status().json()
    code = service.person.post(f"/v1/people/{made['id']}/login-codes").json()["code"]
    return made["id"], browser(service, code=code)


def page(answer: object, status: int = 200) -> Element:
    assert answer.status_code == status, answer.text  # type: ignore[attr-defined]
    return parse(answer.text)  # type: ignore[attr-defined]


def names_of_fields(shown: Element) -> set[str]:
    return {field.attributes.get("name", "") for kind in ("input", "select") for field in shown.all(kind)}


@pytest.mark.slow
def test_an_administrator_lets_somebody_in_with_one_form(service: ServiceDriver, admin: TestClient) -> None:
    form = {
        "name": "Ada",
        "email": "ada@example.org",
        "project": "team-a",
        "role": "member",
        "kind": "person",
    }
    shown = page(admin.post("/people", data=form))
    link = shown.one("code", class_="copy").text
    assert link.startswith("http://127.0.0.1/login/")
    ada = browser(service, code=link.rpartition("/")[2])
    assert ada.get("/v1/me").json()["projects"] == {"team-a": "member"}
    assert link not in admin.get("/people").text  # shown once


@pytest.mark.slow
def test_a_wrong_account_is_explained_and_the_form_keeps_what_was_typed(admin: TestClient) -> None:
    shown = page(admin.post("/people", data={"name": HOSTILE, "email": "nobody"}), 422)
    assert [field.one("code").text for field in shown.one("ul", class_="fields").all("li")] == ["email"]
    assert shown.one("input", name="name").attributes["value"] == HOSTILE
    taken = {"name": "B", "email": "b@example.org"}
    page(admin.post("/people", data=taken))
    assert "is here already" in page(admin.post("/people", data=taken), 409).text


@pytest.mark.slow
def test_an_account_gets_an_address_on_its_page(service: ServiceDriver, admin: TestClient) -> None:
    someone(service, "Ada", email="ada@example.org")
    address = "/people/person-administrator"
    assert page(admin.get("/people")).one("a", href=address).text == "administrator"
    taken = {"name": "Root", "email": "ada@example.org", "default_project": "team-a"}
    shown = page(admin.post(address, data=taken), 409)
    assert "is here already" in shown.text
    assert shown.one("input", name="name").attributes["value"] == "Root"
    done = admin.post(address, data=taken | {"email": "root@example.org"}, follow_redirects=False)
    assert done.headers["location"] == "/people"
    mine = service.person.get("/v1/me").json()
    assert (mine["name"], mine["email"], mine["default_project"]) == ("Root", "root@example.org", "team-a")


@pytest.mark.slow
def test_who_looks_alike_is_told_apart_and_no_name_is_markup(
    service: ServiceDriver, admin: TestClient
) -> None:
    for name, email in (("administrator", "a@example.org"), (LOOK_ALIKE, None), (HOSTILE, "x@example.org")):
        someone(service, name, email=email)
    twin = next(one for one in service.person.get("/v1/people").json()["items"] if one["name"] == LOOK_ALIKE)
    for path in ("/people", "/projects/team-a"):
        shown = page(admin.get(path))
        rows = {row.one("th").text for row in shown.one("tbody").all("tr")}
        assert {"administratora@example.org", LOOK_ALIKE + twin["id"], f"{HOSTILE}x@example.org"} <= {
            row.replace("\n", "").strip() for row in rows
        }
        assert [one for one in shown.all("script") if "alert" in one.text] == []


@pytest.mark.slow
def test_the_owner_of_a_job_is_told_apart(service: ServiceDriver, admin: TestClient) -> None:
    person, ada = someone(service, LOOK_ALIKE)
    ada.post("/v1/jobs", json=example_spec()).raise_for_status()
    owner = page(admin.get("/")).one("td", data_label="Owner")
    assert owner.words == LOOK_ALIKE + person
    assert page(ada.get("/")).one("td", data_label="Owner").words == LOOK_ALIKE  # oneself


@pytest.mark.parametrize("role", ["viewer", "member", "maintainer"])
def test_only_maintainers_are_offered_to_manage_members(service: ServiceDriver, role: str) -> None:
    _, ada = someone(service, role=role)
    shown = page(ada.get("/projects/team-a"))
    assert ("role" in names_of_fields(shown)) is (role == "maintainer")
    assert (shown.all("input", name="title") != []) is (role == "maintainer")
    assert all("/people" not in link.attributes["href"] for link in shown.all("a"))
    refused = ada.post("/projects/team-a/members", data={"person": "person-administrator", "role": "viewer"})
    assert refused.status_code == (303 if role == "maintainer" else 403)


@pytest.mark.slow
def test_a_maintainer_adds_changes_and_removes(service: ServiceDriver) -> None:
    _, ada = someone(service, role="maintainer")
    bob, bobs = someone(service, "Bob", email="bob@example.org", project="default")
    assert bobs.get("/projects/team-a").status_code == 404
    for role in ("viewer", "maintainer"):
        changed = ada.post("/projects/team-a/members", data={"person": " bob@example.org ", "role": role})
        assert changed.headers["location"] == "/projects/team-a"
        assert page(bobs.get("/projects/team-a")).one("h1").text == "team-a"
    asked = page(ada.get(f"/projects/team-a/members/{bob}/remove"))
    assert "bob@example.org" in asked.text
    ada.post(f"/projects/team-a/members/{bob}/remove")
    assert bobs.get("/projects/team-a").status_code == 404
    unknown = page(
        ada.post("/projects/team-a/members", data={"person": "x@example.org", "role": "member"}), 404
    )
    assert "no person x@example.org" in unknown.text
    assert unknown.all("input", name="person")[-1].attributes["value"] == "x@example.org"


@pytest.mark.slow
def test_who_leaves_a_project_is_told_so(service: ServiceDriver) -> None:
    me, ada = someone(service, role="maintainer")
    assert "Leave team-a?" in page(ada.get(f"/projects/team-a/members/{me}/remove")).text
    left = ada.post(f"/projects/team-a/members/{me}/remove")
    assert left.headers["location"] == "/projects"
    assert "You are in no project yet." in page(ada.get("/projects")).text
    assert "in no project" in page(ada.get("/new")).text


@pytest.mark.slow
def test_administrators_create_and_rename_projects(admin: TestClient) -> None:
    made = admin.post("/projects", data={"name": "team-b", "title": HOSTILE})
    assert made.headers["location"] == "/projects/team-b"
    assert page(admin.get("/projects/team-b")).one("h1").text == HOSTILE
    admin.post("/projects/team-b", data={"title": "Team B"})
    assert page(admin.get("/projects/team-b")).one("h1").text == "Team B"
    again = page(admin.post("/projects", data={"name": "team-b", "title": ""}), 409)
    assert again.one("input", name="name").attributes["value"] == "team-b"
    for path, form in (
        ("/projects", {"name": "Team B", "title": ""}),
        ("/projects/team-b", {"title": ""}),
        ("/projects/team-b/members", {"person": "x@example.org", "role": "boss"}),
    ):
        assert page(admin.post(path, data=form), 422).one("ul", class_="fields")


@pytest.mark.slow
def test_deactivating_asks_first_and_ends_sessions(service: ServiceDriver, admin: TestClient) -> None:
    person, ada = someone(service)
    assert "sessions end at once" in page(admin.get(f"/people/{person}/deactivate")).text
    admin.post(f"/people/{person}", data={"active": "false"})
    assert ada.get("/").headers["location"] == "/login"
    assert "deactivated" in admin.get("/people").text
    admin.post(f"/people/{person}", data={"active": "true"})
    assert page(admin.post(f"/people/{person}/invite")).one("code", class_="copy")


@pytest.mark.slow
def test_roles_in_the_cluster_are_given_and_the_last_administrator_stays(
    service: ServiceDriver, admin: TestClient
) -> None:
    person, ada = someone(service)
    assert ada.get("/people").status_code == 403
    admin.post(f"/people/{person}", data={"cluster_role": "auditor"})
    shown = page(ada.get("/people"))
    assert "cluster_role" not in names_of_fields(shown)
    assert shown.all("form", action="/people") == []
    last = page(admin.post("/people/person-administrator", data={"cluster_role": "none"}), 409)
    assert "last administrator" in last.text


@pytest.mark.slow
def test_another_sites_forms_change_nothing(service: ServiceDriver, admin: TestClient) -> None:
    person, _ = someone(service)
    forms = {
        "/people": {"name": "Eve"},
        f"/people/{person}": {"active": "false"},
        f"/people/{person}/invite": {},
        "/projects": {"name": "evil"},
        "/projects/team-a": {"title": "evil"},
        "/projects/team-a/members": {"person": person, "role": "maintainer"},
        f"/projects/team-a/members/{person}/remove": {},
    }
    for path, form in forms.items():
        refused = admin.post(path, data=form, headers={"Origin": "https://evil.example"})
        assert refused.status_code == 403, path
    left = service.person.get("/v1/projects/team-a/members").json()["items"]
    assert [(one["person_id"], one["role"]) for one in left] == [(person, "member")]


@pytest.mark.slow
def test_the_switch_is_remembered_and_an_open_page_keeps_its_own(
    service: ServiceDriver, admin: TestClient
) -> None:
    for name in ("default", "team-a"):
        service.person.post("/v1/jobs", json=example_spec(name=f"of {name}", project=name)).raise_for_status()
    everything = page(admin.get("/"))
    assert [cell.text for cell in everything.all("td", data_label="Project")] == ["team-a", "default"]
    chosen = page(admin.get("/?project=team-a"))
    assert [link.text for link in chosen.one("tbody").all("a")] == ["of team-a"]
    assert chosen.all("td", data_label="Project") == []
    again = page(admin.get("/"))  # the cookie
    assert again.one("div", id="jobs").attributes["hx-get"] == "/?project=team-a"
    assert page(admin.get("/new")).one("form", action="/new").one("option", selected="").text == "team-a"
    admin.get("/?project=")
    part = admin.get("/?project=team-a", headers={"HX-Request": "true"})
    assert "of team-a" in part.text
    assert "of default" not in part.text
    assert "set-cookie" not in part.headers  # polling chooses nothing
    assert len(page(admin.get("/")).one("tbody").all("tr")) == 2


@pytest.mark.slow
def test_one_project_needs_no_switch(service: ServiceDriver) -> None:
    _, ada = someone(service)
    ada.post("/v1/jobs", json=example_spec()).raise_for_status()
    shown = page(ada.get("/"))
    assert shown.all("select", id="switch") == []
    assert "Project" not in [heading.text for heading in shown.all("th")]
    assert shown.one("div", id="jobs").attributes["hx-get"] == "/?"
    assert "project" not in names_of_fields(page(ada.get("/new")))


@pytest.mark.slow
def test_a_project_of_others_is_not_found_with_a_way_on(service: ServiceDriver) -> None:
    _, ada = someone(service)
    for path in ("/?project=default", "/projects/default", "/projects/default/datasets", "/projects/nothing"):
        shown = page(ada.get(path), 404)
        assert "It may belong to a project that you are not in." in shown.text
        assert shown.one("main").all("a", href="/projects") != []


def test_a_refusal_says_who_one_is(service: ServiceDriver) -> None:
    _, ada = someone(service)
    shown = page(ada.get("/people"), 403)
    assert shown.one("h1").text == "You may not do this"
    assert "signed in as Ada" in " ".join(shown.one("main").text.split())


@pytest.mark.slow
def test_a_job_goes_to_the_chosen_project_unless_its_spec_names_one(
    service: ServiceDriver, admin: TestClient
) -> None:
    spec = "name: {}\nmodel: {{name: tiny/model}}\ndata: {{kind: arithmetic}}\ntraining: {{steps: 2}}\n"
    for name, text in (("a", spec), ("b", spec + "project: default\n")):
        form = {"spec": text.format(name), "key": name, "project": "team-a"}
        job_page = admin.post("/new", data=form).headers["location"]
        found = service.person.get(f"/v1{job_page}").json()
        assert found["project"] == {"a": "team-a", "b": "default"}[name]
    copied = page(admin.get(f"/new?from={job_page.rpartition('/')[2]}"))
    assert copied.one("form", action="/new").one("option", selected="").text == "default"


@pytest.mark.slow
def test_viewers_are_offered_nothing_to_change(service: ServiceDriver, admin: TestClient) -> None:
    service.person.post("/v1/jobs", json=example_spec(project="team-a")).raise_for_status()
    path = page(admin.get("/")).one("tbody").one("a").attributes["href"]
    _, ada = someone(service, role="viewer")
    for reader, offered in ((ada, False), (admin, True)):
        shown = page(reader.get(path))
        assert (shown.all("a", id="cancel-link") != []) is offered
        assert (shown.all("button", id="pause") != []) is offered
        assert (shown.all("a", id="copy-link") != []) is offered
        part = reader.get(f"{path}/part/header", headers={"HX-Request": "true"})
        assert ("cancel-link" in part.text) is offered
        part = reader.get(f"{path}/part/facts", headers={"HX-Request": "true"})
        assert ("priority-link" in part.text) is offered
        assert ("/new" in {link.attributes["href"] for link in page(reader.get("/")).all("a")}) is offered
    assert "You can't submit jobs yet." in page(ada.get("/new")).text


def test_datasets_of_a_project_are_listed(service: ServiceDriver, admin: TestClient) -> None:
    upload = {"params": {"name": HOSTILE, "project": "team-a"}, "content": b'{"prompt": "a"}\n'}
    headers = {"Content-Type": "application/x-ndjson"}
    service.person.post("/v1/datasets", headers=headers, **upload).raise_for_status()
    shown = page(admin.get("/projects/team-a/datasets"))
    assert shown.one("tbody").one("th").text.startswith(HOSTILE)
    assert "No datasets yet." in page(admin.get("/projects/default/datasets")).text


@pytest.mark.parametrize(
    ("role", "allowed", "submits", "maintains"),
    [
        ("viewer", "viewer", False, False),
        ("member", "member", True, False),
        ("maintainer", "maintainer", True, True),
        ("admin", None, True, True),
        ("auditor", None, False, False),
        ("auditor", "maintainer", True, True),  # an auditor who is also its maintainer
    ],
)
def test_what_a_viewer_may_do(
    role: Role, allowed: ProjectRole | None, submits: bool, maintains: bool
) -> None:
    mine = {"team-a": allowed} if allowed else {}
    viewer = Viewer(me(allowed=mine), (project("team-a", role=role),), None)
    assert viewer.submits("team-a") is submits
    assert viewer.changes(job(project="team-a", created_by="person-bob")) is maintains
    assert viewer.changes(job(project="team-a", created_by="person-ada")) is submits
    assert not viewer.changes(job(project="team-b", created_by="person-ada"))
