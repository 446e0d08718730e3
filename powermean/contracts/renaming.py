"""Contracts with renamed fields: until 1.0 they are read under either name and answered under both.

powermean/deprecations.py lists the names. A plain dump has only the new names, and that is what is stored. A
dump `by_alias` has the old ones too: FastAPI makes one for every answer, the command line for `--json`.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import (
    AliasChoices,
    AliasGenerator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from powermean.contracts.base import Contract, conflict
from powermean.deprecations import FIELDS, GONE_IN, notice

_OLD = {one.new: one.old for one in FIELDS}


def stored_names(field: str) -> tuple[str, ...]:
    """Keys under which stored JSON may contain the field, newest first."""
    return (field, _OLD[field]) if field in _OLD else (field,)


def _choices(field: str) -> str | AliasChoices:
    """A union's discriminator must have a plain name."""
    return AliasChoices(*stored_names(field)) if field in _OLD else field


class RenamedFields(Contract):
    """Base of contracts with fields in the table of renamed fields."""

    old_names: ClassVar[Mapping[str, str]] = {}  # old name -> new name

    model_config = ConfigDict(
        alias_generator=AliasGenerator(validation_alias=_choices), validate_by_name=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.old_names = {_OLD[field]: field for field in cls.model_fields if field in _OLD}

    @model_validator(mode="before")
    @classmethod
    def _one_of_two(cls, data: Any) -> Any:
        """An answer that is sent back has both names; their values must be equal."""
        if not isinstance(data, Mapping):
            return data
        twice = {old: new for old, new in cls.old_names.items() if old in data and new in data}
        for old, new in twice.items():
            if data[old] != data[new]:
                why = f"is the old name of {new}, which is given too: leave it out"
                raise conflict((old,), why, data[old])
        return {name: value for name, value in data.items() if name not in twice} if twice else data

    @model_serializer(mode="wrap")
    def _both(self, inner: SerializerFunctionWrapHandler, info: SerializationInfo):  # type: ignore[no-untyped-def]
        """The result has no type annotation, because that would replace the contract's own schema."""
        data = inner(self)
        if info.by_alias:
            data |= {old: data[new] for old, new in self.old_names.items() if new in data}
        return data

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        fields = handler.resolve_ref_schema(schema).get("properties", {})
        for old, new in cls.old_names.items():
            told = {"description": f"Old name of `{new}`, until {GONE_IN}.", "deprecated": True}
            fields[old] = fields[new] | {"title": old.replace("_", " ").title(), **told}
        return schema

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Old names work as attributes too; type checkers only know the new ones."""
            new = self.old_names.get(name)
            if new is None:
                return super().__getattr__(name)
            warnings.warn(notice(name, new), DeprecationWarning, stacklevel=2)
            return getattr(self, new)


class Deprecation(Contract):
    """An old name that a request used."""

    path: str = Field(description="Dotted path of the field, as in the request.")
    replacement: str = Field(description="Its path under the new name.")
    message: str


def old_names_used(model: BaseModel, data: object, at: str = "") -> Iterator[Deprecation]:
    """The old names in `data`, from which `model` was read; `at` is their prefix, such as `set.`."""
    if not isinstance(data, Mapping):
        return
    if isinstance(model, RenamedFields):
        for old, new in model.old_names.items():
            if old in data and new not in data:
                path, replacement = at + old, at + new
                yield Deprecation(path=path, replacement=replacement, message=notice(path, replacement))
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from old_names_used(value, data.get(name), f"{at}{name}.")
