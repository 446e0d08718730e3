"""Wire types of the rollout service: token ids in; token ids, log-probs, weight versions out."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from powermean.contracts.base import Contract

MOST_PROMPTS = 65536  # in one request


class Sampling(Contract):
    """Log-probs are those of logits / temperature over the whole vocabulary (top_p, top_k off)."""

    temperature: float = Field(1.0, ge=0, le=5.0, description="0 is greedy, with log-probs at temperature 1.")
    max_new_tokens: int = Field(ge=1, le=32768)
    stop: tuple[str, ...] = ()
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="The same request, weights and seed give the same completions."
    )


class GenerateRequest(Contract):
    """`n` completions of each prompt. The engine runs a request as a unit, in order of arrival."""

    prompts: tuple[tuple[int, ...], ...] = Field(min_length=1, max_length=MOST_PROMPTS)
    n: int = Field(1, ge=1, le=1024)
    sampling: Sampling
    places: tuple[Annotated[int, Field(lt=MOST_PROMPTS)], ...] = Field(
        (),
        description="Place of each prompt in the request that this is a part of, rising: a prompt gets the "
        "random numbers of its place, whatever it shares a request with. Empty: 0, 1, 2 and so on.",
    )

    @model_validator(mode="after")
    def _has_places(self) -> "GenerateRequest":
        if self.places and len(self.places) != len(self.prompts):
            raise ValueError("places has one for each prompt")
        if any(b <= a for a, b in zip((-1, *self.places), self.places, strict=False)):
            raise ValueError("places rise from at least 0")
        return self


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


class WeightFile(Contract):
    """One safetensors file of a publish."""

    uri: str = Field(
        description="store:<key> in the artefact store, or shm:<name> in the host's shared-memory folder."
    )
    sha256: str
    size: int = Field(ge=0)


class WeightTensor(Contract):
    """One tensor sent through a channel."""

    name: str = Field(min_length=1, max_length=500, description="As in the model's folder.")
    dtype: Literal["float32", "bfloat16"]
    shape: tuple[int, ...]


class AdapterShape(Contract):
    """The shape of a LoRA adapter, as in peft's LoraConfig."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    target_modules: tuple[str, ...] = Field(min_length=1)


FileMethod = Literal["store", "shm"]
ChannelMethod = Literal["gloo", "nccl", "ipc"]
PublishMethod = FileMethod | ChannelMethod | Literal["in_place"]


class ChannelRequest(Contract):
    """Connect to the trainer, to receive weights directly from then on (POST /v1/channel)."""

    job_id: str
    attempt: int = Field(ge=1)
    method: ChannelMethod
    host: str | None = Field(None, max_length=253, description="Where the trainer listens, for gloo.")
    port: int | None = Field(None, ge=1, le=65535)
    nccl_id: str | None = Field(
        None, max_length=200, repr=False, description="NCCL's unique id of their group, base64, for nccl."
    )

    @model_validator(mode="after")
    def _has_place(self) -> "ChannelRequest":
        if {self.host is not None, self.port is not None} != {self.method == "gloo"}:
            raise ValueError("host and port are for gloo, which needs both")
        if (self.nccl_id is not None) != (self.method == "nccl"):
            raise ValueError("the unique id is for nccl, which needs it")
        return self


class IpcBuffer(Contract):
    """CUDA handles to the trainer's GPU memory with a publish's tensors, one after the other."""

    gpu: str = Field(description="UUID of the GPU.")
    size: int = Field(ge=1, description="Bytes.")
    memory: str = Field(description="Handle of the allocation, base64.")
    offset: int = Field(ge=0, description="Of the buffer in the allocation.")
    counter: str = Field(description="Name of the reference counter, base64.")
    counter_offset: int = Field(ge=0)
    event: str = Field(description="Handle of the event to wait for, base64.")
    wait: bool = Field(description="Whether to wait for the event.")


class HoldRequest(Contract):
    """The trainer is about to change weights that the engine shares (POST /v1/hold).

    The engine samples nothing until they are published. It refuses what it refuses of a publish: a lower
    attempt, and a version not above its own within one.
    """

    job_id: str
    attempt: int = Field(ge=1)
    version: int = Field(ge=0, description="Of the weights that are about to be made.")


class PublishRequest(Contract):
    """New weights. An engine refuses a lower attempt, and a version not above its own within one.

    The manifest is `files` for the methods store and shm, and `memory` for in_place. For a channel it is
    `tensors`, in the order in which they are sent, and for gloo the `sha256` of all their bytes.
    """

    job_id: str
    attempt: int = Field(ge=1)
    version: int = Field(ge=0)
    method: PublishMethod = Field(
        description="store always works; shm is faster on one host; gloo, nccl and ipc send the "
        "weights through a channel opened before; in_place sends none: the engine samples from the "
        "trainer's own."
    )
    files: tuple[WeightFile, ...] = ()
    tensors: tuple[WeightTensor, ...] = ()
    sha256: str | None = Field(None, description="Of the bytes of gloo's tensors; null for nccl and ipc.")
    buffer: IpcBuffer | None = Field(None, description="Where the tensors of method ipc are.")
    memory: str | None = Field(
        None,
        max_length=255,
        description="Safetensors file in the host's shared-memory folder that the trainer's weights live in, "
        "for in_place.",
    )
    adapter: AdapterShape | None = Field(
        None, description="The one file is a LoRA adapter of this shape; null: the whole model's weights."
    )

    @model_validator(mode="after")
    def _has_manifest(self) -> "PublishRequest":
        manifest = {"store": "files", "shm": "files", "in_place": "memory"}.get(self.method, "tensors")
        if [name for name in ("files", "tensors", "memory") if getattr(self, name)] != [manifest]:
            raise ValueError(f"method {self.method} lists {manifest}, and nothing else")
        if (self.method == "gloo") != (self.sha256 is not None):
            raise ValueError("sha256 is for gloo, which needs it")
        if self.buffer is not None and self.method != "ipc":
            raise ValueError("buffer is for ipc only")
        if self.adapter is not None and len(self.files) != 1:
            raise ValueError("an adapter is one safetensors file")
        return self


class AdapterSlots(Contract):
    """An engine's capacity for LoRA adapters."""

    slots: int = Field(description="Jobs that can have an adapter here at the same time.")
    taken: int
    max_rank: int


class EngineState(Contract):
    """Answer of /health (without a token only `ready`)."""

    ready: bool
    engine: str
    model: str
    version: int
    attempt: int
    max_model_len: int
    methods: tuple[PublishMethod, ...] = Field(("store", "shm"), description="Publishing methods it accepts.")
    adapters: AdapterSlots | None = Field(
        None, description="It accepts LoRA adapters, one per job, instead of full weights."
    )
    sleeps: bool = Field(
        False,
        description="POST /v1/hold frees its GPU memory for the trainer, until the next publish.",
    )
