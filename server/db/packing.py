"""Rows of JSON, packed by columns: about a tenth of what they take as JSON one by one.

Compressed JSON of {field: values of all rows}; a field of lists of rows is itself packed so, beside the
lists' lengths. Numbers keep every bit. A null and a missing field are the same: neither comes back.

Stored rows have this form, so a change of it needs a migration.
"""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Columns = dict[str, Any]


def pack(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows in their order; unpack_rows() is the inverse."""
    packed = {"count": len(rows), "columns": _columns(rows)}
    return zlib.compress(json.dumps(packed, separators=(",", ":"), allow_nan=False).encode())


def unpack_rows(data: bytes) -> list[dict[str, Any]]:
    """The rows, as they were but for nulls."""
    packed = json.loads(zlib.decompress(data))
    return _rows(packed["columns"], packed["count"])


def unpack_columns(data: bytes) -> Columns:
    """Field -> values of all rows. Lists of rows come as {"counts": their lengths, "columns": as here}."""
    found: Columns = json.loads(zlib.decompress(data))["columns"]
    return found


def last_of_each(nested: Mapping[str, Any] | Sequence[Any], field: str) -> Iterator[Any]:
    """A field of the last row of each list in a column of lists; None for an empty list."""
    yield from _each(nested, field, last=True)


def first_of_each(nested: Mapping[str, Any] | Sequence[Any], field: str) -> Iterator[Any]:
    """The same of the first row."""
    yield from _each(nested, field, last=False)


def _each(nested: Mapping[str, Any] | Sequence[Any], field: str, *, last: bool) -> Iterator[Any]:
    if not isinstance(nested, Mapping):  # every list is empty
        yield from (None for _ in nested)
        return
    values = nested["columns"].get(field)
    begin = 0
    for count in nested["counts"]:
        yield values[begin + count - 1 if last else begin] if count and values is not None else None
        begin += count


def _columns(rows: Sequence[Mapping[str, Any]]) -> Columns:
    fields = dict.fromkeys(field for row in rows for field in row)
    return {field: _column([row.get(field) for row in rows]) for field in fields}


def _column(values: list[Any]) -> Any:
    lists = [value if value is not None else [] for value in values]
    if not all(isinstance(value, list) for value in lists):
        return values
    inner = [row for value in lists for row in value]
    if not inner or not all(isinstance(row, dict) for row in inner):
        return values
    return {"counts": [len(value) for value in lists], "columns": _columns(inner)}


def _rows(columns: Columns, count: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for field, column in columns.items():
        values = _lists(column) if isinstance(column, dict) else column
        for row, value in zip(rows, values, strict=True):
            if value is not None:
                row[field] = value
    return rows


def _lists(column: Columns) -> Iterator[list[dict[str, Any]]]:
    inner = _rows(column["columns"], sum(column["counts"]))
    begin = 0
    for count in column["counts"]:
        yield inner[begin : begin + count]
        begin += count
