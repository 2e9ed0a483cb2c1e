"""Finds results by their job.

A *place* of results is a directory that `run_sweep.py` writes, or `results.parquet`.
"""

from collections.abc import Iterator
from pathlib import Path

from sweep import archive
from sweep.plan import Job
from sweep.records import Result, is_current, path_of, read


def find(place: Path, job: Job) -> Result | None:
    """The result of a job; None if the place has none.

    Raises:
      UserError: if the file is damaged.
    """
    if is_archive(place):
        found = (row.result for row in archive.load(place) if not row.withdrawn)
        return next((result for result in found if result.job == job), None)
    path = path_of(place, job)
    return read(path) if path.is_file() else None


def read_all(place: Path, setting: str) -> Iterator[Result]:
    """All results of a setting that were not withdrawn, in the order of their names.

    Raises:
      UserError: if a file is damaged.
    """
    if is_archive(place):
        found = [row.result for row in archive.load(place) if not row.withdrawn]
        own = (result for result in found if result.setting == setting)
        yield from sorted(own, key=lambda result: path_of(place, result.job))
        return
    for path in sorted((place / setting).glob("*.json")):
        yield read(path)


def is_archive(place: Path) -> bool:
    """Whether a place is one parquet file."""
    return place.suffix == ".parquet"


def is_written(place: Path, job: Job) -> bool:
    """Whether the place has a result of the job that is current: `records.is_current`."""
    result = find(place, job)
    return result is not None and is_current(result)
