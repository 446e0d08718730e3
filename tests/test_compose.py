"""No engine ran the compose files here: what they name is held to the code, and they to the schema."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import TypeAdapter
from pydantic_settings import BaseSettings

from powermean.keys import clean_secret
from powermean.setting_files import SUFFIX
from server.settings import Settings
from server.start import OWN_FILES
from tools import make_secrets
from worker.settings import NodeSettings

ROOT = Path(__file__).parent.parent
FILES = ("docker-compose.yml", "docker-compose.node.yml")
# github.com/compose-spec/compose-spec, schema/compose-spec.json at 170098ba.
SCHEMA = json.loads((ROOT / "tests/schemas/compose-spec.json").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / FILES[0]).read_text())
NODE: dict[str, Any] = yaml.safe_load((ROOT / FILES[1]).read_text())
SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
OURS |= {f"{name} alone": service for name, service in NODE["services"].items()}
# docs/operations.md: a drain of 5 s on Postgres, requests in progress, and 10 s.
STOPS_WITHIN_S = 5 + Settings.model_fields["stop_s"].default + 10
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
        assert variable.removeprefix(prefix).removesuffix(SUFFIX).lower() in settings.model_fields


def test_ports_secrets_and_stores_of_the_services_agree() -> None:
    server, worker = OURS["server"], OURS["worker"]
    port = server["environment"]["POWERMEAN_PORT"]
    assert worker["environment"]["POWERMEAN_SERVER_URL"] == f"http://server:{port}"
    assert server["ports"] == [
        f"127.0.0.1:{port}:{port}"
    ]  # beyond loopback only behind a proxy that ends TLS
    assert "server" in server["environment"]["POWERMEAN_ALLOWED_HOSTS"]
    for shared in ("POWERMEAN_REDIS_URL_FILE", "POWERMEAN_ARTEFACTS_URL"):
        assert server["environment"][shared] == worker["environment"][shared]
    key = "POWERMEAN_ATTEMPT_PUBLIC_KEY"
    assert server["environment"][key] == worker["environment"][key]


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Where a service has which volume."""
    plain = [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", volume) for volume in service.get("volumes", [])]
    return {target: volume for volume, target in (one.split(":")[:2] for one in plain)}


def test_a_worker_has_the_public_key_and_no_secret_of_the_server() -> None:
    server, worker = OURS["server"], OURS["worker"]
    there, here = mounts(server), mounts(worker)
    assert there[server["environment"]["POWERMEAN_SECRETS_DIR"]] not in here.values()
    folder = str(Path(worker["environment"]["POWERMEAN_ATTEMPT_PUBLIC_KEY"]).parent)
    assert here[folder] == there[folder]
    image = (ROOT / "Dockerfile").read_text()  # a new volume takes its owner from there
    for target in {*there, *here}:
        assert f" {target}" in image.partition("chown powermean")[2]


@pytest.mark.parametrize("file", FILES)
def test_the_files_follow_the_published_schema(file: str) -> None:
    jsonschema.Draft7Validator(SCHEMA).validate(yaml.safe_load((ROOT / file).read_text()))


def compose() -> list[str]:
    """How Docker Compose is called here."""
    if (docker := shutil.which("docker")) and not subprocess.call(
        [docker, "compose", "version"], stderr=-3, stdout=-3
    ):
        return [docker, "compose"]
    if alone := shutil.which("docker-compose"):
        return [alone]
    pytest.skip("Docker Compose is not installed")


@pytest.mark.parametrize("file", FILES)
def test_docker_compose_reads_the_files(file: str) -> None:
    profiles = [word for profile in ("cpu", "gpu", "tls") for word in ("--profile", profile)]
    needed = dict.fromkeys(("POWERMEAN_SERVER_URL", "POWERMEAN_NODE_ID", "POWERMEAN_SHARED"), "/given")
    command = [*compose(), "-f", str(ROOT / file), "--env-file", "/dev/null", *profiles, "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, env=needed)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", [*SERVICES, *(f"{name} alone" for name in NODE["services"])])
def test_every_service_is_watched_limited_and_stopped_in_order(name: str) -> None:
    service = SERVICES.get(name) or OURS[name]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert "mem_limit" in service
    assert "healthcheck" in service
    assert "stop_grace_period" in service or name == "migrate"


def test_the_server_has_time_to_stop_and_files_for_its_connections() -> None:
    server = SERVICES["server"]
    assert int(server["stop_grace_period"].removesuffix("s")) >= STOPS_WITHIN_S
    most = Settings.model_fields["max_connections"].default
    assert server["ulimits"]["nofile"]["soft"] >= most + OWN_FILES


def test_the_gpu_worker_is_the_other_one_with_gpus() -> None:
    for services in (SERVICES, NODE["services"]):
        gpu, cpu = services["worker-gpu"], services["worker"]
        (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
        assert (gpu["build"]["args"], cpu["build"]["args"]) == ({"MACHINE": "cuda"}, {"MACHINE": "cpu"})
        own = {"deploy", "build", "image", "profiles"}
        assert {k: v for k, v in gpu.items() if k not in own} == {
            k: v for k, v in cpu.items() if k not in own
        }


def test_a_node_of_its_own_differs_only_in_where_things_are() -> None:
    here, there = SERVICES["worker"], NODE["services"]["worker"]
    assert here["environment"].keys() == there["environment"].keys() - {"POWERMEAN_NODE_ADDRESS"}
    other = {"depends_on", "environment", "network_mode", "volumes"}
    assert {k: v for k, v in here.items() if k not in other} == {
        k: v for k, v in there.items() if k not in other
    }
    assert mounts(here).keys() == {"/data", "/public", "/scratch"}


def test_images_are_targets_of_the_dockerfile() -> None:
    stages = re.findall(r"^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {service["build"]["target"] for service in OURS.values()} <= set(stages)


def test_no_secret_is_in_an_environment() -> None:
    for service in OURS.values():
        for variable in service["environment"]:
            assert variable.endswith(SUFFIX) or not re.search(
                r"TOKEN$|SECRET$|ADMIN_KEY$|(DATABASE|REDIS)_URL$", variable
            )
    for service in [*SERVICES.values(), *OURS.values()]:
        named = {
            value for value in service.get("environment", {}).values() if value.startswith("/run/secrets/")
        }
        assert {Path(value).name for value in named} <= set(service.get("secrets", []))


def test_secrets_are_made_once_and_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "secrets"
    assert make_secrets.main([str(folder)]) == 0
    assert {name: Path(given["file"]).name for name, given in COMPOSE["secrets"].items()} == {
        file.name: file.name for file in folder.iterdir()
    }
    text = {file.name: file.read_text() for file in folder.iterdir()}
    assert f":{text['postgres_password']}@postgres/" in text["database_url"]
    assert f"requirepass {text['redis_url'].split(':')[2].split('@')[0]}\n" in text["redis.conf"]
    for name in ("admin_key", "node_token"):
        clean_secret(
            TypeAdapter(Settings.model_fields["bootstrap_admin_key"].annotation).validate_python(text[name]),
            name,
        )
    assert folder.stat().st_mode & 0o777 == 0o700
    assert make_secrets.main([str(folder)]) == 0
    assert {file.name: file.read_text() for file in folder.iterdir()} == text
    (folder / "redis_url").unlink()
    assert (
        make_secrets.main([str(folder), "--redis", "10.0.0.2:6380"]) == 1
    )  # another password would lock everyone out
    assert "redis.conf and redis_url" in capsys.readouterr().out
    (folder / "redis.conf").unlink()
    assert make_secrets.main([str(folder), "--redis", "10.0.0.2:6380"]) == 0
    assert (folder / "redis_url").read_text().endswith("@10.0.0.2:6380/0")


def test_every_variable_of_the_file_is_in_the_example_of_env() -> None:
    text = (ROOT / FILES[0]).read_text()
    named = set(re.findall(r"\$\{(\w+)", text))
    given = set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert named <= given
    assert given <= named | {"COMPOSE_PROFILES"}


def test_the_variables_of_the_docs_exist() -> None:
    text = (ROOT / "docs/production.md").read_text()
    known = {f"POWERMEAN_{name.upper()}" for room in ROOMS.values() for name in room.model_fields}
    known |= set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    known |= {"POWERMEAN_UPSTREAM", "POWERMEAN_URL", "POWERMEAN_API_KEY"}  # the proxy's, and people's
    named = set(re.findall(r"POWERMEAN_[A-Z_]+", text))
    assert {name for name in named if name not in known and name.removesuffix(SUFFIX) not in known} == set()


def test_the_proxy_is_the_one_that_the_server_trusts() -> None:
    address = SERVICES["proxy"]["networks"]["default"]["ipv4_address"]
    assert address in SERVICES["server"]["environment"]["POWERMEAN_TRUSTED_PROXIES"]
    upstream = f"server:{SERVICES['server']['environment']['POWERMEAN_PORT']}"
    assert SERVICES["proxy"]["environment"]["POWERMEAN_UPSTREAM"] == upstream


def test_volumes_and_dependencies_are_declared() -> None:
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        named = {volume for volume in mounts(service).values() if not volume.startswith(".")}
        assert named <= set(COMPOSE["volumes"])
