"""Evaluations on disk: every completion is written when it is sampled, so that they can resume."""

import os
from functools import partial
from pathlib import Path

from iapo_jax.answers.checker import POLICY
from iapo_jax.config.sections import InformationSection
from iapo_jax.errors import UserError
from iapo_jax.evaluation.completions_file import Completion, append_completions, read_completions
from iapo_jax.evaluation.probing import inspect_to
from iapo_jax.evaluation.records import Record, check_same, digest, read_record, write_record
from iapo_jax.evaluation.sampling import Task, evaluate
from iapo_jax.model import checksums
from iapo_jax.runtime.console import environment, is_writer
from iapo_jax.runtime.files import writing
from iapo_jax.runtime.locks import file_lock
from iapo_jax.types import Params


def describe(
    task: Task,
    params: Params,
    *,
    model: str,
    dataset: str,
    dataset_name: str = "",
    member: int = 1,
    members: int = 1,
    source: str = "",
    step: int | None = None,
) -> Record:
    """The empty record of a task: what is sampled, how, and with which parameters."""
    problems, pretrained = task.problems, task.loaded.pretrained
    return Record(
        model=model,
        member=member,
        members=members,
        source=source,
        step=step,
        dataset=dataset,
        dataset_name=dataset_name or dataset,
        settings=task.protocol.settings()
        | {
            "dtype": pretrained.config.dtype,
            "stop_ids": [int(i) for i in pretrained.stop_ids],
            "answer_policy": POLICY,
        },
        fingerprint=checksums.fingerprint(params),
        problems=digest(
            [int(row) for row in problems.rows],
            problems.texts,
            problems.answers,
            [str(columns.get("kind")) for columns in problems.columns],
        ),
        environment=environment(),
    )


def evaluate_to(
    directory: Path,
    name: str,
    task: Task,
    params: Params,
    record: Record,
    *,
    information: InformationSection | None = None,
    replace: bool = False,
    shown: bool = True,
) -> Record:
    """`evaluate` into DIRECTORY/NAME.json and NAME.completions.jsonl; resumes an interrupted one.

    Returns the filled record on the process that writes, and `record` on all others.

    Args:
      information: how the first problems are probed, into NAME.inspections.json.
      replace: start again if the files are damaged or belong to a different evaluation, instead of
        raising.

    Raises:
      UserError: if the files belong to a different evaluation, are damaged, or cannot be written.
      RunError: if they can no longer be written.
      Stopped: after a signal; what was sampled is kept.
    """
    path, texts = directory / f"{name}.json", directory / f"{name}.completions.jsonl"
    probes, lock = path.with_suffix(".inspections.json"), path.with_suffix(".lock")
    if not is_writer():
        completions = evaluate(task, params, name=name, shown=shown)
        inspect_to(probes, task, params, completions, information, shown=shown)
        return record
    with writing(directory, UserError):
        directory.mkdir(parents=True, exist_ok=True)
        with texts.open("ab"):
            pass
    with writing(directory), file_lock(lock, instead="another output_dir (--out)"):
        known = _known(path, texts, record, replace)
        write_record(path, record)
        keep = partial(append_completions, texts)
        completions = evaluate(task, params, name=name, known=known, keep=keep, shown=shown)
        inspect_to(probes, task, params, completions, information, shown=shown)
        record = record.filled(completions)
        write_record(path, record)
    return record


def _known(path: Path, texts: Path, record: Record, replace: bool) -> list[Completion]:
    """The completions of this evaluation that the files contain."""
    try:
        before = read_record(path)
        if before is not None:
            check_same(before, record, path)
            return read_completions(texts)
        if texts.stat().st_size and not replace:
            raise UserError(
                f"{texts} has no {path.name} beside it, which would name its model and settings; "
                "expected both files, or neither"
            )
    except UserError:
        if not replace:
            raise
    os.truncate(texts, 0)
    return []
