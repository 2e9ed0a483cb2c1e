"""Several models on the same problems: their figures, differences, and the table. No JAX."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from iapo_jax.errors import UserError
from iapo_jax.evaluation import metrics
from iapo_jax.evaluation.metrics import Estimate, Terms
from iapo_jax.evaluation.records import FORMAT, Record

_ROWS = {  # of the table: figure, label, form, factor
    "accuracy": ("accuracy, pass@1", "{:.3f}", 1),
    "pass@": ("pass@{}", "{:.3f}", 1),
    "majority@": ("majority@{}", "{:.3f}", 1),
    "length": ("length (tokens), any k", "{:.1f}", 1),
    "length_correct": ("  of right completions", "{:.1f}", 1),
    "length_wrong": ("  of wrong completions", "{:.1f}", 1),
    "cut_share": ("cut at the limit", "{:.3f}", 1),
    "ratio@": ("100 pass@{0} / length@{0}", "{:.2f}", 100),
    "tokens_per_right_answer": ("tokens per right answer", "{:.1f}", 1),
    "accuracy_within@": ("accuracy within {} tokens", "{:.3f}", 1),
    "accuracy_at_matched_length": ("accuracy at matched length", "{:.3f}", 1),
}


_MODELS_A_TABLE = 4


def group(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of one data set by label, members in order, on the problems that all of them have.

    A prompt may be too long for one model's tokenizer and not for another's.

    Raises:
      UserError: if they are not of the same problems.
    """
    shared = set.intersection(*(set(record.rows) for record in records))
    if not shared:
        raise UserError(f"{records[0].dataset}: the models have no problem in common")
    golds: dict[int, str] = {}
    labels: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda one: one.member):
        for row, gold in zip(record.rows, record.answers, strict=True):
            if golds.setdefault(row, gold) != gold:
                raise UserError(
                    f"{record.dataset}, row {row + 1}: the gold answer is {gold!r} for "
                    f"{record.model}, {golds[row]!r} for another model: these are other problems"
                )
    for record in records:
        labels.setdefault(record.model, []).append(_only(record, shared))
    return labels


def _only(record: Record, rows: set[int]) -> Record:
    if len(rows) == len(record.rows):
        return record
    kept = [i for i, row in enumerate(record.rows) if row in rows]
    names = ("rows", "prompts", "answers", "correct", "length", "finished", "votes")
    names = (*names, "thinking_length")
    return record._replace(**{name: [getattr(record, name)[i] for i in kept] for name in names})


def summarize(
    records: Sequence[Record], ks: Sequence[int] = (1,), budgets: Sequence[int] = ()
) -> dict[str, Any]:
    """Every figure of every label on each data set, and of each pair their differences.

    Returns the object of summary.json: lists `figures` and `differences` of name, value, low, high;
    a difference is `model` - `baseline`, and the baseline was named before it. null is what is not
    finite: an interval that ends at infinity, or a figure without anything to compute it from.
    """
    told: dict[str, Any] = {"format": FORMAT, "k": list(ks), "datasets": []}
    told |= {"figures": [], "differences": []}
    for dataset in dict.fromkeys(record.dataset for record in records):
        labels = group([record for record in records if record.dataset == dataset])
        first = next(iter(labels.values()))[0]
        told["datasets"].append(
            {
                "dataset": dataset,
                "problems": len(first.rows),
                "samples": len(first.correct[0]),
                "members": {label: len(many) for label, many in labels.items()},
            }
        )
        _one_dataset(told, dataset, labels, ks, budgets)
    return told


def _one_dataset(
    told: dict[str, Any],
    dataset: str,
    labels: Mapping[str, Sequence[Record]],
    ks: Sequence[int],
    budgets: Sequence[int],
) -> None:
    outcomes = {label: [one.outcomes() for one in many] for label, many in labels.items()}
    terms: dict[str, dict[str, list[Terms]]] = {}
    drawn = {}
    for stream, (label, seeds) in enumerate(outcomes.items()):
        parts = [metrics.figure_terms(seed, ks, budgets) for seed in seeds]
        terms[label] = {name: [part[name] for part in parts] for name in parts[0]}
        drawn[label] = metrics.resample(len(seeds[0].correct), len(seeds), stream=stream)
        for name, values in terms[label].items():
            found = metrics.estimate(values, drawn[label])
            told["figures"].append({"model": label, "dataset": dataset, **_row(name, found)})
    for number, label in enumerate(labels):
        for base in list(labels)[:number]:
            pair = {"model": label, "baseline": base, "dataset": dataset}
            for name, values in terms[label].items():
                gap = metrics.difference(values, drawn[label], terms[base][name], drawn[base])
                told["differences"].append({**pair, **_row(name, gap)})
            matched = metrics.accuracy_at_matched_length(
                outcomes[label], drawn[label], outcomes[base], drawn[base]
            )
            row = _row("accuracy_at_matched_length", matched.difference)
            row |= {"model_value": matched.accuracy, "baseline_value": matched.baseline}
            row |= {"budget": matched.budget, "cut": base if matched.longer_is_baseline else label}
            told["differences"].append({**pair, **row})


def _row(name: str, found: Estimate) -> dict[str, Any]:
    clean = {key: x if math.isfinite(x) else None for key, x in found._asdict().items()}
    return {"name": name, **clean}


def table(told: Mapping[str, Any]) -> str:
    """summary.json as text: a block for each data set, then one for each pair of models."""
    blocks = []
    for about in told["datasets"]:
        dataset, samples = about["dataset"], about["samples"]
        own = [row for row in told["figures"] if row["dataset"] == dataset]
        models = list(dict.fromkeys(row["model"] for row in own))
        several = {model: n for model, n in about["members"].items() if n > 1}
        seeds = "".join(f"; {model}: {n} training seeds" for model, n in several.items())
        blocks.append(
            f"{dataset}: {about['problems']} problems, {samples} sample(s) each; "
            f"[95% intervals]{seeds}"
        )
        for start in range(0, len(models), _MODELS_A_TABLE):
            some = models[start : start + _MODELS_A_TABLE]
            cells = {(row["model"], row["name"]): row for row in own}
            blocks.append(_grid(some, own, cells, sign=""))
        gaps = [row for row in told["differences"] if row["dataset"] == dataset]
        for pair in dict.fromkeys((row["model"], row["baseline"]) for row in gaps):
            rows = [row for row in gaps if (row["model"], row["baseline"]) == pair]
            blocks.append(_pair(pair, rows))
    return "\n\n".join(blocks)


def _pair(pair: tuple[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    title = f"{pair[0]} - {pair[1]}"
    text = _grid([title], rows, {(title, row["name"]): row for row in rows}, sign="+")
    matched = next((row for row in rows if row["name"] == "accuracy_at_matched_length"), None)
    if matched is None:
        return text
    return (
        f"{text}\n  where {matched['cut']} is cut at {matched['budget']:.1f} tokens, both spend "
        f"as much: {pair[0]} {matched['model_value']:.3f}, {pair[1]} "
        f"{matched['baseline_value']:.3f}"
    )


def _grid(
    titles: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    cells: Mapping[tuple[str, str], Mapping[str, Any]],
    sign: str,
) -> str:
    names = list(dict.fromkeys(row["name"] for row in rows))
    wide = max(26, *(len(title) + 2 for title in titles))
    lines = [f"{'':<28} " + " ".join(f"{title:<{wide}}" for title in titles)]
    for key, (label, form, factor) in _ROWS.items():
        for name in names:
            stem, at, k = name.partition("@")
            if name in ("pass@1", "majority@1"):  # the accuracy
                continue
            if (stem + at if at else name) != key:
                continue
            form_signed = form.replace(":", f":{sign}")
            texts = [_cell(cells.get((title, name)), form_signed, factor) for title in titles]
            row = " ".join(f"{text:<{wide}}" for text in texts)
            lines.append(f"{label.format(k):<28} {row}")
    return "\n".join(line.rstrip() for line in lines)


def _cell(row: Mapping[str, Any] | None, form: str, factor: float) -> str:
    if row is None or row["value"] is None:
        return "-"
    value = form.format(factor * row["value"])
    if row["low"] is None and row["high"] is None:
        return value
    low, high = (
        "∞" if row[end] is None else form.format(factor * row[end]) for end in ("low", "high")
    )
    return f"{value} [{low}, {high}]"
