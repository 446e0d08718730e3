"""A disk without room for a checkpoint or the final model is said before training, not at its end."""

from pathlib import Path

import pytest

from powermean.contracts.job import JobSpec
from powermean.disk import free_bytes
from powermean.memory import weight_bytes
from tests.support.small_disk import small_disk
from tests.support.tiny_model import tiny_spec
from trainer.failures import TrainingError
from trainer.preflight.disk_space import check_disk, needs
from worker.settings import NodeSettings

pytestmark = pytest.mark.slow


def spec(steps: int = 10, every: int = 5, **model: object) -> JobSpec:
    changes = {
        "training": {"steps": steps},
        "checkpoints": {"every": every},
        "model": {"folder": "tiny", **model},
    }
    return JobSpec.model_validate(tiny_spec("tiny") | changes)


@pytest.fixture
def settings(tmp_path: Path) -> NodeSettings:
    return NodeSettings(artefacts_url=f"file://{tmp_path}/store", data_dir=tmp_path / "node")


@pytest.mark.parametrize(
    ("asked", "scratch", "stored"),
    [
        (spec(), 12, 16),  # bytes for each number of the model: weights and two moments; the model besides
        (spec(dtype="bfloat16"), 12, 14),
        (spec(every=10), 4, 4),  # no checkpoint before the end
        (spec(lora={}), 4, 4),
    ],
    ids=["whole", "bfloat16", "no checkpoint", "adapter"],
)
def test_what_has_to_be_written(
    asked: JobSpec, scratch: int, stored: int, tiny_folder: Path, settings: NodeSettings, tmp_path: Path
) -> None:
    numbers = weight_bytes(tiny_folder, 1)
    found = {place.name: round(size / numbers, 1) for place, size in needs(asked, tiny_folder, settings)}
    assert found == {"node": scratch, "store": stored}


def test_a_store_elsewhere_is_not_looked_at(tiny_folder: Path, settings: NodeSettings) -> None:
    away = settings.model_copy(update={"artefacts_url": "memory://bucket"})
    assert [place.name for place, _ in needs(spec(), tiny_folder, away)] == ["node"]


@pytest.mark.parametrize("full", ["node", "store"])
def test_a_disk_without_room_is_named(full: str, tiny_folder: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 2 * 2**20) as small:
        places = {"node": tmp_path / "node", "store": tmp_path / "store"} | {full: small / full}
        settings = NodeSettings(artefacts_url=f"file://{places['store']}", data_dir=places["node"])
        check_disk(spec(lora={}), tiny_folder, settings)
        (small / "others").write_bytes(b"x" * (free_bytes(small) - 2**18))
        with pytest.raises(TrainingError) as caught:
            check_disk(spec(), tiny_folder, settings)
    assert (caught.value.code, caught.value.path) == ("not_enough_disk", "model")
    assert str(small / full) in str(caught.value)
    assert "adapter" in str(caught.value.remedy)
