"""Workers of the version before understand the server's answers; specs say which revision they need."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.attempts import (
    Claim,
    ClaimWithSecrets,
    HeartbeatReply,
    Member,
    ValidationTask,
    ValidationWithSecrets,
)
from powermean.contracts.base import Contract
from powermean.contracts.engines import NodeOrders
from powermean.contracts.job import JobSpec
from powermean.contracts.replays import ReplayTask
from powermean.contracts.revisions import FIRST, NEWEST, OF_SPECS, for_workers, needed

FROZEN = json.loads(Path(__file__).with_name("revision_1.json").read_text())  # what such workers accept
SPEC = {
    "name": "as ever",
    "model": {"name": "tiny/model"},
    "data": {"kind": "arithmetic"},
    "training": {"steps": 2},
}
ALGORITHM = {"name": "grpo"}


def spec(**changes: Any) -> JobSpec:
    return JobSpec.model_validate(SPEC | changes)


def claim(job: JobSpec) -> ClaimWithSecrets:
    given = {"attempt_id": "j.1", "job_id": "j", "number": 1, "token": "t", "lease_s": 60, "beat_s": 10}
    part = {"role": "trainer", "node_id": "n1"}
    return ClaimWithSecrets(claim=Claim.model_validate(given | {"spec": job, "allocations": [part]}))


def read_by_an_old_worker(answer: Contract, said: Any) -> None:
    root = {"$ref": f"#/$defs/{type(answer).__name__}", "$defs": FROZEN["$defs"]}
    Draft202012Validator(root).validate(said)


def answers(job: JobSpec) -> list[Contract]:
    replay = {"replay_id": "r", "job_id": "j", "recorded": ALGORITHM, "algorithm": job.algorithm, "rows": []}
    tokens = ArtefactRef(key="k", sha256="0" * 64, size=1)
    return [
        HeartbeatReply(order="continue", token="t"),
        claim(job),
        ValidationWithSecrets(task=ValidationTask(job_id="j", spec=job)),
        ReplayTask.model_validate(replay | {"tokens": tokens}),
    ]


@pytest.mark.parametrize("job", [spec(), spec(algorithm=ALGORITHM, resources={"gpus": 1})])
def test_old_workers_understand_answers_about_jobs_without_new_fields(job: JobSpec) -> None:
    for answer in answers(job):
        said = for_workers(answer)
        read_by_an_old_worker(answer, said)
        assert type(answer).model_validate(said) == answer
    orders = NodeOrders()
    read_by_an_old_worker(orders, orders.model_dump(mode="json"))
    assert needed(job) == FIRST


@pytest.mark.parametrize(
    ("changes", "revision"),
    [
        ({"resources": {"nodes": 2}}, 2),
        ({"model": {"from": "job-1"}}, 2),
        ({"algorithm": {"name": "grpo", "entropy_coefficient": 0.1}}, 2),
        ({"training": {"steps": 2, "parallel": "auto"}}, FIRST),
    ],
)
def test_a_spec_needs_the_revision_of_what_it_sets(changes: dict[str, Any], revision: int) -> None:
    job = spec(**changes)
    assert needed(job) == revision
    given = claim(job)
    assert ClaimWithSecrets.model_validate(for_workers(given)) == given
    if revision > FIRST:
        with pytest.raises(ValidationError):
            read_by_an_old_worker(given, for_workers(given))


def test_members_are_told_where_there_are_any() -> None:
    reply = HeartbeatReply(order="continue", token="t", members=(Member(node_rank=0, node_id="n1"),))
    assert HeartbeatReply.model_validate(for_workers(reply)) == reply


def test_each_later_field_of_a_spec_has_its_revision() -> None:
    def fields(schema: dict[str, Any], part: Any, path: str = "") -> set[str]:
        if "$ref" in part:
            part = schema["$defs"][part["$ref"].rpartition("/")[2]]
        found = set()
        for inner in [*part.get("anyOf", ()), *part.get("oneOf", ())]:
            found |= fields(schema, inner, path)
        for name, inner in part.get("properties", {}).items():
            found |= {f"{path}{name}"} | fields(schema, inner, f"{path}{name}.")
        return found

    now = JobSpec.model_json_schema()
    assert fields(now, now) - fields(FROZEN, FROZEN["$defs"]["JobSpec"]) == set(OF_SPECS)
    assert max(OF_SPECS.values()) == NEWEST
