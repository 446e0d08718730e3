"""The README's Python runs as printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from powermean import Client
from server.settings import Settings
from tests.support.live_server import listening
from tests.support.real_service import until
from tests.support.service_driver import ADMIN_KEY, NODE_TOKEN, ServiceDriver

ROOT = Path(__file__).parents[2]
(PROGRAM,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.slow
def test_it_submits_the_example_and_follows_it_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        database_url=f"sqlite:///{tmp_path / 'server.db'}",
        redis_url="redis://127.0.0.1:1/0",
        artefacts_url=f"file://{tmp_path / 'artefacts'}",
        secrets_dir=tmp_path / "secrets",
        scheduler=False,
        migrate=True,
        bootstrap_admin_key=ADMIN_KEY,
        bootstrap_node_token=NODE_TOKEN,
    )
    with listening(ServiceDriver(settings).app) as url, Client(url, ADMIN_KEY) as client:
        environment = dict(os.environ) | {"POWERMEAN_URL": url, "POWERMEAN_API_KEY": ADMIN_KEY}
        command = [sys.executable, "-u", "-c", PROGRAM]
        program = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            (job,) = until(lambda: client.list_jobs().items, "the job")
            assert job.name == "arithmetic-smollm2"
            client.cancel_job(job.id)
            printed, _ = program.communicate(timeout=20)
        finally:
            program.kill()
            program.wait()
    assert program.returncode == 0
    assert all(line.startswith("state {") for line in printed.splitlines())
    assert "'state': 'cancelled'" in printed.splitlines()[-1]
