"""The fields of a job spec with their meanings, from the contract: shown beside the editor."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from powermean.contracts.job import JobSpec


@dataclass(frozen=True)
class SpecField:
    """One field: its name, its default as text ("" if it is required), its meaning."""

    name: str
    default: str
    required: bool
    meaning: str


@dataclass(frozen=True)
class SpecSection:
    """A group of fields: the spec's own, those of one part, or of one variant of a part."""

    title: str
    meaning: str
    fields: tuple[SpecField, ...]


def _resolved(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref") or next((s["$ref"] for s in schema.get("allOf", ()) if "$ref" in s), None)
    if reference is None:
        return schema
    found: dict[str, Any] = root["$defs"][reference.rsplit("/", 1)[1]]
    return found


def _default(given: dict[str, Any]) -> str:
    if "default" not in given:
        return ""
    value = given["default"]
    text = value.replace("\n", "\\n") if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else "…"


def _section(title: str, schema: dict[str, Any]) -> SpecSection:
    required = schema.get("required", ())
    fields = tuple(
        SpecField(name, _default(given), name in required, given.get("description", ""))
        for name, given in schema.get("properties", {}).items()
        if "const" not in given  # the discriminator is in the section's title
        and not given.get("deprecated")
    )
    return SpecSection(title, schema.get("description", ""), fields)


def _part_sections(name: str, given: dict[str, Any], root: dict[str, Any]) -> list[SpecSection]:
    tag = given.get("discriminator", {}).get("propertyName")
    if tag:
        variants = given["discriminator"]["mapping"].items()
        return [
            _section(f"{name} · {tag}: {value}", _resolved({"$ref": ref}, root)) for value, ref in variants
        ]
    inner = _resolved(given, root)
    return [_section(name, inner)] if "properties" in inner else []


@cache
def spec_sections() -> tuple[SpecSection, ...]:
    """Every field of a spec: first the top level, then part by part."""
    root = JobSpec.model_json_schema()
    parts = {name: _part_sections(name, given, root) for name, given in root["properties"].items()}
    top = {**root, "properties": {n: root["properties"][n] for n, sections in parts.items() if not sections}}
    return (_section("top level", top), *(section for sections in parts.values() for section in sections))
