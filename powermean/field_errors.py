"""What is wrong with somebody's input, field by field: pydantic's errors in the words of whoever wrote it.

The command line, the API and replays say it alike. A path is the one that the input has, without the names
that pydantic gives to members of a union; a misspelt name comes with the one that was probably meant.
"""

import types
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from powermean.contracts.api import FieldError
from powermean.contracts.names import IN_WORDS

_LONGEST_NAME = 60  # longer ones are compared with nothing: comparing takes time that grows with their length
_MOST_KNOWN = 20  # names in a remedy
_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
_AS_JSON = "Send a JSON object with Content-Type: application/json."

Path = Sequence[str | int]


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """`: did you mean pmpo?`, or nothing where no known name is close."""
    if not isinstance(given, str) or len(given) > _LONGEST_NAME:
        return ""
    close = get_close_matches(given, list(known), n=1)
    return f": did you mean {close[0]}?" if close else ""


def field_errors(
    errors: Sequence[ErrorDetails | Mapping[str, Any]], given: object, contract: object = None
) -> list[FieldError]:
    """What is wrong, once for each field; `contract` is the type that `given` was read as, if known."""
    found: dict[tuple[str | int, ...], FieldError] = {}
    lists = []
    for error in errors:
        path, told = _field_error(error, given, contract)
        found[path] = _either(found[path], told) if path in found else told
        if error["type"] == "too_short":
            lists.append(path)
    for path in lists:  # pydantic counts the valid items only: a wrong one is told itself
        if any(other != path and other[: len(path)] == path for other in found):
            found.pop(path, None)
    return list(found.values())


def _either(first: FieldError, second: FieldError) -> FieldError:
    """Of two types that a field may have, neither fits: a value that is nearly one of them is that one."""
    if "did you mean" in first.message or first.message == second.message:
        return first
    return first.model_copy(update={"message": f"{first.message}; or: {second.message}"})


def _field_error(
    error: ErrorDetails | Mapping[str, Any], given: object, contract: object
) -> tuple[tuple[str | int, ...], FieldError]:
    kind, context, value = str(error["type"]), error.get("ctx") or {}, error.get("input")
    path = _without_tags(error["loc"], given, kind)
    message, remedy = str(error["msg"]).removeprefix("Value error, "), None
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = str(context["discriminator"]).strip("'")
        known = _quoted(context.get("expected_tags", "")) or _tags(_type_at(contract, error["loc"]), tag)
        message, remedy = "is missing", f"One of {_listed(known)}." if known else None
        if kind == "union_tag_invalid":
            wrong = str(context["tag"])
            what = "value" if not path else str(path[-1]) if tag == "name" else f"{path[-1]} {tag}"
            message = f"unknown {what} {_short(wrong)}{did_you_mean(wrong, known)}"
        path = [*path, tag]
    elif kind == "extra_forbidden":
        known = _fields(_type_at(contract, error["loc"][:-1]))
        meant = did_you_mean(path[-1], known)
        message = "there is no such field" + meant
        if not meant:
            remedy = f"Fields here: {_listed(known)}." if known else "Remove it, or check its spelling."
    elif kind == "string_pattern_mismatch":
        words = IN_WORDS.get(str(context["pattern"]))
        message = f"{_short(value)} {words}" if words else message
        remedy = None if words else _description(contract, error["loc"])
    elif kind == "missing":
        message = "is missing"
    elif kind == "literal_error":
        known = _quoted(context["expected"])
        message = f"{_short(value)} is not one of {_listed(known)}{did_you_mean(value, known)}"
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        message = "must be a mapping of fields to values"
        if isinstance(given, str | bytes):  # also JSON that was not sent as JSON
            remedy = _AS_JSON
    elif kind == "json_invalid":
        remedy = _AS_JSON
    elif isinstance(value, int | float):
        message += f" (given: {_short(value)})"
        remedy = _description(contract, error["loc"]) if kind in _BOUNDS else None
    return tuple(path), FieldError(path=".".join(map(str, path)), message=message, remedy=remedy)


def _without_tags(loc: Path, given: object, kind: str) -> list[str | int]:
    """The place as the input has it: what is no step in it is a union's tag, or the field that it lacks."""
    if not isinstance(given, Mapping | list | tuple):
        return list(loc)  # the input is not known
    path: list[str | int] = []
    for place, part in enumerate(loc):
        if _leads_on(given, part):
            given = given[part]  # type: ignore[index]
        elif kind != "missing" or place < len(loc) - 1:
            continue
        path.append(part)
    return path


def _leads_on(given: object, part: str | int) -> bool:
    if isinstance(given, list | tuple):
        return isinstance(part, int) and part < len(given)
    return isinstance(given, Mapping) and part in given


def _type_at(kind: Any, loc: Path) -> Any:
    """The annotation at an error's place, with the tags in it; None where that is not known."""
    for part in loc:
        kind = _inner(kind, part)
    return kind


def _inner(kind: Any, part: str | int) -> Any:
    kind = _bare(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(str(part))
        return field.annotation if field else None
    members = _members(kind)
    if len(members) > 1:
        return next((one for one in members if _is_tagged(one, part)), None)
    if members:
        return _inner(members[0], part)
    arguments = get_args(kind)
    return arguments[0] if isinstance(part, int) and arguments else None


def _bare(kind: Any) -> Any:
    """The type without its annotations, and without None."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return kind


def _members(kind: Any) -> list[Any]:
    """Of a union, but None."""
    if get_origin(kind) not in (Union, types.UnionType):
        return []
    return [_bare(one) for one in get_args(kind) if one is not type(None)]


def _is_tagged(model: Any, tag: str | int) -> bool:
    fields = model.model_fields.values() if hasattr(model, "model_fields") else ()
    return any(
        tag in get_args(field.annotation) for field in fields if get_origin(field.annotation) is Literal
    )


def _tags(kind: Any, discriminator: str) -> list[str]:
    """What the discriminator of a union may be."""
    fields = [
        one.model_fields[discriminator] for one in _members(_bare(kind)) if hasattr(one, "model_fields")
    ]
    return [str(get_args(field.annotation)[0]) for field in fields]


def _fields(kind: Any) -> list[str]:
    kind = _bare(kind)
    members = _members(kind)
    kind = members[0] if len(members) == 1 else kind
    fields = getattr(kind, "model_fields", {})
    return [field.alias or name for name, field in fields.items()]


def _description(contract: object, loc: Path) -> str | None:
    """Of the field at an error's place."""
    if not loc:
        return None
    model = _bare(_type_at(contract, loc[:-1]))
    fields = getattr(model, "model_fields", {})
    return next((f.description for name, f in fields.items() if (f.alias or name) == loc[-1]), None)


def _quoted(text: str) -> list[str]:
    """The names in pydantic's `'a', 'b' or 'c'`."""
    return text.split("'")[1::2]


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*names[:_MOST_KNOWN], *(["..."] if len(names) > _MOST_KNOWN else [])])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 3] + "..."
