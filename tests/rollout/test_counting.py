"""How many completions are finished, in the file that the supervisor reads."""

from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from powermean.contracts.rollout import GenerateRequest, GenerateResponse, Sampling
from powermean.tokens import ensure_key_pair, sign_attempt_token
from rollout import counting
from rollout.app import create_app
from rollout.counting import CompletionCount, Finished
from rollout.settings import RolloutSettings
from worker.attempt_dir import AttemptDir


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "EVERY_S", 0.0)


def test_calls_in_progress_count_together_and_leave_nothing(tmp_path: Path) -> None:
    count, attempt = CompletionCount(tmp_path / ("engine-0" + counting.SUFFIX)), AttemptDir(tmp_path)
    assert attempt.completions() is None
    with count.of(64) as finished:
        assert attempt.completions() == "0 of 64"
        finished(5)
        with count.of(8) as others:
            others(2)
            assert attempt.completions() == "7 of 72"
        finished(1)
        assert attempt.completions() == "8 of 72"
    assert attempt.completions() is None
    with count.of(4):
        assert attempt.completions() == "0 of 4"


def test_the_file_is_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "EVERY_S", 60.0)
    with CompletionCount(tmp_path / ("engine-0" + counting.SUFFIX)).of(64) as finished:
        for _ in range(10):
            finished(1)
        assert AttemptDir(tmp_path).completions() == "0 of 64"


def test_a_call_that_fails_is_over(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), CompletionCount(tmp_path / ("engine-0" + counting.SUFFIX)).of(64):
        raise ZeroDivisionError
    assert AttemptDir(tmp_path).completions() is None


@pytest.mark.parametrize("path", [None, Path("/nowhere/completions")])
def test_an_engine_goes_on_where_nobody_reads_or_nothing_can_be_written(path: Path | None) -> None:
    with CompletionCount(path).of(64) as finished:
        finished(64)


@pytest.mark.parametrize("shared", [False, True])
def test_an_attempts_own_service_counts_beside_its_address(tmp_path: Path, shared: bool) -> None:
    seen: list[str | None] = []

    class Engine:
        def generate(
            self, request: GenerateRequest, _cancelled: Event, finished: Finished
        ) -> GenerateResponse:
            finished(3)
            seen.append(AttemptDir(tmp_path).completions())
            return GenerateResponse(completions=())

    host = SimpleNamespace(calls_at_once=1, serving=lambda _job, _attempt: Engine())
    keys = ensure_key_pair(tmp_path / "keys")
    who = {"engine": "vllm", "max_adapters": 1} if shared else {"job_id": "job-a"}
    settings = RolloutSettings(
        model=tmp_path, public_key=tmp_path / "keys" / "k", ready_file=tmp_path / "engine-0.json", **who
    )
    body = GenerateRequest(prompts=((1,), (2,)), n=4, sampling=Sampling(max_new_tokens=2))
    token = sign_attempt_token(keys.private_pem, "job-a", 1)
    with TestClient(create_app(host, settings, keys.public_pem), base_url="http://127.0.0.1") as client:  # type: ignore[arg-type]
        answer = client.post(
            "/v1/generate", json=body.model_dump(), headers={"Authorization": f"Bearer {token}"}
        )
    assert answer.status_code == 200, answer.text
    assert seen == [None if shared else "3 of 8"]
    assert AttemptDir(tmp_path).completions() is None
