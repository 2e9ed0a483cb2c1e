"""Estimates as text: the label, the digits and the scale of each metric. No JAX."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from iapo_jax.evaluation.intervals import Estimate


class Style(NamedTuple):
    """How a metric is printed."""

    label: str  # {} stands for what follows the @ of the name
    digits: str  # format specification
    factor: float = 1


_STYLES = {  # in the order of the tables
    "accuracy": Style("accuracy", ".3f"),
    "pass@": Style("pass@{}", ".3f"),
    "majority@": Style("majority@{}", ".3f"),
    "length": Style("mean length (tokens)", ".1f"),
    "length_correct": Style("mean length if correct", ".1f"),
    "length_wrong": Style("mean length if incorrect", ".1f"),
    "cut_share": Style("truncated", ".3f"),
    "ratio@": Style("pass@{} per 100 tokens", ".2f", 100),
    "tokens_per_right_answer": Style("tokens per correct answer", ".1f"),
    "accuracy_within@": Style("accuracy within {} tokens", ".3f"),
    "accuracy_at_matched_length": Style("accuracy at matched length", ".3f"),
}
_SAME_AS_ACCURACY = ("pass@1", "majority@1")
_FIRST, _CELL = 28, 26  # characters of the first column and, at least, of the others


def style_of(name: str) -> Style:
    """The style of a metric, by its name: pass@8 has that of pass@, with its k in the label."""
    stem, at, number = name.partition("@")
    style = _STYLES[stem + at]
    if name == "ratio@1":
        return style._replace(label="accuracy per 100 tokens")
    return style._replace(label=style.label.format(number))


def in_order(names: Iterable[str]) -> list[str]:
    """The metrics that a table shows, in its order; those that repeat another are left out."""
    shown = [name for name in dict.fromkeys(names) if name not in _SAME_AS_ACCURACY]
    order = list(_STYLES)
    stems = {name: "".join(name.partition("@")[:2]) for name in shown}
    return sorted(
        (name for name in shown if stems[name] in _STYLES),
        key=lambda name: order.index(stems[name]),
    )


def format_estimate(estimate: Estimate | None, name: str, *, signed: bool = False) -> str:
    """`0.975 [0.961, 0.984]`; a dash if there is no value, and ∞ for an unbounded end."""
    if estimate is None or math.isnan(estimate.value):
        return "-"
    style = style_of(name)
    digits = f"+{style.digits}" if signed else style.digits
    value, low, high = (format(style.factor * x, digits) for x in estimate)
    if not math.isfinite(estimate.low) and not math.isfinite(estimate.high):
        return value
    low = low if math.isfinite(estimate.low) else "-∞"
    high = high if math.isfinite(estimate.high) else "∞"
    return f"{value} [{low}, {high}]"


def text_table(titles: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """An aligned table: the titles of the columns, then rows of a label and its cells."""
    width = max(_CELL, *(len(title) + 2 for title in titles))
    lines = []
    for label, cells in [("", titles), *rows]:
        line = f"{label:<{_FIRST}} " + " ".join(f"{cell:<{width}}" for cell in cells)
        lines.append(line.rstrip())
    return "\n".join(lines)
