"""Text that is not Unicode is found wherever it hides."""

import json

import pytest

from powermean.contracts.text import UnusableJsonError, broken_at, mended, read_json


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("a\ud800", ""),
        ({"a": {"b": ["fine", "\udfff"]}}, "a.b.1"),
        ({"a": {"b\ud800": 1}}, "a.b\ufffd"),
        ([["\udc00"], "\ud800"], "0.0"),
        ({"a": "\U0001f600", "b": 1.5, "c": None}, None),
    ],
)
def test_the_first_place_is_named(value, place):
    assert broken_at(value) == place
    if place is None:
        assert read_json(json.dumps(value)) == value
        return
    with pytest.raises(UnusableJsonError, match="half of a surrogate pair") as caught:
        read_json(json.dumps(value))
    assert caught.value.path == place


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "too many digits"),
        ("[NaN]", "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
    ],
)
def test_what_only_pythons_reader_takes(text, message):
    with pytest.raises(UnusableJsonError, match=message):
        read_json(text)


def test_any_depth():
    value: object = "\ud800"
    for _ in range(10_000):
        value = [value]
    assert broken_at(value) == ".".join(["0"] * 10_000)


def test_mended_text_can_be_sent():
    assert mended("a\ud800b\U0001f600").encode() == "a\ufffdb\U0001f600".encode()
