"""Shows runs and evaluations on a page: `python -m iapo_jax.report RUN_OR_EVAL_DIR ... --out DIR`.

Writes OUT/report.html (self-contained), OUT/charts/*.png, and the methods' table as OUT/methods.md
and OUT/methods.csv.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from iapo_jax.config.checks import check_writable
from iapo_jax.errors import UserError
from iapo_jax.report.comparison import Report, compare
from iapo_jax.report.methods_table import to_csv, to_markdown
from iapo_jax.report.page import Page, render_report
from iapo_jax.report.results import distinct_directories, read_directory
from iapo_jax.runtime import cli
from iapo_jax.runtime.files import write_atomically, writing

_EPILOG = """\
A run directory is the output_dir of iapo_jax.train (or sft); an evaluation directory is the --out
of iapo_jax.evaluate. Runs whose configs differ only in seed and output_dir are drawn as one curve
with a min-max band.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m iapo_jax.report",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    kinds = "run and evaluation directories, in the order in which to show them"
    add("directories", nargs="+", type=Path, metavar="RUN_OR_EVAL_DIR", help=kinds)
    add("--out", type=Path, required=True, metavar="DIR", help="directory of the report")
    add("--title", default="Reasoning, shorter", help="title of the page; default: %(default)s")
    add(
        "--examples",
        type=int,
        default=4,
        metavar="N",
        help="number of problems per dataset for which completions are shown; default: 4",
    )
    add(
        "--smooth",
        type=int,
        default=1,
        metavar="N",
        help="average learning curves over N steps; default: 1, no smoothing",
    )
    return parser.parse_args(argv)


def report(arguments: argparse.Namespace) -> list[str]:
    """Reads the directories and writes the report; returns the findings, a sentence each.

    Raises:
      UserError: one sentence for the first mistake, in which case nothing is written.
    """
    for name, least in (("examples", 0), ("smooth", 1)):
        if getattr(arguments, name) < least:
            found = getattr(arguments, name)
            raise UserError(f"--{name} is {found}; expected at least {least}")
    check_writable(arguments.out, "--out")
    found = [
        read_directory(directory, examples=arguments.examples)
        for directory in distinct_directories(arguments.directories)
    ]
    compared = compare(found)
    page = render_report(
        compared, arguments.title, examples=arguments.examples, smooth=arguments.smooth
    )
    _write_all(arguments.out, page, compared)
    return page.findings


def _write_all(out: Path, page: Page, compared: Report) -> None:
    files = {f"charts/{chart.name}.png": chart.png for chart in page.charts}
    files["methods.md"] = to_markdown(compared.sections)
    files["methods.csv"] = to_csv(compared.sections)
    files["report.html"] = page.html
    with writing(f"--out {str(out)!r}", UserError):
        for name, content in files.items():
            write_atomically(out / name, content)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code (`errors`)."""
    arguments = parse(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # the terminal may lack a character
        sys.stdout.reconfigure(errors="backslashreplace")

    def run() -> None:
        findings = report(arguments)
        print("\n".join([*findings, f"wrote {arguments.out / 'report.html'}"]))

    return cli.exit_code(run)
