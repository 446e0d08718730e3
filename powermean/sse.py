"""Reading server-sent events (text/event-stream)."""

import json
from collections.abc import Iterable, Iterator

from powermean.contracts.api import Event


def read_events(lines: Iterable[str]) -> Iterator[Event]:
    """The events of a stream; comments (keep-alives) and events without an id or data are skipped."""
    seq: int | None = None
    kind = ""
    data: list[str] = []
    for line in lines:
        if line == "":
            if seq is not None and data:
                yield Event.model_validate({"seq": seq, "kind": kind, "data": json.loads("\n".join(data))})
            seq, kind, data = None, "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id" and value.isdigit():
            seq = int(value)
        elif name == "event":
            kind = value
        elif name == "data":
            data.append(value)
