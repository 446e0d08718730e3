"""The objective that a replay asks for, over REST: where its values come from, and which are refused."""

from collections.abc import Callable
from typing import Any

import pytest

from server.db.models import Job, Replay
from tests.support.replays import claim, finish, outcome, record, shown
from tests.support.service_driver import AttemptDriver, ServiceDriver, error_of


@pytest.mark.parametrize(
    ("request_", "path", "words"),
    [
        ({"algorithm": "ppo"}, "algorithm", "One of pmpo, grpo"),
        ({"set": {"clipp": 1}}, "set.clipp", "clip_low, clip_high"),
        ({"set": {"clip_low": -1}}, "set.clip_low", "greater than 0"),
        ({"algorithm": "grpo", "set": {"clip": 2}}, "set.epsilon_low", "less than 1"),
        ({"algorithm": "cispo", "set": {"clip": 2}}, "set.clip", "ratio_cap"),
        ({"algorithm": "power_mean"}, "set.p", "p=0.5"),
        ({"algorithm": "apmpo", "set": {"epsilon_amplitude": 0.5}}, "set", "epsilon_base"),
        ({"set": {"beta": 0.1}}, "set.beta", "not recorded"),
        ({"algorithm": "dapo", "set": {"sampling_rounds": 2}}, "set.sampling_rounds", "samples nothing"),
        ({"set": {"name": "grpo"}}, "set.name", "no such field"),
        ({"set": {"ess_clip_range": [0.1]}}, "set.ess_clip_range", "Field required"),
    ],
)
def test_a_wrong_objective_is_refused_by_field(
    ask: Callable[..., Any], request_: dict[str, Any], path: str, words: str
) -> None:
    refused = ask(status=422, **request_)
    assert refused["code"] == "invalid"
    assert refused["fields"][0]["path"] == path
    assert words in str(refused)


def test_changes_start_from_the_recorded_values_of_the_same_objective(
    service: ServiceDriver,
) -> None:
    attempt = service.running(algorithm={"name": "pmpo", "clip_low": 0.3, "clip_fraction_full": 0.5})
    record(service, attempt, 3)
    path = f"/v1/jobs/{attempt.claim.job_id}/replays"
    changed = service.person.post(path, json={"step": 3, "set": {"clip_high": 0.1}}).json()["algorithm"]
    assert (changed["clip_low"], changed["clip_high"], changed["clip_fraction_full"]) == (0.3, 0.1, 0.5)
    other = service.person.post(path, json={"step": 3, "algorithm": "gmpo"}).json()["algorithm"]
    assert other["clip_low"] == 0.4
    both = {"clip": 0.2, "clip_high": 0.25, "ess_clip_range": [0.1, 0.2]}
    ends = service.person.post(path, json={"step": 3, "set": both}).json()["algorithm"]
    assert (ends["clip_low"], ends["clip_high"], ends["ess_clip_range"]) == (0.2, 0.25, [0.1, 0.2])


def test_a_field_under_its_old_name_is_the_same_replay_and_told(service: ServiceDriver) -> None:
    attempt = service.running(algorithm={"name": "pmpo", "importance_sampling_clip_max": 3})
    record(service, attempt, 3)
    path = f"/v1/jobs/{attempt.claim.job_id}/replays"
    old = {"sampler_weight": "token", "sampler_weight_cap": 4}
    answer = service.person.post(path, json={"step": 3, "set": old})
    assert answer.status_code == 202
    told = [(one["path"], one["replacement"]) for one in answer.json()["deprecations"]]
    assert told == [
        ("set.sampler_weight", "set.importance_sampling_correction"),
        ("set.sampler_weight_cap", "set.importance_sampling_clip_max"),
    ]
    new = {"importance_sampling_correction": "token", "importance_sampling_clip_max": 4}
    assert answer.json()["algorithm"].items() >= (old | new).items()
    again = service.person.post(path, json={"step": 3, "set": new})
    assert (again.status_code, again.json()["id"]) == (200, answer.json()["id"])
    assert again.json()["deprecations"] == []
    for wrong in ({"sampler_weight": "group"}, {**new, "sampler_weight": "off"}):
        refused = service.person.post(path, json={"step": 3, "set": wrong})
        assert [one["path"] for one in error_of(refused)["fields"]] == ["set.sampler_weight"]


def test_a_correction_for_what_the_ratio_holds_already_is_refused(service: ServiceDriver) -> None:
    attempt = service.running(rollout={"old_policy": "sampler"})
    record(service, attempt, 3)
    path = f"/v1/jobs/{attempt.claim.job_id}/replays"
    refused = service.person.post(path, json={"step": 3, "set": {"importance_sampling_correction": "token"}})
    assert refused.status_code == 422
    assert error_of(refused)["fields"][0]["path"] == "set.importance_sampling_correction"
    assert "rollout.old_policy" in error_of(refused)["message"]
    assert service.person.post(path, json={"step": 3, "algorithm": "grpo"}).status_code == 202


@pytest.mark.slow
def test_nothing_is_replayed_beside_an_objective_that_is_refused(
    service: ServiceDriver, recorded: AttemptDriver, ask: Callable[..., Any]
) -> None:
    done, waits = ask(), ask(set={"clip": 0.3})
    claim(service, done)
    assert finish(service, done, outcome(service, done)).status_code == 204
    with service.database.write() as session:  # as if another version had stored them
        job = session.get_one(Job, recorded.claim.job_id)
        job.spec = job.spec | {"algorithm": job.spec["algorithm"] | {"ess_target": "rising"}}
        row = session.get_one(Replay, done["id"])
        row.algorithm = row.algorithm | {"clip_low": -1.0}
    for request in ({"step": 5}, {"step": 5, "algorithm": "grpo"}):
        refused = ask(status=409, **request)
        assert refused["code"] == "spec_refused"
        assert refused["message"].startswith("algorithm.ess_target: 'rising' is not one of")
    found = shown(service, done)
    assert [one["path"] for one in found["refused"]] == ["algorithm.clip_low", "recorded.ess_target"]
    shown(service, done, "/result")
    listed = service.person.get(f"/v1/jobs/{done['job_id']}/replays").json()["items"]
    assert [one["id"] for one in listed] == [waits["id"], done["id"]]
    assert claim(service, waits).status_code == 409
    failed = shown(service, waits)
    assert (failed["state"], failed["error"]["code"]) == ("failed", "spec_refused")
    with service.database.write() as session:
        job = session.get_one(Job, recorded.claim.job_id)
        job.spec = {name: value for name, value in job.spec.items() if name != "algorithm"}
    assert [one["path"] for one in shown(service, done)["refused"]] == ["algorithm.clip_low"]


def test_a_replay_without_a_correction_does_not_ask_for_pi_old(
    service: ServiceDriver, recorded: AttemptDriver, ask: Callable[..., Any]
) -> None:
    with service.database.write() as session:
        job = session.get_one(Job, recorded.claim.job_id)
        job.spec = job.spec | {"training": {}, "rollout": job.spec["rollout"] | {"old_policy": "oldest"}}
    refused = ask(status=409, set={"importance_sampling_correction": "token"})
    assert "rollout.old_policy: 'oldest' is not one of" in refused["message"]
    assert claim(service, ask()).status_code == 200
