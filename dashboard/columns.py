"""The numbers of a trajectory, as their contract describes them."""

from dataclasses import dataclass
from functools import cache

from pydantic import BaseModel


@dataclass(frozen=True)
class Column:
    """One number: its field, heading, meaning and unit ("" if it has none)."""

    name: str
    title: str
    meaning: str
    unit: str


@cache
def columns(contract: type[BaseModel]) -> tuple[Column, ...]:
    """The contract's fields that have a title, in its order."""
    found = []
    for name, field in contract.model_fields.items():
        if field.title is not None:
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            found.append(Column(name, field.title, field.description or "", str(extra.get("x-unit", ""))))
    return tuple(found)
