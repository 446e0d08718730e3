"""Models go to a hub by its own protocol: private unless it is said, with the environment's token alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hub_server import HubServer

NAME, TOKEN = "team/adder", "hf_0123456789abcdefghij"
ROOT = Path(__file__).parents[3]


def pushed(
    folder: Path, hub: HubServer, *flags: str, token: str | None = TOKEN, check: bool = False
) -> tuple[int, str, str]:
    """As `powermean push` runs it, before the download (`check`) or after: its exit status, what it said."""
    environment = {"PATH": os.environ["PATH"], "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home")}
    given = [] if check else ["--folder", str(folder / "model")]
    done = subprocess.run(
        [sys.executable, "-m", "trainer.forks.push", NAME, *flags, *given],
        env=environment | ({"HF_TOKEN": token} if token else {}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def model(tmp_path: Path) -> dict[str, bytes]:
    files = {"config.json": b"{}", "model.safetensors": bytes(range(256)), "templates/chat.jinja": b"{{ m }}"}
    for path, content in files.items():
        (tmp_path / "model" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / path).write_bytes(content)
    return files


@pytest.mark.slow
def test_a_new_repository_is_private_and_gets_every_file(tmp_path: Path, model: dict[str, bytes]):
    with HubServer(NAME, tmp_path / "hub", TOKEN, private=None) as hub:
        code, said, wrong = pushed(tmp_path, hub)
        assert code == 0, wrong
        assert said.strip() == f"{hub.url}/{NAME}"
        assert hub.private is True
        arrived = {str(one.relative_to(hub.folder)): one.read_bytes() for one in hub.folder.rglob("*.*")}
        assert arrived == model
        assert pushed(tmp_path, hub, "--message", "again")[0] == 0


@pytest.mark.slow
def test_nothing_goes_where_everybody_may_read_it_unless_that_is_meant(
    tmp_path: Path, model: dict[str, bytes]
):
    with HubServer(NAME, tmp_path / "hub", TOKEN, private=False) as hub:
        code, _, wrong = pushed(tmp_path, hub)
        assert (code, "everybody may read it" in wrong) == (1, True)
        assert not hub.folder.exists()
        assert pushed(tmp_path, hub, "--public")[0] == 0
        assert (hub.folder / "config.json").is_file()


@pytest.mark.slow
def test_a_private_repository_is_not_taken_for_a_public_one(tmp_path: Path, model: dict[str, bytes]):
    with HubServer(NAME, tmp_path / "hub", TOKEN, private=True) as hub:
        code, _, wrong = pushed(tmp_path, hub, "--public")
        assert (code, "already exists and is private" in wrong) == (1, True)
        assert not hub.folder.exists()


@pytest.mark.slow
def test_without_a_token_that_may_write_it_says_why(tmp_path: Path, model: dict[str, bytes]):
    with HubServer(NAME, tmp_path / "hub", TOKEN, private=None) as hub:
        code, _, wrong = pushed(tmp_path, hub, token=None)
        assert (code, hub.asked) == (1, [])
        assert "HF_TOKEN is not set" in wrong
        code, _, wrong = pushed(tmp_path, hub, token="hf_of_somebody_else")
        assert code == 1
        assert "Invalid user token" in wrong
        assert "hf_of_somebody_else" not in wrong


@pytest.mark.slow
def test_what_can_be_refused_is_refused_before_anything_is_downloaded(tmp_path: Path):
    with HubServer(NAME, tmp_path / "hub", TOKEN, private=False) as hub:
        for flags, token, why in (
            (["--public"], None, "HF_TOKEN is not set"),
            (["--public"], "hf_of_somebody_else", "Invalid user token"),
            ([], TOKEN, "everybody may read it"),
        ):
            code, _, wrong = pushed(tmp_path, hub, *flags, token=token, check=True)
            assert (code, why in wrong) == (1, True), wrong
        assert pushed(tmp_path, hub, "--public", check=True)[:2] == (0, "")
        assert {method for method, _, _ in hub.asked} == {"GET"}
