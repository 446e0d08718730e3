"""Pages of projects and people in a real browser: they fit, are accessible, and work without scripts."""

import pytest

from tests.browser.test_accessibility import AXE, LOOKS, findings
from tests.browser.test_pages import HOSTILE
from tests.support.browser_tabs import Tabs
from tests.support.real_service import SPEC, Service

LOOK_ALIKE = "аdministrator"  # its first letter is Cyrillic


@pytest.fixture
def person_id(service: Service) -> str:
    """Somebody in team-a, whose job it has; others with names that look like names of others."""
    service.person.post("/v1/projects", json={"name": "team-a", "title": "T" * 120}).raise_for_status()
    long = {"name": "a-project-with-a-very-long-name-indeed", "title": "Long"}  # forms offer it
    service.person.post("/v1/projects", json=long).raise_for_status()
    ids = [
        service.person.post("/v1/people", json=wanted | {"project": "team-a"}).raise_for_status().json()["id"]
        for wanted in (
            {"name": "Ada", "email": "ada@example.org"},
            {"name": LOOK_ALIKE},
            {"name": HOSTILE.split("\n")[0][:120], "email": f"{'x' * 100}@example.org"},
            {"name": "W" * 120, "kind": "service"},
        )
    ]
    service.person.post("/v1/jobs", json=SPEC | {"project": "team-a"}).raise_for_status()
    return str(ids[0])


@pytest.mark.parametrize("look", LOOKS, ids=["light", "dark phone"])
def test_they_are_quiet_accessible_and_fit(
    service: Service, tabs: Tabs, person_id: str, look: dict[str, object]
) -> None:
    tab = tabs.open(bypass_csp=True, **look)
    quiet = tabs.open(**look)
    for path in (
        "/projects",
        "/projects/team-a",
        "/projects/team-a/datasets",
        f"/projects/team-a/members/{person_id}/remove",
        "/people",
        f"/people/{person_id}",
        f"/people/{person_id}/deactivate",
        "/audit",
        "/?project=",
        "/new",
    ):
        answer = quiet.page.goto(path)
        assert answer
        assert answer.status == 200, path
        assert quiet.too_wide() == {}, path
        if AXE.is_file():
            assert findings(tab, path) == []
    assert quiet.complaints == []


def test_a_second_person_is_let_in_without_scripts(service: Service, tabs: Tabs, person_id: str) -> None:
    page = tabs.open(java_script_enabled=False).page
    page.goto("/people")
    page.get_by_label("Name", exact=True).fill("Bob")
    page.get_by_label("E-mail address").fill("bob@example.org")
    page.locator("main select[name=project]").select_option("team-a")
    page.locator("main select[name=role]").select_option("maintainer")
    page.get_by_role("button", name="Add").click()
    link = page.locator("code.copy").inner_text()
    bob = tabs.stranger(java_script_enabled=False).page
    bob.goto(link)
    bob.get_by_role("button", name="Sign in").click()
    assert bob.url.endswith("/account#password")  # where he may choose one
    bob.get_by_role("link", name="Jobs", exact=True).click()
    assert bob.locator("#jobs tbody tr").count() == 1
    assert bob.locator("#switch").count() == 0  # one project
    bob.get_by_role("link", name="Projects", exact=True).click()
    bob.locator("tbody th a").click()
    bob.get_by_label("Role of Ada, ada@example.org").select_option("viewer")
    bob.get_by_role("button", name="Change the role of Ada").click()
    assert bob.get_by_label("Role of Ada, ada@example.org").input_value() == "viewer"
    bob.get_by_role("link", name="Remove Ada").click()
    bob.get_by_role("button", name="Remove").click()
    assert "ada@example.org" not in bob.locator("table").inner_text()
    assert bob.goto("/people").status == 403  # type: ignore[union-attr]


def test_the_switch_shows_a_projects_jobs_at_once(service: Service, tabs: Tabs, person_id: str) -> None:
    service.person.post("/v1/jobs", json=SPEC | {"name": "of all"}).raise_for_status()
    tab = tabs.open()
    tab.page.goto("/")
    assert tab.page.locator("#jobs tbody tr").count() == 2
    tab.page.get_by_label("Project whose jobs are listed").select_option("team-a")
    tab.page.wait_for_url("**/?project=team-a")
    assert tab.page.locator("#jobs tbody tr").count() == 1
    tab.page.goto("/cluster")
    assert tab.page.get_by_label("Project whose jobs are listed").input_value() == "team-a"
    tab.page.goto("/new")
    assert tab.page.locator("main select[name=project]").input_value() == "team-a"
    assert tab.complaints == []
