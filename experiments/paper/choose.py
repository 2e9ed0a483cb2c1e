"""Choose among runs by the best checkpoint of each on the selection split.

    python experiments/paper/choose.py runs/paper/qwen2.5-1.5b_gsm8k/i*_e*

Reads the selection.jsonl of each run directory, and applies the criterion of the first run's config
to the best checkpoints; the test set decides nothing. The runs must hold out the same questions.
"""

import argparse
import sys
from pathlib import Path

from iapo_jax.config.loading import load_run_config
from iapo_jax.errors import UserError
from iapo_jax.training.checkpoint_selection import Candidate, choose, read_selection


def best_of(run: Path) -> tuple[Candidate, str]:
    """A run's best checkpoint, and the digest of its selection split.

    Raises:
      UserError: if it is not a run directory, or has no measured checkpoint.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not a run directory: it has no config.yaml")
    rows = read_selection(run / "selection.jsonl")
    section = load_run_config(run / "config.yaml").selection
    candidates = [Candidate(*(row[name] for name in Candidate._fields)) for row in rows]
    found = choose(candidates, section)
    if found is None:
        raise UserError(f"{run} has no measured checkpoint yet (selection.jsonl)")
    return found, rows[0]["split"]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    runs = parser.parse_args().runs
    try:
        found = {run: best_of(run) for run in runs}
        others = [run for run in runs if found[run][1] != found[runs[0]][1]]
        if others:
            raise UserError(
                f"{others[0]} was measured on different questions or with different sampling "
                f"settings from {runs[0]}; expected runs that differ only in the method"
            )
        section = load_run_config(runs[0] / "config.yaml").selection
        rows = read_selection(runs[0] / "selection.jsonl")
        starts = [row for row in rows if row["step"] == 0]
        if not starts:
            raise UserError(f"{runs[0]} has not measured its initial model (step 0)")
        start = Candidate(*(starts[0][name] for name in Candidate._fields))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # `choose` compares checkpoints of one run. Here the best checkpoints of the runs take their
    # place, with the number of the run as the step.
    placed = [found[run][0]._replace(step=place) for place, run in enumerate(runs, 1)]
    best = runs[choose([start, *placed], section).step - 1]
    for run in runs:
        one = found[run][0]
        mark = "*" if run == best else " "
        summary = f"accuracy {one.accuracy:.3f}, {one.length:.1f} tokens, step {one.step}"
        print(f"{mark} {summary}: {run}")
    print(f"kept: {best}/hf (by {section.criterion}; initial accuracy {start.accuracy:.3f})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
