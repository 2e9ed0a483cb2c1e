"""Rows of a named dataset, a file, a directory or a hub name, as questions and answers."""

import math
import sys
from collections.abc import Sequence
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from iapo_jax.answers.equivalence import KINDS
from iapo_jax.config.sections import DataSection, PromptSection
from iapo_jax.config.train import EvalSection, TrainConfig
from iapo_jax.data import arithmetic
from iapo_jax.data.catalogue import (
    DATA_SETS,
    DataSpec,
    check_split,
    missing_column,
    parse_spec,
)
from iapo_jax.data.cleaning import check_repeats, clean_rows, name_rows
from iapo_jax.data.files import open_rows
from iapo_jax.data.prompts import read_question
from iapo_jax.data.questions import seen_in
from iapo_jax.errors import UserError, check_unicode

_PLACES = "a file, a directory or a hub name"


class Row(NamedTuple):
    """A question with its answer; `columns` keeps the rest of the row for reward functions."""

    question: str | list[dict]  # text, or chat messages
    answer: str
    columns: dict[str, Any]  # "kind": integer, latex or choice, if it is known


class LoadedSet(NamedTuple):
    """The rows that a spec names."""

    rows: list[Row]
    name: str  # short, such as gsm8k, or the last part of a path
    split: str
    kind: str  # of the answers; empty = inferred from each answer
    prompt: PromptSection  # the dataset's own; `resolve_prompt` joins it with the user's
    notes: list[str]  # about changes to the rows
    text: str  # the spec as it was written
    source: str = ""  # file, directory or name, for messages
    numbers: Sequence[int] = ()  # of the rows in the source, from 1


def load_section(section: DataSection | EvalSection, field: str = "data.dataset") -> LoadedSet:
    """Loads the dataset of a config section; a split or count in the spec overrides the fields.

    Raises:
      UserError: as `load_set`.
    """
    spec = _section_spec(section, field)
    return load_set(spec, field, split=section.split, subset=section.subset, strict=section.strict)


def load_training(config: TrainConfig) -> LoadedSet:
    """Loads `config.data`, without the questions of `eval.dataset` if `eval.shared=leave_out`.

    Raises:
      UserError: as `load_set`, or if no row is left.
    """
    loaded = load_section(config.data)
    if not config.eval.dataset or config.eval.shared != "leave_out":
        return loaded
    evaluation = [row.question for row in load_section(config.eval, "eval.dataset").rows]
    shared = set(seen_in(evaluation, [row.question for row in loaded.rows]))
    if not shared:
        return loaded
    if len(shared) == len(loaded.rows):
        raise UserError(
            f"eval.dataset {config.eval.dataset!r} contains every question of data.dataset "
            f"{config.data.dataset!r}, so eval.shared=leave_out leaves none to train on"
        )
    which = f"{loaded.source}, {name_rows([loaded.numbers[i] for i in sorted(shared)])}"
    note = f"{which}: the question is also in eval.dataset; left out of training"
    kept = [i for i in range(len(loaded.rows)) if i not in shared]
    return loaded._replace(
        rows=[loaded.rows[i] for i in kept],
        numbers=[loaded.numbers[i] for i in kept],
        notes=[*loaded.notes, note],
    )


def _section_spec(
    section: DataSection | EvalSection, field: str, *, places: str = f"a short name, {_PLACES}"
) -> DataSpec:
    if not section.dataset:
        raise UserError(f"{field} is empty; expected {places}")
    spec = parse_spec(section.dataset, field)
    if spec.last and section.max_rows:
        raise UserError(
            f"{field} is {spec.text!r}, which selects the last rows, but "
            f"{field.removesuffix('dataset')}max_rows is {section.max_rows}, which selects the "
            "first; expected only one of the two"
        )
    return spec._replace(first=spec.first or section.max_rows)


def load_set(
    spec: DataSpec,
    field: str = "--dataset",
    *,
    split: str | None = None,
    subset: str | None = None,
    strict: bool | None = False,
) -> LoadedSet:
    """Loads the dataset that a spec names, cleaned by the recipe of its name.

    Without a recipe the rows stay as they are. A note then lists repeated questions; those with
    different answers are an error, except on the hub, where the user cannot correct them.

    Args:
      split: used if the spec has none; without either, the dataset's default, or "test".
      strict: whether repeated questions are an error; None for no check.

    Raises:
      UserError: naming the field, the file and the row.
    """
    if not spec.name:
        return _load_unnamed(spec, field, split=split or "test", subset=subset, strict=strict)
    recipe = DATA_SETS[spec.name]
    split = _choose_split(spec, split, field)
    if subset not in (None, recipe.subset):
        has = "has no subsets; leave it unset"
        if recipe.subset:
            has = f"has only the subset {recipe.subset!r}"
        raise UserError(
            f"{field.removesuffix('dataset')}subset is {subset!r}, but {spec.name} {has}"
        )
    if spec.source or recipe.hub:
        raw = open_rows(spec.source or recipe.hub, recipe.subset, recipe.splits[split], field)
    else:
        raw = arithmetic.make_splits()[split]
    source = spec.source or spec.name
    cleaned, notes = clean_rows(raw, recipe, source)
    if not cleaned:
        raise UserError(f"{field} is {spec.text!r}, which has no usable rows")
    cleaned = cleaned[: spec.first or None][-spec.last :]
    rows = [Row(question, answer, columns) for question, answer, columns, _ in cleaned]
    if strict and not recipe.repeats:  # else repeated rows have already been left out
        check_repeats(rows, source, strict=True, field=_strict_field(field))
    return LoadedSet(
        rows=rows,
        name=spec.name,
        split=split,
        kind=recipe.kind,
        prompt=recipe.prompt,
        notes=notes,
        text=spec.text,
        source=source,
        numbers=[number for *_, number in cleaned],
    )


def _load_unnamed(
    spec: DataSpec, field: str, *, split: str, subset: str | None, strict: bool | None
) -> LoadedSet:
    split = spec.split or split
    rows = parse_rows(_read(spec, split, subset, field), spec.source)
    notes = []
    if strict is not None:
        lenient = not Path(spec.source).expanduser().exists()
        notes = check_repeats(
            rows, spec.source, strict=strict, lenient=lenient, field=_strict_field(field)
        )
    return LoadedSet(
        rows=rows[-spec.last :],
        name=Path(spec.source).stem,
        split=split,
        kind="",
        prompt=PromptSection(),
        notes=notes,
        text=spec.text,
        source=spec.source,
        numbers=range(1, len(rows) + 1)[-spec.last :],
    )


def _strict_field(field: str) -> str:
    """The field beside `field` that makes notes errors, such as data.strict."""
    section, dot, _ = field.rpartition(".")
    return f"{section}{dot}strict"


def _choose_split(spec: DataSpec, split: str | None, field: str) -> str:
    recipe = DATA_SETS[spec.name]
    stem = Path(spec.source).stem if spec.source else ""
    if stem in recipe.splits:  # the file's name states the split
        if spec.split not in (None, stem):
            raise UserError(f"{field}: {spec.source} is the split {stem}, not {spec.split}")
        return stem
    split = spec.split or split or recipe.default
    check_split(spec.name, split, field)
    return split


def own_prompt(section: DataSection | EvalSection, field: str = "data.dataset") -> PromptSection:
    """The prompt of a config section's named dataset, without reading any row of it."""
    if not section.dataset:
        return PromptSection()
    name = _section_spec(section, field).name
    return DATA_SETS[name].prompt if name else PromptSection()


def load_rows(section: DataSection | EvalSection, field: str = "data.dataset") -> list[dict]:
    """The raw rows of a file, a directory or a hub name, such as worked completions.

    Raises:
      UserError: naming the field, the file and the row.
    """
    spec = _section_spec(section, field, places=_PLACES)
    if spec.name:
        raise UserError(
            f"{field}: {spec.name} has problems and answers, but no completions; expected {_PLACES}"
        )
    return _read(spec, spec.split or section.split, section.subset, field)[-spec.last :]


def _read(spec: DataSpec, split: str, subset: str | None, field: str) -> list[dict]:
    found = open_rows(spec.source, subset, split, field)
    rows = list(islice(found, min(spec.first, sys.maxsize) or None))
    if not rows:
        raise UserError(f"{field}: {spec.source} has no rows; expected at least one")
    return rows


def parse_rows(rows: Sequence[dict], source: str) -> list[Row]:
    """Rows with `prompt` or `question` and `answer`; GSM8K's answer is what follows `####`.

    Raises:
      UserError: naming the source and the row (counted from 1).
    """
    return [_parse_row(row, f"{source}, row {number}") for number, row in enumerate(rows, start=1)]


def _parse_row(row: dict, where: str) -> Row:
    question = read_question(row, where)
    answer = row.get("answer")
    if answer is None:
        raise UserError(f"{where}: {missing_column(row, 'answer')}")
    is_number = isinstance(answer, int | float | Decimal) and math.isfinite(answer)
    if not is_number and not isinstance(answer, str):
        raise UserError(f"{where}: the answer is {answer!r:.60}; expected a string or a number")
    text = final_answer(str(answer))
    if not text:
        raise UserError(
            f"{where}: the answer is empty: {answer!r:.60}; expected a non-empty string or a number"
        )
    kind = row.get("kind")
    if kind not in (None, "", *KINDS):
        raise UserError(
            f"{where}: `kind` (the type of the answer) is {kind!r:.60}; expected "
            f"{', '.join(KINDS[:-1])} or {KINDS[-1]}, or no `kind` column"
        )
    check_unicode(text, f"{where}: the answer")
    columns = {k: v for k, v in row.items() if k not in ("prompt", "question", "answer")}
    return Row(question, text, columns)


def final_answer(text: str) -> str:
    """The text after `####`, as GSM8K marks the end of a worked answer, else all of it."""
    _, marker, answer = text.rpartition("####")
    return answer.strip().replace(",", "") if marker else text.strip()
