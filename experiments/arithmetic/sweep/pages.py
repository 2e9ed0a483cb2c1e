"""The library's report page of a setting's runs."""

import shutil
from pathlib import Path

from iapo_jax.errors import UserError
from iapo_jax.evaluation.records import read_record
from iapo_jax.evaluation.summary import summarize
from iapo_jax.report.command import parse, report
from iapo_jax.runtime.files import read_json, write_json
from sweep.analysis import SHIFTED, Setting
from sweep.measure import folder_of
from sweep.plan import START

_OF_A_RUN = ("config.yaml", "metrics.jsonl")


def write(setting: Setting, work: Path, out: Path) -> None:
    """Learning curves and evaluations of the final runs, as `iapo_jax.report` shows them.

    The runs are copied to `out/runs`, with the test problems as their evaluation before and after;
    other splits become an evaluation directory, whose models are matched by their parameters.

    Raises:
      UserError: if a run directory is missing.
    """
    place, staged = work / setting.name, out / "runs"
    names = [one.job.name for entry in setting.entries.values() for one in entry.results]
    for directory in (place / START, *(place / name / "measured" for name in names)):
        directory = _measured(setting, directory, "test")
        if not directory.is_dir():
            raise UserError(
                f"{directory} is missing; the report page is made from run directories (--work)"
            )
    shutil.rmtree(staged, ignore_errors=True)
    for name in names:
        own = staged / name
        (own / "eval").mkdir(parents=True)
        for file in _OF_A_RUN:
            shutil.copy(place / name / file, own / file)
        _copy_evaluation(_measured(setting, place / START, "test"), own / "eval" / "before")
        _copy_evaluation(
            _measured(setting, place / name / "measured", "test"), own / "eval" / "after"
        )
    words = [str(staged / name) for name in names]
    for split in (split for of, split in SHIFTED.values() if of == setting.name):
        _collect(setting, place, split, out / split)
        words.append(str(out / split))
    options = ["--out", str(out), "--smooth", "5", "--title", f"Reasoning, shorter: {setting.name}"]
    report(parse([*words, *options]))


def _measured(setting: Setting, out: Path, split: str) -> Path:
    return folder_of(out, setting.name, split)


def _copy_evaluation(directory: Path, to: Path) -> None:
    """Copies a directory's record, completions and probes under a new name."""
    [texts] = directory.glob("*.completions.jsonl")
    stem = texts.name.removesuffix(".completions.jsonl")
    for kind in (".json", ".completions.jsonl", ".inspections.json"):
        if (directory / (stem + kind)).is_file():
            shutil.copy(directory / (stem + kind), to.with_name(to.name + kind))


def _collect(setting: Setting, place: Path, split: str, out: Path) -> None:
    """Puts the evaluations on a split into one directory: seeds as members of their method."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    first = out / START
    _copy_evaluation(_measured(setting, place / START, split), first)
    records = [read_record(first.with_suffix(".json"))]
    for entry in setting.entries.values():
        for number, one in enumerate(entry.results, 1):
            path = out / f"{entry.name}-{number}.json"
            measured = _measured(setting, place / one.job.name / "measured", split)
            _copy_evaluation(measured, path.with_suffix(""))
            record = read_json(path)
            record |= {"model": entry.name, "member": number, "members": len(entry.results)}
            write_json(path, record)
            records.append(read_record(path))
    write_json(out / "summary.json", summarize(records))
