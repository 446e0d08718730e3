"""Slurm's commands: what is asked, what is secret, and answers that are none."""

import errno
import json
import os
import signal
import stat
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from powermean.contracts.pools import Shape
from server.pools.backend import PilotOrder, PilotState, PoolError, Seen
from server.pools.slurm import SlurmBackend, SlurmSection, script
from tests.support.embedded_service import until

PROGRAM = """\
#!/bin/sh
# Stands in front of Slurm's commands: writes down how it was called, and says what it was told to.
printf '%s\\n' "$@" > "$(dirname "$0")/argv"
cat > "$(dirname "$0")/stdin"
cat "$(dirname "$0")/says" >&1
cat "$(dirname "$0")/complains" >&2
echo $$ > "$(dirname "$0")/pid"
sleep "$(cat "$(dirname "$0")/seconds")"
exit "$(cat "$(dirname "$0")/status")"
"""
ORDER = PilotOrder(
    pilot_id="gpu-0a1b2c3d",
    node_id="gpu-0a1b2c3d",
    environment={"POWERMEAN_NODE_ID": "gpu-0a1b2c3d", "HF_HOME": "/data/it's here"},
    secrets={"POWERMEAN_NODE_TOKEN": "pmn_secret"},
    shape=Shape(gpus=2),
    time_limit_s=3661,
)


class Front:
    """The program, and what it is to say."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.program = folder, folder / "front"
        self.program.write_text(PROGRAM)
        self.program.chmod(self.program.stat().st_mode | stat.S_IXUSR)
        self.says("")

    def says(self, text: str, complains: str = "", seconds: float = 0, status: int = 0) -> None:
        (self.folder / "says").write_text(text)
        (self.folder / "complains").write_text(complains)
        (self.folder / "seconds").write_text(str(seconds))
        (self.folder / "status").write_text(str(status))

    @property
    def argv(self) -> list[str]:
        return (self.folder / "argv").read_text().splitlines()

    def backend(self, **changes: object) -> SlurmBackend:
        section = {"command": [str(self.program)], "options": ["--partition=gpu"], "timeout_s": 5}
        return SlurmBackend("gpu", SlurmSection.model_validate(section | changes))


@pytest.fixture
def front(tmp_path: Path) -> Front:
    return Front(tmp_path)


def test_what_squeue_says_of_each_pilot(front: Front):
    front.says(
        "1|PENDING|N/A|Priority|gpu-00000001\n"
        "2|RUNNING|1795770729|None|gpu-00000002\n"
        "3|CANCELLED|1795770670|None|gpu-00000003\n"
        "4|NODE_FAIL|1795770670|NodeDown|gpu-00000004\n"
        "5|COMPLETING|1795770670|None|gpu-00000005\n"
        "6|RUNNING|1795770729|None|somebody's | own job\n"
        "7|RUNNING|1795770729|None|gpu-big-00000007\n"
    )
    found = front.backend().list()
    assert [(one.external_id, one.state, one.reason, one.revoked) for one in found] == [
        ("1", PilotState.PENDING, "PENDING, Priority", False),
        ("2", PilotState.RUNNING, "RUNNING", False),
        ("3", PilotState.ENDED, "CANCELLED", True),
        ("4", PilotState.ENDED, "NODE_FAIL, NodeDown", False),
        ("5", PilotState.RUNNING, "COMPLETING", False),
    ]
    assert [one.ends_at for one in found[:3]] == [None, datetime.fromtimestamp(1795770729, UTC), None]


@pytest.mark.parametrize(
    ("sacct", "id_", "cancelled"),
    [
        ("3|CANCELLED by 1000|", "ada", "by ada (user 1000)"),
        ("3|CANCELLED by 1000|node is to be replaced", "ada", "by ada (user 1000): node is to be replaced"),
        ("3|CANCELLED by 1000|", "id: '1000': no such user", "by user 1000"),
        ("3|CANCELLED|", "ada", "Slurm does not say by whom"),
        ("Slurm accounting storage is disabled", "ada", "Slurm does not say by whom"),
        ("", "ada", "Slurm does not say by whom"),
    ],
)
def test_who_ended_a_pilot_is_told_as_far_as_slurm_knows(front: Front, sacct: str, id_: str, cancelled: str):
    front.program.write_text(f'#!/bin/sh\n[ "$1" = id ] && echo "{id_}" || echo "{sacct}"\n')
    ended = [
        Seen(f"gpu-{place}", str(place), PilotState.ENDED, reason, revoked=True)
        for place, reason in ((3, "CANCELLED"), (4, "TIMEOUT, TimeLimit"), (5, "PREEMPTED"))
    ]
    told = {"gpu-3": cancelled, "gpu-4": "it reached its time limit", "gpu-5": "another job took its place"}
    assert front.backend().why(ended) == told


@pytest.mark.parametrize(
    ("hangs", "told"), [("sacct", "Slurm does not say by whom"), ("id", "by user 1000: new disk")]
)
def test_who_ended_a_pilot_is_not_asked_for_as_long_as_other_things(
    front: Front, monkeypatch: pytest.MonkeyPatch, hangs: str, told: str
):
    monkeypatch.setattr("server.pools.slurm.WHY_S", 0.3)
    front.program.write_text(
        f'#!/bin/sh\n[ "$1" != {hangs} ] || sleep 30\n'
        "echo '3|CANCELLED by 1000|new disk'; echo '4|CANCELLED by 1001|'\n"
    )
    ended = [Seen(f"gpu-{job}", f"{job}", PilotState.ENDED, "CANCELLED", revoked=True) for job in (3, 4)]
    began = time.monotonic()
    assert front.backend(timeout_s=20).why(ended)["gpu-3"] == told
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (
            "slurm is down for maintenance\n",
            "squeue answered slurm is down for maintenance instead of a line",
        ),
        ("1|RUNNING|0|None\n", "instead of a line of jobs"),
        ("x|RUNNING|0|None|gpu-00000001\n", "instead of a line of jobs"),
        ("1|MERRY|0|None|gpu-00000001\n", "a job's state is MERRY, which is none that is known"),
        ("²|RUNNING|0|None|gpu-00000001\n", "instead of a line of jobs"),
        ("1" * 200 + "|RUNNING|0|None|gpu-00000001\n", "instead of a line of jobs"),
        ("1\0|RUNNING|0|None|gpu-00000001\n", "squeue answered 1\ufffd"),
    ],
)
def test_nonsense_is_an_error_and_no_answer(front: Front, said: str, error: str):
    front.says(said)
    with pytest.raises(PoolError, match=error):
        front.backend().list()


@pytest.mark.parametrize(
    ("complains", "status", "told"),
    [
        (
            "squeue: error: Unable to contact slurm controller (x)",
            1,
            "Unable to contact slurm controller (x)",
        ),
        ("", 3, "failed with exit status 3, no output"),
    ],
)
def test_a_failure_is_told_in_slurm_s_words(front: Front, complains: str, status: int, told: str):
    front.says("", complains, status=status)
    with pytest.raises(PoolError) as failure:
        front.backend().list()
    assert str(failure.value) == f"squeue: {told}"


def test_silence_has_a_deadline_and_leaves_no_process(front: Front):
    front.says("", seconds=30)
    with pytest.raises(PoolError, match=r"squeue did not answer within 1\.5 s"):
        front.backend(timeout_s=1.5).list()
    with suppress(ProcessLookupError):
        until(lambda: os.killpg(int((front.folder / "pid").read_text()), 0), 10, "its sleep is gone, too")


def test_a_command_that_can_not_be_killed_is_not_waited_for(front: Front, monkeypatch: pytest.MonkeyPatch):
    """As behind sudo."""

    def refuse(*_: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    front.says("", seconds=30)
    with monkeypatch.context() as patched:
        patched.setattr("os.killpg", refuse)
        patched.setattr("server.pools.commands.DYING_S", 0.1)
        with pytest.raises(PoolError, match=r"squeue did not answer within 0\.2 s") as failure:
            front.backend(timeout_s=0.2).list()
    process = failure.traceback[-1].locals["process"]
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL


def test_an_answer_has_a_size(front: Front, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("server.pools.commands.MOST_BYTES", 1 << 20)
    front.says("x" * (2 << 20), seconds=30)
    with pytest.raises(PoolError, match="squeue printed more than 1 MiB"):
        front.backend().list()


def test_a_command_that_is_not_there_is_named():
    with pytest.raises(PoolError, match="nosuchcommand can't be run: No such file"):
        SlurmBackend("gpu", SlurmSection(command=("nosuchcommand",))).list()


def test_an_order_that_slurm_has_is_not_given_again(front: Front):
    front.says(f"17|PENDING|N/A|Resources|{ORDER.pilot_id}\n")
    assert front.backend().submit(ORDER) == "17"
    assert front.argv[2] == "squeue"


def test_sbatch_s_answer_must_be_a_number(front: Front):
    with pytest.raises(PoolError, match="sbatch answered  instead of a job's number"):
        front.backend().submit(ORDER)
    assert front.argv == [
        "sbatch",
        "--parsable",
        "--export=NONE",
        "--no-requeue",
        f"--job-name={ORDER.pilot_id}",
        "--output=powermean-%x-%j.log",
        "--gres=gpu:2",
        "--time=1:01:01",
        "--partition=gpu",
    ]
    assert (front.folder / "stdin").read_text() == script(ORDER, SlurmSection().python)


def test_secrets_are_in_the_script_alone(front: Front):
    assert "pmn_secret" in script(ORDER, "python")
    assert "pmn_secret" not in repr(ORDER)
    with pytest.raises(PoolError):
        front.backend().submit(ORDER)
    assert "pmn_secret" not in json.dumps(front.argv)


def test_the_script_runs_the_worker_tells_it_to_end_and_cleans_up(tmp_path: Path):
    folder = tmp_path / "it's here"
    folder.mkdir()
    worker = tmp_path / "python"
    worker.write_text(
        "#!/bin/sh\ntrap 'echo told >> ../told; sleep 0.2; exit 7' TERM\n"
        'cd "$POWERMEAN_DATA_DIR"\necho "$@" "$POWERMEAN_NODE_TOKEN" > ../up\nwhile :; do sleep 0.05; done\n'
    )
    worker.chmod(0o700)
    order = replace(ORDER, environment={"POWERMEAN_DATA_DIR": str(folder)})
    with subprocess.Popen(["/bin/sh", "-c", script(order, str(worker))], start_new_session=True) as shell:
        try:
            until((tmp_path / "up").exists, 10, "the worker is up")
            shell.terminate()
            assert shell.wait(20) == 7
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    assert (tmp_path / "up").read_text() == "-m worker pmn_secret\n"
    assert (tmp_path / "told").read_text() == "told\n"
    assert not folder.exists()


def test_an_order_to_end_is_not_lost_while_the_worker_starts(tmp_path: Path):
    """The shell doesn't know its worker yet."""
    worker = tmp_path / "python"
    worker.write_text("#!/bin/sh\ntrap 'exit 7' TERM\nkill -TERM $PPID\nwhile :; do sleep 0.01; done\n")
    worker.chmod(0o700)
    text = script(replace(ORDER, environment={"POWERMEAN_DATA_DIR": str(tmp_path / "none")}), str(worker))
    slow = text.replace("-m worker &\n", "-m worker &\nsleep 0.3\n")  # the order comes before it knows
    assert slow != text
    with subprocess.Popen(["/bin/sh", "-c", slow], start_new_session=True) as shell:
        try:
            assert shell.wait(20) == 7
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)


def test_a_shell_behind_ssh_gets_each_word_quoted_wherever_ssh_is(front: Front, tmp_path: Path):
    ssh = tmp_path / "ssh"
    ssh.write_text(PROGRAM)
    ssh.chmod(0o755)
    front.backend(command=[str(ssh), "login1"]).list()
    assert front.argv[0] == "login1"
    assert "'--format=%A|%T|%e|%r|%j'" in front.argv[1]
