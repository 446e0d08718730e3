"""Specs as text: what is read is what is written there, and everything else is refused with its place."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from powermean.contracts.job import JobSpec
from powermean.spec_yaml import MAX_CHARACTERS, MAX_PATH, MAX_VALUES, SpecTextError, read_spec, to_yaml
from tests.support.heavy_specs import HEAVY


def fields(text: str) -> dict[str, object]:
    return read_spec(text).fields


def refusal(text: str) -> SpecTextError:
    with pytest.raises(SpecTextError) as refused:
        read_spec(text)
    return refused.value


@pytest.mark.parametrize("changed_only", [True, False])
@pytest.mark.parametrize(
    "algorithm", [{"name": "gmpo"}, {"name": "pmpo", "clip_low": 0.2}, {"name": "power_mean", "p": 0.5}]
)
def test_yaml_and_back_is_the_same_spec(algorithm: dict[str, object], changed_only: bool) -> None:
    spec = JobSpec.model_validate(
        {
            "name": "2026-01-05",  # in quotes, as it stands for a date otherwise
            "model": {"folder": "models/a: b"},
            "algorithm": algorithm,
            "data": {"kind": "jsonl", "dataset": "010"},
            "reward": {"kind": "math_verify"},
            "training": {"steps": 3},
            "optimizer": {"learning_rate": 1e-9},
            "rollout": {"stop": ["\n", "»", "off", "null", "😀"]},
        }
    )
    assert JobSpec.model_validate(fields(to_yaml(spec, changed_only))) == spec


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc.\u00e9 ", max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(value=JSON_VALUES, ascii_only=st.booleans(), indent=st.sampled_from([None, 2]))
def test_json_is_read_as_json(value: object, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps({"a": value}, ensure_ascii=ascii_only, indent=indent)
    if "\x7f" in text or any("\x80" <= letter < "\xa0" for letter in text):
        return  # YAML has control characters as escapes only
    assert fields(text) == {"a": value}


def test_words_are_words_and_numbers_are_decimal() -> None:
    text = "a: off\nb: yes\nc: true\nd: 5.0e-6\ne: 1e-6\nf: -3\ng: '010'\nh: ~\ni: |\n  010\nj: .5\nk: 1.\n"
    read = fields(text)
    assert read == {
        **{"a": "off", "b": "yes", "c": True, "d": 5e-6, "e": 1e-6, "f": -3, "g": "010", "h": None},
        **{"i": "010\n", "j": 0.5, "k": 1.0},
    }
    assert type(read["f"]) is int


def test_fields_names_are_words_whatever_they_look_like() -> None:
    assert fields("1: a\ntrue: b\n2026-01-05: c\n? d\n: e\n") == {
        **{"1": "a", "true": "b", "2026-01-05": "c", "d": "e"}
    }


def bomb(levels: int) -> str:
    lines = ["name: tiny", "a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


ANCHORS = "anchors and aliases (& and *) are not taken"
DISAGREE = "readers of YAML disagree on what {} means"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nname: b", "line 2, column 1: name is given twice"),
        ("m:\n  a: 1\n  a: 2", "line 3, column 3: m.a is given twice"),
        ("l: [{a: 1, a: 2}]", "line 1, column 12: l.0.a is given twice"),
        ("a: &x [1]\nb: *x", f"line 1, column 4: {ANCHORS}"),
        (bomb(9), f"line 2, column 5: {ANCHORS}"),
        ("extra: &x {again: *x}", f"line 1, column 8: {ANCHORS}"),
        ("&x a: 1", f"line 1, column 1: {ANCHORS}"),
        ("a: *x", f"line 1, column 4: {ANCHORS}"),
        ("name: 2026-13-01", "line 1, column 7: " + DISAGREE.format("2026-13-01")),
        ("name: 2026-01-05", "line 1, column 7: " + DISAGREE.format("2026-01-05")),
        ("seed: 010", "line 1, column 7: " + DISAGREE.format("010")),
        ("seed: 1_000", "line 1, column 7: " + DISAGREE.format("1_000")),
        ("seed: 1:30", "line 1, column 7: " + DISAGREE.format("1:30")),
        ("seed: 0x1f", "line 1, column 7: " + DISAGREE.format("0x1f")),
        ("seed: 0b11", "line 1, column 7: " + DISAGREE.format("0b11")),
        ("p: .nan", "line 1, column 4: " + DISAGREE.format(".nan")),
        ("p: 1e999", "line 1, column 4: 1e999 is beyond floating point"),
        ("seed: " + "9" * 5000, "line 1, column 7: the number is beyond 64 bits"),
        (f"seed: {2**63}", "line 1, column 7: the number is beyond 64 bits"),
        ("seed: !!int x", "line 1, column 7: tags such as tag:yaml.org,2002:int are not taken"),
        ("!!python/object/apply:os.system [id]", "line 1, column 1: a spec is a mapping"),
        ("a: !!python/object/apply:os.system [id]", "line 1, column 4: tags such as"),
        ("? [a, b]\n: c", "line 1, column 3: a field's name is one word"),
        ('a: "\\0"', "line 1, column 4: NUL"),
        ('a: "\\ud800"', "line 1, column 4: half of a surrogate pair"),
        ('"\\udc00": 1', "line 1, column 1: half of a surrogate pair"),
        ("a: 1\nb: \0", "line 2, column 4: not YAML: the character U+0000"),
        ("a: '\ud800'", "line 1, column 5: not YAML: the character U+D800"),
        ('a: "\\U99999999"', "not YAML: an escape or a directive"),
        ("%YAML 1." + "9" * 5000 + "\n--- a", "not YAML: an escape or a directive"),
        ("a: [1,\nb", "line 2, column 2: not YAML"),
        ("a: 1\n\tb: 2", "line 2, column 1: not YAML"),
        ("a: " + "[" * 5000, "line 1, column 24: nested deeper than 20 levels"),
        (f"a: [{'1,' * MAX_VALUES}]", "line 1, column 4003: more than 2,000 fields and list items"),
        (f"? {'k' * 501}\n: 1", "line 1, column 3: the field's path has more than 500 characters"),
        ("- a\n- b", "line 1, column 1: a spec is a mapping"),
        ("", "a spec is a mapping"),
        ("a: 1\n---\nb: 2", "line 2, column 1: a second document"),
        ("a" * (MAX_CHARACTERS + 1), "the text is longer than 100,000 characters"),
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_unreadable_text_is_refused_with_its_place(text: str, said: str) -> None:
    error = refusal(text)
    assert str(error).startswith(said)
    assert error.remedy


@given(text=st.text(st.sampled_from("ab:&*!?-[]{},\"'\\|>%@#~ \n\t01.eé\u2028\ud800\0u"), max_size=60))
@example("a: *")
@example("!<")
@example("? ")
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read = read_spec(text)
    except SpecTextError:
        return
    json.dumps(read.fields, allow_nan=False).encode()  # nothing but plain values
    assert set(read.fields) <= set(read.lines)


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
    assert read_spec("a: 1\nb:\n  c: 2\nl:\n  - {x: 1}\n  - {x: 2}\n").line_of(path) == line


class Counted:
    """What reading takes, in units that don't depend on the machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events = self.looks = 0  # at characters
        events, peek, prefix = yaml.parse, yaml.SafeLoader.peek, yaml.SafeLoader.prefix

        def parse(*given: Any, **named: Any) -> Iterator[yaml.Event]:
            for event in events(*given, **named):
                self.events += 1
                yield event

        def looked(reader: Any, index: int = 0) -> str:
            self.looks += 1
            return str(peek(reader, index))

        def cut(reader: Any, length: int = 1) -> str:
            self.looks += length
            return str(prefix(reader, length))

        monkeypatch.setattr(yaml, "parse", parse)
        monkeypatch.setattr(yaml.SafeLoader, "peek", looked)
        monkeypatch.setattr(yaml.SafeLoader, "prefix", cut)

    def reading(self, text: str) -> tuple[int, int, int]:
        """Events, looks, and characters of the paths that are kept."""
        self.events = self.looks = 0
        try:
            kept = sum(map(len, read_spec(text).lines))
        except SpecTextError:
            kept = 0
        return self.events, self.looks, kept


@pytest.mark.parametrize("shape", HEAVY)
def test_reading_takes_no_more_than_the_texts_length_and_ends_at_its_bounds(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    (_, once, _), (events, twice, kept) = (counted.reading(HEAVY[shape](size)) for size in (10_000, 20_000))
    assert twice <= 2.2 * once + 100  # linear: no shape costs more for its length
    assert twice <= 25 * 20_000
    assert events <= 4 * MAX_VALUES + 10
    assert kept <= MAX_VALUES * (MAX_PATH + 20)
