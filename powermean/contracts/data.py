"""Where a job's prompts come from."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, field_validator, model_validator

from powermean.contracts.base import Contract
from powermean.contracts.jsonl import template_fields


class ArithmeticTask(Contract):
    """One kind of problem: `a op b` with both operands drawn from [low, high]."""

    operator: Literal["+", "-", "*"] = Field(description="The operation.")
    low: StrictInt = Field(ge=0, le=999, description="Smallest operand.")
    high: StrictInt = Field(ge=0, le=999, description="Largest operand.")
    weight: StrictFloat = Field(
        1.0, gt=0, le=1000, description="How often this task is drawn, relative to the others."
    )

    @model_validator(mode="after")
    def _ordered(self) -> "ArithmeticTask":
        if self.high < self.low:
            raise ValueError(f"high ({self.high}) must not be below low ({self.low})")
        return self


class ArithmeticSource(Contract):
    """Procedural arithmetic with a one-shot prompt: `1 + 2 = 3\\n{a} {op} {b} =`.

    Problems are split by a hash of the problem itself, so a held-out problem is never trained on.
    """

    kind: Literal["arithmetic"] = "arithmetic"
    tasks: tuple[ArithmeticTask, ...] = Field(
        (
            ArithmeticTask(operator="+", low=1, high=9),
            ArithmeticTask(operator="+", low=2, high=12),
            ArithmeticTask(operator="-", low=1, high=9),
            ArithmeticTask(operator="*", low=2, high=9),
        ),
        min_length=1,
        max_length=32,
        fail_fast=True,
        description="The mix of tasks.",
    )
    prompt: str = Field(
        "1 + 2 = 3\n{a} {op} {b} =",
        max_length=4000,
        description="Prompt template with the fields {a}, {op} and {b}.",
    )
    held_out: StrictFloat = Field(0.25, gt=0, lt=1, description="Share of the problems kept for evaluation.")

    @field_validator("prompt")
    @classmethod
    def _takes_a_problem(cls, value: str) -> str:
        fields, known = template_fields(value), {"a", "op", "b"}
        if missing := known - fields:
            raise ValueError(f"prompt lacks {', '.join(f'{{{name}}}' for name in sorted(missing))}")
        if unknown := fields - known:
            raise ValueError(f"a problem has no {', '.join(sorted(unknown))}: use {{a}}, {{op}} and {{b}}")
        return value


class JsonlSource(Contract):
    """An uploaded dataset: one JSON object a line (POST /v1/datasets)."""

    kind: Literal["jsonl"] = "jsonl"
    dataset: str = Field(min_length=1, max_length=64, description="Id of the uploaded dataset.")
    prompt: str = Field(
        "{question}",
        max_length=16000,
        description="Prompt template; {field} inserts a field of the row, {{ and }} are literal braces.",
    )
    answer_field: str = Field("answer", max_length=120, description="Field with the reference answer.")
    chat: StrictBool = Field(
        False, description="Wrap the prompt as one user message in the model's chat template."
    )
    control_tokens: StrictBool = Field(
        False,
        description="Read control tokens such as <|im_end|> in the rows' fields as tokens, not as text; "
        "in the template they are always tokens.",
    )
    held_out: StrictFloat = Field(
        0.1, gt=0, lt=1, description="Share of the rows kept for evaluation, by a hash of the prompt."
    )

    @field_validator("prompt")
    @classmethod
    def _readable(cls, value: str) -> str:
        if not template_fields(value):
            raise ValueError("prompt uses no field of the row, so every prompt would be the same")
        return value


DataSpec = Annotated[ArithmeticSource | JsonlSource, Field(discriminator="kind")]
