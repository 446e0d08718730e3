"""Job specs as text: YAML, or JSON, which is YAML. The command line and the dashboard both read them here.

Nothing changes its meaning on the way in. Only true and false are booleans (`off` is a word), numbers are
written as in JSON, and what one YAML reader takes for a date, an octal or a base-60 number and another for a
word has to be quoted. Anchors, aliases and tags are refused: a text stands for what it shows and no more.

Time is bounded by what is bounded here: characters, nesting, values and the length of a path. Reading ends at
the first excess, and what was read until then took time in proportion to its length.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import yaml
from yaml.reader import ReaderError
from yaml.resolver import Resolver

from powermean.contracts.job import JobSpec
from powermean.errors import PowermeanError

MAX_CHARACTERS = 100_000
MAX_DEPTH = 20
MAX_VALUES = 2_000  # fields and items of lists; the largest spec has some 200
MAX_PATH = 500  # characters of a field's dotted path

_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_YAML_1_1 = Resolver()
_UNSURE = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))
_NOT_NEEDED = "No spec needs that; upload data as a dataset."
_WRITE_PLAINLY = "Write a number as 25, -3, 0.5 or 1e-6; put a word in quotes."


class _Mark(Protocol):
    """PyYAML's place in a text, from 0."""

    line: int
    column: int


class SpecTextError(PowermeanError):
    """The text is not a spec: where, why, and what to do about it."""

    code = "unreadable_spec"

    def __init__(
        self, problem: str, remedy: str, *, line: int | None = None, column: int | None = None
    ) -> None:
        place = f"line {line}, column {column}: " if line else ""
        super().__init__(f"{place}{problem}", remedy=remedy)
        self.problem = problem
        self.line = line  # from 1, as is the column
        self.column = column


@dataclass(frozen=True)
class SpecText:
    """What a text says, before anything is checked against the contract."""

    text: str
    fields: dict[str, Any]
    lines: Mapping[str, int]  # of each field and list item, by its dotted path

    def line_of(self, path: str) -> int | None:
        """The line of the field at a dotted path, or of its nearest parent."""
        while path and path not in self.lines:
            path = path.rpartition(".")[0]
        return self.lines.get(path)


def read_spec(text: str) -> SpecText:
    """Raises SpecTextError."""
    if len(text) > MAX_CHARACTERS:
        raise SpecTextError(
            f"the text is longer than {MAX_CHARACTERS:,} characters",
            "Keep data out of it: upload a dataset instead.",
        )
    events = yaml.parse(text, Loader=yaml.SafeLoader)
    remedy = "Look at indentation, brackets and quotes around this place."
    try:
        return _document(text, events)
    except yaml.MarkedYAMLError as error:
        problem = f"not YAML: {error.problem or error.context}"
        raise _error(problem, remedy, error.problem_mark or error.context_mark) from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise SpecTextError(
            f"not YAML: the character U+{ord(text[error.position]):04X}",
            "Remove it.",
            line=line,
            column=column,
        ) from error
    except (ValueError, OverflowError) as error:  # PyYAML's own, of numbers that are no place in Unicode
        problem = "not YAML: an escape or a directive has a number that is too large"
        raise SpecTextError(problem, "Look at the escapes in double quotes.") from error


def _document(text: str, events: Iterator[yaml.Event]) -> SpecText:
    next(events)  # the stream's start
    if isinstance(next(events), yaml.StreamEndEvent):
        raise _no_mapping(None)
    first = next(events)
    if not isinstance(first, yaml.MappingStartEvent):
        raise _no_mapping(first.start_mark)
    lines: dict[str, int] = {}
    fields = _value(events, first, (), lines)
    next(events)  # the document's end
    if not isinstance(second := next(events), yaml.StreamEndEvent):
        raise _error("a second document starts here", "Give each spec a text of its own.", second.start_mark)
    return SpecText(text, fields, lines)


def _value(
    events: Iterator[yaml.Event], event: yaml.Event, path: tuple[str, ...], lines: dict[str, int]
) -> Any:
    """What the event starts, down to its end."""
    _check_plain(event)
    if len(path) > MAX_DEPTH:
        raise _error(f"nested deeper than {MAX_DEPTH} levels", _NOT_NEEDED, event.start_mark)
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event)
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            inner = (*path, str(len(items)))
            _note(inner, event, lines)
            items.append(_value(events, event, inner, lines))
        return items
    fields: dict[str, Any] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        name = _key(key)
        inner = (*path, name)
        if name in fields:
            raise _error(f"{'.'.join(inner)} is given twice", "Keep one of them.", key.start_mark)
        _note(inner, key, lines)
        fields[name] = _value(events, next(events), inner, lines)
    return fields


def _note(path: tuple[str, ...], event: yaml.Event, lines: dict[str, int]) -> None:
    """Keep the line of what is at the path."""
    if sum(map(len, path)) > MAX_PATH:
        raise _error(f"the field's path has more than {MAX_PATH} characters", _NOT_NEEDED, event.start_mark)
    if len(lines) == MAX_VALUES:
        raise _error(f"more than {MAX_VALUES:,} fields and list items", _NOT_NEEDED, event.start_mark)
    lines[".".join(path)] = _line(event)


def _key(event: yaml.Event) -> str:
    _check_plain(event)
    if not isinstance(event, yaml.ScalarEvent):
        raise _error("a field's name is one word", "Write `name: value`.", event.start_mark)
    return _text(event)


def _check_plain(event: yaml.Event) -> None:
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
        problem = "anchors and aliases (& and *) are not taken"
        raise _error(problem, "Write the value out, or in quotes if it is a word.", event.start_mark)
    if (tag := getattr(event, "tag", None)) is not None:
        raise _error(f"tags such as {tag} are not taken", "Write the value without it.", event.start_mark)


def _scalar(event: yaml.ScalarEvent) -> Any:
    text = event.value
    if event.style is not None:  # in quotes, or a block of text
        return _text(event)
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
            raise _error("the number is beyond 64 bits", "No field takes one so large.", event.start_mark)
        return int(text)
    if _NUMBER.fullmatch(text):
        if not math.isfinite(float(text)):
            raise _error(f"{text} is beyond floating point", "No field takes one so large.", event.start_mark)
        return float(text)
    if _YAML_1_1.resolve(yaml.ScalarNode, text, (True, False)) in _UNSURE:  # type: ignore[no-untyped-call]
        raise _error(f"readers of YAML disagree on what {text} means", _WRITE_PLAINLY, event.start_mark)
    return _text(event)


def _text(event: yaml.ScalarEvent) -> str:
    """The text, with JSON's surrogate pairs joined."""
    try:
        text = event.value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        problem = "half of a surrogate pair is no character"
        raise _error(problem, "Write the character itself.", event.start_mark) from None
    if "\0" in text:
        raise _error("NUL is no character that can be stored", "Leave it out.", event.start_mark)
    return text


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None
    return event.start_mark.line + 1


def _no_mapping(mark: _Mark | None) -> SpecTextError:
    return _error("a spec is a mapping of fields to values", "Start with `name: my-job`.", mark)


def _error(problem: str, remedy: str, mark: _Mark | None) -> SpecTextError:
    if mark is None:
        return SpecTextError(problem, remedy)
    return SpecTextError(problem, remedy, line=mark.line + 1, column=mark.column + 1)


def to_yaml(spec: JobSpec, changed_only: bool = False) -> str:
    """The spec as YAML; `changed_only` leaves out what equals its default."""
    data = spec.model_dump(mode="json", exclude_defaults=changed_only)
    if changed_only:  # what tells variants apart equals its default, and is needed all the same
        data.setdefault("algorithm", {})["name"] = spec.algorithm.name
        data["data"]["kind"] = spec.data.kind
        data.setdefault("reward", {})["kind"] = spec.reward.kind
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
