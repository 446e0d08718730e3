"""The engine services of a node, kept in line with the server's orders.

Each has a folder under engines/ in the node's data folder, named by its id:

spec.json     what was declared                          keeper -> trainer.models
jobs.json     the jobs that it serves now                keeper -> engine
engine.json   its address, or why it failed              engine -> keeper
port          its port, unchanged by restarts
engine.log    its output; kept after its end
"""

import shutil
import threading
from pathlib import Path

from powermean.contracts.attempts import EngineReport
from powermean.contracts.engines import NodeOrders
from worker.engines.keeper import LOG_NAME, EngineKeeper, Patience
from worker.launcher import EngineLauncher

LOGS_KEPT = 5


class Engines:
    """One keeper per service that should run or still has to end. Thread-safe."""

    def __init__(self, data_dir: Path, launcher: EngineLauncher, patience: Patience | None = None) -> None:
        self._root = data_dir / "engines"
        self._launcher = launcher
        self._patience = patience or Patience()
        self._keepers: dict[str, EngineKeeper] = {}
        self._lock = threading.Lock()

    def reports(self) -> tuple[EngineReport, ...]:
        """The report for the server. A service is included until none of its processes run."""
        with self._lock:
            self._forget_ended()
            return tuple(keeper.report for keeper in self._keepers.values())

    def follow(self, orders: NodeOrders) -> None:
        """Start missing services, end unwanted ones, and tell the others about their jobs."""
        wanted = {order.id: order for order in orders.engines}
        with self._lock:
            self._forget_ended()
            for engine_id, keeper in self._keepers.items():
                order = wanted.pop(engine_id, None)
                if order is None or order.generation != keeper.report.generation:
                    keeper.halt()  # a new generation starts when nothing is left of this one
                else:
                    keeper.follow(order)
            for engine_id, order in wanted.items():
                keeper = EngineKeeper(order, self._root / engine_id, self._launcher, self._patience)
                self._keepers[engine_id] = keeper
                keeper.start()

    def halt(self, timeout_s: float) -> bool:
        """End all services; returns whether they ended in time."""
        with self._lock:
            keepers = list(self._keepers.values())
        for keeper in keepers:
            keeper.halt()
        for keeper in keepers:
            keeper.join(timeout_s)
        return not any(keeper.is_alive() for keeper in keepers)

    def _forget_ended(self) -> None:
        ended = [engine_id for engine_id, keeper in self._keepers.items() if not keeper.is_alive()]
        for engine_id in ended:
            del self._keepers[engine_id]
        if ended and self._root.is_dir():
            self._keep_last_logs()

    def _keep_last_logs(self) -> None:
        """Remove all files of ended services except the newest logs."""
        over = [path for path in self._root.iterdir() if path.name not in self._keepers]
        logs = [path / LOG_NAME for path in over if (path / LOG_NAME).exists()]
        kept = sorted(logs, key=lambda log: log.stat().st_mtime)[-LOGS_KEPT:]
        for path in over:
            if path / LOG_NAME not in kept:
                shutil.rmtree(path, ignore_errors=True)
