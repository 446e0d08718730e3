"""Every route x every role x what is one's own and another project's, from the routes themselves.

What each case must answer follows from the policy table, so a new route is covered, or fails here for want of
a verb.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from fastapi.routing import APIRoute
from limits import RateLimitItemPerMinute
from starlette.testclient import TestClient

from server.identity import throttle
from server.identity.policy import CLUSTER_VERBS, POLICY, ROLES, Verb, grant
from server.routes.access import Requires
from tests.support.service_driver import ServiceDriver, example_spec

PUBLIC = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/v1/sign-in"),
    ("POST", "/v1/sessions"),
    ("POST", "/v1/sessions/oidc"),
    ("DELETE", "/v1/sessions"),
    ("POST", "/v1/device-codes"),
    ("POST", "/v1/device-codes/claim"),
}
# One's own, and what only a browser may do: test_signing_in.py, and those of sessions, keys and device.
NOT_BY_ROLE = (
    "/v1/keys/{key_id}",
    "/v1/login-codes",
    "/v1/me/password",
    "/v1/me/provider",
    "/v1/me/sessions/{session_id}",
    "/v1/device-codes/{user_code}/decision",
)
FOR_MACHINES = ("/v1/attempts/", "/v1/replays/")
THINGS = {"job_id": "job", "dataset_id": "dataset", "project": "project"}
ROW = '{"question": "of project", "answer": "1"}'
PEOPLE = (*ROLES, "auditor", "admin", "nobody")


@dataclass(frozen=True)
class Call:
    """A route for people."""

    method: str
    path: str
    verb: Verb

    @property
    def thing(self) -> str | None:
        """Kind of what the path names, if a project owns it."""
        return next((kind for name, kind in THINGS.items() if f"{{{name}}}" in self.path), None)


def verb_of(route: APIRoute) -> Verb | None:
    around = [route.dependant]
    while around:
        for one in around:
            if isinstance(one.call, Requires):
                return one.call.verb
        around = [inner for one in around for inner in one.dependencies]
    return None


def calls(service: ServiceDriver) -> Iterator[Call]:
    for route in service.app.routes:
        if isinstance(route, APIRoute) and (verb := verb_of(route)) is not None:
            for method in route.methods:
                yield Call(method, route.path, verb)


@pytest.fixture
def ours(service: ServiceDriver):
    """Two projects; in `ours` there are a job and a dataset of its owner's, in `theirs` the same."""
    made: dict[str, dict[str, str]] = {}
    for project in ("ours", "theirs"):
        service.project(project)
        owner = service.someone(project=project, name=f"owner of {project}")
        job = owner.post("/v1/jobs", json=example_spec(name=f"job of {project}")).json()["id"]
        made[project] = {"job": job, "project": project}
    return made


def upload(service: ServiceDriver, project: str) -> str:
    content = ROW.replace("project", project).encode()
    made = service.person.post(f"/v1/datasets?project={project}&name=rows-{project}", content=content)
    return str(made.json()["id"])


def expected(call: Call, role: str, project: str) -> int | None:
    """The status of a refusal; None: whatever the route says to those who may."""
    if role == "nobody":
        return 401
    if role == "admin" or (role == "auditor" and grant(call.verb, "auditor") == "yes"):
        return None
    if call.verb in CLUSTER_VERBS:
        return None if role != "auditor" and grant(call.verb, role) == "yes" else 403
    if call.verb == "dataset.add" and role == "viewer":
        return 403  # choose() says so
    if call.thing is None:
        return None  # a list, or a spec that is looked at first
    if role == "auditor":
        return 403
    if project == "theirs":
        return 404
    return None if grant(call.verb, role) == "yes" else 403


def test_every_route_says_who_may(service: ServiceDriver):
    for route in service.app.routes:
        if isinstance(route, APIRoute):
            for method in route.methods:
                known = verb_of(route) is not None or (method, route.path) in PUBLIC
                machine = route.path.startswith(FOR_MACHINES) or (method, route.path) in {
                    ("PUT", "/v1/nodes/{node_id}"),
                    ("POST", "/v1/nodes/{node_id}/check"),
                    ("GET", "/v1/jobs/{job_id}/validation"),
                    ("POST", "/v1/jobs/{job_id}/validation"),
                }
                assert known != machine, f"{method} {route.path} declares no verb"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_each_role_may_what_the_policy_says_and_sees_nothing_of_others(service: ServiceDriver, ours):
    people = {role: service.someone(role, project="ours", name=role) for role in ROLES}
    people["auditor"] = service.someone(project=None, cluster_role="auditor", name="auditor")
    people["admin"], people["nobody"] = service.person, service.anyone
    cases = 0
    for call in calls(service):
        if call.path in NOT_BY_ROLE:
            continue
        for project in ("ours", "theirs") if call.thing else ("ours",):
            for role in PEOPLE:
                if call.path.endswith("/events") and expected(call, role, project) is None:
                    continue  # a stream does not end
                ids = ours[project] | {"dataset": upload(service, project)}
                if service.person.get(f"/v1/jobs/{ids['job']}").status_code == 404:  # just deleted
                    spec = example_spec(name=f"job of {project}", project=project)
                    ids["job"] = ours[project]["job"] = service.person.post("/v1/jobs", json=spec).json()[
                        "id"
                    ]
                path = re.sub(
                    r"\{(\w+)(:path)?\}",
                    lambda part, ids=ids: ids.get(THINGS.get(part[1], ""), "7"),
                    call.path,
                )
                answer = people[role].request(call.method, path, json={"title": "x", "role": "viewer"})
                said = (
                    f"{call.method} {path} as {role} in {project}: {answer.status_code} {answer.text[:200]}"
                )
                wanted = expected(call, role, project)
                refused = answer.status_code in (401, 403) or (
                    answer.status_code == 404
                    and call.thing
                    and f"no {call.thing} {ids[call.thing]}" in answer.text
                )
                assert bool(refused) == (wanted is not None), said
                assert wanted in (None, answer.status_code), said
                if role in ROLES:
                    for secret in (ours["theirs"]["job"], "job of theirs", "rows-theirs", "owner of theirs"):
                        assert secret not in answer.text or secret in path, said
                cases += 1
    print(f"{cases} cases")
    assert cases > 300


@pytest.mark.slow
def test_what_is_new_goes_where_its_maker_may_add(service: ServiceDriver, ours):
    viewer, member = (service.someone(role, project="ours") for role in ("viewer", "member"))
    for path, body in (("/v1/jobs", example_spec()), ("/v1/jobs", example_spec(project="ours"))):
        assert viewer.post(path, json=body).status_code == 403
        answer = member.post(path, json=body)
        assert (answer.status_code, answer.json()["project"]) == (202, "ours")
    unseen = member.post("/v1/jobs", json=example_spec(project="theirs"))
    missing = member.post("/v1/jobs", json=example_spec(project="nothing"))
    assert unseen.status_code == missing.status_code == 422
    assert unseen.text.replace("theirs", "") == missing.text.replace("nothing", "")
    assert viewer.post("/v1/datasets", content=b"{}").status_code == 403
    assert member.post("/v1/datasets?project=theirs", content=b"{}").status_code == 422


@pytest.mark.slow
def test_the_same_content_in_another_project_tells_nothing(service: ServiceDriver, ours):
    theirs = upload(service, "theirs")
    member = service.someone(project="ours")
    mine = member.post("/v1/datasets", content=ROW.replace("project", "theirs").encode()).json()
    assert mine["id"] != theirs
    spec = example_spec(data={"kind": "jsonl", "dataset": theirs})
    refused = member.post("/v1/jobs", json=spec)
    assert f"no dataset {theirs}" in refused.text
    for both in ({"project": "ours"}, {"project": "theirs"}):  # one who sees both keeps them apart too
        answer = service.person.post("/v1/jobs", json=spec | both)
        assert answer.status_code == (202 if both["project"] == "theirs" else 422)


@pytest.mark.slow
def test_cursors_and_filters_lead_to_nothing_of_another_project(service: ServiceDriver, ours):
    member = service.someone(project="ours")
    cursor = service.person.get("/v1/jobs?limit=1").json()["next"]
    for query in (f"cursor={cursor}", "project=theirs", "name=theirs", "sort=owner"):
        found = member.get(f"/v1/jobs?{query}").json()["items"]
        assert {job["project"] for job in found} <= {"ours"}
    assert member.get("/v1/datasets?project=theirs").json()["items"] == []


def test_members_change_their_own_jobs_and_maintainers_all(service: ServiceDriver):
    ada, bob = service.someone(name="Ada"), service.someone(name="Bob")
    job = ada.post("/v1/jobs", json=example_spec()).json()["id"]
    assert bob.post(f"/v1/jobs/{job}/cancel").status_code == 403
    assert ada.post(f"/v1/jobs/{job}/cancel").status_code == 200
    other = bob.post("/v1/jobs", json=example_spec()).json()["id"]
    assert service.someone("maintainer").post(f"/v1/jobs/{other}/cancel").status_code == 200


@pytest.mark.slow
def test_a_node_shows_how_many_attempts_of_others_it_runs(service: ServiceDriver, ours):
    attempt = service.running(project="theirs")
    member = service.someone(project="ours")
    (node,) = member.get("/v1/nodes").json()["items"]
    assert (node["attempts"], node["other_attempts"]) == ([], 1)
    (node,) = service.person.get("/v1/nodes").json()["items"]
    assert (node["attempts"], node["other_attempts"]) == ([attempt.id], 0)


@pytest.mark.slow
def test_members_come_and_go(service: ServiceDriver, ours):
    maintainer, ada = service.someone("maintainer", project="ours"), service.someone(project=None)
    me = ada.get("/v1/me").json()["id"]
    path = f"/v1/projects/ours/members/{me}"
    assert ada.get("/v1/projects/ours").status_code == 404
    assert maintainer.put(path, json={"role": "viewer"}).status_code == 200
    assert ada.get("/v1/projects/ours").json()["role"] == "viewer"
    assert ada.put(path, json={"role": "maintainer"}).status_code == 403
    names = {one["name"] for one in maintainer.get("/v1/projects/ours/members").json()["items"]}
    assert "Ada" in names
    assert maintainer.delete(path).status_code == 204
    assert ada.get("/v1/jobs").json()["items"] == []


@pytest.mark.slow
def test_a_maintainer_cannot_try_address_after_address(service: ServiceDriver, ours, monkeypatch):
    monkeypatch.setitem(throttle.LIMITS, "member", RateLimitItemPerMinute(2, 5))
    maintainer, ada = service.someone("maintainer", project="ours"), service.someone(project=None)
    known, unknown = ada.get("/v1/me").json()["id"], "nobody@example.org"

    def add(who: TestClient, person: str) -> int:
        return who.put(f"/v1/projects/ours/members/{person}", json={"role": "viewer"}).status_code

    assert [add(maintainer, one) for one in (unknown, known, unknown, known)] == [404, 200, 429, 429]
    assert [add(service.person, unknown) for _ in range(3)] == [404] * 3  # an administrator may list people


def test_the_table_is_whole():
    assert {verb for verb, grants in POLICY.items() if len(grants) != 4} == set()
    order = ("no", "own", "yes")
    for verb in POLICY:
        rights = [order.index(grant(verb, role)) for role in ROLES]
        assert rights == sorted(rights), f"{verb}: a higher role may less"
