"""What the headers of a model's files tell."""

from pathlib import Path

from trainer.preflight.tensors import linear_shapes, tensor_shapes


def test_layers_are_named_as_peft_finds_them(tiny_folder: Path) -> None:
    shapes = tensor_shapes(tiny_folder)
    linear = linear_shapes(shapes)
    assert set(linear) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert linear["gate_proj"] == [(128, 64)] * 2
    assert shapes["model.norm.weight"] == (64,)


def test_a_file_that_cannot_be_read_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    assert tensor_shapes(tmp_path) == {}
