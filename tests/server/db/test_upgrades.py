"""Databases of earlier versions with their rows: after the upgrade the API gives what was there.

0.1.0, the only version so far, had revision 0001. The others in HEADS were the newest ones for a while.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.command import downgrade, upgrade
from sqlalchemy import MetaData, Table, insert

from powermean.artefacts import ArtefactStore
from powermean.contracts.job import JobSpec
from server.db.migrate import alembic_config, migrate
from server.db.scoped import ScopedDatabase
from server.db.session import Database
from server.identity.keys import digest
from server.metrics.trajectories import read_trajectories
from server.settings import Settings
from tests.support.service_driver import ADMIN_KEY, NODE_TOKEN, ServiceDriver
from tests.support.stored_things import full_job

pytestmark = pytest.mark.slow
HEADS = ("0025", "0023", "0020", "0019", "0013")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
THEIR_KEY = "pm_" + "t" * 43
# As 0.1.0 stored it.
SPEC = json.loads("""
{"name":"adding up","model":{"name":"tiny/model","folder":null,"lora":null,"dtype":"auto","device":"auto"},
"algorithm":{"beta":0.0,"sampler_weight":"off","sampler_weight_cap":2.0,"clip_low":0.4,"clip_high":0.4,"name":"pmpo",
"ess_target":"interpolate","clip_fraction":"active","clip_fraction_full":1.0,"ess_clip_range":null},
"data":{"kind":"arithmetic","tasks":[{"operator":"+","low":1,"high":9,"weight":1.0},
{"operator":"*","low":2,"high":9,"weight":1.0}],"prompt":"1 + 2 = 3\\n{a} {op} {b} =","held_out":0.25},
"reward":{"kind":"exact_match","extract":"first_line","pattern":null,"ignore_case":false},
"rollout":{"engine":"auto","group_size":8,"temperature":1.0,"max_new_tokens":64,"stop":[],
"logprob_tolerance":0.001},"training":{"steps":20,"prompts_per_step":8,"minibatches":2,"epochs":2,
"micro_batch_groups":4,"gradient_checkpointing":false},"optimizer":{"learning_rate":1e-6,"betas":[0.9,0.95],
"eps":1e-8,"weight_decay":0.0,"warmup_updates":3,"max_grad_norm":1.0},"evaluation":{"every":10,"problems":128,
"temperature":null},"checkpoints":{"every":10,"keep":2},"resources":{"gpus":0,"placement":"colocated"},
"record":{"texts":true,"tokens":64},"seed":0,"max_restarts":3}
""")


def revise(database: Database, change: Any, revision: str) -> None:
    config = alembic_config()
    with database.rebuild() as connection:
        config.attributes["connection"] = connection
        change(config, revision)
    database.engine.dispose()  # statements prepared for the old tables


def job_row(job_id: str, state: str, **more: Any) -> dict[str, Any]:
    return {
        "id": job_id, "name": "adding up", "state": state, "spec": SPEC, "algorithm": "pmpo",
        "total_steps": 20, "step": 0, "seq": 0, "attempt": 0, "restarts": 0, "cancel_requested": False,
        "spec_sha256": "0" * 64,
        "created_by": "key-1", "created_at": NOW, "idempotency_key": None, "last_reward": None, "phase": None,
        "not_before": None, "error": None, "result": None, "started_at": None, "finished_at": None,
    } | more  # fmt: skip


def rows_of_0_1_0(store: ArtefactStore) -> dict[str, list[dict[str, Any]]]:
    """A finished job with something in every table, one that trains and one that waits."""

    def put(owner: str, name: str, data: bytes) -> dict[str, Any]:
        return store.put_bytes(owner, name, data).model_dump(mode="json")

    model = {"files": {"config.json": put("jobs/job-1/model", "config.json", b"{}")}}
    kept = {"files": {"weights": put("jobs/job-2/checkpoints/1-10", "weights", b"weights")}}
    result = {"steps": 20, "reward_before": 0.3, "reward_after": 0.8, "tokens": 1000, "model": model}
    place = {"job_id": "job-1", "step": 20, "attempt": 1}
    row = {
        "index": 0, "group": 0, "problem": "1+1", "reward": 1.0, "reward_parts": {}, "advantage": 0.5,
        "length": 3, "truncated": False, "grader_error": None, "entropy": 0.1, "sampling_kl": None,
        "weight_version": 19,
        "weight_versions": [], "updates": [{"update": 0, "epoch": 0, "minibatch": 0, "p": 0.75}],
    }  # fmt: skip
    attempt = {
        "state": "ended",
        "outcome": "finished",
        "first_step": 1,
        "order": "continue",
        "created_at": NOW,
    }
    metrics = [
        {
            "job_id": "job-1",
            "attempt": 1,
            "step": step,
            "update": -1,
            "name": name,
            "value": step / 20,
            "seq": step,
        }
        for step in range(1, 21)
        for name in ("reward", "time/step")
    ]
    report = {
        "hostname": "n",
        "gpus": [],
        "cpu_slots": 2,
        "engines": ["transformers"],
        "running": ["job-2.1"],
    }
    return {
        "api_keys": [
            {"id": "key-1", "name": "ada", "role": "member", "created_at": NOW}
            | {"key_sha256": digest(THEIR_KEY)},
            {"id": "key-2", "name": "n", "role": "node", "key_sha256": digest("pmn_old"), "created_at": NOW},
        ],
        "nodes": [{"id": "node-1", "report": report | {"version": "0.1.0"}, "seen_at": NOW}],
        "leaders": [{"name": "scheduler", "holder": "me", "expires_at": NOW}],
        "garbage": [{"key": "jobs/job-0/", "created_at": NOW}],
        "datasets": [
            {
                "id": "ds-1", "name": "sums", "rows": 1, "fields": ["answer", "problem"], "lacking": {},
                "artefact": put("datasets/ds-1", "sums.jsonl", b'{"problem": "1", "answer": "1"}\n'),
                "created_at": NOW,
            }
        ],
        "jobs": [
            job_row(
                "job-1", "finished", step=20, seq=21, attempt=1, last_reward=1.0, result=result,
                started_at=NOW, finished_at=NOW,
            ),
            job_row("job-2", "running", step=10, seq=11, attempt=1, started_at=NOW),
            job_row("job-3", "queued"),
        ],
        "attempts": [
            attempt | {"id": "job-1.1", "job_id": "job-1", "number": 1, "lease_expires_at": None},
            attempt
            | {"id": "job-2.1", "job_id": "job-2", "number": 1, "state": "running", "outcome": None}
            | {"lease_expires_at": NOW},
        ],
        "allocations": [
            {"attempt_id": "job-1.1", "role": "trainer", "node_id": "node-1", "released_at": NOW}
            | {"gpu_uuids": []},
            {"attempt_id": "job-2.1", "role": "trainer", "node_id": "node-1", "released_at": None}
            | {"gpu_uuids": []},
        ],
        "browser_sessions": [{"id_sha256": "s", "kind": "session", "key_id": "key-1", "expires_at": NOW}],
        "outbox": [
            {
                "task": "start", "queue": "node-1", "subject": "job-1.1", "sends": 1,
                "next_send_at": NOW, "created_at": NOW, "done_at": NOW,
            }
        ],
        "checkpoints": [
            {"job_id": "job-2", "step": 10, "attempt": 1, "manifest": kept, "size": 7, "created_at": NOW}
        ],
        "job_events": [
            {"job_id": "job-1", "seq": 21, "kind": "state", "data": {"state": "finished"}, "created_at": NOW}
        ],
        "log_chunks": [
            {
                "job_id": "job-1", "attempt": 1, "offset": 0, "size": 6,
                "artefact": put("jobs/job-1/logs", "0", b"hello\n"),
            }
        ],
        "metrics": metrics,
        "trajectory_steps": [place | {"count": 1, "texts": None}],
        "trajectories": [place | {"index": 0, "reward": 1.0, "advantage": 0.5, "row": row}],
    }  # fmt: skip


def test_a_database_of_0_1_0(empty_url: str, tmp_path: Path) -> None:
    settings = Settings(
        database_url=empty_url,
        redis_url="redis://127.0.0.1:1/0",
        artefacts_url=f"file://{tmp_path / 'artefacts'}",
        secrets_dir=tmp_path / "secrets",
        restart_backoff_s=0,
        migrate=True,
        bootstrap_admin_key=ADMIN_KEY,
        bootstrap_node_token=NODE_TOKEN,
    )
    database, store = Database(empty_url), ArtefactStore(settings.artefacts_url)
    revise(database, upgrade, "0001")
    with database.write() as session:
        for name, values in rows_of_0_1_0(store).items():
            session.execute(insert(Table(name, MetaData(), autoload_with=session.connection())), values)
    database.close()
    service = ServiceDriver(settings)
    ada = service.client(THEIR_KEY)
    assert ada.get("/v1/me").json()["name"] == "ada"
    jobs = {one["id"]: one for one in ada.get("/v1/jobs").json()["items"]}
    assert {name: one["state"] for name, one in jobs.items()} == {
        "job-1": "finished", "job-2": "running", "job-3": "queued",
    }  # fmt: skip
    found = ada.get("/v1/jobs/job-1").json()
    assert JobSpec.model_validate(found["spec"]) == JobSpec.model_validate(SPEC)
    assert found["result"]["reward_after"] == 0.8
    points = ada.get("/v1/jobs/job-1/metrics?name=reward").json()["series"][0]["points"]
    assert [(one["step"], one["value"]) for one in points] == [(step, step / 20) for step in range(1, 21)]
    (trajectory,) = ada.get("/v1/jobs/job-1/trajectories?step=20").json()["items"]
    assert (trajectory["reward"], trajectory["updates"][0]["p"]) == (1.0, 0.75)
    assert ada.get("/v1/jobs/job-1/logs").json()["text"] == "hello\n"
    assert ada.get("/v1/jobs/job-1/files/config.json").text == "{}"
    assert [one["id"] for one in ada.get("/v1/datasets").json()["items"]] == ["ds-1"]
    # Both others go on: the one that was running resumes after its checkpoint, once its lease is over.
    service.report(cpu_slots=2, running=("job-2.1",))
    service.scheduler.turn()
    service.let_lease_run_out("job-2.1")
    service.scheduler.turn()
    service.report(cpu_slots=2)
    service.scheduler.turn()
    resumed = service.claim("job-2.2").claim
    assert resumed.resume is not None
    assert resumed.resume.step == 10
    assert service.claim("job-3.1").claim.resume is None
    service.close()


def answers(service: ServiceDriver, job_id: str) -> dict[str, Any]:
    """What every version since the first of HEADS shows."""
    job = f"/v1/jobs/{job_id}"
    paths = [
        f"{job}/metrics?name=reward&name=eval/reward",
        f"{job}/logs",
        f"{job}/checkpoints",
        "/v1/datasets",
    ]
    paths += [f"{job}/replays", "/v1/jobs", "/v1/people", "/v1/projects", "/v1/projects/default/members"]
    found = {path: service.person.get(path) for path in paths}
    for path, answer in found.items():
        assert answer.status_code == 200, f"{path}: {answer.text}"
    with ScopedDatabase(service.database, None).read() as session:
        page = read_trajectories(session, job_id, 1, 0, 10, "index")
    shown: dict[str, Any] = {path: answer.json() for path, answer in found.items()}
    events = [event.model_dump() for event in service.events(job_id)]
    return shown | {"trajectories": page.rows, "events": events}


def test_databases_of_earlier_heads(service: ServiceDriver) -> None:
    """Each is made by the way back from today's, with a job's and other rows in it."""
    service.someone(name="Ada")
    upload = {"file": ("sums.jsonl", b'{"problem": "1+1", "answer": "2"}\n')}
    assert service.person.post("/v1/datasets", files=upload, data={"name": "sums"}).status_code == 201
    job_id = full_job(service)
    service.queued()
    before = answers(service, job_id)
    for revision in HEADS:
        revise(service.database, downgrade, revision)
        migrate(service.database)
        service.database.engine.dispose()
        assert answers(service, job_id) == before, revision
    assert service.job(service.submit()).state == "validating"
    assert service.client(ADMIN_KEY).get("/v1/me").json()["cluster_role"] == "admin"
    assert service.client(NODE_TOKEN).get("/v1/me").status_code == 403
