"""The server's settings: read once, from environment variables that start with POWERMEAN_."""

import ipaddress
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from powermean.keys import clean_secret

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` is visible on this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Settings(BaseSettings):
    """Everything that configures the server. Times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="POWERMEAN_", extra="ignore", frozen=True)

    database_url: str = Field(
        "sqlite:///.powermean/server.db", description="sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME."
    )
    redis_url: str = Field("redis://127.0.0.1:6379/0", description="Redis, which wakes nodes and streams.")
    artefacts_url: str = Field("file://.powermean/artefacts", description="Artefact store: any fsspec URL.")
    secrets_dir: Path = Field(
        Path(".powermean/secrets"),
        description="Folder with the key pair that signs attempt tokens.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8700, ge=0, le=65535, description="Port to listen on.")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Host names of the server, separated by commas; loopback names are always allowed.",
    )
    migrate: bool = Field(False, description="Migrate the database to the newest revision at the start.")
    scheduler: bool = Field(
        True, description="Whether this process takes part in scheduling, which one leader does."
    )
    lease_s: float = Field(
        60.0, gt=0, le=3600, description="Time without a heartbeat after which an attempt is given up."
    )
    beat_s: float = Field(10.0, gt=0, le=600, description="Interval of an attempt's heartbeats.")
    claim_s: float = Field(60.0, gt=0, le=3600, description="Time a node has to claim an attempt.")
    node_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="Time without a report after which a node counts as offline."
    )
    leader_lease_s: float = Field(10.0, gt=0, le=600, description="Lease of the scheduler's leader.")
    poll_s: float = Field(
        1.0, gt=0, le=60, description="Longest pause between turns of the scheduler and the relay."
    )
    resend_s: float = Field(
        5.0, gt=0, le=600, description="Pause before a message is re-sent; doubles each time."
    )
    restart_backoff_s: float = Field(
        2.0, ge=0, le=600, description="Pause before a restart; doubles each time."
    )
    replay_s: float = Field(
        600.0, gt=0, le=86_400, description="Time that a replay may wait for a node, and again to run."
    )
    max_body: int = Field(64 * 2**20, ge=1024, description="Largest request body, except for datasets.")
    max_dataset: int = Field(1 * 2**30, ge=1024, description="Largest uploaded dataset.")
    bootstrap_admin_key: SecretStr | None = Field(
        None, description="An administrator's key that is valid from the start."
    )
    bootstrap_node_token: SecretStr | None = Field(
        None, description="A node's token that is valid from the start."
    )

    @field_validator("bootstrap_admin_key", "bootstrap_node_token", mode="after")
    @classmethod
    def _clean(cls, value: SecretStr | None) -> SecretStr | None:
        return value and clean_secret(value, "it")

    @field_validator("database_url", "redis_url", "artefacts_url", "host", mode="after")
    @classmethod
    def _stripped(cls, value: str) -> str:
        return value.strip()

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _by_commas(cls, value: object) -> object:
        return (
            tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.beat_s * 2 > self.lease_s:
            raise ValueError(f"beat_s ({self.beat_s:g}) must be at most half of lease_s ({self.lease_s:g})")
        if "*" in self.allowed_hosts:
            raise ValueError("allowed_hosts must name hosts: '*' would let any web page reach the service")
        return self

    @property
    def hosts(self) -> tuple[str, ...]:
        """All host names that the server accepts, without ports, in lower case."""
        return tuple(host.lower() for host in (*LOOPBACK_HOSTS, *self.allowed_hosts))
