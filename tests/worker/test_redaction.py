"""Secrets do not survive in what programs print, however it is spelled and cut."""

import base64
import itertools
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.redaction import Redactor, own_redactor, with_secrets, without_job_secrets

VALUE = 'hf_AbC/d+f&x"12 ünïq'
TEXTS = st.text(alphabet="hf_AbC/ \n\"12üx'", max_size=60)


def cut(text: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def redacted(chunks: list[bytes], *values: str) -> str:
    redactor = Redactor(values)
    return b"".join([*map(redactor.feed, chunks), redactor.rest()]).decode()


@given(before=TEXTS, after=TEXTS, places=st.lists(st.integers(0, 200), max_size=12))
def test_a_value_is_taken_out_wherever_the_stream_is_cut(before: str, after: str, places: list[int]) -> None:
    chunks = cut(f"{before}<{VALUE}>{after}".encode(), places)
    assert redacted(chunks, VALUE) == f"{before}<***>{after}"


@given(text=TEXTS, places=st.lists(st.integers(0, 200), max_size=12))
def test_a_text_without_the_value_passes_unchanged(text: str, places: list[int]) -> None:
    """Also one that ends in the middle of what could have become the value."""
    assert redacted(cut(text.encode(), places), VALUE) == text


@pytest.mark.parametrize("before", ["", "x", "xy", "xyz"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_hides_a_value_at_no_offset(encode: object, before: str) -> None:
    encoded = encode(f"{before}{VALUE}:x".encode()).decode()  # type: ignore[operator]
    shown = Redactor([VALUE]).text(f"Authorization: Basic {encoded}")
    assert "***" in shown
    rest = shown.removeprefix("Authorization: Basic ").replace("***", "")
    assert len(rest) <= 12  # what other bytes decide as well


@pytest.mark.parametrize(
    "spelled",
    [
        quote(VALUE),
        quote(VALUE, safe=""),
        quote_plus(VALUE),
        json.dumps(VALUE),
        repr(VALUE),
        VALUE[:9] + "\n   " + VALUE[9:],
    ],
)
def test_other_spellings_are_taken_out(spelled: str) -> None:
    shown = Redactor([VALUE]).text(f"see {spelled} there")
    assert shown in ("see *** there", 'see "***" there', "see '***' there")


def test_of_several_lines_each_is_taken_out() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----"
    assert "MIIEvQ" not in Redactor([key]).text("log: MIIEvQIBADANBgkq\nlog: hkiG9w0BAQEFAASC")
    assert Redactor([key]).text(f"<{key}>") == "<***>"


@given(places=st.lists(st.integers(0, 100), max_size=8))
def test_of_values_that_begin_alike_each_is_taken_out_whole(places: list[int]) -> None:
    text = b"a secret-one-and-more b secret-one-and-most c secret-one"
    shown = redacted(cut(text, places), "secret-one", "secret-one-and-more")
    assert shown == "a *** b ***-and-most c ***"


def test_a_program_knows_its_own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = with_secrets({"PATH": "/bin"}, {"HF_TOKEN": VALUE})
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert own_redactor().text(f"with {VALUE}") == "with ***"
    assert VALUE not in without_job_secrets().values()
    assert without_job_secrets()["PATH"] == "/bin"


def test_without_secrets_nothing_changes() -> None:
    assert with_secrets({"A": "b"}, {}) == {"A": "b"}
    assert Redactor(()).feed(b"text") == b"text"
