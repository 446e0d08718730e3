"""People, projects and keys on the command line, against scripted answers."""

import json

import pytest
from pydantic import BaseModel

from powermean.contracts.api import Dataset, DatasetList, ErrorBody, ErrorResponse, JobPage, LoginCode
from powermean.contracts.identity import KeyList, MemberList, NewKey, PersonList, ProjectList
from powermean.contracts.storage import ProjectStorage, Retention
from tests.support.sample_jobs import SPEC, job
from tests.support.sample_people import ADA, NOW, key, me, member, person, project
from tests.support.scripted_server import Answer, ScriptedServer
from tests.support.terminal import powermean

CODE = LoginCode(code="abc", url="https://lab.example.org/login/abc", expires_at=NOW)
STORED = ProjectStorage(project="team-a", bytes=0, over_limit=False, uses=(), largest=())
LOOK_ALIKE = "аdministrator"  # its first letter is Cyrillic


def body(answer: BaseModel, status: int = 200) -> Answer:
    return Answer(status, answer.model_dump_json().encode())


def sent(server: ScriptedServer, request: str) -> object:
    """The body of the only request of this kind."""
    (found,) = (given for line, _, given in server.requests if line == request)
    return json.loads(found)


ANSWERS: dict[tuple[str, ...], tuple[str, BaseModel]] = {
    ("whoami",): ("GET /v1/me", me()),
    ("person", "list"): ("GET /v1/people", PersonList(items=(person(),))),
    ("person", "invite", "person-ada"): ("POST /v1/people/person-ada/login-codes", CODE),
    ("person", "deactivate", "person-ada"): ("PATCH /v1/people/person-ada", person(active=False)),
    ("person", "activate", "person-ada"): ("PATCH /v1/people/person-ada", person()),
    ("person", "change", "person-ada", "--name", "Ada L"): ("PATCH /v1/people/person-ada", person()),
    ("project", "list"): ("GET /v1/projects", ProjectList(items=(project(),))),
    ("project", "create", "team-a"): ("POST /v1/projects", project()),
    ("project", "show", "team-a"): ("GET /v1/projects/team-a", project()),
    ("project", "members", "team-a"): ("GET /v1/projects/team-a/members", MemberList(items=(member(),))),
    ("project", "add-member", "team-a", "x"): ("PUT /v1/projects/team-a/members/x", member()),
    ("project", "rename", "team-a", "Vision"): ("PATCH /v1/projects/team-a", project()),
    ("project", "retention", "team-a"): ("GET /v1/projects/team-a/retention", Retention(logs_days=7)),
    ("project", "limit", "team-a", "none"): ("PUT /v1/projects/team-a/storage/limit", STORED),
    ("key", "list"): ("GET /v1/keys", KeyList(items=(key(),))),
    ("key", "create", "laptop"): ("POST /v1/keys", NewKey(key="pm_secret", **dict(key()))),
}


@pytest.mark.parametrize("command", ANSWERS)
def test_json_is_the_apis_answer(server: ScriptedServer, command: tuple[str, ...]) -> None:
    request, answer = ANSWERS[command]
    server.on(request, body(answer))
    result = powermean(*command, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == answer.model_dump(mode="json")


def test_one_command_lets_a_second_person_in(server: ScriptedServer) -> None:
    server.on("GET /v1/projects", body(ProjectList(items=(project("default"),))))
    server.on("POST /v1/people", body(person(projects={"default": "member"}), 201))
    server.on("POST /v1/people/person-ada/login-codes", body(CODE, 201))
    result = powermean("person", "add", "Ada", "--email", "ADA@example.org")
    assert result.exit_code == 0, result.output
    assert result.stdout == "https://lab.example.org/login/abc\n"  # where others reach it, says the server
    assert "signs them in, once, until" in result.stderr
    wanted = sent(server, "POST /v1/people")
    assert isinstance(wanted, dict)
    assert (wanted["email"], wanted["project"], wanted["role"]) == ("ada@example.org", "default", "member")


def test_where_there_are_several_projects_none_is_guessed(server: ScriptedServer) -> None:
    server.on("GET /v1/projects", body(ProjectList(items=(project("default"), project("team-a")))))
    server.on("POST /v1/people", body(person(), 201))
    server.on("POST /v1/people/person-ada/login-codes", body(CODE, 201))
    result = powermean("person", "add", "Ada")
    wanted = sent(server, "POST /v1/people")
    assert isinstance(wanted, dict)
    assert wanted["project"] is None
    assert "`powermean project add-member PROJECT ada@example.org` adds them" in result.stderr


def test_a_service_account_gets_no_link(server: ScriptedServer) -> None:
    server.on("POST /v1/people", body(person(kind="service"), 201))
    result = powermean("person", "add", "robot", "--service", "--project", "team-a")
    assert result.exit_code == 0, result.output
    assert result.stdout == "person-ada\n"
    assert "`powermean key create NAME --for person-ada`" in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("person", "add", "Ada", "--email", "no address"),
        ("person", "add", "Ada", "--role", "boss"),
        ("project", "create", "Team A"),
        ("project", "add-member", "team-a", "x", "--role", "admin"),
        ("key", "create", "x", "--role", "boss"),
        ("key", "create", "x", "--days", "0"),
        ("person", "change", "ada@example.org"),
        ("person", "change", "ada@example.org", "--email", "no address"),
        ("project", "limit", "team-a", "lots"),
        ("project", "retention", "team-a", "--logs-days", "some"),
    ],
)
def test_mistakes_are_told_before_anybody_is_asked(server: ScriptedServer, command: tuple[str, ...]) -> None:
    result = powermean(*command)
    assert result.exit_code == 1
    assert result.stderr.startswith("powermean: ")
    assert server.requests == []


def test_who_somebody_is_shows_beside_a_name_that_looks_like_anothers(server: ScriptedServer) -> None:
    twin = person(id="person-2", name=LOOK_ALIKE, email=None)
    server.on("GET /v1/people", body(PersonList(items=(person(name="administrator"), twin))))
    first, second = powermean("person", "list").stdout.splitlines()[1:]
    assert first.split()[:2] == ["person-ada", "administrator"]
    assert second.split()[:2] == ["person-2", LOOK_ALIKE]


def test_names_move_no_cursor(server: ScriptedServer) -> None:
    hostile = {"name": "Ada\x1b[2J\u202e"}
    server.on("PUT /v1/projects/team-a/members/x", body(member(role="viewer", **(ADA | hostile))))
    said = powermean("project", "add-member", "team-a", "x", "--role", "viewer").stdout
    assert said == "Ada\\u001b[2J\\u202e (ada@example.org) is now a viewer of team-a\n"


def test_whoami_says_what_the_key_allows_less(server: ScriptedServer) -> None:
    server.on("GET /v1/me", body(me(projects={"team-a": "maintainer"}, allowed={"team-a": "viewer"})))
    result = powermean("whoami")
    assert result.stdout == "Ada  ada@example.org\nmaintainer of team-a\n"
    assert result.stderr == "Your key allows less in team-a: what a viewer may.\n"


def test_a_key_is_alone_on_standard_output(server: ScriptedServer) -> None:
    server.on("POST /v1/keys", body(NewKey(key="pm_secret", **dict(key())), 201))
    result = powermean("key", "create", "laptop", "--project", "team-a", "--for", "person-ada")
    assert result.stdout == "pm_secret\n"
    assert f"POWERMEAN_URL={server.url}" in result.stderr
    assert "`powermean key revoke key-1`" in result.stderr
    wanted = sent(server, "POST /v1/keys")
    assert isinstance(wanted, dict)
    assert (wanted["project"], wanted["person_id"]) == ("team-a", "person-ada")


def test_a_nodes_token_is_for_its_worker(server: ScriptedServer) -> None:
    server.on("POST /v1/keys", body(NewKey(key="pmn_secret", **dict(key(role="node", owner=None))), 201))
    result = powermean("key", "create", "gpu-7", "--role", "node")
    assert f"POWERMEAN_SERVER_URL={server.url} and POWERMEAN_NODE_TOKEN" in result.stderr


def test_what_is_taken_away_is_said(server: ScriptedServer) -> None:
    server.on("DELETE /v1/projects/team-a/members/ada%40example.org", Answer(204))
    server.on("DELETE /v1/keys/key-1", Answer(204))
    server.on("GET /v1/keys", body(KeyList(items=(key(),))))
    gone = powermean("project", "remove-member", "team-a", "ada@example.org")
    assert gone.output == "ada@example.org is no longer in team-a\n"
    assert powermean("key", "revoke", "key-1").output == "key-1 is revoked\n"


def test_a_refusal_names_commands(server: ScriptedServer) -> None:
    error = ErrorBody(code="not_found", message="no project x", remedy="GET /v1/projects lists yours.")
    server.on("GET /v1/projects/x", body(ErrorResponse(error=error), 404))
    result = powermean("project", "show", "x")
    assert (result.exit_code, result.stderr) == (
        1,
        "powermean: no project x\n`powermean project list` lists yours.\n",
    )


def test_lists_take_a_project(server: ScriptedServer, tmp_path) -> None:
    server.on("GET /v1/jobs", body(JobPage(items=())))
    server.on("GET /v1/datasets", body(DatasetList(items=())))
    made = Dataset(
        id="ds-1", name="a", rows=1, fields=(), sha256="0" * 64, size=1, project="team-a", created_at=NOW
    )
    server.on("POST /v1/datasets", body(made, 201))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    powermean("list", "--project", "team-a")
    powermean("datasets", "list", "--project", "team-a")
    powermean("datasets", "upload", str(rows), "--project", "team-a")
    assert [line for line, _, _ in server.requests] == [
        "GET /v1/jobs?project=team-a&limit=20",
        "GET /v1/datasets?project=team-a&limit=200",
        "POST /v1/datasets?project=team-a",
    ]


def test_submit_writes_the_project_into_the_text(server: ScriptedServer, tmp_path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(f"# mine\n{SPEC.model_dump_json(exclude_unset=True)}\n")
    server.on("POST /v1/jobs/text", body(job(), 202))
    assert powermean("submit", str(file), "--project", "team-a").exit_code == 0
    wanted = sent(server, "POST /v1/jobs/text")
    assert isinstance(wanted, dict)
    assert wanted["text"].startswith('# mine\n{"project": "team-a", ')


def test_submit_takes_no_side_where_file_and_option_differ(server: ScriptedServer, tmp_path) -> None:
    file = tmp_path / "job.json"
    file.write_text(json.dumps(SPEC.model_dump(mode="json", exclude_unset=True) | {"project": "b"}, indent=1))
    result = powermean("submit", str(file), "--project", "team-a")
    assert result.exit_code == 1
    assert "project: the file says b, and --project team-a" in result.stderr
    assert server.requests == []


def test_a_key_may_end_and_the_list_says_when_and_when_it_was_used(server: ScriptedServer) -> None:
    server.on("POST /v1/keys", body(NewKey(key="pm_secret", **dict(key(expires_at=NOW))), 201))
    result = powermean("key", "create", "laptop", "--days", "30")
    assert "It works until" in result.stderr
    wanted = sent(server, "POST /v1/keys")
    assert isinstance(wanted, dict)
    assert wanted["days"] == 30
    ended, unused = key(expires_at=NOW, used_at=NOW), key(id="key-2", revoked_at=NOW)
    server.on("GET /v1/keys", body(KeyList(items=(ended, unused))))
    first, second = powermean("key", "list").stdout.splitlines()[1:]
    assert first.split()[-1] == "ended"
    assert first.count("2026-01-05") == 3  # made, used, ended
    assert "never" in second
    assert second.split()[-1] == "revoked"


def test_a_leaked_key_is_revoked_with_those_that_it_made(server: ScriptedServer) -> None:
    server.on("DELETE /v1/keys/key-1", Answer(204))
    result = powermean("key", "revoke", "key-1", "--cascade")
    assert result.exit_code == 0, result.output
    assert "with all that were made with it" in result.stdout
    assert server.requests[0][0] == "DELETE /v1/keys/key-1?cascade=true"


def test_whoever_revokes_a_key_alone_hears_of_those_that_it_made(server: ScriptedServer) -> None:
    server.on("DELETE /v1/keys/key-1", Answer(204))
    made = [key(id="key-2", made_by="key-1"), key(id="key-3", made_by="key-1", revoked_at=NOW)]
    unlisted = body(ErrorResponse(error=ErrorBody(code="internal", message="no list today")), 400)
    server.on("GET /v1/keys", body(KeyList(items=(key(id="key-1"), *made))), unlisted)
    result = powermean("key", "revoke", "key-1")
    assert (result.exit_code, result.stdout) == (0, "key-1 is revoked\n")
    assert "It made keys that still work: key-2." in result.stderr
    assert "--cascade" in result.stderr
    result = powermean("key", "revoke", "key-1")
    assert (result.exit_code, result.stdout) == (0, "key-1 is revoked\n")
    assert "could not be listed: no list today" in result.stderr


def test_an_address_is_given_to_an_account(server: ScriptedServer) -> None:
    server.on("PATCH /v1/people/person-administrator", body(person()))
    result = powermean("person", "change", "person-administrator", "--email", "Root@example.org")
    assert result.exit_code == 0, result.output
    assert sent(server, "PATCH /v1/people/person-administrator") == {"email": "root@example.org"}


def test_a_rule_changes_and_the_others_stay(server: ScriptedServer) -> None:
    rules = Retention(texts_days=30, logs_days=7, checkpoints_best=True)
    server.on("GET /v1/projects/team-a/retention", body(rules))
    server.on("PUT /v1/projects/team-a/retention", body(rules))
    result = powermean("project", "retention", "team-a", "--logs-days", "forever", "--checkpoints-last", "2")
    assert result.exit_code == 0, result.output
    changed = rules.model_copy(update={"logs_days": None, "checkpoints_last": 2})
    assert sent(server, "PUT /v1/projects/team-a/retention") == changed.model_dump()


def test_a_limit_is_a_size(server: ScriptedServer) -> None:
    server.on("PUT /v1/projects/team-a/storage/limit", body(STORED.model_copy(update={"limit": 5 * 10**11})))
    assert "500.0 GB" in powermean("project", "limit", "team-a", "500 GB").stdout
    assert sent(server, "PUT /v1/projects/team-a/storage/limit") == {"bytes": 500_000_000_000}


def test_deleting_a_project_asks_first(server: ScriptedServer) -> None:
    assert powermean("project", "delete", "team-a", typed="n\n").exit_code == 1
    assert server.requests == []
    server.on("DELETE /v1/projects/team-a", Answer(204))
    result = powermean("project", "delete", "team-a", "--cascade", "--yes")
    assert result.exit_code == 0, result.output
    assert server.requests[0][0] == "DELETE /v1/projects/team-a?cascade=true"
