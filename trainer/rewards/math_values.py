"""What a final answer says, and whether two say the same: exactly, never to some decimals.

math-verify's reader turns LaTeX into an expression. It takes words for products of letters and stops at what
it does not know, so it is given only what it certainly reads whole; everything else is compared as text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import sympy
from latex2sympy2_extended.latex2sympy2 import latex2sympy

_SYMBOLS = {
    "\u2212": "-", "\u2013": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "π": r"\pi ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "°": r"^\circ ", "∪": r"\cup ",
    "∈": r"\in ", "½": r"\frac{1}{2}", "²": "^2", "³": "^3",
}  # fmt: skip
_REWRITES = [
    (re.compile(pattern), text)
    for pattern, text in (
        (r"\\(?:left|right|bigl?|bigr|Bigl?|Bigr|displaystyle|textstyle|limits)(?![a-zA-Z])\.?", ""),
        (r"(?<!\\)\\[,!;: ]|\\q?quad(?![a-zA-Z])|~", " "),
        (r"\\(?:dfrac|tfrac|cfrac)(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:leq|leqslant)(?![a-zA-Z])", r"\\le"),
        (r"\\(?:geq|geqslant)(?![a-zA-Z])", r"\\ge"),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\(?:mathrm|operatorname|rm)\s*\{?([eid])\}?(?![a-zA-Z])", r"\1"),
        (r"\\(?:mathrm|mathbf|textbf|textrm|mbox|bf|textit|mathit)\s*\{", r"\\text{"),
        (r"\\text\s*\{\s*(?:,|or|and|,\s*and|,\s*or)\s*\}", ","),
        (r"(?<=[\d)}x]),?\s+(?:or|and)\s+(?=[-\w\\(])", ","),
        (r"\\text\s*\{\s*([-+\d.,/]+)\s*\}", r"\1"),
        (r"\{,\}", ""),
        (r"(?<=\d) (?=\d{3}(?!\d))", ""),
        (r"\\(frac|dbinom|tbinom|binom)\s*(\d)\s*(\d)", r"\\\1{\2}{\3}"),
        (r"\\frac\s*(\{[^{}]*\})\s*(\d)", r"\\frac\1{\2}"),
        (r"\\frac\s*(\d)\s*(\{[^{}]*\})", r"\\frac{\1}\2"),
        (r"\\sqrt\s*(\d|[a-z](?![a-z]))", r"\\sqrt{\1}"),
        (r"√\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"√(\d+|[a-z])", r"\\sqrt{\1}"),
        (r"(?<![a-zA-Z\\])(sqrt)\(([^()]*)\)", r"\\sqrt{\2}"),
        (r"(?<![a-zA-Z\\])(sin|cos|tan|ln|log|pi|infty)(?![a-zA-Z])", r"\\\1 "),
        (r"\*\*", "^"),
        (r"\^\s*\{\s*\\circ\s*\}", r"^\\circ"),
        (r"\\%", "%"),
        (r"(?<!\d)\.(?=\d)", "0."),
        (r"\\log_(\d)(?!\d)", r"\\log_{\1}"),
        (r"(\\log_\{\d+\})\s*(\d+)", r"\1{\2}"),
        (r"(\d(?:\.\d+)?)[eE](-?)\+?(\d+)(?![\da-zA-Z])", r"\1 \\times 10^{\2\3}"),
        (r"\^\(([^()]*)\)", r"^{\1}"),
    )
]
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen"}
_CURRENCY = re.compile(r"^\s*([-+]?)\s*\\?([$€£¥])\s*(?=[\d.])")
_UNIT = re.compile(
    r"^(.*?[\d})])\s*(?:\\text\s*\{\s*([^{}]+?)\s*\}(\^\{?[23]\}?)?|\s([a-zA-Z][a-zA-Z .]+?))\s*$"
)
_FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_DEGREES = re.compile(r"^(.*[\d})])\s*(?:\^\\circ|degrees)\s*$")
_NAMED = re.compile(
    r"^\s*([a-zA-Z](?:_\{?\w\}?)?(?:\^\{-1\})?(?:\([a-z]\))?)\s*(?:=|\\in(?![a-z]))\s*(?![^=]*[=<>])(.+)$",
    re.DOTALL,
)
_RELATION = re.compile(r"(\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|\\ne(?![a-zA-Z])|[<>=])")
_KNOWN = re.compile(
    r"\\(?:frac|sqrt|pi|infty|times|cdot|div|pm|binom|d?tbinom|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|"
    r"cosh|tanh|ln|log|exp|lfloor|rfloor|lceil|rceil|alpha|beta|gamma|delta|theta|lambda|mu|sigma|phi|omega|"
    r"begin\{[pbv]?matrix\}|end\{[pbv]?matrix\}|circ|emptyset|varnothing|\\)(?![a-zA-Z])"
)
_STRANGE = re.compile(r"[^\w\s+\-*/^().!|{}&\[\]]")
_UNCERTAIN = re.compile(r"\d\s+\d|\d_|^\s*[.)]|[a-zA-Z]\s+[a-zA-Z]{2}")  # 1 2, 120_8, a word after a letter
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\{(\d+)\}")
_PRODUCTS = set("abcmnxyz")  # letters whose product may be meant; other pairs of letters are words
_POINTS = ((3, 7), (-5, 11), (13, 5), (-2, 13), (17, 6), (1, 19))
_DIGITS = 40


@dataclass(frozen=True)
class Value:
    """kind: text, number (an expression), sequence (brackets in `text`) or relation (signs in `text`)."""

    kind: str
    text: str
    name: str = ""  # of what is said to be equal to it
    unit: str = ""
    percent: bool = False
    expression: sympy.Basic | None = None
    items: tuple["Value", ...] = ()


@lru_cache(maxsize=4096)  # a group's completions have one reference, and often one answer
def read(text: str) -> Value | None:
    """The value of a final answer; None where it is blank."""
    text = rewritten(text)
    if not text.strip(" .,;:$"):
        return None
    name = ""
    if named := _NAMED.match(text):
        name, text = re.sub(r"[\s{}]", "", named[1]), named[2]
    found = _value(text.strip())
    return Value(**{**vars(found), "name": name}) if name else found


def rewritten(text: str) -> str:
    """One way to write what has several."""
    for symbol, meant in _SYMBOLS.items():
        text = text.replace(symbol, meant)
    text = text.strip().strip("*").strip()
    while (inner := re.fullmatch(r"\$+(.+?)\$+|\\\((.+)\\\)|\\\[(.+)\\\]", text, re.DOTALL)) is not None:
        text = next(group for group in inner.groups() if group is not None).strip()
    for pattern, meant in _REWRITES:
        text = pattern.sub(meant, text)
    return text.strip().rstrip(".;,").strip()


def _value(text: str) -> Value:
    parts = [part for part in _split(text, ",") if part.strip()]
    if (brackets := _outer(text)) is not None:
        left, right = brackets
        inner = _split(text[len(left) : len(text) - len(right)], ",")
        if len(inner) > 1 or left == "\\{":
            return Value("sequence", left + right, items=tuple(_value(one.strip()) for one in inner))
    if len(unions := re.split(r"\\cup(?![a-zA-Z])", text)) > 1:
        return Value("sequence", "union", items=tuple(_value(one.strip()) for one in unions))
    if len(parts) > 1 and not _THOUSANDS.fullmatch(text.lstrip("-$\\ ")):
        items = tuple(read(part) or Value("text", "") for part in parts)
        return Value("sequence", "list", items=tuple(Value(**{**vars(one), "name": ""}) for one in items))
    signs = _RELATION.split(text)
    if len(signs) > 1:
        sides = tuple(_value(side.strip()) for side in signs[::2])
        if set(signs[1::2]) == {"="} and all(map(_is_constant, sides[1:])) and _may_equal(sides[0]):
            return sides[-1]  # the end of a calculation
        return Value("relation", " ".join(signs[1::2]), items=sides)
    return _single(text)


def _is_constant(value: Value) -> bool:
    return isinstance(value.expression, sympy.Expr) and not value.expression.free_symbols


def _may_equal(value: Value) -> bool:
    """Whether it is a calculation's first side: a constant or a single letter."""
    return _is_constant(value) or isinstance(value.expression, sympy.Symbol)


def _single(text: str) -> Value:
    """A number, an expression or words, with its unit."""
    unit, percent = "", False
    if currency := _CURRENCY.match(text):
        unit, text = _CURRENCIES[currency[2]], currency[1] + text[currency.end() :]
    if text.endswith("%"):
        percent, text = True, text[:-1].strip()
    elif (degrees := _DEGREES.match(text)) and not _FUNCTION.search(text):
        unit, text = "degree", degrees[1]
    elif (with_unit := _UNIT.match(text)) and _expression(with_unit[1]) is not None:
        unit = _unit((with_unit[2] or with_unit[4]) + (with_unit[3] or ""))
        text = with_unit[1]
        if unit in ("percent", "degree"):
            percent, unit = unit == "percent", "" if unit == "percent" else unit
    expression = _expression(text)
    if isinstance(expression, sympy.Set) and isinstance(expression, sympy.FiniteSet):
        each = tuple(Value("number", str(one), expression=one) for one in expression.args)
        return Value("sequence", "list", items=each)
    if expression is None:
        return Value("text", _words(text), unit=unit, percent=percent)
    return Value("number", _words(text), unit=unit, percent=percent, expression=expression)


def _unit(text: str) -> str:
    text = re.sub(r"[\s{}.]", "", text).lower()
    text = {"percent": "percent", "percentage": "percent", "inches": "inch", "feet": "foot"}.get(text, text)
    return text.removesuffix("s") if len(text) > 2 else text


def _words(text: str) -> str:
    """Text for comparison: without markup, case and space."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
    return re.sub(r"[\s{}]+", "", text).strip(".,;:'\"").casefold()


def _expression(text: str) -> sympy.Basic | None:
    """The whole text as an expression; None where it is not certainly one."""
    text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text.strip())
    text = _REPEATING.sub(_fraction, text)
    bare = _KNOWN.sub("+", text)
    letters = re.findall(r"[a-zA-Z]+", bare)
    if not text.strip() or _STRANGE.search(bare) or _UNCERTAIN.search(bare):
        return None
    if any(len(word) > 2 or (len(word) == 2 and not set(word.lower()) <= _PRODUCTS) for word in letters):
        return None
    try:
        found = latex2sympy(text, is_real=True, convert_degrees="\\circ" in text, normalization_config=None)
        return _exact(found) if isinstance(found, sympy.Basic | sympy.MatrixBase) else None
    except Exception:  # noqa: BLE001  the errors of reader and sympy have no common base
        return None


def _fraction(repeating: re.Match[str]) -> str:
    """0.1\\overline{6} as a fraction."""
    whole, start, again = repeating.groups()
    scale = 10 ** len(start)
    value = Fraction(int((whole or "0") + start), scale) + Fraction(
        int(again), scale * (10 ** len(again) - 1)
    )
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _exact(found: sympy.Basic) -> sympy.Basic:
    """Decimals as fractions, i as the imaginary unit, symbols without assumptions."""
    if isinstance(found, sympy.MatrixBase):
        return sympy.ImmutableMatrix(found).applyfunc(_exact)
    new = {one: sympy.Rational(str(one)) for one in found.atoms(sympy.Float)}
    new |= {one: sympy.I if one.name == "i" else sympy.Symbol(one.name) for one in found.atoms(sympy.Symbol)}
    return found.xreplace(new).doit()


def _split(text: str, at: str) -> list[str]:
    """Cut at a sign outside of all brackets."""
    parts, depth = [""], 0
    for place, one in enumerate(text):
        depth += (one in "([{") - (one in ")]}")
        if one == at and depth == 0 and not _within_thousands(text, place):
            parts.append("")
        else:
            parts[-1] += one
    return parts


def _within_thousands(text: str, place: int) -> bool:
    return any(found.start() < place < found.end() for found in _THOUSANDS.finditer(text))


def _outer(text: str) -> tuple[str, str] | None:
    """The brackets around all of the text."""
    for left in ("\\{", "(", "["):
        for right in ("\\}", ")", "]"):
            if text.startswith(left) and text.endswith(right) and ("\\{" in left) == ("\\}" in right):
                inner, depth = text[len(left) : -len(right)], 0
                for one in inner:
                    depth += (one in "([{") - (one in ")]}")
                    if depth < 0:
                        return None
                return left, right
    return None


def equal(reference: Value, found: Value) -> bool:
    """Whether they say the same."""
    if reference.name and found.name and reference.name != found.name:
        return False
    if reference.unit and found.unit and reference.unit != found.unit:
        return False
    if reference.kind == "text" or found.kind == "text":
        return reference.kind == found.kind and reference.text == found.text and bool(found.text)
    if reference.kind != found.kind:
        return False
    if reference.kind == "sequence":
        return _same_items(reference, found)
    if reference.kind == "relation":
        return _same_relation(reference, found)
    first, second = reference.expression, found.expression
    if reference.percent != found.percent:
        hundredth = sympy.Rational(1, 100)
        scaled = (first * hundredth, second) if reference.percent else (first, second * hundredth)
        return same(first, second) or same(*scaled)
    return same(first, second)


def _same_items(first: Value, second: Value) -> bool:
    unordered = {"\\{\\}", "list"}
    if len(first.items) != len(second.items):
        return False
    if first.text != second.text and not {first.text, second.text} <= unordered:
        return False
    if first.text not in {*unordered, "union"}:
        return all(map(equal, first.items, second.items))
    left = list(second.items)
    for item in first.items:
        found = next((place for place, one in enumerate(left) if equal(item, one)), None)
        if found is None:
            return False
        del left[found]
    return True


def _same_relation(first: Value, second: Value) -> bool:
    for signs, sides in _both_ways(second):
        if first.text == signs and len(first.items) == len(sides) and all(map(equal, first.items, sides)):
            return True
    return first.text == second.text == "=" and _same_equation(_difference(first), _difference(second))


def _difference(equation: Value) -> sympy.Expr | None:
    sides = [one.expression for one in equation.items if isinstance(one.expression, sympy.Expr)]
    return sides[0] - sides[1] if len(sides) == len(equation.items) == 2 else None


def _same_equation(first: sympy.Expr | None, second: sympy.Expr | None) -> bool:
    """Whether one is a multiple of the other."""
    if first is None or second is None:
        return False
    pairs = [(_at(first, point), _at(second, point)) for point in _POINTS]
    ratios = [a / b for a, b in pairs if a and b]
    return len(ratios) == len(pairs) and all(_close(ratio, ratios[0]) for ratio in ratios)


def _both_ways(relation: Value) -> Iterator[tuple[str, tuple[Value, ...]]]:
    turned = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
    yield relation.text, relation.items
    yield " ".join(turned.get(one, one) for one in reversed(relation.text.split())), relation.items[::-1]


def same(first: sympy.Basic | None, second: sympy.Basic | None) -> bool:
    """Whether two expressions have one value: as fractions, else to 40 digits at several points."""
    if first is None or second is None:
        return False
    if isinstance(first, sympy.MatrixBase) or isinstance(second, sympy.MatrixBase):
        alike = isinstance(first, sympy.MatrixBase) and isinstance(second, sympy.MatrixBase)
        return alike and first.shape == second.shape and all(map(same, first.flat(), second.flat()))
    if first == second:
        return True
    if not (isinstance(first, sympy.Expr) and isinstance(second, sympy.Expr)):
        return False
    if first.is_Rational and second.is_Rational:
        return False
    if first.free_symbols != second.free_symbols and sympy.simplify(first - second) != 0:
        return False
    pairs = [
        (_at(first, point), _at(second, point)) for point in (_POINTS if first.free_symbols else _POINTS[:1])
    ]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return bool(known) and all(_close(a, b) for a, b in known)


def _at(expression: sympy.Basic, point: tuple[int, int]) -> sympy.Expr | None:
    """The value where the symbols have numbers that depend on the point and their name; None without one."""
    symbols = sorted(expression.free_symbols, key=str)
    numbers = {
        symbol: sympy.Rational(point[0] * 31 + sum(map(ord, str(symbol))) % 29, point[1] * 17 + place)
        for place, symbol in enumerate(symbols)
    }
    try:
        value = expression.xreplace(numbers).evalf(_DIGITS + 10)
    except (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError):
        return None
    return value if value.is_number and value.is_finite is not False and not value.has(sympy.nan) else None


def _close(first: sympy.Expr, second: sympy.Expr) -> bool:
    size = max(abs(first), abs(sympy.sympify(second)))
    return bool(size == 0 or abs(first - second) <= size * sympy.Float(10) ** -_DIGITS)
