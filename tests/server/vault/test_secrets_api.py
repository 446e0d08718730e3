"""Secrets over the API: set by those who may, shown to nobody, given to the node that runs the job."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from powermean.contracts.api import JobState
from server.vault.key_file import KeyFile
from server.vault.rotation import rotate
from server.vault.sealing import seal
from tests.support.service_driver import ServiceDriver, example_spec

ROOT = Path(__file__).parents[3]
VALUE = "hf_0123456789abcdefghij"
TEAM = "/v1/projects/default/secrets"
OWN = "/v1/me/secrets"


def set_one(service: ServiceDriver, name: str = "hf", value: str = VALUE, path: str = TEAM):
    answer = service.person.put(f"{path}/{name}", json={"value": value})
    assert answer.status_code == 200, answer.text
    return answer


def naming(**secrets: str) -> dict[str, object]:
    return {"secrets": secrets}


def claimed(service: ServiceDriver, attempt_id: str) -> dict[str, str]:
    answer = service.node.post(f"/v1/attempts/{attempt_id}/claim")
    assert answer.status_code == 200, answer.text
    return answer.json()["secrets"]


@pytest.mark.parametrize("path", [TEAM, OWN])
def test_a_secret_is_set_listed_and_removed_and_never_shown(service: ServiceDriver, path: str):
    first = set_one(service, path=path).json()
    assert first["name"] == "hf"
    assert first["used_at"] is None
    again = set_one(service, value="another value", path=path)
    listed = service.person.get(path)
    assert listed.json()["items"] == [again.json()]
    assert VALUE not in listed.text + again.text
    assert service.person.delete(f"{path}/hf").status_code == 204
    assert service.person.get(path).json()["items"] == []
    assert service.person.delete(f"{path}/hf").status_code == 404


@pytest.mark.parametrize("name", ["HF", "a b", "-a", "a" * 64, "a%00", "ä", "..%2Fb"])
def test_names_are_plain(service: ServiceDriver, name: str):
    assert service.person.put(f"{TEAM}/{name}", json={"value": VALUE}).status_code in (400, 404, 422)


@pytest.mark.parametrize("value", ["short", " " * 20, "a\0bcdefghi", "x" * 9000, 12345678, None])
def test_a_value_that_cant_be_used_is_refused_and_not_repeated(service: ServiceDriver, value: object):
    answer = service.person.put(f"{TEAM}/hf", json={"value": value})
    assert answer.status_code == 422
    assert answer.json()["error"]["fields"][0]["path"] == "value"
    assert not isinstance(value, str) or value not in answer.text


@pytest.mark.slow
def test_maintainers_set_members_see_names_and_strangers_nothing(service: ServiceDriver):
    set_one(service)
    service.project("theirs")
    people = {role: service.someone(role) for role in ("viewer", "member", "maintainer")}
    stranger = service.someone("maintainer", project="theirs")
    assert {role: one.get(TEAM).status_code for role, one in people.items()} == {
        "viewer": 403,
        "member": 200,
        "maintainer": 200,
    }
    for role, client in people.items():
        status = client.put(f"{TEAM}/other", json={"value": VALUE}).status_code
        assert status == (200 if role == "maintainer" else 403)
    for call in (
        stranger.get(TEAM),
        stranger.put(f"{TEAM}/hf", json={"value": VALUE}),
        stranger.delete(f"{TEAM}/hf"),
    ):
        assert call.status_code == 404
    assert people["member"].get(OWN).json()["items"] == []


def test_a_spec_names_what_its_project_and_submitter_have(service: ServiceDriver):
    refused = service.person.post("/v1/jobs", json=example_spec(**naming(HF_TOKEN="hf")))
    assert refused.status_code == 422
    (field,) = refused.json()["error"]["fields"]
    assert (field["path"], field["message"]) == ("secrets.HF_TOKEN", "project default has no secret hf")
    assert service.person.get("/v1/jobs").json()["items"] == []
    set_one(service)
    set_one(service, path=OWN)
    service.submit(**naming(HF_TOKEN="hf", WANDB_API_KEY="me/hf"))
    member = service.someone()
    assert member.post("/v1/jobs", json=example_spec(**naming(HF_TOKEN="hf"))).status_code == 202
    other = member.post("/v1/jobs", json=example_spec(**naming(HF_TOKEN="me/hf")))
    assert "you have no secret hf" in other.text


@pytest.mark.parametrize(
    "variable",
    [
        "PATH",
        "PYTHONPATH",
        "LD_PRELOAD",
        "POWERMEAN_API_KEY",
        "CUDA_VISIBLE_DEVICES",
        "HF_ENDPOINT",
        "HF_HOME",
        "HTTPS_PROXY",
        "AWS_SECRET_ACCESS_KEY",
        "hf_token",
        "HF TOKEN_KEY",
        "A=B_TOKEN",
    ],
)
def test_variables_that_programs_run_by_are_refused(service: ServiceDriver, variable: str):
    set_one(service)
    answer = service.person.post("/v1/jobs", json=example_spec(secrets={variable: "hf"}))
    assert answer.status_code == 422
    assert answer.json()["error"]["fields"][0]["path"].startswith("secrets")


@pytest.mark.slow
def test_the_claim_alone_has_the_values(service: ServiceDriver):
    set_one(service)
    set_one(service, "wandb", "the key of the tracker", OWN)
    job_id = service.started(**naming(HF_TOKEN="hf", WANDB_API_KEY="me/wandb"))
    assert claimed(service, f"{job_id}.1") == {"HF_TOKEN": VALUE, "WANDB_API_KEY": "the key of the tracker"}
    for path in ("", "/text", "/logs", "/checkpoints"):
        assert VALUE not in service.person.get(f"/v1/jobs/{job_id}{path}").text
    (used,) = service.person.get(TEAM).json()["items"]
    assert used["used_at"] is not None
    assert service.node.post(f"/v1/attempts/{job_id}.1/claim").status_code == 409


def test_a_check_gets_what_a_model_is_fetched_with_and_nothing_else(service: ServiceDriver):
    set_one(service)
    named = naming(HF_TOKEN="hf", WANDB_API_KEY="hf")
    by_name, by_folder = service.submit(**named), service.submit(**named, model={"folder": "tiny"})
    secrets = {
        job: service.node.get(f"/v1/jobs/{job}/validation").json()["secrets"] for job in (by_name, by_folder)
    }
    assert secrets == {by_name: {"HF_TOKEN": VALUE}, by_folder: {}}


def test_a_secret_stays_while_a_job_needs_it(service: ServiceDriver):
    set_one(service)
    set_one(service, path=OWN)
    job_id = service.submit(**naming(HF_TOKEN="hf"))
    own = service.submit(**naming(HF_TOKEN="me/hf"))
    for path, job in ((TEAM, job_id), (OWN, own)):
        refused = service.person.delete(f"{path}/hf")
        assert refused.status_code == 409
        assert job in refused.json()["error"]["message"]
        assert set_one(service, value="a new value", path=path).status_code == 200
        service.person.post(f"/v1/jobs/{job}/cancel")
        assert service.person.delete(f"{path}/hf").status_code == 204


@pytest.mark.slow
def test_a_job_whose_secret_cant_be_read_fails_and_says_so(service: ServiceDriver):
    """One that runs by now goes on, though its claim is repeated."""
    set_one(service)
    job_id, running = (service.queued(**naming(HF_TOKEN="hf")) for _ in range(2))
    service.report(cpu_slots=2)
    service.scheduler.turn()

    def claim_running() -> int:
        key = {"Idempotency-Key": "mine"}
        return service.node.post(f"/v1/attempts/{running}.1/claim", headers=key).status_code

    assert claim_running() == 200
    checked = service.submit(**naming(HF_TOKEN="hf"))
    keys = KeyFile(service.settings.secrets_dir)
    keys.add()
    keys.keep(keys.ids()[-1:])
    assert service.node.post(f"/v1/attempts/{job_id}.1/claim").status_code == 409
    assert service.node.get(f"/v1/jobs/{checked}/validation").status_code == 409
    assert claim_running() == 409
    assert service.job(running).state is JobState.RUNNING
    for one in (job_id, checked):
        job = service.job(one)
        assert job.state is JobState.FAILED
        assert job.error is not None
        assert job.error.code == "secret_key_unavailable"
    assert service.job(job_id).attempts[0].state == "ended"


@pytest.mark.slow
def test_a_leavers_own_secrets_go_to_no_job(service: ServiceDriver):
    ada = service.someone()
    ada.put(f"{OWN}/hf", json={"value": VALUE})
    job_id = ada.post("/v1/jobs", json=example_spec(**naming(HF_TOKEN="me/hf"))).json()["id"]
    service.validate(job_id)
    service.report()
    service.scheduler.turn()
    person = ada.get("/v1/me").json()["id"]
    assert service.person.patch(f"/v1/people/{person}", json={"active": False}).status_code == 200
    assert service.node.post(f"/v1/attempts/{job_id}.1/claim").status_code == 409
    error = service.job(job_id).error
    assert error is not None
    assert (error.path, error.message) == ("secrets.HF_TOKEN", "secret me/hf is gone")


@pytest.mark.slow
def test_rows_of_the_database_cant_be_exchanged(service: ServiceDriver):
    """As somebody could who may write to the database, but has no key."""
    service.project("theirs")
    set_one(service)
    set_one(service, value="the value of others", path="/v1/projects/theirs/secrets")
    job_id = service.started(**naming(HF_TOKEN="hf"))
    with service.database.write() as session:
        stolen = session.execute(
            text("SELECT key_id, wrapped_key, blob FROM project_secrets WHERE project_id = 'theirs'")
        ).one()
        session.execute(
            text(
                "UPDATE project_secrets SET key_id = :key_id, wrapped_key = :wrapped_key, blob = :blob "
                "WHERE project_id = 'default'"
            ),
            stolen._asdict(),
        )
    answer = service.node.post(f"/v1/attempts/{job_id}.1/claim")
    assert answer.status_code == 409
    assert "the value of others" not in answer.text


@pytest.mark.slow
def test_a_rotation_changes_every_row_and_no_value(service: ServiceDriver):
    for number in range(120):
        set_one(service, f"s{number}", f"value number {number}")
    set_one(service, path=OWN)
    keys = KeyFile(service.settings.secrets_dir)
    before = stored(service)
    assert rotate(service.database, keys) == 121
    after = stored(service)
    assert all(before[name] != row for name, row in after.items())
    assert {key_id for key_id, _, _ in after.values()} == {keys.ids()[-1]}
    job_id = service.started(**naming(HF_TOKEN="s7", WANDB_API_KEY="me/hf"))
    assert claimed(service, f"{job_id}.1") == {"HF_TOKEN": "value number 7", "WANDB_API_KEY": VALUE}
    rotate(service.database, keys)
    assert len(keys.ids()) == 2  # the newest, and the one before


@pytest.mark.slow
def test_the_command_rotates_while_the_server_runs(service: ServiceDriver):
    set_one(service)
    before = stored(service)
    settings = {
        "POWERMEAN_DATABASE_URL": service.settings.database_url,
        "POWERMEAN_SECRETS_DIR": str(service.settings.secrets_dir),
    }
    command = [sys.executable, "-m", "server", "rotate-secrets"]
    done = subprocess.run(
        command, env=os.environ | settings, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    newest = KeyFile(service.settings.secrets_dir).ids()[-1]
    said = f"secrets encrypted with a new key, {newest}: 1\n"
    assert (done.returncode, done.stdout) == (0, said), done.stderr
    assert stored(service) != before
    assert recorded(service) == [{"stage": "done", "secrets": "1", "key": newest}, {"stage": "begun"}]
    job_id = service.started(**naming(HF_TOKEN="hf"))
    assert claimed(service, f"{job_id}.1") == {"HF_TOKEN": VALUE}  # the running server needs no restart


@pytest.mark.slow
def test_a_rotation_that_was_stopped_goes_on(service: ServiceDriver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("server.vault.rotation.BATCH", 2)
    for number in range(5):
        set_one(service, f"s{number}", f"value number {number}")
    keys = KeyFile(service.settings.secrets_dir)

    class StoppedError(Exception):
        pass

    sealed = 0

    def stop(*given: object):
        nonlocal sealed
        sealed += 1
        if sealed == 4:
            raise StoppedError
        return seal(*given)

    monkeypatch.setattr("server.vault.rotation.seal", stop)
    with pytest.raises(StoppedError):
        rotate(service.database, keys)
    assert recorded(service) == [{"stage": "begun"}]
    half = {key_id for key_id, _, _ in stored(service).values()}
    assert len(half) == 2
    job_id = service.started(**naming(A_TOKEN="s0", B_TOKEN="s4"))
    assert claimed(service, f"{job_id}.1") == {"A_TOKEN": "value number 0", "B_TOKEN": "value number 4"}
    monkeypatch.setattr("server.vault.rotation.seal", seal)
    newest = keys.ids()[-1]
    assert rotate(service.database, keys) == 3
    assert {key_id for key_id, _, _ in stored(service).values()} == {newest}


def recorded(service: ServiceDriver) -> list[dict[str, str]]:
    """What the audit log says of rotations, newest first."""
    found = service.person.get("/v1/audit?verb=secret.rotate").json()["items"]
    return [entry["detail"] for entry in found]


def stored(service: ServiceDriver) -> dict[str, tuple[str, bytes, bytes]]:
    """What the database has of every secret."""
    with service.database.read() as session:
        return {
            f"{table} {row.name}": (row.key_id, bytes(row.wrapped_key), bytes(row.blob))
            for table in ("project_secrets", "person_secrets")
            for row in session.execute(text(f"SELECT name, key_id, wrapped_key, blob FROM {table}"))
        }


@pytest.mark.slow
def test_no_file_of_the_service_holds_a_value(service: ServiceDriver):
    set_one(service)
    service.running(**naming(HF_TOKEN="hf"))
    assert VALUE not in json.dumps(service.sender.sent)
    if service.database.engine.dialect.name == "sqlite":
        folder = Path(service.database.engine.url.database or "").parent
        held = [file for file in folder.rglob("*") if file.is_file() and VALUE.encode() in file.read_bytes()]
        assert held == []
