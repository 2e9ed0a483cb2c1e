"""The table of methods as cells, Markdown and CSV, and what it says in sentences."""

import csv
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

from iapo_jax.evaluation.metrics import Estimate
from iapo_jax.report.comparison import Model, Section

MINUS = "\N{MINUS SIGN}"


_FORMS = {"accuracy": ".3f", "pass": ".3f", "majority": ".3f", "length": ".1f", "ratio": ".2f",
          "tokens": ".1f", "cut": ".1%"}  # fmt: skip


_NAMES = {
    "accuracy": "accuracy",
    "length": "tokens",
    "ratio@1": "accuracy per 100 tokens",
    "tokens_per_right_answer": "tokens per right answer",
    "length_correct": "tokens where right",
    "length_wrong": "tokens where wrong",
    "cut_share": "cut at the limit",
    "accuracy_at_matched_length": "accuracy at the same length",
}


_MAIN = ("accuracy", "length", "ratio@1", "tokens_per_right_answer")


_DIFFER = ("accuracy", "length", "accuracy_at_matched_length")


class Cell(NamedTuple):
    """A figure as text."""

    value: str
    interval: str  # empty where there is none
    excludes_0: bool = False  # of a difference's interval


class Table(NamedTuple):
    """Rows of one data set; the first column is the model's name."""

    heads: list[str]
    rows: list[tuple[Model, list[Cell]]]
    baseline: str  # of all rows; empty where they have several


def told(estimate: Estimate | None, name: str, *, signed: bool = False) -> Cell:
    """The cell of a figure; `name` decides its digits, and a dash stands for what is not there."""
    if estimate is None or not math.isfinite(estimate.value):
        return Cell("–", "")
    form = _FORMS[name.partition("@")[0].partition("_")[0]]
    value, low, high = (as_text(x, form, signed=signed) for x in estimate)
    if not math.isfinite(estimate.low) or not math.isfinite(estimate.high):
        return Cell(value, "")
    apart = signed and (estimate.low > 0 or estimate.high < 0)
    return Cell(value, f"{low} to {high}", apart)


def as_text(value: float, form: str, *, signed: bool = False) -> str:
    """With a true minus sign, and no sign at all where it rounds to nothing."""
    nothing = math.isfinite(value) and not float(format(value, form).strip("%"))
    text = format(0.0 if nothing else value, form if nothing or not signed else f"+{form}")
    return text.replace("-", MINUS)


def names_of(section: Section) -> list[str]:
    """Every figure that a model of the section has; those of the main table first."""
    names = dict.fromkeys(name for model in section.models for name in model.estimates)
    return [n for n in _MAIN if n in names] + [n for n in names if n not in _MAIN]


def head_of(name: str) -> str:
    """A figure's name as the head of a column."""
    return _NAMES.get(name, name.replace("_", " ").replace(" within@", " within ") + (
        " tokens" if "within@" in name else ""))  # fmt: skip


def main_table(section: Section) -> Table:
    """The figures that a comparison is about, and the differences to the baseline."""
    names = names_of(section)
    shown = [name for name in _MAIN if name in names]
    for prefix in ("pass@", "majority@"):  # the largest k tells most
        ks = [int(name[len(prefix) :]) for name in names if name.startswith(prefix)]
        shown += [f"{prefix}{max(ks)}"] if ks and max(ks) > 1 else []
    rows = []
    for model in section.models:
        cells = [told(model.estimates.get(name), name) for name in shown]
        cells += [told(model.differences.get(name), name, signed=True) for name in _DIFFER]
        rows.append((model, cells))
    bases = {model.baseline for model in section.models} - {None}
    baseline = bases.pop() if len(bases) == 1 else ""
    differ = [f"{head_of(name)} less {baseline or 'baseline'}" for name in _DIFFER]
    return Table([*map(head_of, shown), *(differ if rows else [])], rows, baseline)


def to_markdown(sections: Sequence[Section]) -> str:
    """A table for each data set."""
    parts = []
    for section in sections:
        table = main_table(section)
        heads = ["model", "seeds", *table.heads, "baseline"]
        lines = [f"## {_escaped(section.title)}", "", sampled(section), ""]
        lines += [_row(heads), _row(["---"] * len(heads))]
        for model, cells in table.rows:
            texts = [f"**{_plain(c)}**" if c.excludes_0 else _plain(c) for c in cells]
            own = [_escaped(model.name), str(len(model.members))]
            lines.append(_row([*own, *texts, _escaped(model.baseline or "")]))
        parts.append("\n".join(lines))
    rule = "In brackets 95% intervals by a bootstrap over problems; bold: the interval of the "
    rule += "difference excludes 0 (not corrected for the number of comparisons)."
    return "\n\n".join([*parts, rule]) + "\n" if parts else "No evaluation was found.\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(cell: Cell) -> str:
    text = cell.value + (f" [{cell.interval.replace(' to ', ', ')}]" if cell.interval else "")
    return text.replace(MINUS, "-")


def _escaped(text: str) -> str:
    for char in "\\|*_`<[":
        text = text.replace(char, f"\\{char}")
    return text


def sampled(section: Section) -> str:
    """How many problems and samples the figures of the section are of."""
    members = [one for model in section.models for one in model.members]
    samples = sorted({one.correct.shape[1] for one in members})
    many = " or ".join(map(str, samples))
    return f"{len(members[0].rows)} problems, {many} sample{'s' * (samples != [1])} of each"


def to_csv(sections: Sequence[Section]) -> str:
    """Every figure with its interval, unrounded: a row for each model and data set."""
    names = list(dict.fromkeys(name for section in sections for name in names_of(section)))
    heads = ["dataset", "problems", "samples", "model", "seeds", "baseline"]
    for name in names:
        heads += [name, f"{name}_low", f"{name}_high"]
    gaps = list(dict.fromkeys(name for s in sections for m in s.models for name in m.differences))
    for name in gaps:
        heads += [f"difference_{name}{end}" for end in ("", "_low", "_high")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    for section in sections:
        for model in section.models:
            one = model.members[0]
            row = [section.title, *one.correct.shape, model.name, len(model.members)]
            row.append(model.baseline or "")
            for figures, shown in ((model.estimates, names), (model.differences, gaps)):
                for name in shown:
                    values = figures.get(name, [math.nan] * 3)
                    row += ["" if math.isnan(x) else repr(float(x)) for x in values]
            writer.writerow(row)
    return out.getvalue()


def findings(section: Section) -> list[tuple[str, str]]:
    """What became of each model that has a baseline: its name, and a sentence of the figures."""
    found = []
    bases = {model.name: model for model in section.models}
    for model in section.models:
        base = bases.get(model.baseline or "")
        if base is None:
            continue
        ours, theirs = model.estimates, base.estimates
        change = ours["length"].value / theirs["length"].value - 1
        percent = as_text(change, ".0%", signed=True)
        tokens, before = (told(one["length"], "length").value for one in (ours, theirs))
        right, before_right = (told(one["accuracy"], "accuracy").value for one in (ours, theirs))
        gap = told(model.differences.get("accuracy"), "accuracy", signed=True)
        verdict = ""
        if gap.interval:
            verdict = f", interval of the difference {gap.interval}"
            verdict += "" if gap.excludes_0 else ", which includes 0"
        found.append(
            (
                model.name,
                f"{tokens} tokens instead of {before} ({percent}), "
                f"accuracy {right} against {before_right}{verdict}",
            )
        )
    return found
