"""A backup of a service in the middle of its work, restored elsewhere: nothing is missing, and jobs go on."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from powermean.contracts.identity import NewPerson
from powermean.processes import end_all
from tests.support.embedded_service import Service, learned, metric_rows, until
from tests.support.tiny_model import tiny_spec

pytestmark = [pytest.mark.integration, pytest.mark.slow]
SPEC = tiny_spec(
    "tiny",
    training={"steps": 6, "prompts_per_step": 16, "minibatches": 2, "epochs": 2},
    evaluation={"every": 6, "problems": 25},
    checkpoints={"every": 3},
)
ADA, PASSWORD, SECRET = "ada@example.org", "correct horse battery", "hf_0123456789abcdefghij"


def powermean(home: Path, *arguments: str) -> str:
    """The command's output. Fails unless it succeeds."""
    environment = dict(os.environ) | {"POWERMEAN_HOME": str(home)}
    command = [sys.executable, "-m", "powermean", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sign_in(service: Service) -> httpx.Response:
    body = {"email": ADA, "password": PASSWORD}
    return httpx.post(f"http://127.0.0.1:{service.port}/v1/sessions", json=body, trust_env=False)


def let_ada_in(service: Service) -> None:
    client = service.client
    client.add_person(NewPerson(name="Ada", email=ADA, project="default"))
    url = f"http://127.0.0.1:{service.port}"
    admin = {"Authorization": f"Bearer {(service.home / 'secrets' / 'admin.key').read_text()}"}
    code = httpx.post(f"{url}/v1/people/{ADA}/login-codes", headers=admin, trust_env=False).json()["code"]
    with httpx.Client(base_url=url, headers={"Origin": url}, trust_env=False) as browser:
        assert browser.post("/v1/sessions", json={"code": code}).is_success
        assert browser.put("/v1/me/password", json={"password": PASSWORD}).is_success


@dataclass
class Before:
    """What was there at the time of the backup."""

    finished: str
    pinned: int
    running: str
    rows: dict[tuple[int, int, str], float | None]
    dataset: str


@pytest.fixture(scope="module")
def moved(
    service: Service, tmp_path_factory: pytest.TempPathFactory, model_root: Path
) -> Iterator[tuple[Service, Before]]:
    """The service restored elsewhere from a backup made while a job trained; the first one is lost."""
    client, folder = service.client, tmp_path_factory.mktemp("moved")
    let_ada_in(service)
    client.set_secret("hf", SECRET, "default")
    (folder / "sums.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
    dataset = client.upload_dataset(folder / "sums.jsonl")
    finished = service.finished(client.create_job(SPEC).id).id
    pinned = client.checkpoints(finished).items[-1].step
    client.pin_checkpoint(finished, pinned)
    running = client.create_job(SPEC).id
    service.at_step(running, 4)
    (trainer,) = service.running("trainer.run")
    os.kill(trainer, signal.SIGSTOP)  # it is still in the middle of its work when the backup is done
    said = powermean(service.home, "backup", "create", str(folder / "backup"), "--with-keys", "--verify")
    assert "every file is as it was saved" in said
    before = Before(finished, pinned, running, metric_rows(client, finished), dataset.id)
    old = service.home.rename(folder / "lost")  # as if the disk were gone
    service.kill()
    until(lambda: not service.all_pids(), 10, "all processes gone")
    shutil.rmtree(old)
    other = Service(folder / "new" / "home", model_root)
    other.home.parent.mkdir()
    said = powermean(other.home, "restore", str(folder / "backup"))
    assert "1 datasets" in said
    other.start()
    yield other, before
    assert other.interrupt() == 130
    end_all(other.all_pids, grace_s=0)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, model_root: Path) -> Iterator[Service]:
    """The service that is lost."""
    service = Service(tmp_path_factory.mktemp("service") / "home", model_root)
    service.start()
    yield service
    end_all(service.all_pids, grace_s=0)


def test_everything_that_was_there_is_there(moved: tuple[Service, Before]) -> None:
    service, before = moved
    client = service.client
    assert metric_rows(client, before.finished) == before.rows
    kept = client.checkpoints(before.finished).items
    assert [one.step for one in kept if one.pinned] == [before.pinned]
    assert [one.id for one in client.datasets().items] == [before.dataset]
    assert [one.name for one in client.secrets("default").items] == ["hf"]
    assert sign_in(service).status_code == 201
    powermean(service.home, "download", before.finished, "--to", str(service.home.parent / "model"))


def test_the_running_job_goes_on_from_its_last_checkpoint(moved: tuple[Service, Before]) -> None:
    service, before = moved
    job = service.finished(before.running)
    assert [attempt.number for attempt in job.attempts] == [1, 2]
    assert job.attempts[1].first_step == 4
    rows = metric_rows(service.client, before.running)
    assert rows.keys() == before.rows.keys()
    assert learned(rows) == learned(before.rows)


def test_the_audit_log_is_whole_and_says_so(moved: tuple[Service, Before]) -> None:
    service, _ = moved
    assert "are unbroken" in powermean(service.home, "audit", "verify")
    assert "service.restore" in powermean(service.home, "audit", "list")
    environment = dict(os.environ) | {
        "POWERMEAN_DATABASE_URL": f"sqlite:///{service.home / 'server.db'}",
        "POWERMEAN_SECRETS_DIR": str(service.home / "secrets"),
    }
    command = [sys.executable, "-m", "server", "verify-audit"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "as signed" in done.stdout
