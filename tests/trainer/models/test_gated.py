"""Models that a hub gives only to the holder of a token: fetched with a job's secret, over real HTTP."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from powermean.contracts.attempts import Claim, JobError
from powermean.contracts.job import JobSpec
from tests.support.hub_server import COMMIT, HubServer
from tests.support.tiny_model import tiny_spec
from worker.attempt_dir import AttemptDir, read_record
from worker.redaction import with_secrets

pytestmark = pytest.mark.slow
NAME, TOKEN = "team/gated", "hf_0123456789abcdefghij"
ROOT = Path(__file__).parents[3]


@pytest.fixture
def hub(model_root: Path) -> Iterator[HubServer]:
    with HubServer(NAME, model_root / "tiny", TOKEN) as server:
        yield server


def prepared(folder: Path, hub: HubServer, token: str | None, **settings: str) -> Path | JobError:
    """What `python -m trainer.models` makes of a job that names the hub's model, on the node in `folder`."""
    spec = tiny_spec("tiny") | {"model": {"name": NAME}}
    if token:
        spec |= {"secrets": {"HF_TOKEN": "hf-team"}}
    claim = Claim(
        attempt_id=f"job-a.{len(list(folder.glob('job-a.*'))) + 1}",
        job_id="job-a",
        number=1,
        spec=JobSpec.model_validate(spec),
        allocations=(),
        token="attempt",
        lease_s=60,
        beat_s=10,
    )
    attempt = AttemptDir.create(folder / claim.attempt_id, claim)
    environment = {
        "PATH": os.environ["PATH"],
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hub-of-all"),
        "POWERMEAN_ARTEFACTS_URL": f"file://{folder}/store",
        "POWERMEAN_DATA_DIR": str(folder / "node"),
        **settings,
    }
    done = subprocess.run(
        [sys.executable, "-m", "trainer.models", "--claim", str(attempt.claim_file)],
        env=with_secrets(environment, {"HF_TOKEN": token} if token else {}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert token is None or token not in done.stdout + done.stderr
    if done.returncode == 0:
        return Path(done.stdout.strip())
    record = read_record(attempt.spooled()[0])
    assert record.kind == "finish"
    assert record.body.error is not None
    return record.body.error


def test_a_gated_model_is_fetched_with_the_jobs_token(tmp_path: Path, hub: HubServer) -> None:
    found = prepared(tmp_path, hub, TOKEN)
    assert isinstance(found, Path)
    assert (found / "config.json").is_file()
    assert list(found.glob("*.safetensors"))


def test_without_the_token_the_error_says_what_to_do(tmp_path: Path, hub: HubServer) -> None:
    error = prepared(tmp_path, hub, None)
    assert isinstance(error, JobError)
    assert (error.code, error.path) == ("model_refused", "model.name")
    assert "secrets: {HF_TOKEN: NAME}" in (error.remedy or "")


def test_a_token_that_the_hub_refuses_is_told(tmp_path: Path, hub: HubServer) -> None:
    error = prepared(tmp_path, hub, "hf_of_somebody_else")
    assert isinstance(error, JobError)
    assert error.code == "model_refused"
    assert "another token" in (error.remedy or "")


def test_what_one_token_fetched_no_other_job_of_the_node_can_use(tmp_path: Path, hub: HubServer) -> None:
    assert isinstance(prepared(tmp_path, hub, TOKEN), Path)
    for other in (None, "hf_of_somebody_else"):
        assert isinstance(prepared(tmp_path, hub, other), JobError)
    before = len(hub.asked)
    assert isinstance(prepared(tmp_path, hub, TOKEN), Path)
    assert len(hub.asked) == before  # from the cache


def test_a_public_model_is_kept_for_all_and_sees_no_token(tmp_path: Path, hub: HubServer) -> None:
    hub.token = None
    first = prepared(tmp_path, hub, TOKEN)
    assert first == prepared(tmp_path, hub, None)
    assert {token for _, _, token in hub.asked} == {None}


def test_a_pinned_model_is_fetched_at_its_commit_and_no_other(tmp_path: Path, hub: HubServer) -> None:
    hub.token = None
    found = prepared(tmp_path, hub, None, POWERMEAN_ALLOWED_MODELS=f"other/*, team/*@{COMMIT}")
    assert isinstance(found, Path)
    assert found.name == COMMIT
    assert not any("main" in path for _, path, _ in hub.asked)
    error = prepared(tmp_path, hub, None, POWERMEAN_ALLOWED_MODELS=f"team/*@{'b' * 40}")
    assert isinstance(error, JobError)
    assert error.code == "unknown_model"


def test_a_model_that_is_not_on_the_list_is_not_asked_for(tmp_path: Path, hub: HubServer) -> None:
    error = prepared(tmp_path, hub, TOKEN, POWERMEAN_ALLOWED_MODELS="other/*")
    assert isinstance(error, JobError)
    assert (error.code, error.path) == ("model_not_allowed", "model.name")
    assert "other/*" in (error.remedy or "")
    assert hub.asked == []
