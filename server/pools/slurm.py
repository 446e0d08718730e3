"""Pilots as Slurm jobs: `sbatch` with the script on its standard input, `squeue` and `scancel`.

What only the worker may know is in the script, which Slurm shows to the job's own user and to administrators
alone: not in a command line, and not in the environment that Slurm keeps with a job.
"""

import logging
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from powermean.contracts.base import Contract
from server.pools import commands
from server.pools.backend import PilotOrder, PilotState, PoolError, Seen
from server.pools.commands import short
from server.pools.declaration import Pool

log = logging.getLogger(__name__)
Word = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f]+$")]

# Name last: whoever else uses the account may call a job anything. %e is the end, as seconds since the epoch.
_FORMAT = "%A|%T|%e|%r|%j"
_PENDING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD")
# COMPLETING: its processes may still be there.
_RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STAGE_OUT", "STOPPED", "RESIZING")
_REVOKED = ("CANCELLED", "TIMEOUT", "PREEMPTED", "DEADLINE", "REVOKED")
_FAILED = ("COMPLETED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "SPECIAL_EXIT")
_SAYS_NOTHING = ("", "None", "(null)")
_PLAINLY = {
    "CANCELLED": "Slurm does not say by whom",
    "TIMEOUT": "it reached its time limit",
    "PREEMPTED": "another job took its place",
    "DEADLINE": "its deadline passed",
    "REVOKED": "Slurm does not say by whom",
}
_CANCELLED_BY = re.compile(r"(\d+)\|CANCELLED by (\d+)\|(.*)", re.ASCII)  # a line of sacct
WHY_S = 5.0  # for all that is asked about an end: until then it is not written down
MOST_NAMES = 3  # of users that are looked up at once; each takes a command


class SlurmSection(Contract):
    """How Slurm is asked, and with what."""

    command: tuple[Word, ...] = Field(
        (), max_length=20, description="Before sbatch, squeue, scancel, sacct and id: [ssh, login1]."
    )
    options: tuple[Word, ...] = Field(
        (), max_length=50, description="Of sbatch: [--partition=gpu, --account=ml, --mem=64G]."
    )
    gres: Word | None = Field(None, description="Left out: gpu:N, with the shape's number of GPUs.")
    python: Word = Field(
        sys.executable, description="The interpreter that has powermean installed, on the pool's nodes."
    )
    log: Word = Field("powermean-%x-%j.log", description="Where Slurm writes what the worker prints.")
    kill_wait_s: float = Field(
        30,
        gt=0,
        le=3600,
        description="KillWait of slurm.conf: from SIGTERM to SIGKILL. Jobs save a checkpoint in that time.",
    )
    timeout_s: float = Field(30, gt=0, le=600, description="Longest that one of Slurm's commands may take.")


class SlurmPool(Pool):
    """Nodes from Slurm."""

    kind: Literal["slurm"]
    slurm: SlurmSection = SlurmSection()

    @property
    def term_grace_s(self) -> float:
        return self.slurm.kill_wait_s

    @property
    def backend(self) -> "SlurmBackend":
        return SlurmBackend(self.name, self.slurm)


@dataclass(frozen=True)
class SlurmBackend:
    """One pool of a Slurm. A job's name is its pilot's id."""

    pool: str
    section: SlurmSection

    def submit(self, order: PilotOrder) -> str:
        for seen in self.list():
            if seen.pilot_id == order.pilot_id:
                return seen.external_id
        shape, section = order.shape, self.section
        argv = ["sbatch", "--parsable", "--export=NONE", "--no-requeue"]
        argv += [f"--job-name={order.pilot_id}", f"--output={section.log}"]
        if gres := section.gres or (f"gpu:{shape.gpus}" if shape.gpus else None):
            argv.append(f"--gres={gres}")
        if order.time_limit_s is not None:
            argv.append(f"--time={_clock(order.time_limit_s)}")
        said = self._run([*argv, *section.options], script(order, section.python))
        found = re.fullmatch(r"(\d{1,20})(;\S+)?", said.strip(), re.ASCII)
        if found is None:
            raise PoolError(f"sbatch answered {short(said)} instead of a job's number")
        return found[1]

    def cancel(self, external_id: str) -> None:
        self._run(["scancel", "--quiet", external_id])

    def why(self, ended: Sequence[Seen]) -> Mapping[str, str]:
        whose = self._cancelled_by([one.external_id for one in ended if one.reason.startswith("CANCELLED")])
        words = {one.pilot_id: _PLAINLY.get(one.reason.partition(",")[0], "") for one in ended}
        return {name: said for name, said in words.items() if said} | {
            one.pilot_id: whose[one.external_id] for one in ended if one.external_id in whose
        }

    def _cancelled_by(self, jobs: Sequence[str]) -> dict[str, str]:
        """Of those jobs of which Slurm's accounting knows it; squeue never says it."""
        if not jobs:
            return {}
        until = time.monotonic() + min(self.section.timeout_s, WHY_S)
        columns = ["--noheader", "--parsable2", "--allocations", "--format=JobIDRaw,State,AdminComment"]
        try:
            lines = self._run(["sacct", *columns, f"--jobs={','.join(jobs)}"], until=until).splitlines()
        except PoolError as error:
            log.info("pool %s: nobody knows who cancelled %s: %s", self.pool, ", ".join(jobs), error)
            return {}
        found = [match.groups() for line in lines if (match := _CANCELLED_BY.fullmatch(line))]
        names = {uid: self._name_of(uid, until) for uid in list({uid for _, uid, _ in found})[:MOST_NAMES]}
        return {
            job: f"by {names.get(uid, f'user {uid}')}{f': {short(comment)}' if comment else ''}"
            for job, uid, comment in found
        }

    def _name_of(self, uid: str, until: float) -> str:
        """Asked where Slurm's commands run: this host may not know the cluster's people."""
        try:
            name = self._run(["id", "-nu", uid], until=until).strip()
        except PoolError:
            return f"user {uid}"
        return f"{name} (user {uid})" if re.fullmatch(r"[\w.@-]{1,64}", name) else f"user {uid}"

    def clean(self, pilot_id: str) -> None:
        """Slurm forgets a job by itself."""

    def list(self) -> Sequence[Seen]:
        columns = ["--noheader", "--states=all", "--me", f"--format={_FORMAT}"]
        said = self._run(["env", "SLURM_TIME_FORMAT=%s", "squeue", *columns])
        return list(_read(said, self.pool))

    def _run(self, argv: Sequence[str], given: str = "", *, until: float | None = None) -> str:
        """What the command prints. Raises PoolError, also where `until` (of the monotonic clock) is over."""
        prefix = self.section.command
        # A shell at the other end of `ssh` would split what has spaces in it.
        whole = [*prefix, shlex.join(argv)] if prefix and Path(prefix[0]).name == "ssh" else [*prefix, *argv]
        name = argv[2] if argv[0] == "env" else argv[0]
        left = self.section.timeout_s if until is None else until - time.monotonic()
        if left <= 0:
            raise PoolError(f"{name} was not asked: no time was left")
        return commands.run(whole, given, left, name)


# Slurm tells all processes of a job to end, or the shell alone, which then tells the worker.
# An order to end may come before the shell knows its worker: it is passed on as soon as it does.
_RUN = """\
worker=
told=
trap 'if [ -n "$worker" ]; then kill -TERM "$worker" 2>/dev/null; else told=yes; fi' TERM
{python} -m worker &
worker=$!
[ -z "$told" ] || kill -TERM "$worker"
wait "$worker"
status=$?
while kill -0 "$worker" 2>/dev/null; do
  wait "$worker"
  status=$?
done
rm -rf -- "$POWERMEAN_DATA_DIR"
exit "$status"
"""


def script(order: PilotOrder, python: str) -> str:
    """What the pilot runs. Its folder goes with it."""
    # Slurm's linuxproc finds no process whose title has spaces, as Celery's would, and so couldn't end it.
    told = {"NOSETPS": "1", **order.environment, **order.secrets}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in told.items()]
    return "\n".join(["#!/bin/sh", "umask 077", *exports, _RUN.format(python=shlex.quote(python))])


def _read(said: str, pool: str) -> Iterator[Seen]:
    """The pool's pilots of squeue's lines. Raises PoolError for a line that is none."""
    name = re.compile(rf"{re.escape(pool)}-[0-9a-f]{{8}}")
    for line in said.splitlines():
        fields = line.split("|", 4)
        if len(fields) != 5 or not re.fullmatch(r"\d{1,20}", fields[0], re.ASCII):
            raise PoolError(f"squeue answered {short(line)} instead of a line of jobs")
        job_id, state, end, reason, job_name = fields
        if name.fullmatch(job_name):
            yield Seen(
                pilot_id=job_name,
                external_id=job_id,
                state=_state(state),
                reason=state if reason in _SAYS_NOTHING else f"{state}, {reason}",
                ends_at=_time(end) if state == "RUNNING" else None,
                revoked=state in _REVOKED,
            )


def _state(word: str) -> PilotState:
    for words, state in (
        (_PENDING, PilotState.PENDING),
        (_RUNNING, PilotState.RUNNING),
        (_REVOKED + _FAILED, PilotState.ENDED),
    ):
        if word in words:
            return state
    raise PoolError(f"squeue says that a job's state is {short(word)}, which is none that is known here")


def _time(text: str) -> datetime | None:
    """None: it has no end."""
    try:
        return datetime.fromtimestamp(int(text), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _clock(seconds: int) -> str:
    """As --time takes it; Slurm rounds it up to minutes."""
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
