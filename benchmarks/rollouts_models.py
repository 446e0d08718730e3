"""The models that benchmarks/rollouts.py measures on, SmolLM2 and a tiny one, and the jobs that train it."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from powermean.contracts.job import JobSpec
from trainer.models.resolve import resolve_model

JOB = Path(__file__).resolve().parent.parent / "examples" / "arithmetic-smollm2.yaml"
MODELS = ("smollm2", "tiny")
_CHARACTERS = ("<pad>", "<end>", "\n", " ", "+", "-", "*", "=", *"0123456789", "?")


@dataclass(frozen=True)
class Models:
    """Folders, made on first use: SmolLM2 under `data_dir`, all others in `scratch`."""

    data_dir: Path
    scratch: Path

    def folder(self, name: str) -> Path:
        """`smollm2`, or `tiny`: two untrained layers of width 64 over 19 characters."""
        if name == "smollm2":
            return resolve_model(main_job().model, self.data_dir, ())
        folder = self.scratch / name
        if not folder.is_dir():
            torch.manual_seed(0)
            LlamaForCausalLM(_tiny_config()).save_pretrained(folder)
            _tokenizer().save_pretrained(folder)
        return folder

    def without_end(self, name: str) -> Path:
        """The same model, with no token that ends a completion: all have the length that is asked for."""
        source, folder = self.folder(name), self.scratch / f"{name}-without-end"
        if not folder.is_dir():
            folder.mkdir()
            for path in source.iterdir():
                target = folder / path.name
                if path.name in ("config.json", "generation_config.json", "tokenizer_config.json"):
                    without = {"eos_token_id": None, "eos_token": None}
                    target.write_text(json.dumps(json.loads(path.read_text()) | without))
                else:
                    target.symlink_to(path.resolve())
        return folder


def main_job() -> JobSpec:
    """The job that `make demo` runs."""
    return JobSpec.model_validate(yaml.safe_load(JOB.read_text()))


def job(name: str, **rollout: object) -> JobSpec:
    """The main job with other rollout settings; on `tiny` with sums that chance solves now and then."""
    spec = main_job().model_dump(mode="json")
    spec["rollout"] |= rollout
    if name == "tiny":
        spec["model"] = {"folder": name}
        spec["data"] = {"kind": "arithmetic", "tasks": [{"operator": "+", "low": 0, "high": 4}]}
        spec["reward"] = {"kind": "exact_match", "extract": "pattern", "pattern": "[0-9]"}
    return JobSpec.model_validate(spec)


def _tiny_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(_CHARACTERS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # of size 32: on a CPU vLLM takes none that are smaller
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    plain = Tokenizer(models.WordLevel({token: i for i, token in enumerate(_CHARACTERS)}, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    plain.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<end>", unk_token="?"
    )
