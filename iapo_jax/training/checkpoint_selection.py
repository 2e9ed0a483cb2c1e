"""Which checkpoint of a run is kept: the best one on training rows that are held out for it.

The split is no part of the training, and the evaluation set (`held_out`) no part of the choice.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iapo_jax.config.train import SelectionSection, TrainConfig
from iapo_jax.data import problems as data
from iapo_jax.data.problems import Problems
from iapo_jax.data.questions import hold_out
from iapo_jax.errors import UserError
from iapo_jax.evaluation.estimates import estimates, measure
from iapo_jax.evaluation.metrics import Outcomes
from iapo_jax.evaluation.records import digest
from iapo_jax.evaluation.sampling import Protocol, evaluate, make_task
from iapo_jax.pretrained.loaded_model import LoadedModel
from iapo_jax.runtime.console import is_writer
from iapo_jax.runtime.files import read_jsonl, write_jsonl
from iapo_jax.runtime.processes import broadcast
from iapo_jax.types import Params


class Candidate(NamedTuple):
    """A checkpoint on the selection split; step 0 is the start model, which is never chosen."""

    step: int
    accuracy: float
    length: float  # tokens
    ratio: float  # accuracy per token


def choose(candidates: Sequence[Candidate], section: SelectionSection) -> Candidate | None:
    """The best candidate by the criterion, the earliest of equals; None if there is none.

    `accuracy`: the most accurate, of equally accurate ones the shortest. `ratio`: the highest
    accuracy per token among those whose accuracy is at most `tolerance` below the start's (a model
    that stops at once has a fine ratio); if none is, the most accurate.
    """
    start = next((one.accuracy for one in candidates if one.step == 0), 0.0)

    def merit(one: Candidate) -> tuple[float, ...]:
        allowed = one.accuracy >= start - section.tolerance - 1e-9
        if section.criterion == "ratio" and allowed:
            return (1.0, one.ratio)
        return (0.0, one.accuracy, -one.length)

    trained = [one for one in candidates if one.step > 0]
    return max(trained, key=merit) if trained else None


class Selection:
    """The selection split of `config.SelectionSection`, sampled at every checkpoint.

    Args:
      problems: of the split; None: no split, and the last checkpoint is kept.
    """

    def __init__(self, config: TrainConfig, loaded: LoadedModel, problems: Problems | None):
        self.section, self.shown = config.selection, config.log.progress
        self.path = Path(config.output_dir) / "selection.jsonl"
        self.candidates: list[Candidate] = []
        self.task = None
        if problems is None:
            return
        protocol = Protocol.from_section(
            config.sampling,
            config.information,
            seed=config.seed,
            num_samples=self.section.num_samples,
            max_completion_length=config.sampling.max_completion_length,
            prompts_per_batch=self.section.prompts_per_batch,
        )
        self.task = make_task(loaded, problems, protocol, field="selection")
        self.split = digest(problems.texts, problems.answers, protocol.settings())

    def resume(self, step: int) -> None:
        """Goes on with the candidates up to this step that the run wrote down.

        Raises:
          UserError: if they were measured on another split, or in another way; or if the run began
            with a split and goes on without one, or the other way around: what it was trained on
            would decide.
        """
        rows = [row for row in read_selection(self.path) if row["step"] <= step] if step else []
        if step and bool(rows) != (self.task is not None):
            raise UserError(
                f"selection.problems is {self.section.problems}, but the run in {self.path.parent} "
                f"began {'with' if rows else 'without'} a selection split; expected the same, or "
                "another output_dir"
            )
        if self.task is None:
            return
        for row in rows:
            if row["split"] != self.split:
                raise UserError(
                    f"{self.path} is of another selection split than selection.* tells now; "
                    "expected the same one, or another output_dir"
                )
        count = int(broadcast(np.int32(len(rows))))
        found = np.zeros((count, len(Candidate._fields)))
        if is_writer():
            found[:] = np.reshape(
                [[row[name] for name in Candidate._fields] for row in rows], found.shape
            )
        self.candidates = [Candidate(int(r[0]), *map(float, r[1:])) for r in broadcast(found)]
        if is_writer() and rows:
            self._write(rows)  # another criterion may choose another one

    def measure(self, params: Params, step: int) -> None:
        """Samples the split by these parameters, if it was not, and writes selection.jsonl."""
        if self.task is None or any(one.step == step for one in self.candidates):
            return
        made = evaluate(
            self.task, params, name=f"selecting, step {step}", shown=self.shown, leave=False
        )
        count = self.task.protocol.num_samples
        made.sort(key=lambda one: (one.row, one.sample))
        grid = lambda name: np.asarray([getattr(x, name) for x in made]).reshape(-1, count)  # noqa: E731
        correct = grid("correct")
        outcomes = Outcomes(correct, grid("length"), grid("finished"), np.where(correct, 0, 1))
        found = estimates(measure([outcomes]))
        found = {
            "accuracy": found["accuracy"],
            "length": found["length"],
            "ratio": found["ratio@1"],
        }
        self.candidates.append(Candidate(step, *(one.value for one in found.values())))
        told = self.candidates[-1]._asdict()
        for name, one in found.items():
            told |= {f"{name}_low": one.low, f"{name}_high": one.high}
        if is_writer():
            rows = [row for row in read_selection(self.path) if row["step"] < step] if step else []
            rows.append(told | {"split": self.split})
            self._write(rows)

    def _write(self, rows: Sequence[dict]) -> None:
        best = self.best()
        marks = [best is not None and row["step"] == best for row in rows]
        write_jsonl(
            self.path,
            [
                row | {"criterion": self.section.criterion, "chosen": chosen}
                for row, chosen in zip(rows, marks, strict=True)
            ],
        )

    def best(self) -> int | None:
        """The step of the best checkpoint so far; None without a split or a candidate."""
        found = choose(self.candidates, self.section)
        return None if found is None else found.step

    def told(self) -> str:
        """The choice in one sentence."""
        found = choose(self.candidates, self.section)
        return (
            f"chosen: step {found.step}, by {self.section.criterion} on "
            f"{len(self.task.problems.rows)} training problems that were held out "
            f"(accuracy {found.accuracy:.3f}, {found.length:.1f} tokens)"
        )


def split_problems(
    problems: Problems, section: SelectionSection, seed: int
) -> tuple[Problems, Problems | None]:
    """The training problems, and those of the selection split.

    Raises:
      UserError: if the split would leave nothing to train on.
    """
    if not section.problems:
        return problems, None
    try:
        training, held = hold_out(section.problems, problems.questions, seed)
    except UserError as error:
        raise UserError(f"selection.problems is {section.problems}: {error}") from None
    return data.pick_problems(problems, training), data.pick_problems(problems, held)


def read_selection(path: Path) -> list[dict]:
    """The rows of a selection.jsonl; none if it is not there.

    Raises:
      UserError: naming the line that does not hold the figures of a checkpoint.
    """
    return read_jsonl(path, _candidate_row)


def _candidate_row(row: dict) -> dict:
    for name in (*Candidate._fields, "chosen", "split"):
        kind = {"chosen": bool, "split": str}.get(name, int | float)
        if not isinstance(row[name], kind):
            raise ValueError(f"{name} is {row[name]!r:.60}; expected the figures of a checkpoint")
    return row


def chosen_step(run_dir: Path) -> int | None:
    """The step that a run has chosen; None if it had no selection split.

    Raises:
      UserError: if its selection.jsonl is damaged.
    """
    steps = [row["step"] for row in read_selection(run_dir / "selection.jsonl") if row["chosen"]]
    return steps[0] if steps else None
