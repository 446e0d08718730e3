"""A job with secrets, end to end: a gated model is fetched, and the values are where they belong alone."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from powermean.contracts.api import Job
from tests.support.embedded_service import Service, command_line
from tests.support.hub_server import HubServer
from tests.support.tiny_model import tiny_spec

pytestmark = [pytest.mark.integration, pytest.mark.slow]
NAME = "team/gated"
HUB_TOKEN, TRACKER_KEY = "hf_0123456789abcdefghij", "the-key-of-the-tracker-98765"
VALUES = {"HF_TOKEN": HUB_TOKEN, "WANDB_API_KEY": TRACKER_KEY}
STEPS = 4


@pytest.fixture(scope="module")
def hub(model_root: Path) -> Iterator[HubServer]:
    with HubServer(NAME, model_root / "tiny", HUB_TOKEN) as server:
        yield server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, model_root: Path, hub: HubServer) -> Iterator[Service]:
    """A service whose node fetches models from the hub of this test."""
    folder = tmp_path_factory.mktemp("service")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HOME", str(folder / "hub-of-all"))
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        service = Service(folder / "home", model_root)
        service.start()
        yield service
        service.interrupt()


class Watch:
    """Looks at the service's processes while a job runs: who has the values, and where."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.holders: dict[str, set[str]] = {name: set() for name in VALUES}  # programs, by variable
        self.in_arguments: list[list[str]] = []
        self.programs: set[str] = set()

    def look(self) -> None:
        for pid in self._service.all_pids():
            line = command_line(pid)
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            program = program_of(line)
            self.programs.add(program)
            for name, value in VALUES.items():
                if value in environment:
                    self.holders[name].add(program)
                if any(value in argument for argument in line):
                    self.in_arguments.append(line)


def program_of(line: list[str]) -> str:
    """The module that a process runs; the shim that starts a program (tether.py) counts as that program."""
    return line[line.index("-m") + 1] if "-m" in line[:-1] else " ".join(line[:1])


@pytest.fixture(scope="module")
def watched(service: Service) -> tuple[Job, Watch]:
    client, watch = service.client, Watch(service)
    client.set_secret("hf", HUB_TOKEN, "default")
    client.set_secret("tracker", TRACKER_KEY)
    spec = tiny_spec("tiny", model={"name": NAME, "dtype": "float32"})
    spec |= {"secrets": {"HF_TOKEN": "hf", "WANDB_API_KEY": "me/tracker"}}
    job_id = client.create_job(spec).id
    deadline = time.monotonic() + 240
    while not (job := client.get_job(job_id)).state.final:
        watch.look()
        assert time.monotonic() < deadline, job.phase
        time.sleep(0.02)
    assert job.state == "finished", f"{job.error}\n{client.logs(job_id).text}"
    return job, watch


def test_a_gated_model_is_trained(watched: tuple[Job, Watch]) -> None:
    job, _ = watched
    assert job.step == STEPS


def test_each_value_is_in_the_environment_of_those_who_need_it(watched: tuple[Job, Watch]) -> None:
    _, watch = watched
    others = {"server", "worker.attempt.supervisor", "rollout", "trainer.rewards.serving"}
    assert {"trainer.run"} | others <= watch.programs
    assert watch.holders["WANDB_API_KEY"] == {"trainer.run"}
    assert "trainer.run" in watch.holders["HF_TOKEN"]
    assert watch.holders["HF_TOKEN"] <= {"trainer.run", "trainer.models", "trainer.preflight"}
    assert watch.in_arguments == []


def test_when_the_job_has_ended_nobody_has_them(service: Service, watched: tuple[Job, Watch]) -> None:
    after = Watch(service)
    after.look()
    assert after.holders == {name: set() for name in VALUES}


def test_no_file_holds_a_value(service: Service, watched: tuple[Job, Watch]) -> None:
    """Database, artefact store, attempt's folder, logs, the hub's cache: all that the service writes."""
    looked = 0
    for root, _, names in os.walk(service.home.parent):
        for name in names:
            file = Path(root, name)
            if file.is_file() and not file.is_symlink():
                content = file.read_bytes()
                looked += 1
                assert not [name for name, value in VALUES.items() if value.encode() in content], file
    assert looked > 20


def test_no_answer_holds_a_value(service: Service, watched: tuple[Job, Watch]) -> None:
    job, _ = watched
    client = service.client
    answers = [
        client.get_job(job.id).model_dump_json(),
        client.job_text(job.id).text,
        client.logs(job.id).text,
        client.secrets("default").model_dump_json(),
        client.secrets().model_dump_json(),
        "".join(event.model_dump_json() for event in client.events(job.id)),
    ]
    assert not [value for value in VALUES.values() for answer in answers if value in answer]
    assert client.secrets().items[0].used_at is not None


def test_another_job_of_the_node_does_not_get_the_gated_model(
    service: Service, watched: tuple[Job, Watch]
) -> None:
    job = service.ended(service.client.create_job(tiny_spec("tiny", model={"name": NAME})).id)
    assert job.error is not None
    assert (job.error.code, job.error.path) == ("model_refused", "model.name")
