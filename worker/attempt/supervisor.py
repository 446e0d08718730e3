"""Owns one attempt on its node: `python -m worker.attempt.supervisor --attempt-dir D`.

    preparing the model -> engine and trainer run -> all processes gone -> records sent -> `finish` posted

It leaves that road at three forks. *Ordered* (cancel, node stopping): the processes are asked to end, then
made to, and the end is told. When the allocation that the node runs in is being ended (SIGTERM in a pilot),
the trainer first has the time that is left to save. *Abandoned* (fenced, lifeline cut, server away
for too long): everything is killed at once and nobody is told, because the attempt may be somebody else's by
now. Only if it has ended on another node, this one still says that nothing of it is left here. *Failed*: a
process died or a record was refused; `outcome.finish` says what that means.

A job of several ranks has a trainer for each, and all of them end when one does not end well. On each of its
nodes a supervisor waits until all nodes are ready to start their ranks; the first node's has the socket where
these meet (rendezvous.py).

The engines and the trainers die with the supervisor (tether.py); it adopts whatever they leave behind. An
attempt that has a slot of an engine service starts no engine: it tells the trainer where that serves.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from socket import socket

from pydantic import TypeAdapter

from powermean.children import TICK_S, last_words, start, wait
from powermean.contracts.attempts import Claim, EngineStart
from powermean.contracts.phases import SENDING_RECORDS, STARTING_ENGINE, STARTING_TRAINER
from powermean.contracts.secrets import SecretValues
from powermean.disk import first_full
from powermean.memory import kills
from powermean.node_client import AttemptClient
from powermean.processes import Lifeline, ProcessId, descendants, end_all, reap
from powermean.tether import adopt_orphans
from worker.attempt.blame import own_cause, to_blame
from worker.attempt.engines import Engines
from worker.attempt.heartbeat import Heartbeat
from worker.attempt.limits import AbandonedError, Limits, StopError
from worker.attempt.orders import Orders
from worker.attempt.outcome import Ended, ended_elsewhere
from worker.attempt.piped_log import PipedLog
from worker.attempt.progress import Progress
from worker.attempt.ranks import STORE_FD, VARIABLES, Ranks, places
from worker.attempt.rendezvous import LOOPBACK, Rendezvous, RendezvousError
from worker.attempt.shipper import Shipper
from worker.attempt.supervisor_log import say
from worker.attempt.telling import close_log, tell, tell_gone
from worker.attempt_dir import AttemptDir, prune
from worker.launcher import Command, Launcher, LocalLauncher
from worker.redaction import with_secrets
from worker.settings import NodeSettings


class Supervisor:
    """Runs one attempt from its claim to the acknowledged end."""

    def __init__(
        self,
        attempt: AttemptDir,
        claim: Claim,
        launcher: Launcher,
        client: AttemptClient,
        limits: Limits,
        lifeline: Lifeline | None,
        address: str = LOOPBACK,
        port: int = 0,
    ) -> None:
        """`address` and `port` are those at which the job's other nodes reach this one."""
        self._attempt = attempt
        self._claim = claim
        self._launcher = launcher
        self._client = client
        self._limits = limits
        self._resources = claim.spec.resources
        self._alone = self._resources.ranks == 1
        self._first_rank = claim.node_rank * self._resources.ranks_per_node
        self._heartbeat = Heartbeat(client, attempt, claim)
        self._rendezvous = Rendezvous(claim, self._heartbeat, address, port, limits.meet_s)
        self._shipper = Shipper(client, attempt, claim.node_rank)
        self._logs: list[PipedLog] = []
        self._engines: Engines | None = None
        self._ranks: Ranks | None = None
        self._frozen: int | None = None  # a rank
        self._kills = kills()
        self._progress = Progress(attempt)
        self._orders = Orders(claim, self._heartbeat, self._progress, limits, lifeline)

    def run(self) -> bool:
        """True when the end was told to the server."""
        self._orders.heed_signals()
        self._heartbeat.start()
        self._shipper.start()
        try:
            ended = self._processes()
            self._heartbeat.phase = SENDING_RECORDS
            return self._tell(ended)
        except AbandonedError as why:
            say(f"abandoned: {why}")
            failed = self._ranks.failed if self._ranks else {}
            end_all(self._descendants, grace_s=0)
            if self._resources.nodes > 1 and self._heartbeat.refused:
                self._tell_gone(failed)
            return False
        finally:
            self._heartbeat.halt()
            self._shipper.halt()

    def _processes(self) -> Ended:
        """Run the attempt's programs. When this returns, all of them are gone."""
        ended = Ended(follows=self._claim.node_rank > 0)
        try:
            ended = replace(ended, model_code=self._run())
        except StopError as why:
            ended = replace(ended, stop=why.why)
        except RendezvousError as error:
            ended = replace(ended, unmet=error.end)
        except OSError as error:  # a full disk, no more processes: the attempt ends in order all the same
            say(f"the supervisor can't go on: {error}")
            ended = replace(ended, broken=error)
        return self._end(ended)

    def _run(self) -> int | None:
        """Until the programs have no more to do; the exit status of preparing the model if that failed."""
        with self._rendezvous.listening() as listener:
            code, model = self._prepare()
            if model is None:
                return code
            self._engines = self._own_engines(model)
            self._ranks = self._start_ranks(model, listener)
        self._orders.training = True
        self._watch(self._engines, self._ranks)
        return None

    def _end(self, ended: Ended) -> Ended:
        """End what still runs, and look at what is left of it."""
        engines, ranks = self._engines, self._ranks
        engine_code = engines.poll() if engines else None  # that they ended unasked is a failure
        failed = to_blame(self._attempt, ranks.failed) if ranks else None
        blamed = failed if self._frozen is None else self._frozen
        in_order = self._alone or blamed is None
        ask = signal.SIGTERM if self._limits.pilot is None else signal.SIGINT  # shielded: tether.py
        if ranks and not in_order:  # those that wait for the failed one may not hear; engines do, and tidy up
            end_all(lambda: ranks.running, self._limits.ranks_grace_s, deadline_s=0.1, ask=ask)
        grace_s = self._limits.grace_s if self._orders.taken is None else self._limits.ranks_grace_s
        end_all(self._descendants, grace_s, ask=ask)
        if engines:
            engines.wait()
        if ranks:
            ranks.wait()
        reap()
        for log in self._logs:
            log.finish()
        return replace(
            ended,
            engine_code=engine_code,
            engine_start=engines.failed_start() if engines else None,
            trainer_code=ranks.codes()[self._first_rank if failed is None else failed] if ranks else None,
            rank=None if self._alone else blamed,
            rank_record=self._attempt.rank_end(failed) if failed else None,
            out_of_memory=self._kills is not None and (kills() or 0) > self._kills,
            full_disk=first_full([self._attempt.path]),
            last_words=last_words(self._attempt.log),
            taken=self._orders.taken,
        )

    def _start_ranks(self, model: Path, listener: socket | None) -> Ranks:
        """Start this node's ranks, as soon as all nodes are ready; rank 0 gets the socket where they meet."""
        command = self._launcher.trainer(self._attempt, self._claim, model)
        inherited = {name: text for name, text in command.environment.items() if name not in VARIABLES}
        command = replace(command, environment=inherited)  # the worker's may be another launcher's
        if self._alone:
            return Ranks(0, [self._start(command)])
        meeting = self._rendezvous.meet(listener, self._tick_beside_engines)
        processes = []
        for place in places(self._claim):
            variables = command.environment | place.environment(meeting)
            passed = [listener.fileno()] if listener and place.rank == 0 else []
            if passed:
                variables[STORE_FD] = str(passed[0])
            prefix = f"[rank {place.rank}] " if place.rank else ""
            processes.append(self._start(replace(command, environment=variables), None, prefix, passed))
        return Ranks(self._first_rank, processes)

    def _own_engines(self, model: Path) -> Engines | None:
        """Start the attempt's engines; None where it samples from an engine service."""
        if self._claim.engine is not None:
            self._heartbeat.phase = STARTING_TRAINER
            self._attempt.write_engine_start(EngineStart(url=self._claim.engine.url))
            return None
        self._heartbeat.phase = STARTING_ENGINE

        def start_one(replica: int, port: int) -> subprocess.Popen[bytes]:
            return self._start(self._launcher.engine(self._attempt, self._claim, model, replica, port))

        return Engines(self._attempt, self._claim, start_one)

    def _prepare(self) -> tuple[int | None, Path | None]:
        """The model's folder, or the exit status of the program that should have made it ready."""
        command = self._launcher.prepare(self._attempt, self._claim)
        answer = self._attempt.path / "model"

        def rest() -> None:
            self._rendezvous.look()
            self._tick()

        code = wait(self._start(command, answer), self._limits.prepare_s, rest)
        if code is None:
            raise StopError("stalled")
        folder = answer.read_text().strip().rpartition("\n")[2]
        return (None, Path(folder)) if code == 0 and folder else (code, None)

    def _watch(self, engines: Engines | None, ranks: Ranks) -> None:
        """Until rank 0 has ended, a rank or the own engines are lost, or a record was refused."""

        def lost() -> bool:
            return engines is not None and engines.poll() is not None

        def look() -> None:
            self._tick()
            if not self._alone and (frozen := ranks.frozen(self._limits.frozen_s)) is not None:
                self._frozen = frozen
                raise StopError("frozen")

        while not ranks.over and not lost() and self._shipper.refused is None:
            look()
            # of the other nodes' ranks nothing is heard while it goes well
            if self._claim.node_rank == 0 and self._progress.stalled_s() > self._limits.stall_s:
                raise StopError("stalled")
        if lost():
            self._await(lambda: ranks.over, look)  # what it says of the loss is worth having
        elif self._shipper.refused is None:
            self._await(lambda: ranks.all_ended or ranks.failed, look)  # rank 0 has sent the others home

    def _await(self, true: Callable[[], object], rest: Callable[[], None]) -> None:
        deadline = time.monotonic() + self._limits.grace_s
        while not true() and time.monotonic() < deadline:
            rest()

    def _tick(self) -> None:
        self._orders.check()
        time.sleep(TICK_S)

    def _tick_beside_engines(self) -> None:
        self._tick()
        if self._engines and self._engines.poll() is not None:  # its exit status says more
            raise RendezvousError("The node's rollout engine has ended", code="engine_died")

    def _start(
        self, command: Command, answer: Path | None = None, prefix: str = "", passed: Sequence[int] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a program; `prefix` begins each line that it logs."""
        if not command.secrets and not prefix:
            return start(
                command.argv,
                command.environment,
                self._attempt.log,
                answer,
                passed=passed,
                shielded=command.shielded,
            )
        log = PipedLog(self._attempt.log, command.secrets, prefix)
        self._logs.append(log)
        with log.writing() as end:
            environment = with_secrets(command.environment, command.secrets)
            return start(command.argv, environment, end, answer, passed=passed, shielded=command.shielded)

    def _descendants(self) -> set[int]:
        return descendants(os.getpid())

    def _tell(self, ended: Ended) -> bool:
        """Raises AbandonedError when that can't be done."""
        hurries = ended.stop == "node_stopping" or ended.taken
        deadline = time.monotonic() + (self._limits.stopping_s if hurries else self._limits.partition_s)
        node_rank = self._claim.node_rank
        tell(self._client, self._shipper, ended, node_rank, lambda: self._pause(deadline))
        self._heartbeat.halt()
        return True

    def _tell_gone(self, failed: Mapping[int, int]) -> None:
        """The attempt has ended on another node; what it held here is free.

        The cause may be here all the same, and others were quicker to say that they lost its ranks. `failed`:
        exit statuses of ranks.
        """
        self._shipper.halt()
        ranks = self._ranks.numbers if self._ranks else ()
        start = self._engines.failed_start() if self._engines else None
        end = own_cause(self._attempt, ranks, failed, start) or ended_elsewhere()
        close_log(self._shipper, end)
        tell_gone(self._client, end.model_copy(update={"node_rank": self._claim.node_rank}))

    def _pause(self, deadline: float) -> None:
        self._orders.check_ours()
        if time.monotonic() > deadline:
            raise AbandonedError("the server could not be reached")
        time.sleep(TICK_S)


def read_secrets() -> SecretValues:
    """The job's secrets, which the worker hands on in memory, as standard input."""
    given = sys.stdin.buffer.read()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    return TypeAdapter(SecretValues).validate_json(given or b"{}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Supervise one attempt at a job.")
    parser.add_argument("--attempt-dir", type=Path, required=True)
    attempt = AttemptDir(parser.parse_args().attempt_dir.resolve())
    settings = NodeSettings.read()
    secrets = read_secrets()
    adopt_orphans()
    try:
        attempt.write_supervisor(ProcessId.own())
    except OSError as error:  # the worker has written it, too
        say(f"not written: {error}")
    claim = attempt.claim()
    lifeline = Lifeline(settings.lifeline_pid) if settings.lifeline_pid else None
    with AttemptClient(settings.server_url, attempt.attempt_id, attempt.token()) as client:
        supervisor = Supervisor(
            attempt,
            claim,
            LocalLauncher(settings, secrets),
            client,
            Limits(
                settings.partition_grace_s,
                order_s=settings.stop_grace_s,
                pilot=settings.pilot,
                taken_s=settings.taken_s,
            ),
            lifeline,
            settings.node_address,
            settings.rank_port,
        )
        told = supervisor.run()
    attempt.close()
    prune(settings.data_dir)
    sys.exit(0 if told else 1)


if __name__ == "__main__":
    main()
