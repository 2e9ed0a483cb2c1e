"""Several models on the same problems: their metrics, differences, and the table. No JAX."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from iapo_jax.errors import UserError
from iapo_jax.evaluation.estimates import (
    Measured,
    at_matched_length,
    differences,
    estimates,
    measure,
)
from iapo_jax.evaluation.intervals import Estimate
from iapo_jax.evaluation.records import FORMAT, Record
from iapo_jax.evaluation.tables import format_estimate, in_order, style_of, text_table

_MODELS_A_TABLE = 4


def group(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of one dataset by label, in the order given, on the problems that all of them have.

    A prompt may be too long for one model's tokenizer and not for another's.

    Raises:
      UserError: if the records do not have the same problems.
    """
    shared = set.intersection(*(set(record.rows) for record in records))
    if not shared:
        raise UserError(f"{records[0].dataset}: the models have no problem in common")
    reference: dict[int, str] = {}
    labels: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.member):
        for row, answer in zip(record.rows, record.answers, strict=True):
            if reference.setdefault(row, answer) != answer:
                raise UserError(
                    f"{record.dataset}, row {row + 1}: the reference answer is {answer!r} for "
                    f"{record.model}, {reference[row]!r} for another model; expected the same "
                    "problems for all models"
                )
    for record in records:
        labels.setdefault(record.model, []).append(record.on_rows(shared))
    return labels


def summarize(
    records: Sequence[Record], ks: Sequence[int] = (1,), budgets: Sequence[int] = ()
) -> dict[str, Any]:
    """Every metric of every label on each dataset, and the differences of each pair of labels.

    Returns the object of summary.json. Its lists `figures` and `differences` hold a name, value,
    low and high for each metric; a difference is `model` - `baseline`, where the baseline is the
    label that was given first. A value that is not finite is null: the end of an unbounded
    interval, or an undefined metric.
    """
    summary: dict[str, Any] = {"format": FORMAT, "k": list(ks), "datasets": []}
    summary |= {"figures": [], "differences": []}
    for dataset in dict.fromkeys(record.dataset for record in records):
        labels = group([record for record in records if record.dataset == dataset])
        first = next(iter(labels.values()))[0]
        summary["datasets"].append(
            {
                "dataset": dataset,
                "problems": len(first.rows),
                "samples": len(first.correct[0]),
                "members": {label: len(members) for label, members in labels.items()},
            }
        )
        measured = {
            label: measure([one.outcomes() for one in members], ks, budgets, stream=stream)
            for stream, (label, members) in enumerate(labels.items())
        }
        for label, model in measured.items():
            about = {"model": label, "dataset": dataset}
            summary["figures"] += [about | _row(*item) for item in estimates(model).items()]
        for number, label in enumerate(measured):
            for base in list(measured)[:number]:
                about = {"model": label, "baseline": base, "dataset": dataset}
                rows = _pair(label, measured[label], base, measured[base])
                summary["differences"] += [about | row for row in rows]
    return summary


def _pair(label: str, model: Measured, base_label: str, base: Measured) -> list[dict[str, Any]]:
    rows = [_row(*item) for item in differences(model, base).items()]
    matched = at_matched_length(model, base)
    truncated = base_label if matched.longer_is_baseline else label
    row = _row("accuracy_at_matched_length", matched.difference)
    row |= {"model_value": matched.accuracy, "baseline_value": matched.baseline}
    row |= {"budget": matched.budget, "cut": truncated}
    return [*rows, row]


def _row(name: str, found: Estimate) -> dict[str, Any]:
    finite = {key: x if math.isfinite(x) else None for key, x in found._asdict().items()}
    return {"name": name, **finite}


def table(summary: Mapping[str, Any]) -> str:
    """summary.json as text: a block for each dataset, then one for each pair of models."""
    blocks = []
    for about in summary["datasets"]:
        dataset = about["dataset"]
        seeds = [
            f"; {model}: {count} training seeds"
            for model, count in about["members"].items()
            if count > 1
        ]
        blocks.append(
            f"{dataset}: {about['problems']} problems, {_samples(about['samples'])} each; "
            f"[95% intervals]{''.join(seeds)}"
        )
        rows = [row for row in summary["figures"] if row["dataset"] == dataset]
        models = list(dict.fromkeys(row["model"] for row in rows))
        for start in range(0, len(models), _MODELS_A_TABLE):
            shown = models[start : start + _MODELS_A_TABLE]
            columns = [[row for row in rows if row["model"] == model] for model in shown]
            blocks.append(_table(shown, columns, signed=False))
        gaps = [row for row in summary["differences"] if row["dataset"] == dataset]
        for pair in dict.fromkeys((row["model"], row["baseline"]) for row in gaps):
            blocks.append(
                _pair_table(*pair, [r for r in gaps if (r["model"], r["baseline"]) == pair])
            )
    return "\n\n".join(blocks)


def _pair_table(model: str, baseline: str, rows: Sequence[Mapping[str, Any]]) -> str:
    text = _table([f"{model} - {baseline}"], [rows], signed=True)
    matched = next((row for row in rows if row["name"] == "accuracy_at_matched_length"), None)
    if matched is None:
        return text
    return (
        f"{text}\n  at equal mean length ({matched['cut']} truncated at {matched['budget']:.1f} "
        f"tokens): accuracy {model} {matched['model_value']:.3f}, {baseline} "
        f"{matched['baseline_value']:.3f}"
    )


def _table(
    titles: Sequence[str], columns: Sequence[Sequence[Mapping[str, Any]]], *, signed: bool
) -> str:
    """A row for each metric, a column for each title."""
    found = [{row["name"]: _estimate(row) for row in rows} for rows in columns]
    names = in_order(name for column in found for name in column)
    return text_table(
        titles,
        [
            (
                style_of(name).label,
                [format_estimate(column.get(name), name, signed=signed) for column in found],
            )
            for name in names
        ],
    )


def _estimate(row: Mapping[str, Any]) -> Estimate:
    values = (row[part] for part in Estimate._fields)
    return Estimate(*(math.nan if value is None else value for value in values))


def before_and_after(before: Record, after: Record) -> str:
    """A run's evaluation before and after training as text, with the paired difference."""
    first, last = measure([before.outcomes()]), measure([after.outcomes()])
    gaps = differences(last, first)
    columns = [estimates(first), estimates(last)]
    rows = []
    for name in ("accuracy", "length", "ratio@1"):
        cells = [format_estimate(column[name], name) for column in columns]
        cells.append(format_estimate(gaps[name], name, signed=True))
        rows.append((style_of(name).label, cells))
    truncated = [f"{100 * column['cut_share'].value:.1f}%" for column in columns]
    rows.append((style_of("cut_share").label, truncated))
    return (
        f"{text_table(['before', 'after', 'difference'], rows)}\n{len(before.rows)} held-out "
        f"problems, {_samples(before.settings['num_samples'])} each; [95% intervals]"
    )


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count} samples"
