"""The datasets of an evaluation, with notes about rows that make metrics less meaningful."""

from collections.abc import Sequence

from iapo_jax.data import loading
from iapo_jax.data.catalogue import parse_spec
from iapo_jax.data.loading import LoadedSet
from iapo_jax.data.questions import normalize
from iapo_jax.errors import UserError
from iapo_jax.evaluation.model_specs import file_name
from iapo_jax.runtime.console import say


def load_sets(texts: Sequence[str], *, strict: bool) -> dict[str, LoadedSet]:
    """The datasets, by the name used in their files.

    Raises:
      UserError: as `loading.load_set`; or if a dataset is named twice.
    """
    sets: dict[str, LoadedSet] = {}
    for text in texts:
        spec = parse_spec(text, "--dataset")
        loaded = loading.load_set(spec, "--dataset", strict=strict)
        parts = [loaded.name, loaded.split]
        if spec.first:
            parts.append(str(spec.first))
        if spec.last:
            parts.append(f"last-{spec.last}")
        name = file_name("-".join(parts))
        if name in sets:
            raise UserError(
                f"--dataset {text!r} gives {name} a second time; expected distinct datasets"
            )
        sets[name] = loaded
        # `load_set` names the repeated rows of files itself.
        for note in _oddities(loaded, count_repeats=bool(spec.name)):
            say(f"note: {name}: {note}")
        for note in loaded.notes:
            say(f"note: {loaded.name}: {note}" if spec.name else f"note: {note}")
    return sets


def _oddities(loaded: LoadedSet, *, count_repeats: bool) -> list[str]:
    count = len(loaded.rows)
    notes = []
    repeated = count - len({normalize(row.question) for row in loaded.rows})
    if repeated and count_repeats:
        notes.append(
            f"{repeated} of {count} questions repeat an earlier one; each is evaluated separately"
        )
    empty = sum(not row.answer.strip() for row in loaded.rows)
    if empty:
        notes.append(
            f"{empty} of {count} reference answers are empty, so no completion is correct for them"
        )
    return notes


def canonical_spec(loaded: LoadedSet) -> str:
    """NAME:SPLIT:first N:last M, however the command line writes it."""
    spec = parse_spec(loaded.text)
    parts = [loaded.name, loaded.split]
    if spec.first:
        parts.append(f"first {spec.first}")
    if spec.last:
        parts.append(f"last {spec.last}")
    return ":".join(parts)
