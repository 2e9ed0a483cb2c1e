"""Tables and pictures of the experiment from its results.

    python experiments/arithmetic/summarise_sweep.py [--results PLACE] [--work runs/sweep]

Reads `results.parquet`, or a directory that `run_sweep.py` writes. Writes `tables.md` and
`pictures/` to `--out` (default: beside this file), and prints the findings; the results need not be
complete. `--csv DIR` also writes `results.csv` and `grid.csv`, with one row for each run. `--report
DIR` also writes a report page for each setting, from the run directories in `--work`.
"""

import argparse
from pathlib import Path

from sweep import analysis, findings, pages, pictures, queue, store, tables
from sweep.plan import CORE
from testbed.settings import SMALL

from iapo_jax.errors import UserError

HERE = Path(__file__).resolve().parent
ORDER = ("chain", "easy", "hard", "shifted", "growing", "large")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.parquet")
    parser.add_argument("--out", type=Path, default=HERE, help="directory of tables and pictures")
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="DIR",
        help="also write one row for each run",
    )
    parser.add_argument("--work", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--report", type=Path, metavar="DIR", help="also write report pages")
    arguments = parser.parse_args()
    if arguments.results.is_file() != store.is_archive(arguments.results):
        parser.error(
            f"--results is {arguments.results}; expected results.parquet or a directory of results"
        )
    for name in ("out", "csv", "work", "report"):
        place = getattr(arguments, name)
        if place is not None and place.exists() and not place.is_dir():
            parser.error(f"--{name} is the file {place}; expected a directory")
    try:
        found = [analysis.load(arguments.results, name) for name in ORDER]
    except UserError as error:
        parser.error(str(error))
    settings = [one for one in found if one is not None]
    if not settings:
        parser.error(f"{arguments.results} holds no results; run run_sweep.py first")
    ready = [one for one in settings if one.entries]
    own = [one for one in ready if one.name not in analysis.SHIFTED]
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.csv:
        arguments.csv.mkdir(parents=True, exist_ok=True)
        (arguments.csv / "results.csv").write_text(tables.results_csv(settings))
        (arguments.csv / "grid.csv").write_text(tables.grid_csv(settings))
    text = findings.render(settings)
    (arguments.out / "tables.md").write_text(text + "\n")
    print(text)
    shown = (*CORE, "l1_max")
    place = arguments.out / "pictures"
    if ready:
        pictures.pareto(ready, place / "pareto.png")
        pictures.curves(own, shown, place / "curves.png")
        pictures.categories(own, shown, place / "categories.png")
        pictures.information(own, ("grpo", "iapo", "iapo_priced"), place / "information.png")
    if arguments.report:
        try:
            for one in own:
                pages.write(one, arguments.work, arguments.report / one.name)
        except UserError as error:
            parser.error(str(error))
    names = list(SMALL)
    left = queue.total(names) - queue.done(names, arguments.results)
    if left:
        print(f"\n{left} of {queue.total(names)} runs are missing; run_sweep.py resumes with them")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
