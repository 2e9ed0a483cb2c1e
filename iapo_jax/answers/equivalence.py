r"""Whether two answers are equal, as far as exact rules can decide without a child process.

The second table of `docs/answers.md` has the rules with examples. Whatever is not decided here
(algebra) goes to math-verify (`checker`).
"""

from __future__ import annotations

import re
from fractions import Fraction

from iapo_jax.answers import structures
from iapo_jax.answers.extraction import MAX_ANSWER_CHARS
from iapo_jax.answers.notation import TEXT, balanced, plain, squashed, tidy, whole_text
from iapo_jax.answers.quantities import quantity, without_unit
from iapo_jax.answers.structures import Sequence

KINDS = ("integer", "latex", "choice")

_GOLD_LETTER = re.compile(r"\(?\s?([A-E])\s?\)?\.?")

_CHOICE = re.compile(
    r"(?:(?:the )?(?:correct )?(?:option|choice|answer)(?: is)?:? )?"
    r"(?:\(\s?([A-Za-z])\s?\)|([A-Za-z])(?=[).:]|$))[).:]*(?:\s(.*))?",
    re.I | re.DOTALL,
)

_SECOND_CHOICE = re.compile(r"\([A-Z]\)|\b[A-Z][).:](?:\s|$)|^(?:or|and|/|,|&) ")

_NAME = (
    r"(?:\\text\{[^{}]*\}|\\?[a-zA-Z]+(?:_\{?\w+\}?)?'{0,3}|\\angle \w+)"
    r"(?:\s?\(\s?[\w, \\]{1,20}\))?"
)

_ASSIGNED = re.compile(
    rf"({_NAME}|\({_NAME}(?:\s?,\s?{_NAME})*\))\s?(?:=|\\in(?![a-z])|\\approx)\s?([^=]+)"
)

_LEADING = re.compile(r"(?:=|\\approx|(?:approximately|about|roughly) )\s?", re.I)

_MODULUS = re.compile(r"\s?\(?\\?p?mod(?![a-z])\s?\{?\s?[0-9]+\s?\}?\)?$")

_WORDS = re.compile(r"[A-Za-z][A-Za-z' .,!-]*")

_ARTICLE = re.compile(r"(?:an?|the) (?=[a-z]{2})", re.I)

_DOUBT = re.compile(r"[0-9]|\b(?:not|maybe|perhaps|if|unless|wrong)\b", re.I)

_LONG_WORD = re.compile(r"[A-Za-z]{3}")

_FUNCTIONS = re.compile(
    r"(?:sin|cos|tan|sec|csc|cot|log|ln|exp|sqrt|max|min|gcd|lcm|mod|arc\w+|sinh|cosh)\b", re.I
)

_PROSE = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z']{2,}")

_TIME = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?\s?([ap])?\.?\s?m?\.?", re.I)

_RATIO = re.compile(r"[0-9.]{1,20}(?:\s?:\s?[0-9.]{1,20})+")

_BASED = re.compile(r"\(?([0-9A-Fa-f]+)\)?\s?_\s?\{?(?:\\text\{)?\s?([0-9]{1,2}|[a-z]+)\s?\}{0,2}")

_MOST = 4_000  # comparisons of parts; nested lists in hostile texts could need millions

_BASES = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def decide(candidate: str, gold: str, kind: str | None = None) -> bool | None:
    """Whether two answers are equal; None if only algebra can decide. `kind` is one of KINDS."""
    candidate, gold = candidate.strip(), gold.strip()
    if not candidate or not gold:
        return False
    if candidate == gold:
        return True
    if max(len(candidate), len(gold)) > MAX_ANSWER_CHARS:
        return False
    one, other = tidy(candidate), tidy(gold)
    if not one or not balanced(one):
        return False
    kind = kind if kind in KINDS else None
    letter = _gold_letter(other, kind)
    if letter is not None:
        return choice(one) == letter
    verdict = same(one, other)
    if verdict is None and kind == "integer" and not re.search(r"[0-9]", one):
        return False
    return verdict


def algebra(candidate: str, gold: str) -> tuple[str, str]:
    """Both texts as math-verify receives them: tidy, without names and units."""
    one, other = _assigned(tidy(candidate), tidy(gold))
    return without_unit(one), without_unit(other)


def _gold_letter(gold: str, kind: str | None) -> str | None:
    """The gold answer's letter; without a kind only A to E, because X may be a quantity."""
    if kind == "choice":
        return choice(gold)
    found = _GOLD_LETTER.fullmatch(plain(gold)) if kind is None else None
    return found[1] if found else None


def choice(text: str) -> str | None:
    """The letter that a tidy text chooses (B, (b), B., B) text, (B) text, option B), or None."""
    found = _CHOICE.fullmatch(plain(text))
    if found is None or (found[3] and _SECOND_CHOICE.search(found[3])):
        return None
    letter = found[1] or found[2]
    return letter.upper() if letter.isascii() else None  # with re.I, [a-z] also matches the long s


class _Work:
    """The budget of comparisons for one pair of answers, and the depth of the current one."""

    def __init__(self):
        self.left, self.depth = _MOST, 0


def same(one: str, other: str, work: _Work | None = None) -> bool | None:
    """Whether two tidy texts are equal, part by part; None if only algebra can decide."""
    work = work or _Work()
    if not one or not other:
        return one == other
    work.left -= 1
    if work.depth > 8 or work.left < 0:
        return None
    if squashed(one) == squashed(other):
        return True
    one, other = _assigned(one, other)
    if squashed(one) == squashed(other):
        return True
    numbers = quantity(one), quantity(other)
    if None not in numbers:
        return numbers[0].same(numbers[1])
    for compare in (_same_parts, _same_form, _same_words):
        verdict = compare(one, other, work)
        if verdict is not None:
            return verdict
    if squashed(one).lower() == squashed(other).lower():
        return False  # b is not B, but math-verify would accept it
    for text, beside, number in ((one, other, numbers[1]), (other, one, numbers[0])):
        if number is not None and (_is_equation(text) or _contradicts(text)):
            return False
        if (number is not None or structures.is_atom(beside)) and _is_prose(text):
            return False
    return None


def _assigned(one: str, other: str) -> tuple[str, str]:
    r"""Both texts without `x =` or `x \in`, unless the names differ.

    A modulus is removed if only one of them has it.
    """
    found = _LEADING.match(one)
    one = one[found.end() :] if found else one
    if bool(_MODULUS.search(one)) != bool(_MODULUS.search(other)):
        one, other = _MODULUS.sub("", one), _MODULUS.sub("", other)
    first, second = _ASSIGNED.fullmatch(one), _ASSIGNED.fullmatch(other)
    if first and second:
        if squashed(first[1]) == squashed(second[1]):
            return first[2].strip(), second[2].strip()
    elif first and "=" not in other:
        return first[2].strip(), other
    elif second and "=" not in one:
        return one, second[2].strip()
    return one, other


def _same_parts(one: str, other: str, work: _Work) -> bool | None:
    """Lists, tuples, sets, intervals, unions and matrices, item by item."""
    one, other = (plain(text) if whole_text(text) else text for text in (one, other))
    parts = [structures.sequence(text) for text in (one, other)]
    if parts == [None, None]:
        return None
    for index, (text, part) in enumerate(zip((one, other), parts, strict=True)):
        if part is None:
            parts[index] = Sequence("single", (text,))
        elif len(part.items) == 1 and part.form in ("()", "{}"):
            parts[index] = Sequence("single", part.items)
    first, second = parts
    if len(first.items) != len(second.items):
        # algebra may still read an expression as a matrix or an interval: decide plain cases only
        known = "single" not in (first.form, second.form) or any(
            quantity(part.items[0]) or structures.is_atom(part.items[0])
            for part in parts
            if part.form == "single"
        )
        return False if known else None
    if not structures.comparable(first.form, second.form):
        return False
    work.depth += 1
    if structures.unordered(first.form, second.form):
        verdicts = [[same(a, b, work) for a in first.items] for b in second.items]
        found = None
    else:
        found = [same(a, b, work) for a, b in zip(first.items, second.items, strict=True)]
    work.depth -= 1
    if found is None:
        return structures.matching(verdicts)
    return False if False in found else None if None in found else True


def _same_form(one: str, other: str, work: _Work) -> bool | None:
    """Times of day, ratios, and numerals with a base."""
    bases = _based(one), _based(other)
    if None not in bases:
        return bases[0] == bases[1]
    if bases != (None, None):
        numeral = (bases[0] or bases[1])[0]
        text = other if bases[0] else one
        return squashed(text).upper() == numeral if quantity(text) else None
    times = _TIME.fullmatch(plain(one)), _TIME.fullmatch(plain(other))
    if None not in times:
        halves = {(time[4] or "").lower() for time in times} - {""}
        clock = [[int(part or 0) for part in time.groups()[:3]] for time in times]
        return clock[0] == clock[1] and len(halves) < 2
    ratios = _ratio(one), _ratio(other)
    if None not in ratios:
        return ratios[0] == ratios[1]
    return None


def _based(text: str) -> tuple[str, int] | None:
    found = _BASED.fullmatch(text)
    if found is None:
        return None
    if found[2].isdigit():
        return found[1].upper(), int(found[2])
    known = found[2] in _BASES
    return (found[1].upper(), _BASES.index(found[2]) + 2) if known else None


def _ratio(text: str) -> list[Fraction] | None:
    """A ratio with its first number divided out."""
    if not _RATIO.fullmatch(text):
        return None
    parts = [quantity(part.strip()) for part in text.split(":")]
    if None in parts or not parts[0].value:
        return None
    return [part.value / parts[0].value for part in parts]


def _same_words(one: str, other: str, work: _Work) -> bool | None:
    words = _words(one), _words(other)
    if None not in words:
        return words[0] == words[1]
    for text, said, beside in ((one, words[0], other), (other, words[1], one)):
        # east is not a product of variables, but abc may be
        word = said and (whole_text(text) or re.search(r"[a-z]{4}", said))
        if word and not structures.is_atom(beside):
            return False
    return None


def _words(text: str) -> str | None:
    """Words in lower case; None for mathematics, and for a word of one or two letters."""
    said = _ARTICLE.sub("", plain(text).strip(" .,!"))
    if not _WORDS.fullmatch(said) or _FUNCTIONS.search(said):
        return None
    return said.lower() if whole_text(text) or _LONG_WORD.search(said) else None


def _is_prose(text: str) -> bool:
    """Whether a text is a sentence, from which no answer is taken."""
    words = [word for word in _PROSE.findall(TEXT.sub(" ", text)) if not _FUNCTIONS.match(word)]
    doubts = [said for said in TEXT.findall(text) if _DOUBT.search(said)]
    phrase = any(3 < len(word) < len(text) for word in words)
    return phrase or len(words) > 1 or bool(doubts)


def _contradicts(text: str) -> bool:
    """Whether a text equates two different numbers: 13 = 12 is a hedge."""
    numbers = [number for side in text.split("=") if (number := quantity(side.strip()))]
    return any(not number.same(numbers[0]) for number in numbers[1:])


def _is_equation(text: str) -> bool:
    """Whether a text is an equation such as 2x + z = 1, and not a + b = 12 or f(2) = 12."""
    left, equals, _ = re.sub(r"[a-zA-Z]\([^()]*\)|\w_\{?\w+\}?", "f", text).partition("=")
    variable = re.search(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", left))
    return bool(equals and variable and re.search(r"[0-9]", left))
