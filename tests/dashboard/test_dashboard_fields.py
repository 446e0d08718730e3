from dashboard.fields import spec_sections
from dashboard.submit import STARTER
from powermean.contracts.job import JobSpec
from powermean.spec_yaml import read_spec


def test_the_starter_is_a_valid_spec() -> None:
    assert JobSpec.model_validate(read_spec(STARTER).fields).algorithm.name == "pmpo"


def test_every_field_of_a_spec_is_explained() -> None:
    sections = {section.title: section for section in spec_sections()}
    assert {"top level", "training", "algorithm · name: pmpo", "data · kind: jsonl"} <= sections.keys()
    steps = next(field for field in sections["training"].fields if field.name == "steps")
    assert steps.required
    assert steps.meaning
    without = [f"{s.title}.{f.name}" for s in sections.values() for f in s.fields if not f.meaning]
    assert without == []
