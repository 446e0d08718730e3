"""Jobs that train on from another job's weights."""

from typing import Literal

from pydantic import Field

from powermean.contracts.artefacts import Manifest
from powermean.contracts.base import Contract
from powermean.contracts.models import LoraSpec, ModelSpec


class Origin(Contract):
    """What `model.from` stands for, as the server found it when the job was submitted."""

    job_id: str
    step: int | None = Field(None, description="Of the checkpoint; null: the final model.")
    kind: Literal["model", "weights", "adapter"] = Field(
        description="model: a Hugging Face folder; weights: a checkpoint of a whole model; adapter: that of "
        "an adapter, which goes on over the same base model."
    )
    files: Manifest
    name: str | None = Field(None, description="Registry name of the model that the first job began with.")
    folder: str | None = Field(None, description="Or its folder.")
    base: "Origin | None" = Field(None, description="What an adapter is over, where that is a job's, too.")

    @property
    def over_first_model(self) -> bool:
        """Whether this is an adapter over the model that the line of jobs began with."""
        return self.kind == "adapter" and self.base is None

    @property
    def first_model(self) -> ModelSpec:
        """The model that the line of jobs began with: config and tokenizer are still the same."""
        return ModelSpec(name=self.name, folder=self.folder)


class ForkedFrom(Contract):
    """Where a job's first weights come from."""

    job: str = Field(description="Id of the job, which may be deleted meanwhile.")
    step: int | None = Field(None, description="Of its checkpoint; null: its final model.")

    def __str__(self) -> str:
        return self.job if self.step is None else f"{self.job}@{self.step}"


class Fork(Contract):
    """A job that trains on from this one's weights."""

    job: str
    name: str
    state: str
    step: int | None = Field(None, description="Of this job's checkpoint; null: of its final model.")


class ExportTask(Contract):
    """What `powermean export` has converted: a checkpoint whose files are in the folder."""

    origin: Origin
    lora: LoraSpec | None = Field(None, description="The job's adapter, if it trained one.")
    adapter: bool = Field(False, description="The adapter alone, instead of the model with it merged.")
    dtype: Literal["float32", "bfloat16"] = "float32"
