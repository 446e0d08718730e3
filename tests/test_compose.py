"""docker-compose.yml was never run by an engine here, so what it names is held to the code instead."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from server.settings import Settings
from worker.settings import NodeSettings

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
ROOMS: dict[str, type[BaseSettings]] = {"server": Settings, "worker": NodeSettings}


def room(service: dict[str, Any]) -> str:
    return str(service["command"][2].split(".")[0])


@pytest.mark.parametrize("name", OURS)
def test_every_command_is_a_module_that_can_be_run(name: str) -> None:
    python, flag, module, *arguments = OURS[name]["command"]
    assert (python, flag) == ("python", "-m")
    found = importlib.util.find_spec(module)
    assert found is not None
    source = found.loader.get_source(module) if found.submodule_search_locations is None else None  # type: ignore[union-attr]
    if source is None:
        assert importlib.util.find_spec(f"{module}.__main__") is not None
        source = (ROOT / module.replace(".", "/") / "__main__.py").read_text()
    for argument in arguments:
        assert f'"{argument.split("=")[0]}"' in source


@pytest.mark.parametrize("name", OURS)
def test_every_setting_exists_in_the_room_that_reads_it(name: str) -> None:
    settings = ROOMS[room(OURS[name])]
    prefix = settings.model_config["env_prefix"]
    for variable in OURS[name].get("environment", {}):
        assert variable.startswith(prefix)
        assert variable.removeprefix(prefix).lower() in settings.model_fields


def test_ports_secrets_and_stores_of_the_services_agree() -> None:
    server, worker = OURS["server"], OURS["worker"]
    port = server["environment"]["POWERMEAN_PORT"]
    assert worker["environment"]["POWERMEAN_SERVER_URL"] == f"http://server:{port}"
    assert server["ports"] == [
        f"127.0.0.1:{port}:{port}"
    ]  # beyond loopback only behind a proxy that ends TLS
    assert "server" in server["environment"]["POWERMEAN_ALLOWED_HOSTS"]
    for shared in ("POWERMEAN_REDIS_URL", "POWERMEAN_ARTEFACTS_URL"):
        assert server["environment"][shared] == worker["environment"][shared]
    key = "POWERMEAN_ATTEMPT_PUBLIC_KEY"
    assert server["environment"][key] == worker["environment"][key]


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Where a service has which volume."""
    return {target: volume for volume, target in (one.split(":")[:2] for one in service["volumes"])}


def test_a_worker_has_the_public_key_and_no_secret_of_the_server() -> None:
    server, worker = OURS["server"], OURS["worker"]
    there, here = mounts(server), mounts(worker)
    assert there[server["environment"]["POWERMEAN_SECRETS_DIR"]] not in here.values()
    folder = str(Path(worker["environment"]["POWERMEAN_ATTEMPT_PUBLIC_KEY"]).parent)
    assert here[folder] == there[folder]
    image = (ROOT / "Dockerfile").read_text()  # a new volume takes its owner from there
    for target in {*there, *here}:
        assert f" {target}" in image.partition("chown powermean")[2]


def test_every_variable_of_the_file_is_in_the_example_of_env() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    named = set(re.findall(r"\$\{(\w+)", text))
    given = set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert named <= given


def test_volumes_and_dependencies_are_declared() -> None:
    for service in COMPOSE["services"].values():
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in COMPOSE["volumes"]
