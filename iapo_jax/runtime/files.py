"""JSON and JSONL files, and writes that are complete or do not happen.

Readers report damage in one sentence that names the file and the line.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from iapo_jax.errors import RunError, UserError

T = TypeVar("T")


# ------------------------------------------------------------------------------ reading


def read_json(
    path: Path, *, kind: type = dict, unique_keys: bool = False, missing: str = "a JSON file"
) -> Any:
    """The value in a JSON file.

    Args:
      kind: what the value must be, dict or list.
      unique_keys: refuse an object that has the same key twice.
      missing: what is expected, for the error if the file does not exist.

    Raises:
      UserError: naming the file, if it is missing, unreadable, not JSON or of another kind.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; expected {missing}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    value = _parse(text, str(path), unique_keys=unique_keys)
    _check_kind(value, kind, str(path))
    return value


def iterate_jsonl(
    path: Path, *, unique_keys: bool = False, skip_incomplete_end: bool = False
) -> Iterator[tuple[int, dict]]:
    """(line number from 1, object) of a JSONL file, without its empty lines.

    Args:
      unique_keys: refuse an object that has the same key twice.
      skip_incomplete_end: skip a damaged last line without a line end, such as an interrupted
        writer leaves behind.

    Raises:
      UserError: naming the file, and the line that is not a JSON object.
    """
    try:
        with path.open("rb") as file:  # in binary mode, U+2028 does not end a line
            for number, line in enumerate(file, start=1):
                where = f"{path}, line {number}"
                if not line.strip():
                    continue
                try:
                    row = _parse(line.rstrip(b"\r\n"), where, unique_keys=unique_keys)
                except UserError:
                    if skip_incomplete_end and not line.endswith(b"\n"):
                        return
                    raise
                _check_kind(row, dict, where)
                yield number, row
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def read_jsonl(path: Path, convert: Callable[[dict], T] = dict) -> list[T]:
    """The rows of a JSONL file that a run writes, without an incomplete end; [] if it is missing.

    Args:
      convert: applied to each object; its ValueError, TypeError or KeyError rejects the line.

    Raises:
      UserError: naming the file and the line.
    """
    rows = []
    if path.is_file():
        for number, row in iterate_jsonl(path, skip_incomplete_end=True):
            try:
                rows.append(convert(row))
            except (ValueError, TypeError, KeyError) as error:
                reason = f"{error} is missing" if isinstance(error, KeyError) else error
                raise UserError(f"{path}, line {number}: {reason}") from None
    return rows


def _parse(text: bytes, where: str, *, unique_keys: bool) -> Any:
    try:
        return json.loads(
            text.decode("utf-8-sig"), object_pairs_hook=_unique if unique_keys else None
        )
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8: {error}") from None
    except (ValueError, RecursionError) as error:  # ValueError also for a number of 5,000 digits
        reason = str(error).strip().splitlines()[0]
        if isinstance(error, json.JSONDecodeError):
            line = f"line {error.lineno}, " if b"\n" in text else ""
            reason = f"{error.msg} ({line}column {error.colno})"
        raise UserError(f"{where} is not JSON: {reason}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r:.60} occurs twice in one object")
    return made


def _check_kind(value: Any, kind: type, where: str) -> None:
    if not isinstance(value, kind):
        expected = {dict: "an object", list: "a list"}[kind]
        raise UserError(f"{where} is {value!r:.60}; expected {expected}")


# ------------------------------------------------------------------------------ writing


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file completely or not at all, and creates its directory.

    A symbolic link remains; the file it points to is replaced. A pipe or a device is written to.

    Raises:
      OSError: if the system refuses.
    """
    if isinstance(content, str):
        # JSON uses the same escape for a lone surrogate in a data row.
        content = content.encode("utf-8", errors="backslashreplace")
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # else a crash of the machine could leave an empty file
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # also the new name
    finally:
        os.close(folder)


def to_json_line(row: dict) -> str:
    """An object as one line of JSONL."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_json(
    path: Path, value: dict | list, *, indent: int | None = 2, sort_keys: bool = False
) -> None:
    """Writes an object, or a list with one entry per line, as `write_atomically`."""
    if isinstance(value, list):
        text = "[\n" + ",\n".join(to_json_line(entry).rstrip("\n") for entry in value) + "\n]\n"
    else:
        text = json.dumps(value, ensure_ascii=False, indent=indent, sort_keys=sort_keys) + "\n"
    write_atomically(path, text)


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Writes one object per line, as `write_atomically`."""
    write_atomically(path, "".join(map(to_json_line, rows)))


def append_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Appends rows to a file; returns once the operating system has them."""
    with path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.writelines(map(to_json_line, rows))


def cut_incomplete_end(path: Path) -> None:
    """Removes a last line without a line end, as an interrupted `append_jsonl` leaves behind."""
    if not path.is_file():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)


@contextlib.contextmanager
def writing(place: Path | str, error: type[UserError | RunError] = RunError) -> Iterator[None]:
    """Turns an OSError of the block into one sentence.

    Raises:
      RunError (or `error`): naming the place.
    """
    try:
        yield
    except OSError as refusal:
        raise error(f"{place} cannot be written: {refusal}") from refusal
