from datetime import UTC, datetime, timedelta

import pytest

from dashboard import formatting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (1.0, "1"),
        (12345, "12,345"),
        (0.81254, "0.8125"),
        (3.14159, "3.142"),
        (123.456, "123.46"),
        (1234.56, "1,234.6"),
        (23456.7, "23,457"),
        (5e-06, "5.00e-06"),
        (-0.25, "-0.2500"),
        (1.5e9, "1,500,000,000"),
        (1234567.5, "1.23e+06"),
    ],
)
def test_numbers_have_four_digits(value: float | None, text: str) -> None:
    assert formatting.number(value) == text


def test_signs_are_said() -> None:
    assert formatting.signed(0.93) == "+0.9300"
    assert formatting.signed(-0.93) == "−0.9300"
    assert formatting.signed(0.0) == "0"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (7500, "2 h 5 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations_have_two_units(seconds: float | None, text: str) -> None:
    assert formatting.duration(seconds) == text


def test_moments_are_relative_with_the_exact_time_at_hand() -> None:
    then = datetime.now(UTC) - timedelta(hours=2, minutes=1)
    html = formatting.moment(then)
    assert "2 h ago" in html
    assert then.strftime("%Y-%m-%d %H:%M:%S UTC") in html


def test_white_space_stays_in_the_text_and_is_marked() -> None:
    html = formatting.visible("a  b\n\tc")
    assert html == 'a<i class="sp">  </i>b<i class="nl">\n</i><i class="tab">\t</i>c'


def test_hostile_text_is_escaped_and_control_characters_are_named() -> None:
    html = formatting.visible("<script>alert('1')</script>\x00\u202e&amp;")
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert '<i class="ctl">U+0000</i><i class="ctl">U+202E</i>' in html
    assert html.endswith("&amp;amp;")


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        (None, "not known"),
        ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox on Linux"),
        ("Mozilla/5.0 (Windows NT 10.0) Chrome/150.0 Safari/537.36 Edg/150.0", "Edge on Windows"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) Safari/604.1", "Safari on iPhone"),
        ("python-httpx/0.28.1", "python-httpx/0.28.1"),
        ("<b>x" * 40, "<b>x" * 15),
    ],
)
def test_browsers_have_the_names_that_people_use(agent: str | None, name: str) -> None:
    assert formatting.browser_name(agent) == name


def test_what_is_to_come_is_told_in_one_unit() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    told = [formatting.ago(now + timedelta(seconds=s), now) for s in (90 * 86400 - 1, 7200, 600, 30)]
    assert told == ["in 90 d", "in 2 h", "in 10 min", "just now"]
