"""Specs as text that cost a reader the most for their length: each is that long, or stops short of it."""

from collections.abc import Callable


def _filled(head: str, unit: str, tail: str = "") -> Callable[[int], str]:
    return lambda size: head + unit * ((size - len(head) - len(tail)) // len(unit)) + tail


def _fields(size: int) -> str:
    return "".join(f"k{number}: 1\n" for number in range(size // 10))


def _under_long_names(size: int) -> str:
    return ("a: " + "".join(f"{{{'k' * 1000}: " for _ in range(15)) + "[" + "1," * size)[:size]


HEAVY: dict[str, Callable[[int], str]] = {
    "a list": _filled("a: [", "1,", "]"),
    "mappings": _filled("a: [", "{},", "]"),
    "mappings of one": _filled("a: [", "{a: 1},", "]"),
    "pairs": _filled("a: [", "a: 1,", "]"),
    "explicit keys": _filled("a: [", "? x,", "]"),
    "a block": _filled("a:\n", "- 1\n"),
    "blocks in blocks": _filled("a:\n", "- - - - 1\n"),
    "fields": _fields,
    "dates": _filled("a: [", "'2026-01-01',", "]"),
    "words like numbers": _filled("a: [", "1:x,", "]"),
    "a list under long names": _under_long_names,
    "a list under one long name": lambda size: f"? {'k' * (size // 2)}\n: [{'1,' * (size // 4 - 3)}]",
    "escapes": _filled('a: "', "\\u0041", '"'),
    "line breaks in quotes": _filled('a: "', "x\n", '"'),
    "line breaks": _filled("a: ", "x\n "),
    "a block of text": _filled("a: |\n", " x\n"),
    "folded text": _filled("a: >\n", " x\n"),
    "comments": _filled("a: 1\n", "#\n"),
    "empty lines": _filled("a: 1", "\n"),
    "separators": _filled('a: "', "\u2028", '"'),
    "digits": _filled("a: 0.", "9"),
    "an unclosed list of lists": _filled("a: ", "["),
    "question marks": _filled("a: 1\n", "? "),
    "directives": lambda size: "".join(f"%TAG !{n}! x\n" for n in range(size // 16)) + "---\na: 1",
}
