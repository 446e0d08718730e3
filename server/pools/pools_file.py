"""The file in which whoever runs the server declares pools.

It is no part of the API: a pool's commands run on the server's host, as its user.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from powermean.contracts.base import Contract, conflict
from powermean.errors import PowermeanError
from powermean.field_errors import field_errors
from powermean.spec_files import SpecFileError, read_file
from server.pools.declaration import LOCAL
from server.pools.kubernetes import KubernetesPool
from server.pools.slurm import SlurmPool

MOST_POOLS = 20
AnyPool = Annotated[SlurmPool | KubernetesPool, Field(discriminator="kind")]


class PoolsFileError(PowermeanError):
    """The file can't be used; `str` names file, field and what is wrong, one line a mistake."""

    code = "invalid_pools_file"


class PoolsFile(Contract):
    """What the file says."""

    server_url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="Where nodes reach the server; left out: POWERMEAN_PUBLIC_URL, or else its own address.",
    )
    redis_url: str | None = Field(
        None, pattern=r"^\S+$", description="Where nodes reach Redis; left out: as the server does."
    )
    pools: tuple[AnyPool, ...] = Field(max_length=MOST_POOLS)

    @model_validator(mode="after")
    def _each_name_once(self) -> "PoolsFile":
        names = [pool.name for pool in self.pools]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise conflict(("pools", place, "name"), f"{name} is there twice", name)
            if name == LOCAL:
                raise conflict(("pools", place, "name"), "is what nodes without a pool are shown as", name)
        return self


def read_pools_file(file: Path) -> PoolsFile:
    """Raises PoolsFileError."""
    try:
        text = read_file(file)
    except SpecFileError as error:
        raise PoolsFileError(str(error)) from error
    try:
        return PoolsFile.model_validate(text.fields)
    except ValidationError as error:
        lines = []
        for wrong in field_errors(error.errors(include_url=False), text.fields, PoolsFile):
            line = text.line_of(wrong.path)
            lines.append(f"{file}:{line or 1}: {wrong.path}: {wrong.message}")
        raise PoolsFileError("\n".join(lines)) from error
