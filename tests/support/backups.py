"""Backups of a service in this process, and where they are restored."""

from dataclasses import dataclass
from pathlib import Path

from powermean.home import Home
from server.backup.create import Wanted, create
from server.backup.restore import Restored, restore
from tests.support.service_driver import ServiceDriver
from tests.support.stored_things import commit, full_job

ODD = "what?[1] 50%::#"  # each of these means something in another program's language


def quiet(_what: str, _done: int, _total: int) -> None:
    pass


@dataclass
class Backups:
    """A service with something in every table, its backups, and where they are restored."""

    service: ServiceDriver
    folder: Path

    def create(self, name: str = ODD, **more: object) -> Path:
        target = self.folder / name
        create(self.service.settings, Wanted(target, **more), quiet)  # type: ignore[arg-type]
        return target

    def restore(self, backup: Path, name: str = f"{ODD} restored", *, replace: bool = False) -> Restored:
        return restore(backup, self.home(name), replace=replace, progress=quiet)

    def home(self, name: str = f"{ODD} restored") -> Home:
        return Home(self.folder / name)


def filled(service: ServiceDriver, folder: Path) -> Backups:
    """Of a service with something in every table."""
    full_job(service)
    running = service.running(max_restarts=1)
    commit(service, running, 3)
    upload = {"file": ("sums.jsonl", b'{"problem": "1+1", "answer": "2"}\n')}
    answer = service.person.post("/v1/datasets", files=upload, params={"name": "sums"})
    assert answer.status_code == 201, answer.text
    service.person.get("/v1/audit")  # seals what was done so far
    (service.settings.secrets_dir / "admin.key").write_text("pm_" + "a" * 43)
    return Backups(service, folder)
