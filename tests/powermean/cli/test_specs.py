"""Spec files: every mistake is told with its line and field."""

from pathlib import Path

import pytest

from powermean.cli.specs import load_spec, located
from powermean.contracts.api import FieldError
from powermean.spec_files import SpecFileError, read_file

GOOD = """name: test
model:
  name: some/model
data:
  kind: arithmetic
  tasks:
    - {operator: "+", low: 1, high: 9}
training:
  steps: 2
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "spec.yaml"
    file.write_text(text)
    return file


def mistakes(folder: Path, text: str) -> list[str]:
    file = written(folder, text)
    with pytest.raises(SpecFileError) as refused:
        load_spec(file)
    return [line.removeprefix(f"{file}:") for line in str(refused.value).split("\n")]


def test_a_good_file_is_a_spec(tmp_path: Path) -> None:
    assert load_spec(written(tmp_path, GOOD)).training.steps == 2


def test_old_names_are_told_with_their_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, f"{GOOD}algorithm:\n  name: grpo\n  sampler_weight: token\n")
    assert load_spec(file).algorithm.importance_sampling_correction == "token"
    assert capsys.readouterr().err == (
        f"{file}:12: algorithm.sampler_weight is now algorithm.importance_sampling_correction; "
        "the old name works until 1.0\n"
    )
    load_spec(written(tmp_path, GOOD))
    assert not capsys.readouterr().err


def test_overrides_are_checked_like_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD)
    assert load_spec(file, {("training", "steps"): 5, ("seed",): 3}).seed == 3
    with pytest.raises(SpecFileError, match=r"training\.steps: .*greater than or equal to 1 \(given: 0\)"):
        load_spec(file, {("training", "steps"): 0})


@pytest.mark.parametrize(
    ("wrong", "right", "told"),
    [
        ("steps: 2", "steps: two", "9: training.steps: "),
        ("steps: 2", "step: 2", "9: training.step: there is no such field"),
        ("low: 1", "low: -1", "7: data.tasks.0.low: "),
        (
            "kind: arithmetic",
            "kind: arithmetics",
            "5: data.kind: unknown data kind 'arithmetics': did you mean arithmetic?",
        ),
        ("name: some/model", "folder: a\n  name: b", "2: model: give exactly one of name, folder and from"),
        ("steps: 2", "steps: 2\n  steps: 3", "10:3: training.steps is given twice"),
        ("steps: 2", "steps: [2", "10:1: not YAML: "),
        (
            "steps: 2",
            "steps: &two 2\nmax_restarts: *two",
            "9:10: anchors and aliases (& and *) are not taken",
        ),
        ("name: test", "name: 2026-13-01", "1:7: readers of YAML disagree on what 2026-13-01 means"),
        ("steps: 2", "steps: 02", "9:10: readers of YAML disagree on what 02 means"),
        ("steps: 2", "steps: 2\nseed: !!int x", "10:7: tags such as tag:yaml.org,2002:int are not taken"),
        ("steps: 2", f"steps: 2\nseed: {'9' * 5000}", "10:7: the number is beyond 64 bits"),
        ("steps: 2", "steps: 2\n? [a, b]\n: 1", "10:3: a field's name is one word"),
        ("steps: 2", "steps: 2\noptimizer: {learning_rate: true}", "10: optimizer.learning_rate: "),
    ],
)
def test_a_mistake_is_told_with_its_line_and_field(tmp_path: Path, wrong: str, right: str, told: str) -> None:
    found = mistakes(tmp_path, GOOD.replace(wrong, right))
    assert any(line.startswith(told) for line in found), found


def test_the_algorithms_fields_are_named_without_its_tag(tmp_path: Path) -> None:
    found = mistakes(tmp_path, GOOD + "algorithm:\n  name: pmpo\n  clip_low: -1\n")
    assert found[0].startswith("12: algorithm.clip_low: ")


def test_a_missing_field_is_told_at_its_parent(tmp_path: Path) -> None:
    assert mistakes(tmp_path, GOOD.replace("  steps: 2", "  epochs: 1")) == ["8: training.steps: is missing"]


def test_what_is_no_mapping_is_no_spec(tmp_path: Path) -> None:
    assert mistakes(tmp_path, "- a\n- b\n") == [
        "1:1: a spec is a mapping of fields to values (Start with `name: my-job`.)"
    ]


@pytest.mark.parametrize("text", [b"\xff", b"name: \xe4"])
def test_what_is_no_utf8_says_so(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "spec.yaml"
    file.write_bytes(text)
    with pytest.raises(SpecFileError, match="is not text in UTF-8"):
        load_spec(file)


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(SpecFileError, match="can't be read: No such file"):
        load_spec(tmp_path / "none.yaml")


def test_the_servers_field_errors_get_the_files_lines(tmp_path: Path) -> None:
    text = read_file(written(tmp_path, GOOD))
    error = FieldError(path="data.tasks.0.high", message="too high", remedy="use 9")
    assert located([error], text) == [(7, "data.tasks.0.high: too high (use 9)")]
