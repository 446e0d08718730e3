"""The rollout service as the node starts it: a process of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import torch
from safetensors.torch import save_file

from powermean.artefacts import ArtefactStore
from powermean.contracts.rollout import PublishRequest, WeightFile
from powermean.tokens import KeyPair, Verb, sign_attempt_token
from rollout.client import RolloutClient
from tests.support.tiny_engines import JOB

START_S = 120.0


class Service:
    """A rollout service of attempt 2; `process` is it, or a parent of it that does nothing but wait."""

    def __init__(
        self, folder: Path, model: Path, keys: KeyPair, *, below_parent: bool = False, job_id: str = JOB
    ) -> None:
        self.store = ArtefactStore((folder / "artefacts").as_uri())
        self.folder = folder
        self._keys = keys
        self._job_id = job_id
        (folder / "key.pub").write_text(keys.public_pem)
        waiting = (sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])")
        self.process = subprocess.Popen(
            [
                *(waiting if below_parent else ()),
                *(sys.executable, "-m", "rollout", "--engine", "transformers", "--model", str(model)),
                *("--dtype", "float32", "--device", "cpu", "--job-id", job_id, "--attempt", "2"),
                *("--public-key", str(folder / "key.pub"), "--artefacts-url", self.store.url),
                *("--host", "127.0.0.1", "--port", "0", "--ready-file", str(folder / "engine.json")),
                *("--max-model-len", "64", "--max-waiting", "1", "--max-body", "200000"),
            ],
        )
        self.url = self._wait_until_ready()

    def _wait_until_ready(self) -> str:
        deadline = time.monotonic() + START_S
        path = self.folder / "engine.json"
        while not path.exists():
            assert self.process.poll() is None, "the service ended at start"
            assert time.monotonic() < deadline, "the service did not start"
            time.sleep(0.05)
        return str(json.loads(path.read_text())["url"])

    def token(
        self,
        attempt: int = 2,
        job_id: str | None = None,
        verbs: tuple[str, ...] = tuple(Verb),
        lifetime_s: float = 900,
    ) -> str:
        return sign_attempt_token(self._keys.private_pem, job_id or self._job_id, attempt, verbs, lifetime_s)

    def client(self, **claims: object) -> RolloutClient:
        return RolloutClient(self.url, lambda: self.token(**claims))  # type: ignore[arg-type]

    def publish_request(
        self, weights: dict[str, torch.Tensor], version: int, attempt: int = 2
    ) -> PublishRequest:
        path = self.folder / "weights.safetensors"
        save_file({name: weight.contiguous() for name, weight in weights.items()}, path)
        ref = self.store.put_file(f"jobs/{JOB}/weights/{attempt}.{version}", path)
        file = WeightFile(uri=f"store:{ref.key}", sha256=ref.sha256, size=ref.size)
        return PublishRequest(job_id=JOB, attempt=attempt, version=version, method="store", files=(file,))

    def counts(self) -> dict[str, float]:
        """What /metrics says."""
        text = httpx.get(self.url + "/metrics", headers={"Authorization": f"Bearer {self.token()}"}).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)


StartService = Callable[..., Service]
