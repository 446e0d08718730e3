"""No request of a person keeps the server busy: its processor time is bounded, whatever the text."""

import json
import time

import pytest

from powermean.spec_yaml import MAX_CHARACTERS
from tests.support.heavy_specs import HEAVY
from tests.support.service_driver import ServiceDriver, example_spec

MOST_CPU_S = 3.0  # under 0.4 where nothing else runs; a full collection of a long test process takes one

on_sqlite = pytest.mark.parametrize("kind", ["sqlite"], indirect=True)


@pytest.mark.slow
@on_sqlite
@pytest.mark.parametrize("shape", HEAVY)
def test_a_spec_as_text(service: ServiceDriver, shape: str):
    text = HEAVY[shape](MAX_CHARACTERS)
    began = time.process_time()
    answer = service.person.post("/v1/jobs/text", json={"text": text})
    assert time.process_time() - began < MOST_CPU_S
    assert answer.status_code == 422
    assert len(answer.content) < 20_000


@pytest.mark.slow
@on_sqlite
@pytest.mark.parametrize(
    "body",
    [
        json.dumps(example_spec() | {f"k{n}": 1 for n in range(40_000)}),
        json.dumps(example_spec() | {f"trainin{n}": {} for n in range(20_000)}),
        json.dumps(example_spec(data={"kind": "arithmetic", "tasks": [{}] * 100_000})),
        json.dumps(example_spec(model={"folder": "m", "lora": {"target_modules": [[]] * 100_000}})),
        json.dumps(example_spec(rollout={"stop": ["x" * 60] * 7_000})),
        json.dumps(example_spec(rollout={"stop": [1] * 150_000})),
        '{"name":' + "[" * 250_000,
        '{"name":' + "[" * 900 + "1," * 200_000,
        '{"name":"' + "\\u0041" * 80_000 + '"}',
        json.dumps(example_spec(data={"kind": "jsonl", "dataset": "d", "prompt": "{" * 400_000})),
    ],
    ids=[
        "fields",
        "fields like others",
        "tasks",
        "modules",
        "long items",
        "items",
        "depth",
        "a broken list",
        "escapes",
        "braces",
    ],
)
def test_a_spec_as_json(service: ServiceDriver, body: str):
    began = time.process_time()
    answer = service.person.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert time.process_time() - began < MOST_CPU_S
    assert answer.status_code in (400, 422)
    assert len(answer.content) < 20_000


@pytest.mark.slow
@on_sqlite
@pytest.mark.parametrize("field", ["n" * 60 + "{}", "n{}"], ids=["names", "fields"])
def test_a_replay(service: ServiceDriver, field: str):
    job_id = service.submit()
    body = {"step": 1, "set": {field.format(number): [] for number in range(6_000)}}
    began = time.process_time()
    answer = service.person.post(f"/v1/jobs/{job_id}/replays", json=body)
    assert time.process_time() - began < MOST_CPU_S
    assert answer.status_code == 422
    assert len(answer.content) < 20_000
