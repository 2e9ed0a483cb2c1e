"""The table of methods as cells, Markdown and CSV, and its findings as sentences."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from iapo_jax.evaluation.intervals import Estimate
from iapo_jax.evaluation.tables import style_of
from iapo_jax.report.comparison import Model, Section

MINUS = "\N{MINUS SIGN}"
_DIGITS = {"cut_share": ".1%"}  # where the page has different digits from the text tables
_MAIN = ("accuracy", "length", "ratio@1", "tokens_per_right_answer")
_DIFFERENCES = ("accuracy", "length", "accuracy_at_matched_length")


class Cell(NamedTuple):
    """An estimate as text."""

    value: str
    interval: str  # empty where there is none
    excludes_0: bool = False  # of a difference's interval


class Table(NamedTuple):
    """The main metrics of one dataset; the first column is the model's name."""

    heads: list[str]
    rows: list[tuple[Model, list[Cell]]]
    baseline: str  # of all rows; empty if they have several


def format_cell(estimate: Estimate | None, name: str, *, signed: bool = False) -> Cell:
    """The cell of a metric; `name` decides its digits. A dash stands for a missing value."""
    if estimate is None or not math.isfinite(estimate.value):
        return Cell("–", "")
    style = style_of(name)
    digits = _DIGITS.get(name, style.digits)
    value, low, high = (format_number(style.factor * x, digits, signed=signed) for x in estimate)
    if not math.isfinite(estimate.low) or not math.isfinite(estimate.high):
        return Cell(value, "")
    excludes_0 = signed and (estimate.low > 0 or estimate.high < 0)
    return Cell(value, f"{low} to {high}", excludes_0)


def format_number(value: float, digits: str, *, signed: bool = False) -> str:
    """Formats a number with a true minus sign, and without a sign if it rounds to 0."""
    if math.isfinite(value) and not float(format(value, digits).strip("%")):
        return format(0.0, digits)
    return format(value, f"+{digits}" if signed else digits).replace("-", MINUS)


def names_of(section: Section) -> list[str]:
    """Every metric that a model of the section has; those of the main table first."""
    names = dict.fromkeys(name for model in section.models for name in model.estimates)
    return [n for n in _MAIN if n in names] + [n for n in names if n not in _MAIN]


def main_table(section: Section) -> Table:
    """The main metrics, and the differences from the baseline."""
    names = names_of(section)
    shown = [name for name in _MAIN if name in names]
    for prefix in ("pass@", "majority@"):  # only the largest k
        ks = [int(name[len(prefix) :]) for name in names if name.startswith(prefix)]
        if ks and max(ks) > 1:
            shown.append(f"{prefix}{max(ks)}")
    rows = []
    for model in section.models:
        cells = [format_cell(model.estimates.get(name), name) for name in shown]
        for name in _DIFFERENCES:
            cells.append(format_cell(model.differences.get(name), name, signed=True))
        rows.append((model, cells))
    baselines = {model.baseline for model in section.models} - {None}
    baseline = baselines.pop() if len(baselines) == 1 else ""
    heads = [style_of(name).label for name in shown]
    heads += [f"{style_of(name).label}, minus {baseline or 'baseline'}" for name in _DIFFERENCES]
    return Table(heads=heads, rows=rows, baseline=baseline)


def to_markdown(sections: Sequence[Section]) -> str:
    """A table for each dataset."""
    parts = []
    for section in sections:
        table = main_table(section)
        heads = ["model", "seeds", *table.heads, "baseline"]
        lines = [f"## {_escaped(section.title)}", "", sampled(section), ""]
        lines += [_row(heads), _row(["---"] * len(heads))]
        for model, cells in table.rows:
            texts = [f"**{_plain(c)}**" if c.excludes_0 else _plain(c) for c in cells]
            first = [_escaped(model.name), str(len(model.members))]
            lines.append(_row([*first, *texts, _escaped(model.baseline or "")]))
        parts.append("\n".join(lines))
    if not parts:
        return "No evaluation was found.\n"
    rule = (
        "Brackets: 95% bootstrap intervals over problems; bold: the interval of the "
        "difference excludes 0 (not corrected for the number of comparisons)."
    )
    return "\n\n".join([*parts, rule]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(cell: Cell) -> str:
    interval = f" [{cell.interval.replace(' to ', ', ')}]" if cell.interval else ""
    return f"{cell.value}{interval}".replace(MINUS, "-")


def _escaped(text: str) -> str:
    for char in "\\|*_`<[":
        text = text.replace(char, f"\\{char}")
    return text


def sampled(section: Section) -> str:
    """How many problems and samples the metrics of the section are computed from."""
    records = [member.record for model in section.models for member in model.members]
    counts = sorted({len(record.correct[0]) for record in records})
    noun = "sample" if counts == [1] else "samples"
    size = len(records[0].rows)
    problems = "1 problem" if size == 1 else f"{size} problems"
    return f"{problems}, {' or '.join(map(str, counts))} {noun} each"


def to_csv(sections: Sequence[Section]) -> str:
    """Every metric with its interval, unrounded: a row for each model and dataset."""
    names = list(dict.fromkeys(name for section in sections for name in names_of(section)))
    gaps = list(dict.fromkeys(name for s in sections for m in s.models for name in m.differences))
    heads = ["dataset", "problems", "samples", "model", "seeds", "baseline"]
    for prefix, some in (("", names), ("difference_", gaps)):
        heads += [f"{prefix}{name}{end}" for name in some for end in ("", "_low", "_high")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    for section in sections:
        for model in section.models:
            correct = model.members[0].record.correct
            row = [section.title, len(correct), len(correct[0]), model.name, len(model.members)]
            row.append(model.baseline or "")
            row += _values(model.estimates, names) + _values(model.differences, gaps)
            writer.writerow(row)
    return out.getvalue()


def _values(estimates: dict[str, Estimate], names: Iterable[str]) -> list[str]:
    values = []
    for name in names:
        factor = style_of(name).factor
        for value in estimates.get(name, [math.nan] * 3):
            values.append("" if math.isnan(value) else repr(float(factor * value)))
    return values


def findings(section: Section) -> list[tuple[str, str]]:
    """The name of each model with a baseline, and a sentence on its length and accuracy."""
    found = []
    by_name = {model.name: model for model in section.models}
    for model in section.models:
        base = by_name.get(model.baseline or "")
        if base is not None:
            found.append((model.name, _finding(model, base)))
    return found


def _finding(model: Model, base: Model) -> str:
    length, before = model.estimates["length"].value, base.estimates["length"].value
    percent = format_number(length / before - 1 if before else math.nan, ".0%", signed=True)
    tokens, tokens_before = (format_cell(m.estimates["length"], "length") for m in (model, base))
    accuracy, accuracy_before = (
        format_cell(m.estimates["accuracy"], "accuracy") for m in (model, base)
    )
    gap = format_cell(model.differences.get("accuracy"), "accuracy", signed=True)
    interval = ""
    if gap.interval:
        includes = "" if gap.excludes_0 else ", which includes 0"
        interval = f", interval of the difference {gap.interval}{includes}"
    return (
        f"{tokens.value} tokens instead of {tokens_before.value} ({percent}), "
        f"accuracy {accuracy.value} against {accuracy_before.value}{interval}"
    )
