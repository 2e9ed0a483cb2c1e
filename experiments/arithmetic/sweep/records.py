"""One run's results as a small JSON file: enough to make every table and picture again.

RESULTS/SETTING/NAME.json; `start` is the start model. Arrays of an evaluation are packed, so that
three hundred runs stay small.
"""

import base64
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iapo_jax.errors import UserError
from iapo_jax.evaluation.metrics import Outcomes
from iapo_jax.runtime.files import read_json, write_json
from sweep.plan import START, Job, overrides, splits_of
from sweep.problems import digest_of


class Result(NamedTuple):
    """What a run leaves."""

    setting: str
    method: str  # `start`: the start model, without a run
    choice: int  # place in the method's grid
    seed: int
    config: str  # how to repeat it: what goes behind the command
    updates: int = 0
    sampled_tokens: int = 0
    seconds: float = 0.0  # wall time of training and measuring, on a machine that does other things
    outcomes: dict[str, Outcomes] = {}  # by split
    problems: dict[str, str] = {}  # by split, the digest of its file
    categories: dict[str, float] = {}  # tokens of each in a right completion, on the last split
    information: dict[str, Any] = {}  # where it sits: `sweep.measure.where_information_sits`
    curves: dict[str, list[float]] = {}  # by step of training

    @property
    def job(self) -> Job:
        """What was planned."""
        return Job(self.setting, self.method, self.choice, self.seed)


def path_of(directory: Path, job: Job) -> Path:
    """Where the result of a run is kept."""
    name = START if job.method == START else job.name
    return directory / job.setting / f"{name}.json"


def write(directory: Path, result: Result) -> None:
    """Writes it whole or not at all."""
    told = result._asdict() | {
        "outcomes": {split: pack(found) for split, found in result.outcomes.items()}
    }
    path = path_of(directory, result.job)
    write_json(path, told, indent=1)


def written(directory: Path, job: Job) -> bool:
    """Whether a result is there that is what the plan has for the job now: `is_current`."""
    path = path_of(directory, job)
    return path.is_file() and is_current(read(path))


def is_current(result: Result) -> bool:
    """Whether it was made by the config that the plan has, and measured on the problems of now.

    Files that are not there, as those of *large* before they are made, are not looked at.
    """
    job = result.job
    planned = "" if job.method == START else config_of(job)
    wanted = {split: digest_of(job.setting, split) for split in splits_of(job)}
    same = all(result.problems.get(split) == digest for split, digest in wanted.items() if digest)
    return result.config == planned and same


def config_of(job: Job) -> str:
    """What goes behind the command of a run."""
    return " ".join(overrides(job))


def read(path: Path) -> Result:
    """The result that `write` wrote.

    Raises:
      UserError: if the file is damaged.
    """
    try:
        told = read_json(path)
        outcomes = {split: unpack(found) for split, found in told["outcomes"].items()}
        return Result(**told | {"outcomes": outcomes})
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise UserError(
            f"{path} is no whole result ({type(error).__name__}); delete it, and run_sweep.py "
            "makes it again"
        ) from None


def read_all(directory: Path, setting: str) -> Iterator[Result]:
    """All results of a setting, in the order of their names."""
    for path in sorted((directory / setting).glob("*.json")):
        yield read(path)


def pack(outcomes: Outcomes) -> dict[str, Any]:
    """Verdicts and lengths; which wrong answers are equal is not kept."""
    correct, length = np.asarray(outcomes.correct, bool), np.asarray(outcomes.length)
    finished = np.asarray(outcomes.finished, bool)
    arrays = [np.packbits(correct), np.packbits(finished), length.astype("<u2").view(np.uint8)]
    data = b"".join(np.ascontiguousarray(x).tobytes() for x in arrays)
    packed = base64.b85encode(zlib.compress(data, 9)).decode("ascii")
    problems, samples = correct.shape
    return {"problems": problems, "samples": samples, "packed": packed}


def unpack(told: dict[str, Any]) -> Outcomes:
    """The inverse of `pack`."""
    shape = told["problems"], told["samples"]
    size = shape[0] * shape[1]
    data = np.frombuffer(zlib.decompress(base64.b85decode(told["packed"])), np.uint8)
    bits = -(-size // 8)
    flags = [np.unpackbits(data[i * bits : (i + 1) * bits])[:size].astype(bool) for i in (0, 1)]
    correct, finished = (x.reshape(shape) for x in flags)
    length = data[2 * bits :].view("<u2").astype(np.int32).reshape(shape)
    return Outcomes(correct, length, finished, np.where(correct, 0, 1))
