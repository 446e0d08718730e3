"""Which engine serves a model here, judging by the model's folder and by what is installed.

Imports neither PyTorch nor vLLM, so a job can be checked before it is queued. The rollout service uses the
same functions to choose.
"""

import ast
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

EngineName = Literal["transformers", "vllm"]

# get_supported_head_sizes in vllm/v1/attention/backends/cpu_attn.py of 0.32.0
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
GPU_MEMORY_SHARE = 0.4  # of a GPU's memory for vLLM's weights and cache: the trainer needs the rest
CPU_CACHE_GIB = 1  # of vLLM's key/value cache on a CPU
# Tokens in a cache block. Completions share whole blocks of a common prefix; with vLLM's default of 128,
# prompts of one or two hundred tokens share less than half.
CPU_CACHE_BLOCK = 32
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # MaxLoRARanks in vllm/config/lora.py of 0.32.0

_CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
_MODELS = "vllm.model_executor.models"
_REGISTRY = f"{_MODELS}.registry"
_REGISTRY_TABLE = "_TEXT_GENERATION_MODELS"
_LORA = "SupportsLoRA"


@dataclass(frozen=True)
class Objection:
    """Why vLLM can't serve a model here."""

    code: Literal["vllm_missing", "vllm_model"]
    message: str
    remedy: str


def choose(wanted: Literal["auto", "transformers", "vllm"], folder: Path, *, on_gpu: bool) -> EngineName:
    """The engine that was asked for; for `auto`, vLLM unless there is an objection."""
    if wanted != "auto":
        return wanted
    return "vllm" if vllm_objection(folder, on_gpu=on_gpu) is None else "transformers"


def vllm_objection(folder: Path, *, on_gpu: bool) -> Objection | None:
    """Why vLLM can't serve the model in `folder` on this machine; None if it should be able to."""
    if not vllm_installed():
        return Objection(
            "vllm_missing",
            "the vLLM engine is not installed on this node",
            "install it (`make demo ENGINE=vllm`, or see docs/vllm.md), or set rollout.engine to auto",
        )
    remedy = "set rollout.engine to auto or transformers"
    config = text_config(folder)
    served = served_architectures()
    named = [str(one) for one in config.get("architectures") or ()]
    if served is not None and not served.intersection(named):
        what = ", ".join(named) or "a model whose config.json names no architecture"
        return Objection("vllm_model", f"vLLM does not serve {what}", remedy)
    size = _head_size(config)
    if not on_gpu and size is not None and size not in CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, CPU_HEAD_SIZES))
        message = f"the model's attention heads have size {size}; on a CPU vLLM supports {sizes}"
        return Objection("vllm_model", message, remedy)
    return None


def undivided_heads(config: Mapping[str, Any], gpus: int) -> str | None:
    """Why vLLM can't split the model's layers over so many GPUs: each must get as many attention heads.

    Key/value heads are divided, too, or each is repeated on as many GPUs. None where the config does not say.
    """
    heads = config.get("num_attention_heads")
    shared = config.get("num_key_value_heads") or heads
    if not isinstance(heads, int) or not isinstance(shared, int):
        return None
    if heads % gpus:
        return f"the model has {heads} attention heads, which {gpus} GPUs can't share equally"
    if shared % gpus and gpus % shared:
        return f"the model has {shared} key/value heads, which {gpus} GPUs can't share equally"
    return None


def vllm_installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def cpu_cache_tokens(folder: Path, bytes_per_number: int) -> int | None:
    """Longest sequence, in tokens, that fits vLLM's cache on a CPU; None if the config doesn't say."""
    config = text_config(folder)
    size, layers = _head_size(config), config.get("num_hidden_layers")
    heads = config.get("num_key_value_heads") or config.get("num_attention_heads")
    if size is None or not isinstance(layers, int) or not isinstance(heads, int):
        return None
    tokens = (CPU_CACHE_GIB << 30) // (2 * layers * heads * size * bytes_per_number)
    return tokens // CPU_CACHE_BLOCK * CPU_CACHE_BLOCK


def context_length(config: Mapping[str, Any]) -> int | None:
    """The most tokens that prompt and completion may have together; None where the config doesn't say."""
    return next((int(config[name]) for name in _CONTEXT_FIELDS if isinstance(config.get(name), int)), None)


def same_positions_up_to(config: Mapping[str, Any]) -> int | None:
    """Tokens up to which a model with LongRoPE or dynamic NTK encodes positions alike; None: always.

    Beyond that, transformers encodes all positions of a call otherwise, those of its short rows too.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type")
    if kind not in ("longrope", "dynamic"):
        return None
    limit = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    return int(limit) if limit else context_length(config)


def lora_capacity(rank: int) -> int | None:
    """The smallest `--max-lora-rank` with which vLLM accepts adapters of this rank; None if there is none."""
    return next((capacity for capacity in LORA_RANKS if capacity >= rank), None)


def takes_adapters(folder: Path) -> bool:
    """Whether vLLM's class for the model supports LoRA adapters; also True if its source doesn't say."""
    registered = _registered() or {}
    found = [
        registered[name] for name in text_config(folder).get("architectures") or () if name in registered
    ]
    return all(_is_adaptable(f"{_MODELS}.{module}", name) is not False for module, name in found)


def served_architectures() -> frozenset[str] | None:
    """Architectures of text models on the installed vLLM's list; None if the list can't be read."""
    registered = _registered()
    return None if registered is None else frozenset(registered)


def _registered() -> dict[str, tuple[str, str]] | None:
    """vLLM's list: module and class by architecture. Read from its source, as an import takes 10 s."""
    return _registered_at(_source(_REGISTRY)) if vllm_installed() else None


@cache
def _registered_at(source: Path) -> dict[str, tuple[str, str]] | None:
    try:
        for node in ast.parse(source.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == _REGISTRY_TABLE:
                return dict(ast.literal_eval(node.value))
    except (OSError, ValueError, SyntaxError):
        pass
    return None


@cache
def _is_adaptable(module: str, name: str) -> bool | None:
    """Whether a class or one of its bases declares SupportsLoRA; None if the class isn't found."""
    try:
        tree = ast.parse(_source(module).read_text())
    except (OSError, SyntaxError):
        return None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        return None
    bases = [ast.unparse(base).partition("[")[0] for base in classes[name].bases]
    if _LORA in bases:
        return True
    imported = {
        alias.asname or alias.name: (
            f"{_MODELS}.{node.module}" if node.level else str(node.module),
            alias.name,
        )
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return any(_is_adaptable(*imported.get(base, (module, base))) for base in bases)


def _source(module: str) -> Path:
    """The source file of a module of the installed vLLM, by dotted name."""
    package = importlib.util.find_spec("vllm")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent.parent / f"{module.replace('.', '/')}.py"


def text_config(folder: Path) -> dict[str, Any]:
    """The text model's part of config.json, with the whole model's architectures; {} if it can't be read."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}  # the engine reports the problem when it loads the model
    return {**config, **(config.get("text_config") or {}), "architectures": config.get("architectures")}


def _head_size(config: dict[str, Any]) -> int | None:
    if isinstance(config.get("head_dim"), int):
        return int(config["head_dim"])
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) else None
