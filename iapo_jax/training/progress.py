"""What happens between two steps of a run: saving, handling signals, ending a failing run."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from iapo_jax.config.sft import SftConfig
from iapo_jax.config.train import TrainConfig
from iapo_jax.errors import RunError, UserError
from iapo_jax.runtime.console import say
from iapo_jax.runtime.interruption import Stopped, stop_requested
from iapo_jax.training.checkpoint import Checkpoints
from iapo_jax.training.optimizer import TrainState
from iapo_jax.training.run_writer import RunWriter
from iapo_jax.types import Params


class RunTotals(NamedTuple):
    """Counts over the steps of a run so far."""

    sampled_tokens: int
    skipped_in_a_row: int


class Progress:
    """Counts the steps of a run, and saves what is due between them, so that nothing is lost.

    Args:
      notes: the notes that were saved with the state from which the run continues.
      measure: called with (parameters, step) for every candidate for selection.
      best: returns the step whose checkpoint is kept in addition to the newest.
      budget: the number of sampled tokens after which the run ends; 0 = no limit.
    """

    def __init__(
        self,
        config: TrainConfig | SftConfig,
        checkpoints: Checkpoints,
        writer: RunWriter,
        notes: Mapping[str, Any],
        *,
        measure: Callable[[Params, int], None] = lambda params, step: None,
        best: Callable[[], int | None] = lambda: None,
        budget: int = 0,
    ):
        self.config, self.checkpoints, self.writer = config, checkpoints, writer
        self.measure, self.best, self.budget = measure, best, budget
        self.sampled = int(notes.get("sampled_tokens", 0))
        self.in_a_row = int(notes.get("skipped_in_a_row", 0))
        # The step of the last checkpoint before the current streak of skipped steps.
        self.before_streak: int | None = notes.get("before_streak")
        rows = notes.get("rows", writer.rows)
        if rows != writer.rows:
            say(
                f"note: {writer.directory / 'metrics.jsonl'} has {writer.rows} rows up to the "
                f"checkpoint; expected {rows}, the number when it was saved. The file has changed "
                "since then; training is not affected"
            )

    def add(self, *, tokens: int = 0, skipped: bool) -> None:
        """Counts a step that sampled `tokens` tokens."""
        self.sampled += tokens
        self.in_a_row = self.in_a_row + 1 if skipped else 0

    def totals(self) -> RunTotals:
        """The counts so far."""
        return RunTotals(sampled_tokens=self.sampled, skipped_in_a_row=self.in_a_row)

    def is_last(self, step: int) -> bool:
        """Whether the run ends after `step` steps."""
        spent = bool(self.budget) and self.sampled >= self.budget
        return spent or step >= self.config.max_steps

    def catch_up(self, step: int, state: TrainState) -> None:
        """Measures the checkpoint that a stopped run has saved but not measured."""
        if step and self._due(step):
            self._measure(step, state)

    def after_step(self, step: int, state: TrainState, failures: Mapping[str, Any]) -> None:
        """Measures and saves what is due after `step` steps.

        Args:
          failures: the values of the step that were not finite; empty if it was not skipped.

        Raises:
          Stopped: after a signal, once everything is saved.
          RunError: if too many consecutive steps were skipped, or the state cannot be saved.
        """
        stop = not self.is_last(step) and stop_requested()
        too_many = bool(failures) and self.in_a_row >= self.config.max_skipped
        due = self._due(step)
        if due and not stop:  # after a stop, the resumed run measures
            self._measure(step, state)
        if due or stop or too_many:
            self.restore_point(step, state)
        if too_many:
            raise RunError(
                f"stopped: {self.in_a_row} consecutive steps up to step {step} had non-finite "
                f"values ({', '.join(failures)}) and were skipped (max_skipped is "
                f"{self.config.max_skipped}). Last checkpoint: {step}; last checkpoint before the "
                f"skipped steps: {self.before_streak or 'none'}; skipped batches: "
                f"{self.writer.directory / 'skipped'}"
            )
        if stop:
            how = "" if self.config.resume == "auto" else " with resume=auto"
            raise Stopped(f"{self._saved(step)}; run the same command{how} to resume")

    @contextlib.contextmanager
    def guard(self, step: int, state: TrainState) -> Iterator[None]:
        """Wraps the step after `step` steps; if it fails, saves the state from before it.

        A state that the step has already started to change cannot be saved.

        Raises:
          RunError: in place of a UserError, since the run has started.
        """
        try:
            yield
        except BaseException as error:
            # Saving needs all processes, and only these errors are certain to be raised on all.
            shared = isinstance(error, UserError | RunError) or jax.process_count() == 1
            if step and shared:
                self._rescue(step, state)
            if isinstance(error, UserError):
                raise RunError(str(error)) from error
            raise

    def _rescue(self, step: int, state: TrainState) -> None:
        deleted = any(x.is_deleted() for x in jax.tree.leaves(state))
        if deleted or step in self.checkpoints.steps():
            return
        try:
            self.restore_point(step, state)
            self.checkpoints.wait()
            say(self._saved(step))
        except RunError as error:  # the error that ended the step is reported after this note
            say(f"note: {error}")

    def restore_point(self, step: int, state: TrainState) -> None:
        """Syncs the rows of metrics, then saves a checkpoint, which must not be newer than them."""
        self.writer.sync()
        if not self.in_a_row:
            self.before_streak = step
        notes = {"skipped_in_a_row": self.in_a_row, "before_streak": self.before_streak}
        notes |= {"rows": self.writer.rows, "sampled_tokens": self.sampled}
        preserved = {self.best(), self.before_streak if self.in_a_row else None} - {None}
        self.checkpoints.save(step, state, preserved, notes)

    def _due(self, step: int) -> bool:
        every = self.config.save_steps
        return self.is_last(step) or bool(every and step % every == 0)

    def _measure(self, step: int, state: TrainState) -> None:
        try:
            self.measure(state.params, step)
        except Stopped:
            self.restore_point(step, state)
            raise

    def _saved(self, step: int) -> str:
        place = self.checkpoints.directory
        return f"step {step} of {self.config.max_steps} is saved in {place}"
