"""Helm, from the system or from the wheel that tools/install.py installs for the tests."""

import importlib.util
import io
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "deploy/helm/powermean"


def find_helm(folder: Path) -> Path:
    """Unpacks the wheel's into `folder`. Skips the test where there is neither."""
    if found := shutil.which("helm"):
        return Path(found)
    spec = importlib.util.find_spec("aws_cdk")
    places = list(spec.submodule_search_locations or []) if spec else []
    archives = [
        one for place in places for one in Path(place).glob("lambda_layer_kubectl_*/_jsii/lambda-*.tgz")
    ]
    if not archives:
        pytest.skip("Helm is not installed: python3 tools/install.py test")
    with tarfile.open(archives[0]) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            helm = Path(inner.extract("helm/helm", folder))
    helm.chmod(0o755)
    return helm


def run(helm: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of helm on the chart; nothing of the person's own configuration counts."""
    own = {f"HELM_{name}_HOME": str(helm.parent / name.lower()) for name in ("CONFIG", "CACHE", "DATA")}
    return subprocess.run([helm, *arguments], capture_output=True, text=True, env=own, timeout=60)


def render(
    helm: Path, values: dict[str, Any] | None = None, more: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The chart's manifests as release `pm` in namespace `team`."""
    file = helm.parent / "values.yaml"
    file.write_text(yaml.safe_dump(values or {}))
    done = run(helm, "template", "pm", str(CHART), "-n", "team", "-f", str(file), *more)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]
