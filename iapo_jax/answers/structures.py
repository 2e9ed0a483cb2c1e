r"""Lists, tuples, sets, intervals, unions and matrices: the items of a tidy text.

`(1, 2)` and `[1, 2)` are ordered and their brackets matter; `\{1, 2\}` and the bare list `1, 2` are
not ordered; a bare list is ordered if the other answer has parentheses.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_MAX_ITEMS = 64

_TOKEN = re.compile(r"\\[{}]|\\[a-zA-Z]+|\\.|[(){}\[\],;]|(?<= )(?:and|or)(?= )", re.DOTALL)

_OPEN, _CLOSE = {"(", "[", "{", "\\{"}, {")", "]", "}", "\\}"}

_MATRIX = re.compile(
    r"[(\[]?\s?\\begin\{((?:[pbBvV]?|small)matrix|array)\}(?:\s?\{[lcr|]+\})?(.*)"
    r"\\end\{\1\}\s?[)\]]?",
    re.DOTALL,
)

_ATOM = re.compile(r"-?\s?(?:[a-zA-Z]|\\[a-zA-Z]+\s?)")


class Sequence(NamedTuple):
    """Items; `form`: their brackets, "bare", "union", "row", "column" or the shape of a matrix."""

    form: str
    items: tuple[str, ...]


def sequence(text: str) -> Sequence | None:
    """The items of a tidy text, split at its outermost commas; None if it is a single item."""
    matrix = _matrix(text)
    if matrix is not None:
        return matrix
    form, inner = "bare", text
    found = _split(text, 0)
    if found is None:
        return None
    items, whole, unions = found
    if len(items) == 1 and len(unions) > 1:
        return Sequence("union", tuple(unions))
    if len(items) == 1 and whole:
        opening = 2 if text.startswith("\\{") else 1
        closing = 2 if text.endswith("\\}") else 1
        form = text[:opening].strip("\\") + text[-closing:].strip("\\")
        inner = text[opening:-closing].strip()
        if form == "{}" and opening == 1:  # TeX's grouping braces, which are invisible
            form = "bare"
        if form not in ("()", "[]", "(]", "[)", "{}", "bare"):
            return None
        found = _split(inner, 0)
        if found is None:
            return None
        items = found[0]
    elif len(items) == 1:
        items = _both_signs(text)
    items = [sign for item in items for sign in _both_signs(item)]
    if not all(items) or len(items) > _MAX_ITEMS or (form == "bare" and len(items) < 2):
        return None
    return Sequence(form, tuple(items))


def _split(text: str, start: int) -> tuple[list[str], bool, list[str]] | None:
    """Items at depth 0, whether one bracket spans the text, and pieces between unions."""
    cuts, unions, depth, spans = [], [], 0, bool(text)
    for token in _TOKEN.finditer(text):
        symbol = token[0]
        if symbol in _OPEN:
            spans = spans and (depth > 0 or token.start() == 0)
            depth += 1
        elif symbol in _CLOSE:
            depth -= 1
            if depth < 0:
                return None
            spans = spans and (depth > 0 or token.end() == len(text))
        elif depth == 0 and symbol in (",", ";", "and", "or"):
            cuts.append(token.span())
        elif depth == 0 and symbol == "\\cup":
            unions.append(token.span())
    spans = spans and text[:1] in "([{\\" and text[-1:] in ")]}"
    if depth:
        return None
    return _pieces(text, cuts), spans, _pieces(text, unions)


def _pieces(text: str, cuts: list[tuple[int, int]]) -> list[str]:
    edges = [0, *(edge for cut in cuts for edge in cut), len(text)]
    pieces = [text[a:b].strip() for a, b in zip(edges[::2], edges[1::2], strict=True)]
    # "1, 2, and 3" has an empty piece between the comma and the word
    words = [False, *(text[a:b] in ("and", "or") for a, b in cuts)]
    return [
        piece
        for index, piece in enumerate(pieces)
        if piece or not (index + 1 < len(words) and words[index + 1])
    ]


def _both_signs(item: str) -> list[str]:
    r"""`1 \pm a` as two items."""
    if item.count("\\pm") != 1:
        return [item]
    left, right = item.split("\\pm")
    if right[:1].isalpha():
        return [item]
    return [f"{left.strip()}{sign}{right.strip()}".lstrip("+") for sign in "+-"]


def _matrix(text: str) -> Sequence | None:
    found = _MATRIX.fullmatch(text)
    if found is None or "\\begin" in found[2]:
        return None
    body = re.sub(r"\\hline", "", found[2]).strip()
    rows = [row.split("&") for row in re.split(r"\\\\", body.removesuffix("\\\\"))]
    bars = "|" if found[1] in ("vmatrix", "Vmatrix") else ""
    shape = f"matrix{bars} " + " ".join(str(len(row)) for row in rows)
    if not bars and {len(rows), *map(len, rows)} > {1}:
        shape = "row" if len(rows) == 1 else "column"
    items = tuple(cell.strip() for row in rows for cell in row)
    return Sequence(shape, items) if len(items) <= 400 else None


def is_atom(text: str) -> bool:
    """Whether a text is one symbol."""
    return bool(_ATOM.fullmatch(text))


def comparable(one: str, other: str) -> bool:
    """Whether two forms of brackets may hold the same answer."""
    forms = {one, other}
    return (
        len(forms) == 1 or forms in _ALIKE or (bool(forms & {"bare", "single"}) and forms <= _LOOSE)
    )


_ALIKE = ({"row", "()"}, {"column", "()"}, {"bare", "union"})

_LOOSE = {"bare", "single", "()", "{}"}


def unordered(one: str, other: str) -> bool:
    """Whether the order of the items is ignored."""
    return {one, other} <= {"bare", "{}", "union", "single"}


def matching(verdicts: list[list[bool | None]]) -> bool | None:
    """Whether rows and columns can be matched one to one; None if an undecided pair matters."""
    if any(True not in row and None not in row for row in verdicts):
        return False
    free = set(range(len(verdicts)))
    for row in verdicts:
        mine = next((column for column in sorted(free) if row[column] is True), None)
        if mine is None:
            return None if any(None in line for line in verdicts) else False
        free.discard(mine)
    return True
