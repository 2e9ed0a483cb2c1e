"""Files that are read with one sentence for a mistake, and written whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from iapo_jax.errors import RunError, UserError


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a JSONL file; none if it is not there. A half-written last line is left out.

    Raises:
      UserError: naming another line that is no object.
    """
    if not path.is_file():
        return []
    rows = []
    *lines, last = path.read_bytes().split(b"\n")  # U+2028 ends no line here
    for number, line in enumerate([*lines, last], 1):
        try:
            if line:
                row = json.loads(line.decode("utf-8"))
                rows.append({**row})
        except (ValueError, TypeError) as error:
            if number <= len(lines):
                raise UserError(f"{path}, line {number}: no JSON object: {error}") from None
    return rows


def _write_lines(path: Path, rows: Iterable[dict]) -> None:
    replace_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def replace_file(path: Path, text: str) -> None:
    """Writes the file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    # Lone surrogates of a data row become the escapes by which JSON writes them.
    with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # else a crash of the machine could leave an empty file
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """What the system refuses to write becomes one sentence.

    Raises:
      RunError: naming the place.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{place} cannot be written any more: {error}") from error


def read_json(path: Path) -> dict:
    """A JSON object from a file.

    Raises:
      UserError: naming the file, if it is missing or no JSON.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; a Hugging Face model directory has one") from None
    except (ValueError, RecursionError) as error:  # such as a number of 5,000 digits
        raise UserError(f"{path} is not JSON: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def write_json(path: Path, value: dict) -> None:
    """A JSON object to a file, keys sorted."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
