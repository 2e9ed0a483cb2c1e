"""What happens between two steps of a run: it saves states, handles signals, ends bad streaks."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from iapo_jax.errors import RunError, UserError
from iapo_jax.runtime.console import say
from iapo_jax.runtime.interruption import Stopped, stop_requested
from iapo_jax.training.checkpoint import Checkpoints
from iapo_jax.training.optimizer import TrainState
from iapo_jax.training.run_writer import RunWriter


class RunTotals(NamedTuple):
    """Counts over the steps of a run up to now."""

    sampled_tokens: int
    skipped_in_a_row: int


class Progress:
    """Where a run may end without losing anything.

    Args:
      config: of the run: `max_steps`, `save_steps` and `max_skipped`.
      notes: what was saved beside the state from which the run continues.
      measure: called with (parameters, step) where a checkpoint is a candidate for selection.
      best: returns the step whose checkpoint is kept beside the newest.
      budget: tokens that may be sampled before the run ends; 0 = no limit.
    """

    def __init__(
        self,
        config: Any,
        checkpoints: Checkpoints,
        writer: RunWriter,
        notes: Mapping[str, Any],
        measure: Callable[[Any, int], Any] = lambda params, step: None,
        best: Callable[[], int | None] = lambda: None,
        budget: int = 0,
    ):
        self.config, self.checkpoints, self.writer = config, checkpoints, writer
        self.measure, self.best, self.budget = measure, best, budget
        self.sampled = int(notes.get("sampled_tokens", 0))
        self.in_a_row = int(notes.get("skipped_in_a_row", 0))
        self.before_streak: int | None = notes.get("before_streak")  # a checkpoint that is good
        rows = notes.get("rows", writer.rows)
        if rows != writer.rows:
            say(
                f"note: {writer.directory / 'metrics.jsonl'} has {writer.rows} rows up to the "
                f"checkpoint, which knows of {rows}: some are missing"
            )

    def add(self, *, tokens: int = 0, skipped: bool) -> None:
        """Counts a step that sampled so many tokens."""
        self.sampled += tokens
        self.in_a_row = self.in_a_row + 1 if skipped else 0

    def totals(self) -> RunTotals:
        """The counts up to now."""
        return RunTotals(sampled_tokens=self.sampled, skipped_in_a_row=self.in_a_row)

    def is_last(self, step: int) -> bool:
        """Whether the run ends after `step` steps."""
        spent = bool(self.budget) and self.sampled >= self.budget
        return spent or step >= self.config.max_steps

    def catch_up(self, step: int, state: TrainState) -> None:
        """Measures the last checkpoint of a stopped run, if that run did not."""
        if step and self._due(step):
            self._measure(step, state)

    def after_step(self, step: int, state: TrainState, why: Mapping[str, Any]) -> None:
        """After `step` steps: measures and saves what is due.

        Args:
          why: what was not finite in the step; empty if it was not skipped.

        Raises:
          Stopped: if a signal asks for it; everything is saved.
          RunError: if too many steps in a row were skipped, or nothing can be written.
        """
        stop = not self.is_last(step) and stop_requested()
        too_many = bool(why) and self.in_a_row >= self.config.max_skipped
        due = self._due(step)
        if due and not stop:  # else the run does it when it goes on
            self._measure(step, state)
        if due or stop or too_many:
            self.restore_point(step, state)
        if too_many:
            place = self.writer.directory / "skipped"
            raise RunError(
                f"{self.in_a_row} steps in a row, up to step {step}, had numbers that are not "
                f"finite ({', '.join(why)}) and changed nothing: stopped (max_skipped); the last "
                f"state is checkpoint {step}, the newest from before them "
                f"{self.before_streak or 'none'}, and {place} holds the batches"
            )
        if stop:
            how = "" if self.config.resume == "auto" else " with resume=auto"
            raise Stopped(f"{self._saved(step)}; the same command{how} goes on")

    @contextlib.contextmanager
    def guard(self, step: int, state: TrainState) -> Iterator[None]:
        """Wraps a step after `step` steps: if it fails, saves the state before it.

        The state is lost if the step has begun to change it.

        Raises:
          RunError: in place of a UserError, since the run has begun.
        """
        try:
            yield
        except BaseException as error:
            told = isinstance(error, UserError | RunError)
            # Of several processes only these errors are known to be raised on all of them.
            if step and (told or jax.process_count() == 1):
                self._rescue(step, state)
            if isinstance(error, UserError):
                raise RunError(str(error)) from error
            raise

    def _rescue(self, step: int, state: TrainState) -> None:
        gone = any(x.is_deleted() for x in jax.tree.leaves(state))
        if gone or step in self.checkpoints.steps():
            return
        try:
            self.restore_point(step, state)
            self.checkpoints.wait()
            say(self._saved(step))
        except RunError as error:  # what is wrong is said after it
            say(f"note: {error}")

    def restore_point(self, step: int, state: TrainState) -> None:
        """A checkpoint, which is never newer than the rows on the disk."""
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
