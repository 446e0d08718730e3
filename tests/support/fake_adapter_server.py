"""Stands in for a VllmServer where adapters are concerned: knows which ones it would have loaded."""

from pathlib import Path

from rollout.engine import EngineError
from rollout.vllm.command import VllmOptions


class FakeAdapterServer:
    """Refuses what the next of `failures` says; `loaded` maps names to folders, of this start."""

    def __init__(self, folder: Path, max_lora_rank: int = 8) -> None:
        self.options = VllmOptions(folder, "float32", max_lora_rank=max_lora_rank)
        self.folder = folder
        self.phase = "ready"
        self.starts = 1
        self.loaded: dict[str, Path] = {}
        self.failures: list[EngineError] = []
        self.killed: list[str] = []

    def wait_ready(self) -> None:
        pass

    def check_ready(self) -> None:
        if self.phase != "ready":
            raise EngineError(503, "engine_starting", "vLLM is being started")

    def text(self, step: str, path: str) -> str:
        return ""

    def call(
        self, step: str, path: str, *, body: dict[str, str] | None = None, method: str = "POST"
    ) -> object:
        if path == "/v1/models":
            return {"data": [{"max_model_len": 64}]}
        if self.failures:
            raise self.failures.pop(0)
        assert body is not None
        name = body["lora_name"]
        if path == "/v1/load_lora_adapter":
            assert name not in self.loaded
            self.loaded[name] = Path(body["lora_path"])
            assert (self.loaded[name] / "adapter_config.json").is_file()
        else:
            del self.loaded[name]
        return None

    def kill(self, reason: str) -> None:
        self.killed.append(reason)

    def restart(self) -> None:
        self.loaded.clear()
        self.starts += 1

    @property
    def versions(self) -> set[str]:
        """job.attempt.version of what is loaded."""
        return {name.rpartition(".")[0] for name in self.loaded}
