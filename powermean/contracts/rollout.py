"""Wire types of the rollout service: token ids in; token ids, log-probs, weight versions out."""

from typing import Literal

from pydantic import Field

from powermean.contracts.base import Contract


class Sampling(Contract):
    """Log-probs are those of logits / temperature over the whole vocabulary (top_p, top_k off)."""

    temperature: float = Field(
        1.0, ge=0, le=5.0, description="0 is greedy; its log-probs are those at temperature 1."
    )
    max_new_tokens: int = Field(ge=1, le=32768)
    stop: tuple[str, ...] = ()
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="Same request, weights and seed: same completions."
    )


class GenerateRequest(Contract):
    """`n` completions of each prompt. The engine runs a request as a unit, in order of arrival."""

    prompts: tuple[tuple[int, ...], ...] = Field(min_length=1, max_length=65536)
    n: int = Field(1, ge=1, le=1024)
    sampling: Sampling


class VersionSpan(Contract):
    """Tokens [start, end) of a completion were made by weights `version`."""

    version: int
    start: int
    end: int


class Completion(Contract):
    """One completion. Its tokens include the terminating token, except when cut off by length."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = Field(description="Of each token, natural log.")
    finish_reason: Literal["stop", "length"]
    weight_versions: tuple[VersionSpan, ...]


class GenerateResponse(Contract):
    """completions[i][j] is the j-th completion of prompt i."""

    completions: tuple[tuple[Completion, ...], ...]
    seconds: float = Field(ge=0, description="Engine time for the request.")


class WeightFile(Contract):
    """One safetensors file of a publish."""

    uri: str = Field(
        description="store:<key> in the artefact store, or shm:<name> in the host's shared-memory folder."
    )
    sha256: str
    size: int = Field(ge=0)


class PublishRequest(Contract):
    """New weights. An engine refuses a lower attempt, and a version not above its own within one."""

    job_id: str
    attempt: int = Field(ge=1)
    version: int = Field(ge=0)
    method: Literal["store", "shm"] = Field(
        description="store always works; shm is the short cut on one host."
    )
    files: tuple[WeightFile, ...] = Field(min_length=1)


class EngineState(Contract):
    """What /health says (without a token: only `ready`)."""

    ready: bool
    engine: str
    model: str
    version: int
    attempt: int
    max_model_len: int
    paused: bool
