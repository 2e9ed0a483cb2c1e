"""The experiment's tables: results.csv, grid.csv, and the Markdown of the README."""

import csv
import io
from collections.abc import Iterable

from testbed.categories import READ

from iapo_jax.figures import Estimate
from sweep import analysis
from sweep.analysis import BASE, Setting

RESULTS = (
    "setting",
    "method",
    "seed",
    "accuracy",
    "length",
    "pass_at_4",
    "updates",
    "sampled_tokens",
    "config",
)
GRID = ("setting", "method", "choice", "chosen", "accuracy", "length", "config")


def _csv(header: tuple[str, ...], rows: Iterable[Iterable]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()


def results_csv(settings: Iterable[Setting]) -> str:
    """One row a run that is judged, on the test problems; the start models have no seed."""
    rows = []
    for setting in settings:
        for entry in (setting.start, *setting.entries.values()):
            for outcomes, one in zip(entry.seeds, entry.results, strict=True):
                begun = entry is setting.start
                rows.append(
                    [
                        setting.name,
                        entry.name,
                        "" if begun else one.seed,
                        f"{outcomes.correct.mean():.4f}",
                        f"{outcomes.length.mean():.2f}",
                        f"{outcomes.correct.any(1).mean():.4f}",
                        one.updates,
                        one.sampled_tokens,
                        one.config,
                    ]
                )
    return _csv(RESULTS, rows)


def grid_csv(settings: Iterable[Setting]) -> str:
    """One row a run of the grids, on the selection split."""
    rows = []
    for setting in settings:
        if setting.name in analysis.SHIFTED:
            continue
        for method, results in setting.grids.items():
            for one in results:
                found = one.outcomes["select"]
                rows.append(
                    [
                        setting.name,
                        method,
                        one.choice,
                        int(setting.chosen.get(method) == one.choice),
                        f"{found.correct.mean():.4f}",
                        f"{found.length.mean():.2f}",
                        one.config,
                    ]
                )
    return _csv(GRID, rows)


def cell(found: Estimate, form: str = "{:.3f}") -> str:
    """`value [low, high]`."""
    return f"{form.format(found.value)} [{form.format(found.low)}, {form.format(found.high)}]"


def results_table(setting: Setting) -> str:
    """Every method of a setting, the shortest first, and its differences from GRPO."""
    lines = [
        "| method | seeds | accuracy | tokens | pass@4 | 100 accuracy / tokens | tokens per right "
        "answer | tokens against GRPO, % | accuracy - GRPO |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    base = setting.entries.get(BASE)
    entries = sorted(setting.entries.values(), key=lambda e: analysis.figure(e, "length").value)
    for entry in (setting.start, *entries):
        begun = entry is setting.start
        figures = {name: analysis.figure(entry, name) for name in analysis.FIGURES}
        ratio = Estimate(*(100 * x for x in figures["ratio"]))
        cells = [
            "start model" if begun else f"`{entry.name}`",
            "" if begun else str(len(entry.seeds)),
            cell(figures["accuracy"]),
            cell(figures["length"], "{:.1f}"),
            cell(figures["pass@4"]),
            cell(ratio, "{:.2f}"),
            cell(figures["tokens_per_right_answer"], "{:.1f}"),
        ]
        if begun or base is None or entry is base:
            cells += ["", ""]
        else:
            cells.append(cell(analysis.relative_length(entry, base), "{:+.1f}"))
            cells.append(cell(analysis.difference(entry, base, "accuracy"), "{:+.3f}"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def categories_table(setting: Setting) -> str:
    """Tokens of each category in a right completion of the test split."""
    lines = ["| method | " + " | ".join(READ) + " |", "|---" * (len(READ) + 1) + "|"]
    for entry in (setting.start, *setting.entries.values()):
        found = analysis.mean_categories(entry)
        name = "start model" if entry is setting.start else f"`{entry.name}`"
        lines.append(f"| {name} | " + " | ".join(f"{found[c]:.1f}" for c in READ) + " |")
    return "\n".join(lines)


def equal_length_table(setting: Setting, method: str, rivals: Iterable[str]) -> str:
    """A method against others where both spend the same tokens, in two ways."""
    own = setting.entries[method]
    length = analysis.figure(own, "length").value
    lines = [
        f"| against | accuracy, tokens | where the longer is cut: `{method}` - other | grid of the "
        f"other at {length:.1f} tokens (selection split) |",
        "|---|---|---|---|",
    ]
    for rival in rivals:
        other = setting.entries.get(rival)
        if other is None:
            continue
        found = analysis.matched(own, other)
        front = analysis.on_the_front(setting, rival, length)
        accuracy, tokens = (analysis.figure(other, n).value for n in ("accuracy", "length"))
        lines.append(
            f"| `{rival}` | {accuracy:.3f}, {tokens:.1f} | {cell(found.difference, '{:+.3f}')} at "
            f"{found.budget:.1f} tokens | {'none so short' if front is None else f'{front:.3f}'} |"
        )
    return "\n".join(lines)
