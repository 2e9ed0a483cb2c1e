"""The raw rows of files and of the hub. The only module that imports datasets."""

import codecs
import logging
from collections.abc import Iterator
from pathlib import Path

import datasets

from iapo_jax.errors import UserError
from iapo_jax.runtime.files import iterate_jsonl, read_json

# It also logs each error that it raises.
logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)

_SUFFIXES = (".jsonl", ".json", ".parquet")


def open_rows(source: str, subset: str | None, split: str, field: str) -> Iterator[dict]:
    """The rows of a file, a directory or a hub name, in order.

    Args:
      field: of the config, for error messages.

    Raises:
      UserError: naming the field or the file, and the line or the row.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = [path / f"{split}{suffix}" for suffix in _SUFFIXES]
        path = next((file for file in files if file.is_file()), path)
    if path.is_file() and path.suffix in (".jsonl", ".json"):
        return _read_json_rows(path)
    return _batches(_open_dataset(source, path, subset, split, field), source, field)


def _batches(table: datasets.Dataset, source: str, field: str) -> Iterator[dict]:
    batches = table.iter(1000)
    while True:
        try:
            batch = next(batches, None)
        except Exception as error:  # datasets raises a class of its own for each way to fail
            raise UserError(f"{field}: cannot read {source!r}: {_reason(error)}") from None
        if batch is None:
            return
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _read_json_rows(path: Path) -> Iterator[dict]:
    """One object per line, or one array of objects."""
    if path.suffix == ".json" and _begins_with_bracket(path):
        for number, row in enumerate(read_json(path, kind=list, unique_keys=True), start=1):
            if not isinstance(row, dict):
                raise UserError(f"{path}, row {number} is {row!r:.60}; expected an object")
            yield row
        return
    for _, row in iterate_jsonl(path, unique_keys=True):
        yield row


def _begins_with_bracket(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(1000).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _open_dataset(
    source: str, path: Path, subset: str | None, split: str, field: str
) -> datasets.Dataset:
    try:
        if path.is_file() and path.suffix == ".parquet":
            return datasets.Dataset.from_parquet(str(path))
        if path.is_dir() and any((path / f).is_file() for f in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(str(path))
            return loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        if not (path.is_file() or path.is_absolute() or path.suffix in _SUFFIXES):
            return datasets.load_dataset(source, subset, split=split)
    except Exception as error:  # datasets raises a class of its own for each way to fail
        raise UserError(f"{field}: cannot open {source!r}: {_reason(error)}") from None
    expected = "expected a .jsonl, .json or .parquet file"
    if path.is_file():
        raise UserError(f"{field}: {source!r} is a file of another type; {expected}")
    if path.is_dir():
        raise UserError(f"{field}: {source!r} has no file for the split {split!r}; {expected}")
    raise UserError(f"{field}: {source!r} does not exist; {expected}")
