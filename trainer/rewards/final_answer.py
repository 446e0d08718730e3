"""Where a completion's final answer is: the last box, else what follows "answer", else the last formula."""

import re
from collections.abc import Iterator

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_ANCHOR = re.compile(r"(?i:\banswer\b(?:\s+is\b)?|####)\s*[:=]?[ \t]*(?:\*\*)?")
# A dollar sign opens a formula if no space follows, and closes one if none comes before and no digit after.
_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<![\\$])\$(?=\S)((?:[^$\\]|\\.)+?)(?<=\S)\$(?!\d)",
    re.DOTALL,
)
NUMBER = re.compile(
    r"(?<![\w.\-+])[-+\u2212]?\s?\\?[$€£]?\s?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)?(?:\.\d+|(?<=\d))"
    r"(?:\s?/\s?\d+)?(?:[eE]-?\d+)?(?:\s?\\?%)?"
)


def final_answers(text: str) -> Iterator[str]:
    """Readings of the one final answer, the likeliest first; nothing where there is none.

    A box that was begun and not closed is an answer that was not finished.
    """
    if _BOX.search(text):
        if (inside := last_box(text)) is not None:
            yield inside
        return
    anchors = list(_ANCHOR.finditer(text))
    if anchors and (rest := _first_line(text[anchors[-1].end() :])):
        yield from _in_words(rest, first=True)
        return
    if formulas := list(_FORMULA.finditer(text)):
        yield next(group for group in formulas[-1].groups() if group is not None)
        return
    yield from _in_words(text, first=False)


def last_box(text: str) -> str | None:
    """What the last box holds; None if it is not closed. A box within it is unwrapped."""
    start = [*_BOX.finditer(text)][-1].end()
    depth = 1
    for place in range(start, len(text)):
        if text[place] in "{}" and text[place - 1] != "\\":
            depth += 1 if text[place] == "{" else -1
            if not depth:
                return text[start:place]
    return None


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0].strip().removesuffix("**")


def _in_words(text: str, *, first: bool) -> Iterator[str]:
    """An answer in a sentence: a formula in it, the whole of it, or its first or last number."""
    if formula := _FORMULA.search(text):
        yield next(group for group in formula.groups() if group is not None)
        return
    if len(text) <= 200:
        yield text.strip()
    if numbers := [found[0] for found in NUMBER.finditer(text) if re.search(r"\d", found[0])]:
        yield numbers[0 if first else -1].strip()
