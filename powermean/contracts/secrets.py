"""Secrets: keys for other services that jobs need. Values go in, and out only to a job's own processes."""

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, StringConstraints, field_validator

from powermean.contracts.base import Contract
from powermean.contracts.names import VAULT_NAME, VAULT_REFERENCE, VAULT_VARIABLE

SHORTEST, LONGEST = 8, 8192  # characters of a value; a shorter one can't be told from a word in a log
MOST_OF_A_JOB = 16
OWN = "me/"  # before the name of a secret of the submitter's own; without it, the secret is the project's
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # with the first of them a model is fetched
_RESERVED = ("POWERMEAN_", "AWS_", "AZURE_", "GOOGLE_", "GCS_", "S3_")  # the node's own, and its store's


def _not_reserved(name: str) -> str:
    if name.startswith(_RESERVED):
        raise ValueError(f"is reserved: names that start with {', '.join(_RESERVED)} are the node's own")
    return name


# The ending keeps out whatever changes how programs run or where they connect: PATH, PYTHONPATH, LD_PRELOAD,
# CUDA_VISIBLE_DEVICES, HF_ENDPOINT, HTTPS_PROXY and those that nobody has thought of yet.
VariableName = Annotated[
    str,
    StringConstraints(max_length=64, pattern=VAULT_VARIABLE),
    AfterValidator(_not_reserved),
]
SecretName = Annotated[str, StringConstraints(max_length=63, pattern=VAULT_NAME)]
SecretReference = Annotated[str, StringConstraints(max_length=66, pattern=VAULT_REFERENCE)]
SecretValues = dict[str, str]  # by environment variable


class SecretRequest(Contract):
    """A value to keep (PUT /v1/projects/{project}/secrets/{name} or /v1/me/secrets/{name})."""

    value: SecretStr = Field(
        min_length=SHORTEST, max_length=LONGEST, description="No answer ever contains it."
    )

    @field_validator("value")
    @classmethod
    def _fit_for_an_environment(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if "\0" in text:
            raise ValueError("no environment variable can hold a NUL character")
        if len("".join(text.split())) < SHORTEST:
            raise ValueError(f"needs {SHORTEST} characters that are not white space, to be found in logs")
        return value


class SecretView(Contract):
    """A secret, without its value."""

    name: str
    set_by: str = Field(description="Who set the value.")
    set_at: datetime
    used_at: datetime | None = Field(None, description="When a job last got it.")


class SecretList(Contract):
    """Secrets, by name."""

    items: tuple[SecretView, ...]
