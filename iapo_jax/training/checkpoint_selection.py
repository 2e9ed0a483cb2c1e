"""Chooses the checkpoint that a run keeps: the best on training problems held out for the choice.

The run does not train on these problems, and the evaluation set (`held_out`) does not enter the
choice.
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

CRITERIA = {"ratio": "accuracy per token", "accuracy": "accuracy"}  # their names in messages


class Candidate(NamedTuple):
    """The results of a checkpoint on the selection split; step 0 is the initial model."""

    step: int
    accuracy: float
    length: float  # tokens
    ratio: float  # accuracy per token


def choose(candidates: Sequence[Candidate], section: SelectionSection) -> Candidate | None:
    """The best candidate by the criterion, and the earliest among equals; None without candidates.

    The initial model is never chosen.

    `accuracy`: the highest accuracy, then the shortest completions. `ratio`: the highest accuracy
    per token among candidates whose accuracy is at most `tolerance` below the initial model's,
    since a model that stops at once may have a high ratio; without such a candidate, as `accuracy`.
    """
    start = next((c.accuracy for c in candidates if c.step == 0), 0.0)

    def merit(candidate: Candidate) -> tuple[float, ...]:
        allowed = candidate.accuracy >= start - section.tolerance - 1e-9
        if section.criterion == "ratio" and allowed:
            return (1.0, candidate.ratio)
        return (0.0, candidate.accuracy, -candidate.length)

    trained = [candidate for candidate in candidates if candidate.step > 0]
    return max(trained, key=merit) if trained else None


class Selection:
    """The selection split, which is sampled at every checkpoint.

    Args:
      problems: those of the split; None without a split, in which case the last checkpoint is kept.
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
        """Reads the candidates up to this step that the run has already measured.

        Raises:
          UserError: if they were measured on a different split or with different settings, or if
            only one of the stopped and the resumed run has a split: the training data would differ.
        """
        rows = [row for row in read_selection(self.path) if row["step"] <= step] if step else []
        if step and bool(rows) != (self.task is not None):
            raise UserError(
                f"selection.problems is {self.section.problems}, but the run in {self.path.parent} "
                f"was started {'with' if rows else 'without'} a selection split; expected its "
                "original value, or another output_dir"
            )
        if self.task is None:
            return
        for row in rows:
            if row["split"] != self.split:
                raise UserError(
                    f"{self.path} holds results for a different selection split or different "
                    "sampling settings than the current config; restore the data.*, prompt.*, "
                    "selection.*, sampling.* and seed values that the run was started with, or use "
                    "another output_dir"
                )
        count = int(broadcast(np.int32(len(rows))))
        values = np.zeros((count, len(Candidate._fields)))
        if is_writer():
            values[:] = np.reshape(
                [[row[name] for name in Candidate._fields] for row in rows], values.shape
            )
        self.candidates = [Candidate(int(r[0]), *map(float, r[1:])) for r in broadcast(values)]
        if is_writer() and rows:
            self._write(rows)  # the criterion may have changed, and with it the choice

    def measure(self, params: Params, step: int) -> None:
        """Samples the split with these parameters, once per step, and updates selection.jsonl."""
        if self.task is None or any(candidate.step == step for candidate in self.candidates):
            return
        computed = estimates(measure([self._sample(params, step)]))
        found = {
            "accuracy": computed["accuracy"],
            "length": computed["length"],
            "ratio": computed["ratio@1"],
        }
        values = {name: estimate.value for name, estimate in found.items()}
        self.candidates.append(Candidate(step=step, **values))
        row = self.candidates[-1]._asdict()
        for name, estimate in found.items():
            row |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        if is_writer():
            rows = [row for row in read_selection(self.path) if row["step"] < step] if step else []
            rows.append(row | {"split": self.split})
            self._write(rows)

    def _sample(self, params: Params, step: int) -> Outcomes:
        completions = evaluate(
            self.task, params, name=f"selecting, step {step}", shown=self.shown, leave=False
        )
        completions.sort(key=lambda completion: (completion.row, completion.sample))
        shape = (-1, self.task.protocol.num_samples)
        correct, length, finished = (
            np.asarray([getattr(x, name) for x in completions]).reshape(shape)
            for name in ("correct", "length", "finished")
        )
        return Outcomes(
            correct=correct, length=length, finished=finished, votes=np.where(correct, 0, 1)
        )

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
        """The step of the best checkpoint so far; None without a split or candidates."""
        found = choose(self.candidates, self.section)
        return None if found is None else found.step

    def describe_choice(self) -> str:
        """The choice in one sentence."""
        found = choose(self.candidates, self.section)
        return (
            f"selected the checkpoint of step {found.step} by {CRITERIA[self.section.criterion]} "
            f"on the {len(self.task.problems.rows)} held-out training problems "
            f"(accuracy {found.accuracy:.3f}, mean length {found.length:.1f} tokens)"
        )


def split_problems(
    problems: Problems, section: SelectionSection, seed: int
) -> tuple[Problems, Problems | None]:
    """The training problems, and those of the selection split.

    Raises:
      UserError: if no problem would remain for training.
    """
    if not section.problems:
        return problems, None
    try:
        training, held = hold_out(section.problems, problems.questions, seed)
    except UserError as error:
        raise UserError(f"selection.problems is {section.problems}: {error}") from None
    return data.pick_problems(problems, training), data.pick_problems(problems, held)


def read_selection(path: Path) -> list[dict]:
    """The rows of a selection.jsonl; none if the file does not exist.

    Raises:
      UserError: naming the line that does not hold the results of a checkpoint.
    """
    return read_jsonl(path, _candidate_row)


def _candidate_row(row: dict) -> dict:
    for name in (*Candidate._fields, "chosen", "split"):
        kind = {"chosen": bool, "split": str}.get(name, int | float)
        if not isinstance(row[name], kind):
            raise ValueError(f"{name} is {row[name]!r:.60}; expected the results of a checkpoint")
    return row


def chosen_step(run_dir: Path) -> int | None:
    """The step that a run has chosen; None if it has no selection split.

    Raises:
      UserError: if its selection.jsonl is damaged.
    """
    steps = [row["step"] for row in read_selection(run_dir / "selection.jsonl") if row["chosen"]]
    return steps[0] if steps else None
