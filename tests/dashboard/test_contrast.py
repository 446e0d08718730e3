"""Both themes keep text readable: WCAG AA (4.5:1 for text, 3:1 for lines of plots and edges of controls)."""

import re
from pathlib import Path

import pytest

from dashboard import assets

CSS = (Path(assets.__file__).parent / "static/css/base.css").read_text()
SURFACES = ("--bg", "--bg-raised", "--bg-sunken")
TEXTS = ("--text", "--text-2", "--accent", "--good", "--bad", "--warn")
LINES = ("--line-strong", *(f"--s{n}" for n in range(1, 8)))


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
