"""How commands talk to people: results on stdout, notes and failures on stderr, and exit statuses.

Whatever a command prints goes through this file, and all of it through `shown`: a job's name, a model's text
or a line of a log moves no cursor, changes no colour and hides nothing.
"""

import codecs
import os
import sys
import time
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, TextIO, TypeVar

import typer
from pydantic import BaseModel, TypeAdapter, ValidationError
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from powermean.calls import ServerUnreachableError
from powermean.cli.signals import EndedBySignalError
from powermean.client import Client
from powermean.discovery import FoundService, ServiceStartingError, find_service
from powermean.errors import PowermeanError
from powermean.field_errors import field_errors
from powermean.remedies import spoken

M = TypeVar("M", bound=BaseModel)

FAILED = 1
INTERRUPTED = 130
STARTING_S = 30.0  # that a command waits for a service that is just starting
STARTING_POLL_S = 0.2

AsJson = Annotated[bool, typer.Option("--json", help="Print the API's own answer, as JSON.")]
Sure = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

_UNSEEN = (
    "Cc",
    "Cf",
    "Cs",
    "Zl",
    "Zp",
)  # control, format, half a surrogate pair, line and paragraph separators
_SHORT = {"\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
_ENDLESS = 1_000_000  # columns of a file or a pipe
_LEAST = 10  # columns that a text keeps when it has to wrap
_GAP = 2  # columns between two of a table


def shown(text: str, keep: str = "\n\t") -> str:
    """The text with every character that would not be seen written as JSON's escape: ESC is \\u001b.

    `keep` stays as it is. In a text that is JSON the result is the same JSON.
    """
    return "".join(c if c in keep or unicodedata.category(c) not in _UNSEEN else _escape(c) for c in text)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return _SHORT.get(character) or "".join(rf"\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def output() -> Console:
    """Standard output. A terminal has colours unless NO_COLOR is set; a pipe is as wide as needed."""
    plain = bool(os.environ.get("NO_COLOR"))
    width = None if sys.stdout.isatty() else _ENDLESS
    return Console(
        color_system=None if plain else "auto", width=width, highlight=False, markup=False, emoji=False
    )


def is_live() -> bool:
    """Whether standard output can show what changes in place."""
    console = output()
    return console.is_terminal and not console.is_dumb_terminal and console.color_system is not None


def say(text: str, end: str = "\n") -> None:
    """Print a result."""
    _write(sys.stdout, shown(text) + end)


def note(text: str) -> None:
    """Tell something beside the result, on standard error."""
    _write(sys.stderr, shown(text) + "\n")


def _write(stream: TextIO, text: str) -> None:
    """What the stream's encoding lacks is written out too."""
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "shown").decode(encoding))
    stream.flush()


def _not_in_encoding(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(_escape, error.object[error.start : error.end])), error.end


codecs.register_error("shown", _not_in_encoding)


def complain(text: str) -> None:
    """Say what went wrong, with what a person at a terminal can do about it."""
    note(f"powermean: {spoken(text, 'terminal')}")


def say_json(answer: BaseModel | Any, indent: int | None = 2) -> None:
    """Print a contract, or what is made of contracts, as the API would answer it (with the old names too)."""
    text = TypeAdapter(Any).dump_json(answer, indent=indent, by_alias=True)
    say(text.decode())


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    width: int,
    *,
    wrap: Collection[str] = (),
    spare: Iterable[str] = (),
    right: Collection[str] = (),
) -> Table:
    """A table in which no cell is ever cut.

    Where `width` is too narrow, the texts under `wrap` wrap, then the columns in `spare` are left out one by
    one, and at last the lines are longer than that.
    """
    cells = [[shown(cell, keep="") for cell in row] for row in rows]
    least = []
    for place, column in enumerate(columns):
        widest = max([cell_len(column), *(cell_len(row[place]) for row in cells)])
        least.append(_GAP + (min(widest, _LEAST) if column in wrap else widest))
    kept = list(range(len(columns)))
    for column in spare:
        if sum(least[place] for place in kept) > width:
            kept.remove(columns.index(column))
    made = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for place in kept:
        column = columns[place]
        justify: JustifyMethod = "right" if column in right else "left"
        made.add_column(column, no_wrap=column not in wrap, overflow="fold", justify=justify)
    for row in cells:
        made.add_row(*(Text(row[place]) for place in kept))
    needed = sum(least[place] for place in kept)
    if needed > width:
        made.width = needed
    return made


def say_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    wrap: Collection[str] = (),
    spare: Iterable[str] = (),
    right: Collection[str] = (),
    title: str | None = None,
) -> None:
    """Print a `table` as wide as standard output; a note says so if it has no rows."""
    rows = list(rows)
    if title is not None:
        say(title)
    console = output()
    with console.capture() as captured:
        made = table(columns, rows, console.width, wrap=wrap, spare=spare, right=right)
        console.print(made, soft_wrap=True)
    _write(sys.stdout, "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
    if not rows:
        note("Nothing to show." if title is None else f"{title.strip()}: nothing to show.")


def counted(count: int, noun: str = "job") -> str:
    """The number with its noun."""
    return f"{count} {noun}{'s' if count != 1 else ''}"


def confirm(yes: bool, question: str) -> None:
    """Ask before something goes for good, unless `yes` says that it may. A no ends the command."""
    if not yes:
        typer.confirm(question, abort=True)


def checked(contract: type[M], given: Mapping[str, Any]) -> M:
    """What a command was given, as the API takes it. Raises PowermeanError that names each mistake."""
    try:
        return contract.model_validate(given)
    except ValidationError as error:
        wrong = field_errors(error.errors(include_url=False), given, contract)
        lines = (f"{one.path}: {one.message}" + (f" ({one.remedy})" if one.remedy else "") for one in wrong)
        raise PowermeanError("\n".join(lines)) from error


@contextmanager
def plain_failures() -> Iterator[None]:
    """Turn expected failures into one clear message and an exit status."""
    try:
        yield
    except ServerUnreachableError as error:
        complain(f"{error}\nIs the service running? Start it with `powermean up`, or set POWERMEAN_URL.")
        raise typer.Exit(FAILED) from error
    except PowermeanError as error:
        text = str(error)
        complain(text if not error.remedy or error.remedy in text else f"{text}\n{error.remedy}")
        raise typer.Exit(FAILED) from error
    except BrokenPipeError:  # the reader has seen enough; typer ends quietly
        raise
    except OSError as error:  # of a file or folder that a command reads or writes
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        raise typer.Exit(FAILED) from error
    except EndedBySignalError as error:
        raise typer.Exit(128 + error.number) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error


def _started_service() -> FoundService:
    """The service; one that is just starting is waited for. Raises NoServerError."""
    deadline, told = time.monotonic() + STARTING_S, False
    while True:
        try:
            return find_service()
        except ServiceStartingError as error:
            if time.monotonic() > deadline:
                raise
            if not told:
                note(f"{str(error)[0].upper()}{str(error)[1:]}: waiting for it ...")
            told = True
            time.sleep(STARTING_POLL_S)


@contextmanager
def connected() -> Iterator[Client]:
    """A client for the service that the environment or this machine has; one found elsewhere is named."""
    with plain_failures():
        service = _started_service()
        if service.elsewhere:
            note(f"Using the service in {service.elsewhere} ({service.url}).")
        elif service.chosen_from_several:
            note(f"Using the server {service.name} ({service.url}).")
        with Client(service.url, service.key) as client:
            yield client
