"""`python -m worker.doctor`: what is wrong with this node, from its own settings.

`powermean doctor` starts it. It needs no running worker, and disturbs none.
"""

import argparse
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

from powermean import __version__
from powermean.artefacts import ArtefactError, ArtefactStore
from powermean.calls import ApiError, ServerUnreachableError
from powermean.checks import (
    Look,
    artefact_store,
    certificate,
    clock,
    disk,
    failed,
    ok,
    open_files,
    packages,
    python,
    redis_server,
    shared_memory,
    tell,
    warning,
)
from powermean.connection import BadAddressError
from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.checks import Check, NodeAnswer, NodeQuestion
from powermean.contracts.names import PORT_TAKEN
from powermean.keys import without_logins
from powermean.node_client import NodeClient
from worker.attempt.rendezvous import RendezvousError, listen
from worker.gpus import Gpus
from worker.settings import NodeSettings, NodeSettingsError, is_loopback

IMPORT_S = 120.0
SLOW = {"gpus": 120.0, "torch": 180.0, "vllm": 300.0}  # seconds: they start programs that have deadlines
NEEDED = ("powermean", "torch", "transformers", "safetensors", "celery", "redis")
OPEN_FILES = 4096
LOOK_AT_TORCH = """
import json, torch
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "there": torch.cuda.is_available(),
"count": torch.cuda.device_count()}))
"""


def main(arguments: list[str]) -> int:
    """Print what was found; 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m worker.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--idle", action="store_true", help="the service is not meant to run now")
    given = parser.parse_args(arguments)
    return tell("node", looks(given.idle), given.json, SLOW)


def looks(idle: bool) -> Iterator[tuple[str, Look]]:
    """What to look at, in this order: the machine, the settings, what they lead to."""
    yield "python", python
    yield "packages", lambda: packages(NEEDED)
    yield "gpus", gpus
    yield "torch", torch
    yield "vllm", vllm
    yield "shared memory", shared_memory
    yield "open files", lambda: open_files(OPEN_FILES)
    try:
        settings = NodeSettings.read()
    except NodeSettingsError as error:
        wrong = failed("settings", str(error), "docs/settings.md describes them.")
        yield "settings", lambda: [wrong]
        return
    yield "settings", lambda: contradictions(settings)
    yield "ranks", lambda: ranks(settings)
    yield "data folder", lambda: disk("data folder", settings.data_dir)
    yield "artefact store", lambda: artefact_store(settings.artefacts_url, existing=not idle)
    if not idle:
        yield "redis", lambda: redis_server(settings.redis_url)
        yield "certificate", lambda: certificate(settings.server_url)
        yield "server", lambda: server(settings)


def gpus() -> Iterator[Check]:
    """What nvidia-smi says of the GPUs' health."""
    if shutil.which("nvidia-smi") is None:
        yield ok("gpus", "no NVIDIA driver here: jobs train on the CPU")
        return
    looker = Gpus()
    cards = looker.look()
    if not cards:
        yield failed("gpus", "nvidia-smi is here, but shows no GPU", "Run nvidia-smi: is the driver loaded?")
    for card in cards:
        said = f"{card.name}, {card.memory_mb / 1024:.0f} GiB ({card.uuid})"
        if card.unhealthy:
            yield failed("gpus", f"{said}: {card.unhealthy}", "docs/operations.md, GPUs: health and use.")
        else:
            yield ok("gpus", said)
    for what in looker.blind:
        yield warning("gpus", f"not seen: {what}", "docs/operations.md, GPUs: health and use.")


def torch() -> Iterator[Check]:
    """Whether torch imports, and has been built for the driver that is here."""
    code, out, err = _python(LOOK_AT_TORCH)
    if code != 0:
        yield failed("torch", f"it can't be imported: {err}", "Install the training extra: make install.")
        return
    facts = json.loads(out)
    driver = _driver_cuda()
    said = f"{facts['torch']}, built for {'CUDA ' + facts['cuda'] if facts['cuda'] else 'the CPU'}"
    if driver is None:
        yield ok("torch", said)
    elif facts["cuda"] is None:
        yield failed(
            "torch", f"{said}, but there is an NVIDIA driver", "Install the CUDA build: make install."
        )
    elif _major_minor(facts["cuda"])[0] > _major_minor(driver)[0]:
        yield failed(
            "torch", f"{said}; the driver knows CUDA {driver}", "Upgrade the driver, or take an older torch."
        )
    elif not facts["there"]:
        yield failed("torch", f"{said}, and sees no GPU", "Run nvidia-smi, and check CUDA_VISIBLE_DEVICES.")
    else:
        yield ok("torch", f"{said}, sees {facts['count']} GPU(s)")


def vllm() -> Iterator[Check]:
    """Whether vLLM imports, if it is installed."""
    code, out, err = _python("import importlib.util as u; print(u.find_spec('vllm') is not None)")
    if code == 0 and out.strip() == "False":
        yield ok("vllm", "not installed: jobs use the transformers engine")
        return
    code, out, err = _python("import vllm; print(vllm.__version__)")
    if code == 0:
        yield ok("vllm", out.strip().splitlines()[-1])
    else:
        yield failed("vllm", f"it can't be imported: {err}", "Install it again: make install ENGINE=vllm.")


def contradictions(settings: NodeSettings) -> Iterator[Check]:
    """Settings that can't be right together."""
    wrong = []
    if not settings.node_token.get_secret_value():
        wrong.append(
            failed("settings", "POWERMEAN_NODE_TOKEN is not set", "powermean key create --node NAME")
        )
    key = settings.attempt_public_key
    if key is None and settings.attempt_public_key_text is None:
        remedy = "Set it to the server's attempt_token.pub."
        wrong.append(failed("settings", "POWERMEAN_ATTEMPT_PUBLIC_KEY is not set", remedy))
    elif key is not None and not key.is_file():
        remedy = "Copy the server's attempt_token.pub there."
        wrong.append(failed("settings", f"POWERMEAN_ATTEMPT_PUBLIC_KEY: there is no file {key}", remedy))
    for root in settings.model_roots:
        if not root.is_dir():
            wrong.append(warning("settings", f"POWERMEAN_MODEL_ROOTS: there is no folder {root}"))
    yield from wrong or [ok("settings", f"of node {settings.node_id}")]


def ranks(settings: NodeSettings) -> Iterator[Check]:
    """Whether ranks on other nodes could meet those here: this node can't tell what is between them."""
    try:
        listen(settings.node_address, settings.rank_port).close()
    except RendezvousError as error:
        judge = warning if error.code == PORT_TAKEN else failed  # perhaps by a job that is here for it
        yield judge("ranks", error.message, error.remedy)
        return
    port = f"port {settings.rank_port}" if settings.rank_port else "any free port"
    said = f"they meet at {settings.node_address}, {port}"
    if is_loopback(settings.node_address):
        said += "; for jobs of several nodes, set POWERMEAN_NODE_ADDRESS to an address that the others reach"
    yield ok("ranks", said)


def server(settings: NodeSettings) -> Iterator[Check]:
    """Whether the server takes our token, and has our clock, version, signing key and artefact store."""
    probe = _stored_probe(settings)
    question = NodeQuestion(instance=_instance(settings), probe=probe)
    asked = time.time()
    try:
        with NodeClient(settings.server_url, settings.node_token.get_secret_value()) as client:
            answer = client.check(settings.node_id, question)
    except BadAddressError as error:
        yield failed("server", str(error), "Correct POWERMEAN_SERVER_URL.")
        return
    except ServerUnreachableError as error:
        yield failed("server", str(error), "Is it running, and POWERMEAN_SERVER_URL right?")
        return
    except ApiError as error:
        remedy = "Correct POWERMEAN_NODE_TOKEN." if error.status in (401, 403) else error.body.remedy
        yield failed("server", f"{settings.server_url}: {error.body.message}", remedy)
        return
    finally:
        _remove(settings, probe)
    yield ok("server", f"{settings.server_url} takes this node's token")
    yield from clock("the server", answer.now, asked)
    yield from _agreements(settings, answer, probe)


def _agreements(settings: NodeSettings, answer: NodeAnswer, probe: ArtefactRef | None) -> Iterator[Check]:
    if answer.version != __version__:
        said = f"{__version__} here, {answer.version} on the server"
        yield failed("version", said, "Run the same version on both.")
    if answer.holder is not None:
        said = f"{settings.node_id} is another worker's, on host {answer.holder}"
        yield failed("name", said, "Give this one a POWERMEAN_NODE_ID of its own.")
    key, text = settings.attempt_public_key, settings.attempt_public_key_text
    if key is not None:  # it goes before the text, as in the worker
        text = key.read_text() if key.is_file() else None
    if text is not None and text.strip() != answer.public_key.strip():
        whose = key or "POWERMEAN_ATTEMPT_PUBLIC_KEY_TEXT"
        yield failed(
            "signing key", f"{whose} is not the server's", "Copy the server's attempt_token.pub there."
        )
    if probe is not None and answer.probe_error is None:
        yield ok("same store", "the server reads what this node writes")
    elif probe is not None:
        said = f"the server can't read what this node wrote to {settings.artefacts_url}: {answer.probe_error}"
        yield failed(
            "same store",
            without_logins(said),
            "Set POWERMEAN_ARTEFACTS_URL of both to one store that both reach.",
        )


def _stored_probe(settings: NodeSettings) -> ArtefactRef | None:
    try:
        data = secrets.token_bytes(32)
        return ArtefactStore(settings.artefacts_url, existing=True).put_bytes(
            f"probe/{secrets.token_hex(8)}", "probe", data
        )
    except ArtefactError:  # told by the check of the store
        return None


def _remove(settings: NodeSettings, probe: ArtefactRef | None) -> None:
    if probe is not None:
        ArtefactStore(settings.artefacts_url, existing=True).delete_prefix(probe.key.rpartition("/")[0])


def _instance(settings: NodeSettings) -> str:
    """The worker that has this data folder; none if there was none yet."""
    try:
        return (settings.data_dir / "instance").read_text()
    except OSError:
        return ""


def _python(program: str) -> tuple[int, str, str]:
    """Run it in a process of its own: exit status, output, and the last line of its errors."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=IMPORT_S,
            env=dict(os.environ) | {"VLLM_LOGGING_LEVEL": "ERROR"},
        )
    except subprocess.TimeoutExpired:
        return 1, "", f"not within {IMPORT_S:.0f} s"
    said = done.stderr.strip().splitlines()
    return done.returncode, done.stdout, said[-1][:300] if said else f"exit status {done.returncode}"


def _driver_cuda() -> str | None:
    """The newest CUDA that the driver knows; None without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        said = subprocess.run([program], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"CUDA Version:\s*([0-9.]+)", said)
    return found[1] if found else None


def _major_minor(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
