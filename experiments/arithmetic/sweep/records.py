"""The results of the experiment's runs, and where they are stored.

While the experiment runs, each run writes DIR/SETTING/NAME.json (`start` is the initial model), so
that two workers never write the same file. The repository keeps all results in one file,
`results.parquet` (`sweep.archive`).
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from iapo_jax.errors import UserError
from iapo_jax.evaluation.metrics import Outcomes
from iapo_jax.runtime.files import read_json, write_json
from sweep.plan import START, Job, overrides, splits_of
from sweep.problems import digest_of

KEPT = ("correct", "length", "finished")
"""The fields of `Outcomes` that are stored; which incorrect answers agree is not stored."""


class Result(NamedTuple):
    """The result of one run."""

    setting: str
    method: str  # `start`: the initial model, without a run
    choice: int  # index in the method's grid
    seed: int
    config: str  # the command's overrides, with which the run can be repeated
    updates: int = 0
    sampled_tokens: int = 0
    seconds: float = 0.0  # wall time of training and measuring, on a shared machine
    outcomes: dict[str, Outcomes] = {}  # by split
    problems: dict[str, str] = {}  # by split, the digest of its file
    categories: dict[str, float] = {}  # tokens of each in a correct completion, on the last split
    information: dict[str, Any] = {}  # `sweep.measure.where_information_sits`
    curves: dict[str, list[float]] = {}  # by training step

    @property
    def job(self) -> Job:
        """The planned run."""
        return Job(self.setting, self.method, self.choice, self.seed)


def path_of(directory: Path, job: Job) -> Path:
    """The file of a run's result."""
    name = START if job.method == START else job.name
    return directory / job.setting / f"{name}.json"


def write(directory: Path, result: Result) -> None:
    """Writes the result of a run, atomically."""
    outcomes = {
        split: {name: getattr(found, name).tolist() for name in KEPT}
        for split, found in result.outcomes.items()
    }
    row = result._asdict() | {"outcomes": outcomes}
    path = path_of(directory, result.job)
    write_json(path, row, indent=None)


def is_current(result: Result) -> bool:
    """Whether a result has the current config of the plan and the current problems.

    Splits without a known digest, such as those of *large*, are not compared.
    """
    job = result.job
    planned = "" if job.method == START else config_of(job)
    wanted = {split: digest_of(job.setting, split) for split in splits_of(job)}
    same = all(result.problems.get(split) == digest for split, digest in wanted.items() if digest)
    return result.config == planned and same


def config_of(job: Job) -> str:
    """The overrides of a run's command."""
    return " ".join(overrides(job))


def read(path: Path) -> Result:
    """Reads the result that `write` wrote.

    Raises:
      UserError: if the file is damaged.
    """
    try:
        row = read_json(path)
        outcomes = {split: make_outcomes(**found) for split, found in row["outcomes"].items()}
        return Result(**row | {"outcomes": outcomes})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a complete result ({type(error).__name__}); delete it and run "
            "run_sweep.py again"
        ) from None


def make_outcomes(correct: ArrayLike, length: ArrayLike, finished: ArrayLike) -> Outcomes:
    """Outcomes [problems, samples] whose incorrect answers all count as the same."""
    correct = np.asarray(correct, bool)
    return Outcomes(
        correct=correct,
        length=np.asarray(length, np.int32),
        finished=np.asarray(finished, bool),
        votes=np.where(correct, 0, 1),
    )
