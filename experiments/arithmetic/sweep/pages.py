"""The library's report page of a setting's runs."""

import json
import shutil
from pathlib import Path

from iapo_jax.errors import UserError
from iapo_jax.report.command import parse, report
from sweep.analysis import Setting
from sweep.records import START


def write(setting: Setting, work: Path, out: Path) -> None:
    """Learning curves of the judged runs and their evaluations, as `iapo_jax.report` shows them.

    Raises:
      UserError: if the run directories are not there.
    """
    place = work / setting.name
    runs = [place / one.job.name for e in setting.entries.values() for one in e.results]
    missing = [run for run in runs if not (run / "measured").is_dir()]
    if missing:
        raise UserError(
            f"{missing[0]} is not there; the page is made from run directories (--work)"
        )
    evaluations = out / "eval"
    shutil.rmtree(evaluations, ignore_errors=True)
    evaluations.mkdir(parents=True)
    _collect(place / START, START, 1, 1, evaluations)
    for entry in setting.entries.values():
        for number, one in enumerate(entry.results, 1):
            directory = place / one.job.name / "measured"
            _collect(directory, entry.name, number, len(entry.results), evaluations)
    words = [*map(str, runs), str(evaluations), "--out", str(out), "--smooth", "5"]
    report(parse([*words, "--title", f"Reasoning, shorter: {setting.name}"]))


def _collect(directory: Path, label: str, member: int, members: int, out: Path) -> None:
    """One run's evaluation as the member of a label."""
    for path in sorted(directory.glob("*.json")):
        if path.name == "summary.json" or ".select" in path.name:
            continue
        stem, _, rest = path.name.partition(".")
        if not path.name.endswith(".inspections.json"):
            told = json.loads(path.read_text()) | {"member": member, "members": members}
            (out / f"{label}-{member}.{rest}").write_text(json.dumps(told))
        else:
            shutil.copy(path, out / f"{label}-{member}.{rest}")
        texts = path.with_suffix(".completions.jsonl")
        if texts.is_file() and stem:
            shutil.copy(
                texts, out / f"{label}-{member}.{rest.removesuffix('.json')}.completions.jsonl"
            )
