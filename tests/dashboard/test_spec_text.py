import pytest

from dashboard import specs
from dashboard.fields import spec_sections
from dashboard.submit import STARTER
from powermean.contracts.job import JobSpec


def test_the_starter_is_a_valid_spec() -> None:
    assert JobSpec.model_validate(specs.parse(STARTER)).algorithm.name == "pmpo"


@pytest.mark.parametrize("changed_only", [True, False])
@pytest.mark.parametrize(
    "algorithm", [{"name": "gmpo"}, {"name": "pmpo", "clip_low": 0.2}, {"name": "power_mean", "p": 0.5}]
)
def test_yaml_and_back_is_the_same_spec(algorithm: dict[str, object], changed_only: bool) -> None:
    spec = JobSpec.model_validate(
        {
            "name": "x: y",
            "model": {"folder": "models/a"},
            "algorithm": algorithm,
            "data": {"kind": "jsonl", "dataset": "ds-1"},
            "reward": {"kind": "math_verify"},
            "training": {"steps": 3},
            "rollout": {"stop": ["\n", "»"]},
        }
    )
    assert JobSpec.model_validate(specs.parse(specs.to_yaml(spec, changed_only))) == spec


def test_json_is_taken_too() -> None:
    assert specs.parse('{"name": "a", "training": {"steps": 1}}') == {"name": "a", "training": {"steps": 1}}


def test_words_stay_words() -> None:
    assert specs.parse("a: off\nb: yes\nc: true\nd: 5.0e-6") == {"a": "off", "b": "yes", "c": True, "d": 5e-6}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nname: b", "line 2: 'name' is there twice"),
        ("a: &x [1]\nb: *x", "line 2: anchors and aliases"),
        ("a: [1,\nb", "line 2"),
        ("- a\n- b", "a spec is a mapping"),
        ("!!python/object/apply:os.system [id]", "line 1"),
        ("a: " + "[" * 5000, "not YAML"),
        ("? [a, b]\n: c", "line 1: a field's name is a word"),
        ("a" * (specs.MAX_CHARACTERS + 1), "a spec may have"),
    ],
)
def test_unreadable_text_is_refused_with_the_place(text: str, said: str) -> None:
    with pytest.raises(specs.UnreadableSpecError, match=r".") as refused:
        specs.parse(text)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("a", 1),
        ("b.c", 3),
        ("b.c.deeper", 3),
        ("l.1", 6),
        ("l.1.x", 6),
        ("l.9", 4),
        ("missing", None),
        ("", None),
    ],
)
def test_fields_are_found_in_the_text(path: str, line: int | None) -> None:
    assert specs.line_of("a: 1\nb:\n  c: 2\nl:\n  - {x: 1}\n  - {x: 2}\n", path) == line


def test_every_field_of_a_spec_is_explained() -> None:
    sections = {section.title: section for section in spec_sections()}
    assert {"top level", "training", "algorithm · name: pmpo", "data · kind: jsonl"} <= sections.keys()
    steps = next(field for field in sections["training"].fields if field.name == "steps")
    assert steps.required
    assert steps.meaning
    without = [f"{s.title}.{f.name}" for s in sections.values() for f in s.fields if not f.meaning]
    assert without == []
