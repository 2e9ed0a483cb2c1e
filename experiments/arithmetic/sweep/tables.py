"""The experiment's tables: results.csv, grid.csv, and Markdown."""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np
from testbed.categories import READ

from iapo_jax.evaluation.intervals import Estimate
from sweep import analysis
from sweep.analysis import BASE, Entry, Setting
from sweep.choose import stability
from sweep.plan import DECIDES, grid
from sweep.records import Result

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
GRID = ("setting", "method", "choice", "chosen", "stability", "accuracy", "length", "config")
# stability: the share of resamples of the selection problems in which the point would be chosen;
# nan if another method's grid decides, and before a choice


def _csv(header: tuple[str, ...], rows: Iterable[Iterable]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()


def results_csv(settings: Iterable[Setting]) -> str:
    """One row for each final run, on the test problems; the initial models have no seed."""
    rows = []
    for setting in settings:
        again = setting.confirming.values()
        for entry in (setting.start, *setting.entries.values(), *again):
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
    """One row for each run of the grids, on the selection split."""
    rows = []
    for setting in settings:
        if setting.name in analysis.SHIFTED:
            continue
        for method, results in setting.grids.items():
            own = method in setting.chosen and method not in DECIDES
            shares = stability(results) if own else [math.nan] * len(results)
            for one, share in zip(results, shares, strict=True):
                found = one.outcomes["select"]
                rows.append(
                    [
                        setting.name,
                        method,
                        one.choice,
                        int(setting.chosen.get(method) == one.choice),
                        f"{share:.2f}",
                        f"{found.correct.mean():.4f}",
                        f"{found.length.mean():.2f}",
                        one.config,
                    ]
                )
    return _csv(GRID, rows)


def cell(found: Estimate, form: str = "{:.3f}") -> str:
    """`value [low, high]`, or only the value if its interval is nan."""
    if math.isnan(found.low):
        return f"{form.format(found.value)} (no interval)"
    return f"{form.format(found.value)} [{form.format(found.low)}, {form.format(found.high)}]"


def compared(entry: Entry, base: Entry) -> tuple[str, str]:
    """Tokens relative to the base in percent, and the difference of accuracies, with intervals."""
    shorter = analysis.relative_length(entry, base)
    accuracy = analysis.difference(entry, base, "accuracy")
    return cell(shorter, "{:+.1f}"), cell(accuracy, "{:+.3f}")


def _against(entry: Entry, base: Entry | None) -> tuple[str, str]:
    """`compared`; empty if there is no base, and for the base itself."""
    return ("", "") if base is None or entry is base else compared(entry, base)


def overview_table(settings: Iterable[Setting], pairs: Sequence[tuple[str, str]]) -> str:
    """Pairs of methods, one row for each setting; cells are empty if runs are missing."""
    names = [f"`{one}` - `{other}`: tokens, % | accuracy" for one, other in pairs]
    lines = ["| setting | " + " | ".join(names) + " |", "|---" * (2 * len(pairs) + 1) + "|"]
    for setting in settings:
        have, cells = setting.entries, [f"*{setting.name}*"]
        for one, other in pairs:
            cells += compared(have[one], have[other]) if {one, other} <= set(have) else ("", "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def times_table(settings: Iterable[Setting]) -> str:
    """The time of the runs, each on one core: training, and the last measurement.

    These are lower bounds: the training time of a run that was measured again may be lost.
    """
    lines = ["| setting | runs | seconds, median | core hours |", "|---|---|---|---|"]
    total = 0.0
    for setting in settings:
        entries = (*setting.entries.values(), *setting.confirming.values())
        found = {r.job: r.seconds for entry in entries for r in entry.results}
        found |= {r.job: r.seconds for results in setting.grids.values() for r in results}
        hours = sum(found.values()) / 3600
        total += hours
        middle = statistics.median(found.values())
        lines.append(f"| *{setting.name}* | {len(found)} | {middle:.0f} | {hours:.2f} |")
    return "\n".join([*lines, f"| total |  |  | {total:.2f} |"])


def confirming_table(setting: Setting) -> str:
    """The methods that ran again with new seeds, on these seeds only."""
    lines = [
        "| method | new seeds | accuracy | tokens | accuracy of each | tokens against GRPO, % "
        "| accuracy - GRPO |",
        "|---|---|---|---|---|---|---|",
    ]
    base = setting.confirming.get(BASE)
    for entry in setting.confirming.values():
        cells = [
            f"`{entry.name}`",
            str(len(entry.seeds)),
            cell(analysis.figure(entry, "accuracy")),
            cell(analysis.figure(entry, "length"), "{:.1f}"),
            ", ".join(f"{one.correct.mean():.3f}" for one in entry.seeds),
            *_against(entry, base),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def credit_table(setting: Setting, steps: int = 10) -> str:
    """How credit acts on length in the first and the last steps: means over the new seeds."""
    names = ("stop_bonus", "rival_bonus", "length_bonus_covariance")
    labels = [
        f"{name}: first {steps} steps | last {steps}"
        for name in ("bonus of stopping", "bonus of continuing", "Cov(length, bonus)")
    ]
    lines = ["| method | " + " | ".join(labels) + " |", "|---" * (2 * len(names) + 1) + "|"]
    for entry in setting.confirming.values():
        curves = [r.curves for r in entry.results]
        if not all(name in curve for curve in curves for name in names):
            continue
        cells = [
            f"{np.mean([np.mean(curve[name][part]) for curve in curves]):+.2f}"
            for name in names
            for part in (slice(steps), slice(-steps, None))
        ]
        lines.append(f"| `{entry.name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def choices_table(settings: Sequence[Setting]) -> str:
    """The chosen points: each method's own config fields, by setting."""
    own = [one for one in settings if one.name not in analysis.SHIFTED and one.chosen]
    methods = dict.fromkeys(name for one in own for name in one.chosen)
    lines = [
        "| method | " + " | ".join(f"*{one.name}*" for one in own) + " |",
        "|---" * (len(own) + 1) + "|",
    ]
    for method in methods:
        cells = [_choice(one, method) if method in one.chosen else "" for one in own]
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _choice(setting: Setting, method: str) -> str:
    """The fields in which the points of the grid differ, at the chosen point."""
    points = grid(setting.name, method)
    point = points[setting.chosen[method]]
    values = {name: {str(one.get(name)) for one in points} for name in point}
    moved = {name: value for name, value in point.items() if len(values[name]) > 1}
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in moved.items())


def results_table(setting: Setting) -> str:
    """Every method of a setting, the shortest first, and its differences from GRPO."""
    lines = [
        "| method | seeds | accuracy | tokens | pass@4 | accuracy per 100 tokens | tokens per "
        "correct answer | tokens against GRPO, % | accuracy - GRPO |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    base = setting.entries.get(BASE)
    entries = sorted(setting.entries.values(), key=lambda e: analysis.figure(e, "length").value)
    for entry in (setting.start, *entries):
        begun = entry is setting.start
        figures = {name: analysis.figure(entry, name) for name in analysis.FIGURES}
        ratio = Estimate(*(100 * x for x in figures["ratio"]))
        cells = [
            "initial model" if begun else f"`{entry.name}`",
            "" if begun else str(len(entry.seeds)),
            cell(figures["accuracy"]),
            cell(figures["length"], "{:.1f}"),
            cell(figures["pass@4"]),
            cell(ratio, "{:.2f}"),
            cell(figures["tokens_per_right_answer"], "{:.1f}"),
            *_against(entry, None if begun else base),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def categories_table(setting: Setting) -> str:
    """Tokens of each category in a correct completion of the test split."""
    lines = ["| method | " + " | ".join(READ) + " |", "|---" * (len(READ) + 1) + "|"]
    for entry in (setting.start, *setting.entries.values()):
        found = analysis.mean_categories(entry)
        name = "initial model" if entry is setting.start else f"`{entry.name}`"
        lines.append(f"| {name} | " + " | ".join(f"{found[c]:.1f}" for c in READ) + " |")
    return "\n".join(lines)


def equal_length_table(setting: Setting, method: str, rivals: Iterable[str]) -> str:
    """A method against others at a length that both fronts reach: `analysis.at_equal_length`."""
    lines = [
        f"| against | chosen: accuracy, tokens | compared at, tokens | `{method}` | the other "
        "| difference |",
        "|---|---|---|---|---|---|",
    ]
    for rival in rivals:
        if rival not in setting.entries:
            continue
        found = analysis.at_equal_length(setting, method, rival)
        accuracy, tokens = (
            analysis.figure(setting.entries[rival], n).value for n in ("accuracy", "length")
        )
        lines.append(
            f"| `{rival}` | {accuracy:.3f}, {tokens:.1f} | {found.tokens:.1f} | {found.first:.3f} "
            f"| {found.second:.3f} | {cell(found.difference, '{:+.3f}')} |"
        )
    return "\n".join(lines)


def weights_table(setting: Setting, method: str, control: str) -> str:
    """A method and its control at the same points of their grids, on the selection split."""
    lines = [
        f"| options | `{method}`: accuracy, tokens | `{control}` | difference of tokens "
        "| of accuracy |",
        "|---|---|---|---|---|",
    ]
    controls = {r.choice: r for r in setting.grids[control]}
    both = [r for r in setting.grids[method] if r.choice in controls]
    for one, other in ((r, controls[r.choice]) for r in both):
        pair = [analysis.Entry(r.method, (r.outcomes["select"],), (r,)) for r in (one, other)]
        labels = [
            f"{analysis.figure(e, 'accuracy').value:.3f}, {analysis.figure(e, 'length').value:.1f}"
            for e in pair
        ]
        tokens, accuracy = (analysis.difference(*pair, name) for name in ("length", "accuracy"))
        options = one.config.partition("algorithm.options=")[2]
        lines.append(
            f"| {options} | {labels[0]} | {labels[1]} | {cell(tokens, '{:+.1f}')} "
            f"| {cell(accuracy, '{:+.3f}')} |"
        )
    return "\n".join(lines)


def grids_table(setting: Setting) -> str:
    """The finished grid points of a setting, on the selection split, compared with GRPO's best.

    For a setting without final runs. There is one seed, so intervals are over problems only. Tokens
    of each category are those of the split measured last (the test split for the initial model).
    """
    lines = [
        "| method | own config | accuracy | tokens | tokens against GRPO, % | accuracy - GRPO | "
        + " | ".join(READ)
        + " |",
        "|---" * (len(READ) + 6) + "|",
    ]

    def entry(one: Result) -> Entry:
        return analysis.Entry(one.method, (one.outcomes["select"],), (one,))

    points = [entry(one) for results in setting.grids.values() for one in results]

    def accuracy(point: Entry) -> float:
        return analysis.figure(point, "accuracy").value

    bases = [point for point in points if point.name == BASE]
    base = max(bases, key=accuracy, default=None)
    start = entry(setting.start.results[0])
    for point in (start, *points):
        one = point.results[0]
        own = {} if point is start else grid(setting.name, one.method)[one.choice]
        cells = [
            "initial model" if point is start else f"`{point.name}`",
            ", ".join(f"{name}: {value}" for name, value in own.items()),
            cell(analysis.figure(point, "accuracy")),
            cell(analysis.figure(point, "length"), "{:.1f}"),
            *_against(point, base),
            *(f"{one.categories[kind]:.1f}" for kind in READ),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def profile_table(setting: Setting, methods: Iterable[str]) -> str:
    """Nats in each tenth of the reasoning, of correct completions with at least ten tokens.

    `sum below 0` is the sum of the negative tenths: the certainty that is lost on the way.
    """
    lines = ["| method | " + " | ".join(f"{n}" for n in range(1, 11)) + " | sum below 0 |"]
    lines.append("|---" * 12 + "|")
    own = [setting.entries[m] for m in methods if m in setting.entries]
    for entry in (setting.start, *own):
        profile = list(analysis.mean_information(entry).get("profile", {}).values())
        if profile:
            name = "initial model" if entry is setting.start else f"`{entry.name}`"
            below = sum(min(x, 0.0) for x in profile)
            lines.append(
                f"| {name} | " + " | ".join(f"{x:+.2f}" for x in profile) + f" | {below:+.2f} |"
            )
    return "\n".join(lines)


def information_table(setting: Setting, methods: Iterable[str]) -> str:
    """The total nats of the tokens of each category in a completion of the test split."""
    lines = ["| method | " + " | ".join(READ) + " |", "|---" * (len(READ) + 1) + "|"]
    own = [setting.entries[m] for m in methods if m in setting.entries]
    for entry in (setting.start, *own):
        found = analysis.mean_information(entry)
        if found:
            name = "initial model" if entry is setting.start else f"`{entry.name}`"
            cells = " | ".join(f"{found['nats'][kind]:+.2f}" for kind in READ)
            lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)
