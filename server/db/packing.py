"""Rows of JSON, packed by columns: about a tenth of what they take as JSON one by one.

A packed value is compressed by zlib: the header's length (4 bytes, little-endian), the header, then numbers.
The header is JSON, {"count": rows, "columns": {field: column}}. A column is one of
- the list of its values;
- {"counts": [...], "columns": {...}} for lists of rows: the lists' lengths, and their rows as columns;
- {"floats": n, "nulls": [...]} for n floats, and the rows without one. The floats follow the header as
  doubles: the lowest byte of each, then the next, since bytes that are alike compress well side by side.

Numbers keep every bit. A null and a missing field are the same: neither comes back. Stored rows have this
form, so a change of it needs a migration.
"""

import json
import sys
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Columns = dict[str, Any]

_LENGTH = 4  # bytes
_DOUBLE = 8


def pack(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows in their order; unpack_rows() is the inverse."""
    numbers = bytearray()
    packed = {"count": len(rows), "columns": _columns(rows, numbers)}
    header = json.dumps(packed, separators=(",", ":"), allow_nan=False).encode()
    return zlib.compress(len(header).to_bytes(_LENGTH, "little") + header + numbers)


def unpack_rows(data: bytes) -> list[dict[str, Any]]:
    """The rows, as they were but for nulls."""
    count, columns = _unpacked(data)
    return _rows(columns, count)


def unpack_columns(data: bytes) -> Columns:
    """Field -> values of all rows. Lists of rows come as {"counts": their lengths, "columns": as here}."""
    return _unpacked(data)[1]


def last_of_each(nested: Mapping[str, Any] | Sequence[Any], field: str) -> Iterator[Any]:
    """A field of the last row of each list in a column of lists; None for an empty list."""
    return _of_each(nested, field, last=True)


def first_of_each(nested: Mapping[str, Any] | Sequence[Any], field: str) -> Iterator[Any]:
    """The same of the first row."""
    return _of_each(nested, field, last=False)


def _of_each(nested: Mapping[str, Any] | Sequence[Any], field: str, *, last: bool) -> Iterator[Any]:
    if not isinstance(nested, Mapping):  # no list has a row
        yield from (None for _ in nested)
        return
    values = nested["columns"].get(field)
    begin = 0
    for count in nested["counts"]:
        yield values[begin + count - 1 if last else begin] if count and values is not None else None
        begin += count


def _columns(rows: Sequence[Mapping[str, Any]], numbers: bytearray) -> Columns:
    fields = dict.fromkeys(field for row in rows for field in row)
    return {field: _column([row.get(field) for row in rows], numbers) for field in fields}


def _column(values: list[Any], numbers: bytearray) -> Any:
    known = [value for value in values if value is not None]
    if known and all(type(value) is float for value in known):
        numbers += _shuffled(known)
        return {"floats": len(known), "nulls": [n for n, value in enumerate(values) if value is None]}
    if not all(isinstance(value, list) for value in known):
        return values
    inner = [row for value in known for row in value]
    if not inner or not all(isinstance(row, dict) for row in inner):
        return values
    counts = [len(value) if value is not None else 0 for value in values]
    return {"counts": counts, "columns": _columns(inner, numbers)}


def _shuffled(values: list[float]) -> bytes:
    doubles = array("d", values)
    if sys.byteorder == "big":
        doubles.byteswap()
    data = doubles.tobytes()
    return b"".join(data[place::_DOUBLE] for place in range(_DOUBLE))


def _unpacked(data: bytes) -> tuple[int, Columns]:
    whole = zlib.decompress(data)
    end = _LENGTH + int.from_bytes(whole[:_LENGTH], "little")
    packed = json.loads(whole[_LENGTH:end])
    _restore(packed["columns"], memoryview(whole)[end:])
    return packed["count"], packed["columns"]


def _restore(columns: Columns, numbers: memoryview) -> memoryview:
    """Put the numbers, in the order in which they were packed, in place; returns what is left."""
    for field, column in columns.items():
        if not isinstance(column, dict):
            continue
        if "counts" in column:
            numbers = _restore(column["columns"], numbers)
            continue
        size = column["floats"] * _DOUBLE
        columns[field] = _unshuffled(numbers[:size])
        numbers = numbers[size:]
        for place in column["nulls"]:  # ascending
            columns[field].insert(place, None)
    return numbers


def _unshuffled(data: memoryview) -> list[Any]:
    count = len(data) // _DOUBLE
    plain = bytearray(len(data))
    for place in range(_DOUBLE):
        plain[place::_DOUBLE] = data[place * count : (place + 1) * count]
    doubles = array("d", bytes(plain))
    if sys.byteorder == "big":
        doubles.byteswap()
    return doubles.tolist()


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
