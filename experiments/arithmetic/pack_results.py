"""Put the results of `run_sweep.py` into the repository's results file.

    python experiments/arithmetic/pack_results.py [--results runs/sweep/results] [--out FILE]

A result that is already in the file is replaced if the new one has the same config and problems;
otherwise the old one stays as withdrawn, and no table counts it.
"""

import argparse
from pathlib import Path

from sweep import archive, store
from testbed.settings import SETTINGS

from iapo_jax.errors import UserError

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("runs/sweep/results"))
    parser.add_argument("--out", type=Path, default=HERE / "results.parquet")
    arguments = parser.parse_args()
    if not arguments.results.is_dir():
        parser.error(f"--results is {arguments.results}; expected results of run_sweep.py")
    if not store.is_archive(arguments.out):
        parser.error(f"--out is {arguments.out}; expected a file name ending in .parquet")
    try:
        new = [one for name in SETTINGS for one in store.read_all(arguments.results, name)]
        old = archive.load(arguments.out) if arguments.out.is_file() else []
    except UserError as error:
        parser.error(str(error))
    if not new:
        parser.error(f"{arguments.results} holds no results; run run_sweep.py first")
    rows = list(archive.merge(old, new))
    archive.save(arguments.out, rows)
    withdrawn = sum(row.withdrawn for row in rows)
    print(f"wrote {arguments.out}: {len(rows) - withdrawn} results and {withdrawn} withdrawn ones")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
