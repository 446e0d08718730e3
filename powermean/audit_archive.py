"""Archives of the audit log: its oldest entries as JSON lines, checked with what the log still has."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from pydantic import ValidationError

from powermean import audit_chain
from powermean.audit_chain import Verdict
from powermean.contracts.audit import AuditCut, AuditEntry, AuditHead
from powermean.errors import PowermeanError


class NotAnArchiveError(PowermeanError):
    """A file that should hold entries of the audit log holds something else."""


def read(files: Sequence[Path]) -> Iterator[AuditEntry]:
    """The entries in these files, one a line. Raises NotAnArchiveError and OSError."""
    for file in files:
        with file.open() as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield AuditEntry.model_validate_json(line)
                except ValidationError as error:
                    raise NotAnArchiveError(
                        f"line {number} of {file} is no entry of the audit log",
                        remedy="Name files of `python -m server archive-audit`, the oldest first.",
                    ) from error


def verify(
    archives: Sequence[Path], log: Iterable[AuditEntry], head: AuditHead | None, cut: AuditCut | None
) -> Verdict:
    """Walk the archives, the oldest first, and on through the log, which begins after `cut`.

    Where the oldest archives are no longer kept, the walk begins with the first entry that there is. Raises
    NotAnArchiveError and OSError.
    """
    if not archives:
        return audit_chain.verify(log, head, cut)
    archived = read(archives)
    first = next(archived, None)
    if first is None:
        raise NotAnArchiveError(f"{archives[0]} holds no entry of the audit log")
    before = None
    if first.seq > 1:
        before = AuditCut(seq=first.seq - 1, hash=first.previous, signature="")
    return audit_chain.verify(chain([first], archived, log), head, before)
