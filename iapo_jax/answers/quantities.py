r"""Numbers with their units, exactly: 1,234.50, 1\frac{1}{2}, 3/4, 1.2\times 10^{5}, 12\%, 5 cm.

Values are exact fractions, so 0.333 is not 1/3. Texts are tidy (`notation.tidy`).
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import NamedTuple

from iapo_jax.answers.notation import KEPT_CHARS, TEXT, balanced

# [0-9] and not \d: int("１２") is 12 in Python, but full-width digits are not accepted.
_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"

_CURRENCY = r"(?:[€£¥₹]|USD|US|Rs\.?)?\s?"

_NUMBER = re.compile(
    rf"(?P<sign>{_CURRENCY}[+-]?\s?{_CURRENCY})(?:"
    r"(?P<whole>[0-9]+)\s?(?:\\frac\{(?P<a>[0-9]+)\}\{(?P<b>[0-9]+)\}"
    r"|(?<=[0-9] )(?P<c>[0-9]+)\s?/\s?(?P<d>[0-9]+))"
    rf"|\\frac\{{\s?(?P<over>[+-]?{_DECIMAL})\s?\}}\{{\s?(?P<under>[+-]?{_DECIMAL})\s?\}}"
    rf"|(?P<left>{_DECIMAL})\s?/\s?(?P<right>{_DECIMAL})"
    r"|(?P<fixed>[0-9]*\.[0-9]*)\\overline\{(?P<period>[0-9]+)\}"
    rf"|(?P<plain>{_DECIMAL})"
    r"(?:\s?(?:\\times|\\cdot|\*|x)\s?10\s?\^\s?\{?(?P<power>[+-]?[0-9]{1,4})\}?"
    r"|[eE](?P<e>[+-]?[0-9]{1,4}))?"
    r")(?![0-9])"
)

_MULTIPLIERS = {
    **{"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9},
    **{"trillion": 10**12, "dozen": 12},
}

_PERCENT = re.compile(r"(?:%|percent(?:age)?s?|per cent|pct\.?|percentage points?|percent points?)")

_DEGREE = re.compile(r"(?:\^\\circ|deg\.?|degrees?)\s?(?:[CF]|celsius|fahrenheit)?", re.I)

_SPELLINGS = (
    *(("mm", "millimeter", "millimetre"), ("cm", "centimeter", "centimetre")),
    *(("m", "meter", "metre"), ("km", "kilometer", "kilometre"), ("in", "inch", "inche")),
    *(("ft", "foot", "feet"), ("yd", "yard"), ("mi", "mile"), ("s", "sec", "second")),
    *(("min", "minute"), ("h", "hr", "hour"), ("day",), ("week", "wk"), ("month",)),
    *(("year", "yr"), ("mg", "milligram"), ("g", "gram"), ("kg", "kilogram"), ("lb", "pound")),
    *(("oz", "ounce"), ("ml", "milliliter", "millilitre"), ("l", "liter", "litre")),
    *(("cent",), ("dollar", "buck", "usd"), ("mph",), ("rad", "radian")),
)

_UNITS = {spelling: names[0] for names in _SPELLINGS for spelling in names}

_WORD = re.compile(r"[A-Za-zµΩ'-]+\.?")

_UNIT_TEXT = re.compile(r"(?:[A-Za-zµΩ'./ -]|\^\{?-?[1-4]\}?|\(s\))*")

_POWER = re.compile(r"\^\{?(-?[1-4])\}?")


# Words that cannot be a unit after a number such as 12.
_NO_UNIT = frozenset(
    re.findall(
        r"\w+",
        "a an and or not no nor maybe perhaps but is are was if than less more think about "
        "approximately half third thirds quarter quarters over divided squared cubed factorial "
        "plus minus times point base mod to from between wrong incorrect otherwise unless except "
        "until i we so since because root rooted power choose hence thus therefore",
    )
)


class Quantity(NamedTuple):
    """A number; `unit` is "" for none, and "?" for a word that is not a known unit of measure."""

    value: Fraction
    unit: str

    def same(self, other: Quantity) -> bool:
        """Whether values are equal; one side may omit its unit, and 12% equals 12 and 0.12."""
        units = {self.unit, other.unit}
        if "%" in units and units != {"%"}:
            part, whole = (self, other) if self.unit == "%" else (other, self)
            return whole.value in (part.value, part.value / 100)
        known = units - {"", "?"}
        return len(known) < 2 and (
            self.value == other.value
            or _rounds(self.value, other.value)
            or _rounds(other.value, self.value)
        )


def _places(value: Fraction) -> int | None:
    """The decimal places of a value; None if there are more than 64."""
    return next((n for n in range(65) if 10**n % value.denominator == 0), None)


def _rounds(decimal: Fraction, exact: Fraction) -> bool:
    """Whether a decimal with at least 12 places is how a machine prints the exact value."""
    if decimal.denominator < 10**6 or _places(exact) is not None:
        return False
    places = _places(decimal)
    return places is not None and places >= 12 and abs(exact - decimal) * 10**places < 1


def quantity(text: str) -> Quantity | None:
    """The quantity of a tidy text that is one number, perhaps with a unit; else None."""
    return _known(text) if len(text) <= KEPT_CHARS else _read(text)


def _read(text: str) -> Quantity | None:
    while text.startswith("(") and text.endswith(")") and "(" not in text[1:]:
        if "," in text:
            return None
        text = text[1:-1].strip()
    if (whole := TEXT.fullmatch(text)) is not None:
        text = whole[1].strip()
    found = _NUMBER.match(text)
    if found is None:
        return None
    value = _value(found)
    rest = text[found.end() :]
    while value is not None:
        word = TEXT.sub(r" \1 ", rest).strip().partition(" ")
        if word[0].lower() not in _MULTIPLIERS:
            break
        value *= _MULTIPLIERS[word[0].lower()]
        rest = " " + word[2]
    unit = _unit(rest)
    return None if value is None or unit is None else Quantity(value, unit)


_known = functools.lru_cache(maxsize=16_384)(_read)


def _value(found: re.Match) -> Fraction | None:
    part = {name: text for name, text in found.groupdict().items() if text is not None}
    try:
        value = _unsigned(part)
    except ZeroDivisionError:
        return None
    return -value if "-" in part["sign"] else value


def _unsigned(part: dict[str, str]) -> Fraction:
    def number(name: str) -> Fraction:
        return Fraction(part[name].replace(",", "").rstrip("."))

    if "whole" in part:
        over, under = ("a", "b") if "a" in part else ("c", "d")
        return number("whole") + number(over) / number(under)
    if "over" in part:
        return number("over") / number("under")
    if "left" in part:
        return number("left") / number("right")
    if "period" in part:
        whole, _, digits = part["fixed"].partition(".")
        period = Fraction(int(part["period"]), 10 ** len(part["period"]) - 1)
        return int(whole or 0) + (int(digits or 0) + period) / 10 ** len(digits)
    return number("plain") * Fraction(10) ** int(part.get("power") or part.get("e") or 0)


def _unit(rest: str) -> str | None:
    """The unit after a number, "" for none; None if the rest is not a unit."""
    words = TEXT.sub(r" \1 ", rest)
    joined, words = not rest.startswith(" "), re.sub(r"\s+", " ", words).strip()
    if not words or words in "€£¥₹":
        return ""
    if _PERCENT.fullmatch(words.lower()):
        return "%"
    if _DEGREE.fullmatch(words):
        return "degree"
    if not _UNIT_TEXT.fullmatch(words) or len(words) > 60:
        return None
    return _named(words, texted="\\" in rest, joined=joined)


_UNIT_AT_END = re.compile(
    rf"(.*\S)(?:\s?(?:\^\\circ|%)|\s([A-Za-z]{{2,}})|\s?{TEXT.pattern}\s?(?:{_POWER.pattern})?)"
)


def without_unit(text: str) -> str:
    """A tidy expression without the unit at its end; a single letter is not taken for a unit."""
    for _ in range(3):  # square units, meters per second
        found = _UNIT_AT_END.fullmatch(text)
        if found is None or not balanced(found[1]):
            return text
        word = found[2]
        if word and len(word) < 4 and word.removesuffix("s") not in _UNITS:
            return text
        text = found[1]
    return text


def _named(words: str, *, texted: bool, joined: bool) -> str | None:
    power = _POWER.search(words)
    names = [word.rstrip(".") for word in _WORD.findall(_POWER.sub("", words.replace("(s)", "")))]
    if not names or _NO_UNIT & {name.lower() for name in names} or len(names) > 6:
        return None
    exponent = power[1] if power else "1"
    for prefix, value in (("square", "2"), ("sq", "2"), ("cubic", "3"), ("cu", "3")):
        if names[0].lower() == prefix and len(names) > 1:
            names, exponent = names[1:], value
    unit = _UNITS.get(names[0]) or _UNITS.get(names[0].lower().removesuffix("s"))
    # 5m, 2ab, 5 x: variables; 5cm, 5 m, 5 apples: units
    shortest = min(map(len, names))
    bare = not texted and (unit is None or joined)
    if bare and (shortest == 1 or (unit is None and (joined or shortest == 2))):
        return None
    if unit is None or len(names) > 1 or "/" in words:
        return "?"
    return unit if exponent == "1" else f"{unit}^{exponent}"
