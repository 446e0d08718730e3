"""Whether a model's files hold the weights that its config asks for, by transformers' own way of loading.

Left alone it fills in what is missing with random numbers and a line in the log.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from trainer.failures import TrainingError, is_out_of_memory


def check_weights(folder: Path) -> None:
    """Read headers alone: no weight is loaded.

    Raises TrainingError: model_mismatch where weights are missing or have other shapes, unknown_model where
    the model can't be built at all.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # Whatever other people's code raises over this config says something of this config.
        raise TrainingError(
            "unknown_model",
            f"the model in {folder} can't be built: {type(error).__name__}: {error}"[:1000],
            path="model",
            remedy="it must be a causal language model that transformers knows, with safetensors weights",
        ) from error
    if why := _objection(loaded[1]):
        raise TrainingError(
            "model_mismatch",
            f"the weights in {folder} are not those of its config.json: {why}",
            path="model",
            remedy="put config.json and *.safetensors of one and the same model there, or download it again",
        )


def _objection(found: dict[str, Any]) -> str | None:
    if wrong := sorted((name, tuple(there), tuple(due)) for name, there, due in found["mismatched_keys"]):
        name, there, due = wrong[0]
        more = f" ({len(wrong)} such weights)" if len(wrong) > 1 else ""
        return f"{name} has shape {list(there)} instead of {list(due)}{more}"
    if missing := found["missing_keys"]:
        others = found["unexpected_keys"]
        return f"{_some(missing)} missing" + (f", {_some(others)} of no use" if others else "")
    return None


def _some(names: Collection[str]) -> str:
    """The first name, and how many there are."""
    rest = len(names) - 1
    return f"{min(names)} and {rest} more are" if rest else f"{min(names)} is"
