"""One rule for datasets and templates, on the server and on nodes."""

import pytest

from powermean.contracts.jsonl import (
    JsonlError,
    TemplateError,
    as_text,
    check_line,
    render,
    render_with_spans,
    template_fields,
)


def test_a_row_is_a_json_object() -> None:
    assert check_line(1, b'{"question": "2 + 2?", "answer": 4}\n') == {"question": "2 + 2?", "answer": 4}
    assert check_line(1, '{"q": "é"}') == {"q": "é"}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "empty line"),
        (b"  \n", "empty line"),
        (b"[1]", "not a JSON object but a list"),
        (b'"a"', "not a JSON object but a string"),
        (b"3", "not a JSON object but a number"),
        (b"0.5", "not a JSON object but a number"),
        (b"true", "not a JSON object but true or false"),
        (b"null", "not a JSON object but null"),
        (b'{"a": 1', "not JSON: .* at column 8"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1, "a": 2}', "field 'a' occurs twice"),
        (b'{"a": "\xff"}', r"not UTF-8 \(byte 8 of the line\)"),
        (b'{"a": ' + b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", ".*digits"),
    ],
)
def test_a_bad_line_is_refused_by_its_number(raw: bytes, message: str) -> None:
    with pytest.raises(JsonlError, match=f"^line 17: (not usable: )?{message}") as error:
        check_line(17, raw)
    assert error.value.line == 17


def test_a_missing_field_is_named() -> None:
    with pytest.raises(JsonlError, match=r"^line 17: no field 'answer' \(the row has: question, x\)$"):
        check_line(17, '{"x": 1, "question": "?"}', required=("question", "answer"))
    with pytest.raises(JsonlError, match=r"^line 3: null in field 'answer'"):
        check_line(3, '{"answer": null}', required=("answer",))
    assert check_line(3, '{"answer": 0}', required=("answer",)) == {"answer": 0}


def test_templates_take_fields_and_literal_braces() -> None:
    template = "{{set}} {question}: {a} and {question}"
    assert template_fields(template) == {"question", "a"}
    assert render(template, {"question": "x {a}", "a": 1.5}) == "{set} x {a}: 1.5 and x {a}"
    assert template_fields("no fields, {{}}") == set()
    assert render("{{{a}}}", {"a": "b"}) == "{b}"
    assert render("", {}) == ""


@pytest.mark.parametrize("template", ["{", "a {b", "b}", "{}", "{a{b}", "{{a}"])
def test_a_template_that_cannot_be_read_is_refused(template: str) -> None:
    with pytest.raises(TemplateError, match="literal brace"):
        template_fields(template)


def test_a_field_that_the_row_lacks_is_named() -> None:
    with pytest.raises(TemplateError, match="no field 'b'"):
        render("{b}", {"a": 1})


def test_values_that_are_not_strings_stand_as_json() -> None:
    assert [as_text(value) for value in ("é", 3, True, ["a"])] == ["é", "3", "true", '["a"]']


@pytest.mark.parametrize(
    "number",
    ["1e-07", "1e999", "-1E5", "2.50", "0.1", "12", "1.0", "12345678901234567890.12345678901234567890"],
)
def test_numbers_keep_their_written_form(number: str) -> None:
    row = check_line(1, f'{{"a": {number}, "b": [{number}, {{"c": {number}}}]}}')
    assert as_text(row["a"]) == number
    assert render("{b}", row) == f'[{number}, {{"c": {number}}}]'


def test_the_places_of_a_rows_values_in_the_prompt() -> None:
    text, spans = render_with_spans("Q: {q}{{}}{n}", {"q": "why?", "n": 7})
    assert text == "Q: why?{}7"
    assert [text[start:end] for start, end in spans] == ["why?", "7"]
