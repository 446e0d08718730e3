"""The server's settings: read once, from environment variables that start with POWERMEAN_."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import limits
from pydantic import Field, SecretStr, TypeAdapter, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from powermean.allowed_models import AllowedModel, read_allowed_models
from powermean.contracts.signin import OidcGrant
from powermean.keys import clean_secret
from powermean.setting_files import FileSettings

_PUBLIC_URL = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:[0-9]+)?(/[\w.~-]+)*/?")
GRANTS: TypeAdapter[tuple[OidcGrant, ...]] = TypeAdapter(tuple[OidcGrant, ...])
DRAIN_S = 5.0
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` is visible on this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_name(header: str) -> str:
    """The name in a Host header, without port, in lower case; IPv6 addresses keep their brackets."""
    try:
        name = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return header
    return f"[{name}]" if ":" in name else name


class Settings(FileSettings):
    """Everything that configures the server. Times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(
        env_prefix="POWERMEAN_", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    database_url: str = Field(
        "sqlite:///.powermean/server.db", description="sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME."
    )
    statement_s: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="Longest that Postgres works at one statement, which then fails (503 "
        "statement_timeout). Migrations may take any time.",
    )
    redis_url: str = Field("redis://127.0.0.1:6379/0", description="Redis, which wakes nodes and streams.")
    artefacts_url: str = Field("file://.powermean/artefacts", description="Artefact store: any fsspec URL.")
    secrets_dir: Path = Field(
        Path(".powermean/secrets"),
        description="Folder with the key pair that signs attempt tokens and the keys that protect secrets.",
    )
    attempt_public_key: Path | None = Field(
        None,
        description="File for nodes, outside POWERMEAN_SECRETS_DIR, that gets a copy of attempt_token.pub.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8700, ge=0, le=65535, description="Port to listen on.")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Host names of the server, separated by commas; loopback names and the one in "
        "POWERMEAN_PUBLIC_URL are always allowed.",
    )
    public_url: str | None = Field(
        None,
        description="Address that people use, if a proxy is in between: https://HOST, with port and path if "
        "it has them. The proxy takes the path off before it passes a request on.",
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Addresses or networks of the proxies whose X-Forwarded-For and X-Forwarded-Proto are "
        "believed, separated by commas.",
    )
    max_connections: int = Field(
        2000,
        ge=100,
        le=100_000,
        description="Most open connections, event streams included. People have at most half, callers "
        "without a key at most a quarter; the rest is for nodes and attempts.",
    )
    max_connections_per_client: int = Field(
        500, ge=10, description="Most connections from one address, without those of nodes and attempts."
    )
    rate_person: str = Field(
        "6000/minute", description="Most requests of one person, with all keys and browsers together."
    )
    rate_node: str = Field(
        "30000/minute", description="Most requests of one attempt, and of the nodes at one address."
    )
    rate_stranger: str = Field(
        "300/minute", description="Most requests from one address that show no valid key, or are refused."
    )
    migrate: bool = Field(False, description="Migrate the database to the newest revision at the start.")
    allowed_models: Annotated[tuple[AllowedModel, ...], NoDecode] = Field(
        (),
        description="Models that jobs and engines may name, as NAME or NAME@COMMIT, separated by commas; * "
        "stands for any characters. Empty: all. Nodes that have the setting check it themselves.",
    )
    pools_file: Path | None = Field(
        None,
        description="YAML file that declares where nodes come from when there is work; see docs/pools.md.",
    )
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
    drain_s: float | None = Field(
        None,
        ge=0,
        le=3600,
        description="Time that a server which is told to stop goes on serving while /readyz says that it is "
        "not ready, for proxies to notice. Default: 5, and on SQLite none, since there is no other server.",
    )
    stop_s: float = Field(
        20.0,
        gt=0,
        le=3600,
        description="Time after that for requests in progress, such as uploads, to end.",
    )
    poll_s: float = Field(
        1.0, gt=0, le=60, description="Longest pause between turns of the scheduler and the relay."
    )
    resend_s: float = Field(
        5.0, gt=0, le=600, description="Pause before a message is re-sent; doubles each time."
    )
    restart_backoff_s: float = Field(
        2.0, ge=0, le=600, description="Pause before a restart; doubles each time."
    )
    min_run_s: float = Field(
        600.0, ge=0, le=86_400, description="Time that a job runs at least before it gives way to another."
    )
    replay_s: float = Field(
        600.0, gt=0, le=86_400, description="Time that a replay may wait for a node, and again to run."
    )
    max_body: int = Field(
        64 * 2**20,
        ge=1024,
        description="Largest request body from an attempt or a node; people's are at most 512 KiB, except "
        "for datasets.",
    )
    max_dataset: int = Field(1 * 2**30, ge=1024, description="Largest uploaded dataset.")
    session_idle_s: float = Field(
        3 * 86_400.0,
        ge=600,
        le=90 * 86_400,
        description="Time without use after which a browser is signed out.",
    )
    session_s: float = Field(
        7 * 86_400.0,
        ge=600,
        le=90 * 86_400,
        description="Time after which a browser is signed out in any case.",
    )
    oidc_issuer: str | None = Field(
        None,
        description="Address of an OpenID Connect provider that people sign in at; see docs/signing-in.md.",
    )
    oidc_name: str = Field(
        "single sign-on", max_length=60, description="What the button calls that provider."
    )
    oidc_client_id: str | None = Field(None, description="How the provider knows this service.")
    oidc_client_secret: SecretStr | None = Field(
        None, description="Shared with the provider, if it wants one."
    )
    oidc_scopes: str = Field("openid profile email", description="What to ask the provider for.")
    oidc_grants: Annotated[tuple[OidcGrant, ...], NoDecode] = Field(
        (), description="JSON: which claims give which role in which project; see docs/signing-in.md."
    )
    oidc_session_s: float = Field(
        8 * 3600.0, ge=60, description="Time after which who signed in at the provider has to do so again."
    )
    oidc_key_s: float = Field(
        7 * 86_400.0,
        ge=60,
        description="Time after such a sign-in for which the person's keys go on working.",
    )
    bootstrap_admin_key: SecretStr | None = Field(
        None, description="An administrator's key that is valid from the start."
    )
    bootstrap_node_token: SecretStr | None = Field(
        None, description="A node's token that is valid from the start."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _without_quotes(cls, value: object) -> object:
        if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            raise ValueError("is in quotes, which `docker run --env-file` keeps: leave them out")
        return value

    @field_validator("bootstrap_admin_key", "bootstrap_node_token", mode="after")
    @classmethod
    def _clean(cls, value: SecretStr | None) -> SecretStr | None:
        return value and clean_secret(value, "it")

    @field_validator("database_url", "redis_url", "artefacts_url", "host", mode="after")
    @classmethod
    def _stripped(cls, value: str) -> str:
        return value.strip()

    @field_validator("allowed_models", mode="before")
    @classmethod
    def _entries(cls, value: object) -> object:
        return read_allowed_models(value) if isinstance(value, str) else value

    @field_validator("allowed_hosts", "trusted_proxies", mode="before")
    @classmethod
    def _by_commas(cls, value: object) -> object:
        return (
            tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("allowed_hosts")
    @classmethod
    def _names_only(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if "*" in host:
                raise ValueError("must name hosts: '*' would let any web page reach the service")
            bare = host.strip("\"'")
            if (name := host_name(bare.rpartition("://")[2])) != host.lower():
                remedy = f": write {name}" if name else ""
                raise ValueError(f"{host} is no host name, so no request could match it{remedy}")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in value:
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                raise ValueError(f"{error}: write an address such as 10.0.0.7 or 10.0.0.0/24") from error
        return value

    @field_validator("rate_person", "rate_node", "rate_stranger")
    @classmethod
    def _rate(cls, value: str) -> str:
        try:
            limits.parse(value)
        except ValueError as error:
            raise ValueError("must look like 120/minute (second, minute, hour or day)") from error
        return value

    @field_validator("public_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if not value:  # as docker-compose.yml passes on what is not set
            return None
        if not _PUBLIC_URL.fullmatch(value):
            raise ValueError("must look like https://powermean.example.org or https://example.org/powermean")
        _ = urlsplit(value).port  # a ValueError says what is wrong with it
        return value.rstrip("/")

    @field_validator("pools_file", "oidc_issuer", "oidc_client_id", "oidc_client_secret", mode="before")
    @classmethod
    def _none_if_empty(cls, value: object) -> object:
        return None if value == "" else value  # as docker-compose.yml passes on what is not set

    @field_validator("oidc_grants", mode="before")
    @classmethod
    def _grants(cls, value: object) -> object:
        return GRANTS.validate_json(value or "[]") if isinstance(value, str) else value

    @field_validator("oidc_issuer")
    @classmethod
    def _safe_issuer(cls, value: str | None) -> str | None:
        if value is not None:
            parts = urlsplit(value)
            if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
                raise ValueError("must start with https://, except on this machine")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.oidc_issuer is not None and self.oidc_client_id is None:
            raise ValueError("oidc_issuer needs oidc_client_id")
        if self.beat_s * 2 > self.lease_s:
            raise ValueError(f"beat_s ({self.beat_s:g}) must be at most half of lease_s ({self.lease_s:g})")
        return self

    @property
    def on_sqlite(self) -> bool:
        """Whether this is the only server of its database."""
        return self.database_url.startswith("sqlite")

    @property
    def drains_for_s(self) -> float:
        """How long this server goes on serving once it is told to stop."""
        if self.drain_s is not None:
            return self.drain_s
        return 0.0 if self.on_sqlite else DRAIN_S

    @property
    def hosts(self) -> tuple[str, ...]:
        """All host names that the server accepts, without ports, in lower case."""
        public = (host_name(urlsplit(self.public_url).netloc),) if self.public_url else ()
        return tuple(host.lower() for host in (*LOOPBACK_HOSTS, *self.allowed_hosts, *public))
