"""The Markdown table of several runs' eval/summary.json.

python experiments/arithmetic/table.py RUN_DIR ...
"""

import argparse
import re
from pathlib import Path

import numpy as np

from iapo_jax.data.arithmetic import make_splits
from iapo_jax.runtime.files import read_json

FIGURES = {"accuracy": ("{:.3f}", 1), "length": ("{:.1f}", 1), "ratio@1": ("{:.2f}", 100)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    runs = parser.parse_args().runs
    print("| run | accuracy | | tokens | | accuracy per 100 tokens | |")
    print("|---|---|---|---|---|---|---|")
    print(
        "| | before | after [difference, 95%] | before | after [difference, 95%] | before | after |"
    )
    rows = []
    for run in runs:
        summary = read_json(run / "eval" / "summary.json")
        found = {(row["model"], row["name"]): row for row in summary["figures"]}
        gaps = {row["name"]: row for row in summary["differences"]}
        cells = []
        for name, (form, factor) in FIGURES.items():
            before, after = (factor * found[m, name]["value"] for m in ("before", "after"))
            rows.append((name, before, after))
            text = form.format(after)
            if factor == 1:
                gap, signed = gaps[name], form.replace(":", ":+")
                text += f" [{signed.format(gap['low'])}, {signed.format(gap['high'])}]"
            cells += [form.format(before), text]
        print(f"| {run.name} | {' | '.join(cells)} |")
    means = []
    for name, (form, _) in FIGURES.items():
        part = np.asarray([row[1:] for row in rows if row[0] == name])
        means += [form.format(x) for x in part.mean(0)]
    print(f"| mean of {len(runs)} | {' | '.join(means)} |")
    print(f"\nneeded steps and answer alone: {needed_tokens(runs[0]):.1f} tokens on average")


def needed_tokens(run: Path) -> float:
    """Mean length of the shortest worked answers: 9 tokens a step, 6 from </think> to the stop."""
    rows = read_json(run / "eval" / "before.json")["rows"]
    questions = [row["question"] for row in make_splits()["test"][: len(rows)]]
    return float(np.mean([9 * len(re.findall(r"[+-]", text)) + 6 for text in questions]))


if __name__ == "__main__":
    main()
