"""Which engine serves a model, with a stand-in for the installed vLLM; the real one is asked in engines/."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from powermean import engine_selection as choice
from powermean.engine_selection import (
    choose,
    context_length,
    cpu_cache_tokens,
    lora_capacity,
    text_config,
    vllm_objection,
)

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    def make(**config: object) -> Path:
        known = {"architectures": ["LlamaForCausalLM"], "hidden_size": 128, "num_attention_heads": 4}
        (tmp_path / "config.json").write_text(json.dumps(known | config))
        return tmp_path

    return make


@pytest.fixture
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "vllm_installed", lambda: True)
    monkeypatch.setattr(choice, "served_architectures", lambda: frozenset({"LlamaForCausalLM"}))


def test_without_vllm_the_other_engine_is_taken_and_the_remedy_named(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "vllm_installed", lambda: False)
    assert choose("auto", folder(), on_gpu=False) == "transformers"
    objection = vllm_objection(folder(), on_gpu=False)
    assert objection is not None
    assert objection.code == "vllm_missing"
    assert "ENGINE=vllm" in objection.remedy


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 32}, 32),
        ({"text_config": {"max_position_embeddings": 16}}, 16),
        ({"max_position_embeddings": None}, None),
        ({}, None),
    ],
)
def test_the_context_is_read_from_the_config(
    folder: Folder, config: dict[str, object], expected: int | None
) -> None:
    assert context_length(text_config(folder(**config))) == expected


@pytest.mark.usefixtures("_vllm")
def test_auto_takes_vllm_where_it_serves_the_model(folder: Folder) -> None:
    assert vllm_objection(folder(), on_gpu=False) is None
    assert choose("auto", folder(), on_gpu=False) == "vllm"
    assert choose("transformers", folder(), on_gpu=False) == "transformers"


@pytest.mark.usefixtures("_vllm")
@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"architectures": ["OddForCausalLM"]}, "OddForCausalLM"),
        ({"architectures": None}, "names no architecture"),
        ({"num_attention_heads": 8}, "size 16"),
        ({"head_dim": 48}, "size 48"),
        ({"hidden_size": None, "text_config": {"hidden_size": 96}}, "size 24"),
    ],
)
def test_a_model_that_vllm_does_not_serve_is_named(
    folder: Folder, config: dict[str, object], named: str
) -> None:
    objection = vllm_objection(folder(**config), on_gpu=False)
    assert objection is not None
    assert objection.code == "vllm_model"
    assert named in objection.message
    assert choose("auto", folder(**config), on_gpu=False) == "transformers"
    assert choose("vllm", folder(**config), on_gpu=False) == "vllm"  # asked for: its own error tells


@pytest.mark.usefixtures("_vllm")
def test_on_a_gpu_the_size_of_heads_does_not_matter(folder: Folder) -> None:
    assert vllm_objection(folder(num_attention_heads=8), on_gpu=True) is None


@pytest.mark.usefixtures("_vllm")
def test_a_folder_that_cannot_be_read_is_left_to_the_engine_that_says_so(tmp_path: Path) -> None:
    assert choose("auto", tmp_path, on_gpu=False) == "transformers"


def test_the_list_of_models_is_read_from_vllms_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without importing it."""
    registry = _source_of_vllm(tmp_path, monkeypatch) / "registry.py"
    for text, found in (
        ('import torch\n_TEXT_GENERATION_MODELS = {\n  # a\n  "A": ("a", "A"),\n}\n', frozenset({"A"})),
        ("_TEXT_GENERATION_MODELS = table()\n", None),
        ("x = 1\n", None),
    ):
        registry.write_text(text)
        choice._registered_at.cache_clear()
        assert choice.served_architectures() == found
    choice._registered_at.cache_clear()


def test_whether_a_model_takes_adapters_is_read_from_vllms_source(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also through base classes, of the same module or another."""
    models = _source_of_vllm(tmp_path, monkeypatch)
    registered = {"A": ("a", "A"), "B": ("a", "B"), "C": ("c", "C"), "D": ("c", "D"), "E": ("gone", "E")}
    (models / "registry.py").write_text(f"_TEXT_GENERATION_MODELS = {registered}\n")
    (models / "a.py").write_text("class A(nn.Module, SupportsLoRA): ...\nclass B(nn.Module): ...\n")
    (models / "c.py").write_text(
        "from .a import A as Base\nclass C(Base): ...\nclass D(nn.Module, Other[int]): ...\n"
    )
    choice._registered_at.cache_clear()
    choice._is_adaptable.cache_clear()
    told = {name: choice.takes_adapters(folder(architectures=[name])) for name in "ABCDEF"}
    choice._registered_at.cache_clear()
    choice._is_adaptable.cache_clear()
    assert told == {"A": True, "B": False, "C": True, "D": False, "E": True, "F": True}


def _source_of_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of its models; its package can't be imported."""
    models = tmp_path / choice._MODELS.replace(".", "/")
    models.mkdir(parents=True)
    (tmp_path / "vllm" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vllm", raising=False)  # another test may have imported the real one
    return models


def test_the_cache_is_counted_in_tokens(folder: Folder) -> None:
    """2 (keys and values) x 2 layers x 1 head x 32 numbers x 4 bytes = 512 bytes a token."""
    where = folder(num_hidden_layers=2, num_key_value_heads=1)
    assert cpu_cache_tokens(where, 4) == (1 << 30) // 512
    assert cpu_cache_tokens(where, 2) == (1 << 30) // 256
    assert cpu_cache_tokens(folder(), 4) is None


@pytest.mark.parametrize(
    ("rank", "capacity"), [(1, 1), (2, 8), (8, 8), (9, 16), (129, 256), (257, 320), (512, 512), (513, None)]
)
def test_vllm_takes_few_ranks_as_its_most(rank: int, capacity: int | None) -> None:
    assert lora_capacity(rank) == capacity
