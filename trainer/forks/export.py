"""A downloaded checkpoint as a folder that others load: python -m trainer.forks.export FOLDER --to FOLDER

`powermean export` runs it. It reads an ExportTask on standard input. FOLDER holds the checkpoint's files in a
folder named by its job, and what an adapter is over in another one.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from powermean.contracts.forks import ExportTask, Origin
from powermean.errors import PowermeanError
from powermean.home import Home
from trainer.forks.folders import adapter_of, model_with
from trainer.forks.start import model_folder
from trainer.models.resolve import resolve_model


def main() -> int:
    """Convert a checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m trainer.forks.export", description=main.__doc__)
    parser.add_argument("files", type=Path, help="folder of the files, by job")
    parser.add_argument("--to", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        export(ExportTask.model_validate_json(sys.stdin.read()), options.files, options.to)
    except (PowermeanError, OSError) as error:
        remedy = getattr(error, "remedy", None)
        print(f"error: {error}" + (f"\nremedy: {remedy}" if remedy else ""), file=sys.stderr)
        return 1
    return 0


def export(task: ExportTask, files: Path, target: Path) -> None:
    """Write the folder. Raises TrainingError: those of resolve_model, and checkpoint_unusable."""
    data_dir = Path(os.environ.get("POWERMEAN_DATA_DIR") or Home.find().folder / "node")
    roots = tuple(Path(one) for one in os.environ.get("POWERMEAN_MODEL_ROOTS", "").split(":") if one)
    origin = task.origin

    def first() -> Path:
        return resolve_model(origin.first_model, data_dir, roots)

    def fetch(part: Origin, folder: Path) -> None:
        shutil.copytree(files / part.job_id, folder, dirs_exist_ok=True)

    target.mkdir(parents=True, exist_ok=True)
    own, over = files / origin.job_id, origin.base
    if task.adapter:
        assert task.lora is not None
        # A checkpoint of weights has no config; all models of the line have that of the first one.
        base = files / over.job_id if over is not None and over.kind == "model" else first()
        below = origin.first_model.source if over is None else over.job_id
        adapter_of(own, base, task.lora, below, target)
        return
    with tempfile.TemporaryDirectory(dir=files) as scratch:
        base = first() if origin.kind == "weights" else model_folder(origin, first, fetch, Path(scratch))
        model_with(own, base, target, task.lora, task.dtype)


if __name__ == "__main__":
    sys.exit(main())
