"""An attempt's folder on its node: the files through which worker, supervisor and trainer communicate.

claim.json    the claim                                    worker -> all
token         the attempt token, renewed                   supervisor -> trainer
order         continue, checkpoint_and_exit, finish, cancel   supervisor -> trainer
phase         what the trainer is doing, for people        trainer -> supervisor
engine-K.completions   how many of a batch are finished   engine -> supervisor
start/        what a fork begins with                    trainer.forks -> engine, trainer
spool/        records to post, in order of their names     trainer -> supervisor
ballast       space for the last record on a full disk    worker, supervisor -> trainer
members.json  the attempt's nodes, and where they are  supervisor -> trainer
rank-3.json   how a rank other than 0 failed           trainer -> supervisor
engine-K.json   an engine's address, or why it failed     engine, supervisor -> trainer, supervisor
log.txt       what engine and trainer print                both -> supervisor
supervisor.json   the supervisor's process                 supervisor -> worker
ended         the attempt is over                          supervisor, worker
"""

import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter, ValidationError

from powermean.contracts.attempts import Claim, EngineStart, Finish, FinishRecord, Member, Order, SpoolRecord
from powermean.disk import Ballast, is_full
from powermean.errors import PowermeanError
from powermean.processes import ProcessId

_RECORD: TypeAdapter[SpoolRecord] = TypeAdapter(SpoolRecord)
_MEMBERS: TypeAdapter[tuple[Member, ...]] = TypeAdapter(tuple[Member, ...])
_COUNT = re.compile(r"\d+ of \d+")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 where the trainer hands weights to an engine on this host
BALLAST_BYTES = 2**20
PHASE_CHARACTERS = 80  # most that the trainer says of what it is doing
MARK = "POWERMEAN_ATTEMPT_ID"  # in the environment of all processes of an attempt


class SpoolError(PowermeanError):
    """A spooled record can't be read."""


def write_whole(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace the file; readers see the old or the new text, never part of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class AttemptDir:
    """The folder, named by the attempt's id."""

    path: Path

    @property
    def attempt_id(self) -> str:
        return self.path.name

    @property
    def mark(self) -> str:
        """Value of MARK for its processes; two nodes of an attempt may be on one host."""
        try:
            rank = self.claim().node_rank
        except (OSError, ValidationError):  # left by a worker of another version
            rank = 0
        return f"{self.attempt_id}/{rank}" if rank else self.attempt_id

    @property
    def claim_file(self) -> Path:
        return self.path / "claim.json"

    @property
    def start(self) -> Path:
        return self.path / "start"

    def engine_file(self, replica: int = 0) -> Path:
        """What the rollout engine, one of `rollout.replicas` on this node, says of its start."""
        return self.path / f"engine-{replica}.json"

    def engine_start(self, replica: int = 0) -> EngineStart | None:
        """The result of the engine's start; None if there is none yet."""
        try:
            return EngineStart.model_validate_json(self.engine_file(replica).read_bytes())
        except FileNotFoundError:
            return None

    def engine_urls(self, replicas: int) -> tuple[str, ...]:
        """The addresses of this node's engines; none before all of them serve."""
        starts = [self.engine_start(replica) for replica in range(replicas)]
        urls = tuple(start.url for start in starts if start is not None and start.url is not None)
        return urls if len(urls) == replicas else ()

    def write_engine_start(self, start: EngineStart) -> None:
        """Set where to sample if the attempt has no engine of its own."""
        write_whole(self.engine_file(), start.model_dump_json(exclude_none=True))

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def spool(self) -> Path:
        return self.path / "spool"

    @property
    def ballast(self) -> Ballast:
        return Ballast(self.path / "ballast", BALLAST_BYTES)

    def write_last(self, path: Path, text: str) -> None:
        """Write what has to be written even if the disk is full."""
        try:
            write_whole(path, text)
        except OSError as error:
            if not (is_full(error) and self.ballast.release()):
                raise
            write_whole(path, text)

    @property
    def ended(self) -> bool:
        return (self.path / "ended").exists()

    @classmethod
    def create(cls, path: Path, claim: Claim) -> "AttemptDir":
        """Create the folder under another name first, so that it is complete when it appears."""
        part = cls(path.with_name(f".{path.name}.part"))
        shutil.rmtree(part.path, ignore_errors=True)
        part.spool.mkdir(parents=True, mode=0o700)
        part.path.chmod(0o700)
        part.write_token(claim.token)
        write_whole(part.claim_file, claim.model_dump_json(), 0o600)
        part.write_order("continue")
        part.ballast.hold()
        part.path.rename(path)
        return cls(path)

    def claim(self) -> Claim:
        return Claim.model_validate_json(self.claim_file.read_bytes())

    def token(self) -> str:
        return (self.path / "token").read_text()

    def write_token(self, token: str) -> None:
        write_whole(self.path / "token", token, 0o600)

    def members(self) -> tuple[Member, ...]:
        """The attempt's nodes as far as they are known, by node_rank."""
        try:
            return _MEMBERS.validate_json((self.path / "members.json").read_bytes())
        except FileNotFoundError:
            return ()

    def write_members(self, members: tuple[Member, ...]) -> None:
        write_whole(self.path / "members.json", _MEMBERS.dump_json(members).decode())

    def end(self) -> Finish | None:
        """How rank 0 says it ended: the spool's last record; None if it does not say."""
        try:
            record = read_record(self.spooled()[-1])
        except (IndexError, FileNotFoundError, SpoolError):
            return None
        return record.body if isinstance(record, FinishRecord) else None

    def rank_end(self, rank: int) -> Finish | None:
        """How that rank, other than 0, says it failed."""
        try:
            return Finish.model_validate_json(self.rank_file(rank).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def rank_file(self, rank: int) -> Path:
        return self.path / f"rank-{rank}.json"

    def order(self) -> Order:
        """What the supervisor wants; no order or one not known means to go on."""
        try:
            text = (self.path / "order").read_text().strip()
        except FileNotFoundError:
            return "continue"
        return next((order for order in get_args(Order) if order == text), "continue")

    def write_order(self, order: Order) -> None:
        write_whole(self.path / "order", order)

    def phase(self, default: str) -> str:
        """The trainer's description."""
        try:
            return (self.path / "phase").read_text(errors="replace").strip()[:PHASE_CHARACTERS] or default
        except FileNotFoundError:
            return default

    def completions(self) -> str | None:
        """How many completions of the batch that is being sampled are finished: `12 of 64`."""
        counts = [path.read_text(errors="replace") for path in self.path.glob("engine-*.completions")]
        numbers = [[int(word) for word in text.split(" of ")] for text in counts if _COUNT.fullmatch(text)]
        if not numbers:
            return None
        finished, total = map(sum, zip(*numbers, strict=True))
        return f"{finished} of {total}"

    def write_phase(self, text: str) -> None:
        write_whole(self.path / "phase", text[:PHASE_CHARACTERS])

    def supervisor(self) -> ProcessId | None:
        try:
            return ProcessId.model_validate_json((self.path / "supervisor.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def write_supervisor(self, process: ProcessId) -> None:
        write_whole(self.path / "supervisor.json", process.model_dump_json())

    def close(self) -> None:
        """Mark the attempt as over: remove large files, keep the log and the like for people."""
        for folder in (self.path / "scratch", self.start):
            shutil.rmtree(folder, ignore_errors=True)
        self.ballast.release()
        for weights in SHARED_MEMORY.glob(f"powermean-{self.attempt_id}.*"):
            weights.unlink(missing_ok=True)
        try:
            write_whole(self.path / "ended", "")
        except OSError as error:
            if not is_full(error):  # the worker closes it again when it looks at what runs
                raise

    def spooled(self) -> list[Path]:
        """Records to post, oldest first."""
        return sorted(path for path in self.spool.glob("*.json") if not path.name.startswith("."))

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def read_record(path: Path) -> SpoolRecord:
    """Raises SpoolError naming the file."""
    try:
        return _RECORD.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SpoolError(f"{path.name}: {where}: {first['msg']}") from error


def attempt_dirs(data_dir: Path) -> Iterator[AttemptDir]:
    """The folders of all attempts on the node, oldest first."""
    root = data_dir / "attempts"
    found: list[tuple[float, Path]] = []
    for path in root.iterdir() if root.is_dir() else ():
        with suppress(FileNotFoundError):  # a supervisor that ends removes old ones
            if path.is_dir() and not path.name.startswith("."):
                found.append((path.stat().st_mtime, path))
    for _, path in sorted(found):
        yield AttemptDir(path)


def prune(data_dir: Path, keep: int = 3) -> None:
    """Remove the folders of ended attempts, except for the last few, which are kept for people."""
    over = [attempt for attempt in attempt_dirs(data_dir) if attempt.ended]
    for attempt in over[: max(0, len(over) - keep)]:
        attempt.remove()
