"""The command line of `python -m rollout`."""

import argparse
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from powermean.contracts.base import Contract
from powermean.engine_selection import GPU_MEMORY_SHARE

CPU_BATCH_TOKENS = 16384
CUDA_BATCH_TOKENS = 131072
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")


class RolloutSettings(Contract):
    """Settings of one rollout service. Every field is a command-line flag."""

    engine: Literal["auto", "transformers", "vllm"] = Field(
        "auto", description="Engine; auto uses vllm if it is installed and can serve the model."
    )
    model: Path = Field(description="Folder of a Hugging Face causal language model.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Type of the weights.")
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = Field(
        "cpu", description="cpu, cuda or cuda:N."
    )
    job_id: str | None = Field(
        None,
        min_length=1,
        description="Job that the engine serves; other jobs' tokens are refused. Without it LoRA jobs share "
        "the engine, each with its own adapter (needs --engine vllm and --max-adapters).",
    )
    attempt: int = Field(
        1, ge=1, description="Number of the job's attempt; tokens of lower attempts are refused."
    )
    public_key: Path = Field(description="Ed25519 public key (PEM) of the server that signs attempt tokens.")
    artefacts_url: str | None = Field(
        None, description="Artefact store from which published weights are fetched."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(0, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    allowed_host: tuple[str, ...] = Field(
        (),
        description="Host name that clients use (repeatable); loopback names are always allowed.",
    )
    ready_file: Path | None = Field(
        None, description="File to write the address to once the service is ready."
    )
    max_model_len: int | None = Field(
        None,
        ge=2,
        description="Most tokens of prompt and completion together; default: the model's own limit.",
    )
    max_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens in one batch, including prompts; bounds memory. "
        f"Default: {CPU_BATCH_TOKENS} on a CPU and {CUDA_BATCH_TOKENS} on CUDA.",
    )
    gpu_memory_share: float = Field(
        GPU_MEMORY_SHARE,
        gt=0,
        le=0.95,
        description="Share of a GPU's memory for vLLM's weights and cache; the trainer needs the rest.",
    )
    tensor_parallel: int = Field(1, ge=1, le=64, description="GPUs that vLLM splits each layer over.")
    sleep: bool = Field(
        False,
        description="Let vLLM give up its GPU memory between POST /v1/hold and the next publish (CUDA only).",
    )
    max_adapters: int = Field(
        0, ge=0, le=64, description="Jobs that can have a LoRA adapter here at once; 0 serves full weights."
    )
    max_lora_rank: int = Field(16, ge=1, le=512, description="Highest rank of an adapter.")
    jobs_file: Path | None = Field(
        None,
        description="JSON list of unfinished jobs; when slots run out, adapters of others are dropped.",
    )
    transfer: Literal["auto", "nccl", "ipc"] = Field(
        "auto",
        description="Channel through which vLLM receives weights from the trainer, besides files; "
        "auto is gloo on a CPU and none on CUDA.",
    )
    max_waiting: int = Field(16, ge=0, description="Requests that may wait; more are refused.")
    max_body: int = Field(64 * 2**20, ge=1024, description="Largest request body in bytes.")

    @model_validator(mode="after")
    def _reachable(self) -> "RolloutSettings":
        if not is_loopback(self.host) and not self.allowed_host:
            raise ValueError(
                f"--host {self.host} is not loopback: name the hosts that clients use with --allowed-host"
            )
        if "*" in self.allowed_host:
            raise ValueError("--allowed-host must name a host: '*' would let any web page reach the service")
        return self

    @model_validator(mode="after")
    def _serves_somebody(self) -> "RolloutSettings":
        if self.tensor_parallel > 1 and (self.engine == "transformers" or self.device == "cpu"):
            raise ValueError("--tensor-parallel is for vLLM on GPUs")
        if self.max_adapters and self.engine == "transformers":
            raise ValueError("--max-adapters needs the vllm engine: transformers uses merged weights")
        if self.job_id is None and (self.engine != "vllm" or not self.max_adapters):
            raise ValueError(
                "--job-id is needed; without it jobs share the engine, "
                "which needs --engine vllm and --max-adapters of at least 1"
            )
        return self

    @property
    def batch_tokens(self) -> int:
        """Most tokens in one batch on this device."""
        return self.max_batch_tokens or (CPU_BATCH_TOKENS if self.device == "cpu" else CUDA_BATCH_TOKENS)

    @property
    def hosts(self) -> frozenset[str]:
        """Accepted host names in the form of Host headers: without ports, in lower case, IPv6 addresses in
        brackets."""
        allowed = (f"[{name}]" if ":" in name else name for name in self.allowed_host)
        return frozenset(name.lower() for name in (*LOOPBACK_NAMES, *allowed))


def is_loopback(host: str) -> bool:
    """Whether a service bound to `host` is visible on this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_settings(arguments: Sequence[str] | None = None) -> RolloutSettings:
    """Settings from the command line; exits with status 2 and one line per wrong flag."""
    parser = argparse.ArgumentParser(prog="python -m rollout", description="Serve rollouts of one model.")
    for name, field in RolloutSettings.model_fields.items():
        parser.add_argument(
            "--" + name.replace("_", "-"),
            dest=name,
            action="append" if name == "allowed_host" else "store",
            default=argparse.SUPPRESS,
            required=field.is_required(),
            metavar=name.upper(),
            help=field.description,
        )
    try:
        return RolloutSettings.model_validate(vars(parser.parse_args(arguments)))
    except ValidationError as error:
        lines = [f"{_flag(one['loc'])}{one['msg'].removeprefix('Value error, ')}" for one in error.errors()]
        parser.error("; ".join(lines))


def _flag(place: tuple[int | str, ...]) -> str:
    return f"--{str(place[0]).replace('_', '-')}: " if place else ""
