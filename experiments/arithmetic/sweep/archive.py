"""All results in one parquet file, a row for each run. The only module that imports pyarrow.

Columns are the fields of `records.Result` but `problems`, and `withdrawn`: True for runs whose grid
or problems have changed since, which no table counts. Outcomes of each problem are in `outcomes`:
for each split, the digest of its problems and flat lists of problems x `samples` values.
"""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from iapo_jax.errors import UserError
from sweep.records import KEPT, Result, make_outcomes

_NUMBERS = pa.map_(pa.string(), pa.float64())
_OUTCOMES = pa.struct(
    {
        "split": pa.string(),
        "digest": pa.string(),  # of the split's file: `sweep.problems.digest_of`
        "samples": pa.uint8(),
        "correct": pa.list_(pa.bool_()),
        "length": pa.list_(pa.uint16()),
        "finished": pa.list_(pa.bool_()),
    }
)
_INFORMATION = pa.struct(
    {
        "completions": pa.uint16(),
        "nats": _NUMBERS,
        "tokens": _NUMBERS,
        "profile": pa.list_(pa.float64()),
    }
)
SCHEMA = pa.schema(
    {
        "setting": pa.string(),
        "method": pa.string(),
        "choice": pa.uint8(),
        "seed": pa.uint8(),
        "withdrawn": pa.bool_(),
        "config": pa.string(),
        "updates": pa.uint16(),
        "sampled_tokens": pa.uint32(),
        "seconds": pa.float64(),
        "outcomes": pa.list_(_OUTCOMES),
        "categories": _NUMBERS,
        "information": _INFORMATION,
        "curves": pa.map_(pa.string(), pa.list_(pa.float64())),
    }
)
_REPEATED = ["setting", "method", "config"]  # columns for which a parquet dictionary saves space


class Row(NamedTuple):
    """A result, and whether it was withdrawn."""

    result: Result
    withdrawn: bool = False


def save(path: Path, rows: Iterable[Row]) -> None:
    """Writes the parquet file, in the order of setting, method, choice and seed."""
    ordered = sorted(rows, key=lambda row: (*row.result.job, row.withdrawn))
    table = pa.Table.from_pylist([_to_columns(row) for row in ordered], SCHEMA)
    partial = path.with_name(path.name + ".partial")
    pq.write_table(
        table,
        partial,
        compression="zstd",
        compression_level=22,
        use_dictionary=_REPEATED,
        data_page_size=2**26,  # one page per column, because lengths of different runs are similar
    )
    partial.replace(path)


def load(path: Path) -> list[Row]:
    """The rows of the parquet file.

    Raises:
      UserError: if it is not a results file.
    """
    return _load(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _load(path: Path, _: int) -> list[Row]:
    try:
        return [_from_columns(row) for row in pq.read_table(path, schema=SCHEMA).to_pylist()]
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path} is not a results file ({type(error).__name__}); expected a file written by "
            "pack_results.py"
        ) from None


def merge(rows: Iterable[Row], results: Iterable[Result]) -> Iterator[Row]:
    """Adds new results to the rows of a file; rows of other jobs stay.

    A replaced result stays as withdrawn, unless the new one has the same config and problems.
    """
    new = {result.job: result for result in results}
    for row in rows:
        old, replacement = row.result, new.get(row.result.job)
        if replacement is None or row.withdrawn:
            yield row
        elif (old.config, old.problems) != (replacement.config, replacement.problems):
            yield row._replace(withdrawn=True)
    yield from (Row(result) for result in new.values())


def _to_columns(row: Row) -> dict[str, Any]:
    result = row.result
    outcomes = [
        {
            "split": split,
            "digest": result.problems.get(split),
            "samples": found.correct.shape[1],
            **{name: np.ravel(getattr(found, name)) for name in KEPT},
        }
        for split, found in result.outcomes.items()
    ]
    columns = result._asdict() | {"withdrawn": row.withdrawn, "outcomes": outcomes}
    columns["information"] = result.information or None
    del columns["problems"]  # which are in the outcomes
    return columns


def _from_columns(columns: dict[str, Any]) -> Row:
    withdrawn, outcomes = columns.pop("withdrawn"), columns.pop("outcomes")
    information = columns.pop("information")
    maps = {name: dict(columns.pop(name)) for name in ("categories", "curves")}
    if information:
        information |= {name: dict(information[name]) for name in ("nats", "tokens")}
    result = Result(
        **columns,
        **maps,
        information=information or {},
        outcomes={
            one["split"]: make_outcomes(
                **{name: np.reshape(one[name], (-1, one["samples"])) for name in KEPT}
            )
            for one in outcomes
        },
        problems={one["split"]: one["digest"] for one in outcomes if one["digest"]},
    )
    return Row(result, withdrawn)
