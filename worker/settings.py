"""Settings of a node's processes, read once at start from environment variables such as POWERMEAN_SERVER_URL.

docs/settings.md lists them. A process that lacks one without a default names it.
"""

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from powermean.allowed_models import AllowedModel, read_allowed_models
from powermean.contracts.base import Labels
from powermean.contracts.names import NODE_NAME
from powermean.errors import PowermeanError
from powermean.keys import clean_secret
from powermean.setting_files import FileSettings, SettingFileError

PREFIX = "POWERMEAN_"


class NodeSettingsError(PowermeanError):
    """A setting is missing or wrong. The message names the environment variable and what is expected."""


def own_address(network: IPv4Network | IPv6Network) -> str:
    """This host's address in the network. Raises ValueError if it has none."""
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(network[min(1, network.num_addresses - 1)]), 9))  # it sends nothing
            found = str(probe.getsockname()[0])
        except OSError:
            found = ""
    if not found or ip_address(found) not in network:
        raise ValueError(f"this host has no address in {network}")
    return found


def _ip(address: str) -> IPv4Address | IPv6Address | None:
    try:
        ip = ip_address(address)
    except ValueError:
        return None
    return (ip.ipv4_mapped if isinstance(ip, IPv6Address) else None) or ip


def is_nobodys(address: str) -> bool:
    """Whether it stands for all interfaces, as 0.0.0.0 does, or for a group of hosts. A name does not."""
    ip = _ip(address)
    return ip is not None and (ip.is_unspecified or ip.is_multicast)


def is_loopback(address: str) -> bool:
    """Whether it is the host's own alone. A name counts as an address that others reach."""
    ip = _ip(address)
    return ip is not None and ip.is_loopback


class NodeSettings(FileSettings):
    """Settings of the worker, the supervisors and the training processes of one node."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    server_url: str = Field("http://127.0.0.1:8700", description="Address of the server's REST API.")
    node_id: str = Field(
        "local", min_length=1, max_length=64, pattern=NODE_NAME, description="This node's name."
    )
    node_token: SecretStr = Field(SecretStr(""), description="The node's bearer token (pmn_...).")
    redis_url: str = Field("redis://127.0.0.1:6379/0", description="Celery's broker.")
    artefacts_url: str = Field(description="The artefact store: file:///folder or any fsspec URL.")
    data_dir: Path = Field(description="The node's own folder: models, attempts.")
    model_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="Folders with models for model.folder, separated by colons."
    )
    allowed_models: Annotated[tuple[AllowedModel, ...], NoDecode] = Field(
        (),
        description="Models that jobs and engines may name, as NAME or NAME@COMMIT, separated by commas; * "
        "stands for any characters. Empty: all. It holds for this node; the server has one, too.",
    )
    cpu_slots: int = Field(1, ge=0, le=1024, description="CPU jobs that the node runs at once.")
    labels: Annotated[Labels, NoDecode] = Field(
        {},
        description="What resources.node_labels of a job may ask for, as NAME=VALUE separated by commas: "
        "zone=a,rack=3.",
    )
    engine_host: str | None = Field(
        None,
        min_length=1,
        max_length=253,
        pattern=r"^[A-Za-z0-9.:-]+$",
        description="Name or address at which trainers on other nodes reach this node's engine services "
        "(plain HTTP, for a trusted network); if unset, only trainers on this node can.",
    )
    node_address: str = Field(
        "127.0.0.1",
        min_length=1,
        max_length=253,
        pattern=r"^[A-Za-z0-9.:-]+(/[0-9]{1,3})?$",
        description="Name or address of this node at which the other nodes of a job reach its training "
        "processes (no authentication, for a trusted network), or the network of that address, such as "
        "10.0.0.0/16; the default is for jobs of one node.",
    )
    rank_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port on which the first node of a job waits for the others; 0 is any free one, a fixed "
        "one is for one such job at a time.",
    )
    pilot: str | None = Field(
        None,
        max_length=40,
        description="The allocation of a pool that this worker runs in; the pool sets it. SIGTERM then means "
        "that it is being ended: attempts save a checkpoint in the time that is left.",
    )
    term_grace_s: float = Field(
        30.0,
        gt=0,
        description="Seconds between SIGTERM and SIGKILL when that allocation is ended; the pool sets it.",
    )
    lifeline_pid: int | None = Field(
        None,
        gt=1,
        description="Supervisors stop when this process is gone; if unset, they outlive the worker.",
    )
    partition_grace_s: float = Field(
        900.0,
        gt=0,
        description="Seconds for which an attempt keeps training while the server can't be reached.",
    )
    stop_grace_s: float = Field(
        900.0,
        gt=0,
        description="Seconds that an attempt has to end its step when it is paused or gives way; then its "
        "processes are ended, and the job goes on from its last checkpoint.",
    )
    attempt_public_key_text: str | None = Field(
        None, description="The same key itself, where no file has it: pools set it for the nodes they start."
    )
    attempt_public_key: Path | None = Field(
        None,
        description="PEM file with the key that rollout services use to verify attempt tokens. "
        "The worker requires it.",
    )

    @field_validator("node_token", mode="after")
    @classmethod
    def _clean(cls, value: SecretStr) -> SecretStr:
        return clean_secret(value, "it")

    @field_validator("server_url", "redis_url", "artefacts_url", mode="after")
    @classmethod
    def _stripped(cls, value: str) -> str:
        return value.strip()

    @field_validator("node_address", mode="after")
    @classmethod
    def _own_address(cls, value: str) -> str:
        if "/" in value:
            return own_address(ip_network(value, strict=False))
        if is_nobodys(value):
            raise ValueError(f"{value} is not the address of one host: give one that the other nodes reach")
        return value

    @field_validator("model_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        return tuple(part for part in value.split(":") if part) if isinstance(value, str) else value

    @field_validator("labels", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.strip().partition("=") for part in value.split(",") if part.strip()]
        names = [name for name, _, _ in pairs]
        for name, equals, _ in pairs:
            if not equals:
                raise ValueError(f"{name} has no value: write NAME=VALUE, as in zone=a,rack=3")
            if names.count(name) > 1:
                raise ValueError(f"{name} is there twice")
        return {name: text for name, _, text in pairs}

    @field_validator("allowed_models", mode="before")
    @classmethod
    def _entries(cls, value: object) -> object:
        return read_allowed_models(value) if isinstance(value, str) else value

    @field_validator("data_dir", "model_roots", mode="after")
    @classmethod
    def _absolute(cls, value: Path | tuple[Path, ...]) -> Path | tuple[Path, ...]:
        return value.resolve() if isinstance(value, Path) else tuple(path.resolve() for path in value)

    @classmethod
    def read(cls) -> Self:
        """The settings from the environment. Raises NodeSettingsError, naming the wrong variables."""
        try:
            return cls()
        except SettingFileError as error:
            raise NodeSettingsError(str(error)) from error
        except ValidationError as error:
            faults = [f"{PREFIX}{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()]
            raise NodeSettingsError("; ".join(faults)) from error

    @property
    def taken_s(self) -> float:
        """How much of `term_grace_s` a trainer has; the rest is for the end, and for telling the server."""
        return self.term_grace_s - min(8.0, self.term_grace_s / 4)

    def attempt_dir(self, attempt_id: str) -> Path:
        """The folder with an attempt's claim, token, spool and log."""
        return self.data_dir / "attempts" / attempt_id
