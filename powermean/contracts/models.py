"""The model that a job trains."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StrictFloat, StrictInt, model_validator

from powermean.contracts.base import Contract


class LoraSpec(Contract):
    """Train a low-rank adapter and leave the model's own weights as they are (arXiv 2106.09685)."""

    rank: StrictInt = Field(16, ge=1, le=512, description="Rank r of the update of each weight.")
    alpha: StrictFloat = Field(32.0, gt=0, le=4096, description="The update is scaled by alpha / rank.")
    target_modules: tuple[Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w-]+$")], ...] = (
        Field(
            (),
            max_length=64,
            fail_fast=True,
            description="Linear layers to adapt, e.g. q_proj; empty is all but the output layer.",
        )
    )
    dropout: StrictFloat = Field(
        0.0,
        ge=0,
        lt=1,
        description="Dropout before the adapter, in update passes only; it adds noise to ratios.",
    )


class ModelSpec(Contract):
    """A Hugging Face causal language model: by registry name, a folder under a declared root, or a job's."""

    model_config = ConfigDict(serialize_by_alias=True)  # `from` can't be a name in Python

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = Field(
        None,
        description="Registry name, e.g. HuggingFaceTB/SmolLM2-135M-Instruct. Packaged ones need no network.",
    )
    folder: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        None, description="Folder of a model, relative to one of the node's declared model roots."
    )
    from_: (
        Annotated[str, Field(max_length=60, pattern=r"^job-[0-9a-z]+(@(best|0|[1-9][0-9]{0,6}))?$")] | None
    ) = Field(
        None,
        alias="from",
        description="Another job of the project to train on from: its id for its final model, ID@STEP for a "
        "checkpoint, ID@best for its best one. The weights alone are taken: steps and optimiser begin anew.",
    )
    lora: LoraSpec | None = Field(None, description="Train an adapter; null trains all weights.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Weights' type; auto is float32 on a CPU and bfloat16 on CUDA."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to train; auto takes CUDA where allocated."
    )

    @model_validator(mode="after")
    def _one_source(self) -> "ModelSpec":
        if sum(given is not None for given in (self.name, self.folder, self.from_)) != 1:
            raise ValueError("give exactly one of name, folder and from")
        return self

    @property
    def source(self) -> str:
        """What people call it: the name, the folder, or the job that it comes from."""
        return self.name or self.folder or self.from_ or ""
