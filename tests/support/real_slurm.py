"""A real Slurm on loopback, in a folder of its own: munged, slurmctld and one slurmd with two pretended GPUs.

It runs as root, since slurmd wants to. Its commands find it by SLURM_CONF. No process of it outlives `stop`.
"""

import os
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from powermean.cli.embedded import free_port
from powermean.processes import descendants, end_all, marked
from tests.support.embedded_service import until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
START_S = 30.0
CPUS = 4
KILL_WAIT_S = 20
CONF = """\
ClusterName=try
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2
KillWait={kill_wait_s}
ReturnToService=2
MpiDefault=none
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:2 State=UNKNOWN
PartitionName=gpu Nodes={host} Default=YES MaxTime=INFINITE OverSubscribe=FORCE:4 State=UP
"""


def missing() -> str | None:
    """Why no Slurm can run here; None: it can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurmctld slurmd slurm-client munge"
    return None if os.geteuid() == 0 else "slurmd needs root"


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@dataclass
class Slurm:
    """munged, slurmctld and slurmd as child processes."""

    folder: Path
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """For whoever runs its commands."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _path()}

    def start(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        self.folder.chmod(0o755)  # munged wants the way to its socket to be open
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        conf = CONF.format(
            host=socket.gethostname().partition(".")[0],
            folder=self.folder,
            ctld_port=free_port(),
            d_port=free_port(),
            cpus=os.cpu_count(),
            kill_wait_s=KILL_WAIT_S,
        )
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")
        files = [f"--{name}={self.folder}/munge.{name.split('-')[0]}" for name in ("socket", "key-file")]
        files += [f"--{name}={self.folder}/munge.{name}" for name in ("pid-file", "log-file", "seed-file")]
        self._run("munged", "--foreground", "--force", *files)
        until((self.folder / "munge.socket").exists, START_S, f"munged is up; see {self.folder}")
        self.start_controller()
        self._run("slurmd", "-D")
        until(self._idle, START_S, f"the node is idle; see {self.folder}")

    def start_controller(self) -> None:
        self._run("slurmctld", "-D")
        until(self.answers, START_S, f"slurmctld answers; see {self.folder}")

    def stop_controller(self) -> None:
        self._end("slurmctld")

    def answers(self) -> bool:
        return self._call("scontrol", "ping").returncode == 0

    def command(self, *argv: str) -> str:
        done = self._call(*argv)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def jobs(self) -> list[str]:
        """Those that wait or run."""
        return self.command("squeue", "-h", "-o", "%A").split()

    def stop(self) -> None:
        """Cancel what is left, and end its processes."""
        if "slurmctld" in self._running:
            if left := self.jobs():
                self.command("scancel", *left)
            until(lambda: not self.jobs(), START_S, f"no job is left; see {self.folder}")
        for name in list(self._running):
            self._end(name)
        end_all(lambda: marked("SLURM_CONF", self.environment["SLURM_CONF"]) - {os.getpid()}, grace_s=5)

    def _run(self, *argv: str) -> None:
        with (self.folder / f"{argv[0]}.out").open("ab") as out:
            self._running[argv[0]] = subprocess.Popen(
                argv, env=os.environ | self.environment, stdout=out, stderr=out, start_new_session=True
            )

    def _end(self, name: str) -> None:
        process = self._running.pop(name)
        below = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        end_all(lambda: below & descendants(process.pid), grace_s=0)

    def _idle(self) -> bool:
        return self._call("sinfo", "-h", "-o", "%t").stdout.strip() == "idle"

    def _call(self, *argv: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | self.environment
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
