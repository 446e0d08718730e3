"""Both themes keep text readable: WCAG AA (4.5:1 for text, 3:1 for lines of plots and edges of controls)."""

import re
from pathlib import Path

import pytest

from dashboard import assets

STYLES = Path(assets.__file__).parent / "static/css"
CSS = (STYLES / "base.css").read_text()
SURFACES = ("--bg", "--bg-raised", "--bg-sunken")
TEXTS = ("--text", "--text-2", "--accent", "--good", "--bad", "--warn")
LINES = ("--line-strong", *(f"--s{n}" for n in range(1, 10)))


def _block(selector: str) -> dict[str, str]:
    body = CSS.split(selector, 1)[1].split("}", 1)[0]
    return dict(re.findall(r"(--[\w-]+):\s*(#[0-9a-f]{6});", body))


LIGHT = _block(":root {")
DARK = LIGHT | _block(':root[data-theme="dark"] {')


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_what_the_standard_says() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_can_be_read(theme: dict[str, str]) -> None:
    pairs = [(text, surface, 4.5) for text in TEXTS for surface in SURFACES]
    pairs += [(line, surface, 3.0) for line in LINES for surface in ("--bg", "--bg-raised")]
    pairs += [("--on-accent", "--accent", 4.5), ("--accent", "--accent-bg", 4.5)]
    pairs += [(text, "--bad-bg", 4.5) for text in ("--text", "--text-2", "--bad")]
    weak = {
        f"{a} on {b}": round(contrast(theme[a], theme[b]), 2)
        for a, b, least in pairs
        if contrast(theme[a], theme[b]) < least
    }
    assert weak == {}


def test_the_chosen_dark_theme_is_the_systems() -> None:
    assert _block(':root[data-theme="dark"] {') == _block(':root:not([data-theme="light"]) {')


def _steps(
    scale: str, sheet: str = "tokens.css", count: int = 9
) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Of each step of a scale: (background, text) in the light theme and in the dark one."""
    colour = r"light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)"
    rule = rf"^\.{scale}(\d) {{ --fill: {colour}; --ink: {colour}; }}$"
    found = re.findall(rule, (STYLES / sheet).read_text(), re.MULTILINE)
    assert [int(number) for number, *_ in found] == list(range(count))
    return [((light, light_text), (dark, dark_text)) for _, light, dark, light_text, dark_text in found]


@pytest.mark.parametrize("scale", ["w", "x"])
def test_tokens_can_be_read_on_every_step_of_a_scale(scale: str) -> None:
    shown = [theme for step in _steps(scale) for theme in step]
    assert {pair: round(contrast(*pair), 2) for pair in shown if contrast(*pair) < 4.5} == {}


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_classes_of_p_can_be_read_and_stand_out_more_the_lower_p_is(theme: int) -> None:
    surface = (LIGHT, DARK)[theme]["--bg-raised"]
    classes = [step[theme] for step in _steps("p", "charts.css", 5)]
    assert {pair: round(contrast(*pair), 2) for pair in classes if contrast(*pair) < 4.5} == {}
    shown = [contrast(fill, surface) for fill, _ in classes]
    assert shown == sorted(set(shown))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_heavier_tokens_stand_out_more(theme: int) -> None:
    surface = (LIGHT, DARK)[theme]["--bg-raised"]
    weights = [contrast(step[theme][0], surface) for step in _steps("w")]
    assert weights == sorted(set(weights))  # each step differs, in order
    ratios = [contrast(step[theme][0], surface) for step in _steps("x")]
    assert ratios[:5] == sorted(set(ratios[:5]), reverse=True)
    assert ratios[4:] == sorted(set(ratios[4:]))
