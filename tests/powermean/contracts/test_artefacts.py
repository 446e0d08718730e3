"""A manifest names files inside its folder, for whoever writes one and for whoever reads one."""

import pytest
from pydantic import ValidationError

from powermean.contracts.artefacts import Manifest

REF = {"key": "jobs/a/model/x", "sha256": "0" * 64, "size": 1}


@pytest.mark.parametrize(
    "path", ["../../x", "/etc/passwd", "a/../b", "a//b", "./a", "", "a/", "..", "a\\b", "a\nb", "x" * 301]
)
def test_paths_out_of_the_folder_are_refused(path: str) -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate({"files": {path: REF}})


@pytest.mark.parametrize(
    "path", ["config.json", "onnx/model v2.json", "..a", "\N{LATIN SMALL LETTER E WITH ACUTE}"]
)
def test_paths_inside_are_kept(path: str) -> None:
    assert list(Manifest.model_validate({"files": {path: REF}}).files) == [path]
