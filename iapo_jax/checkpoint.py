"""Checkpoints of a `TrainState` in `OUTPUT_DIR/checkpoints`; the home of orbax."""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from iapo_jax.errors import UserError

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every file at INFO and WARNING


class _Best:
    """Preserves one checkpoint, which is told when it is asked for."""

    def __init__(self, step: Callable[[], int | None]):
        self._step = step

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """orbax's `PreservationPolicy`."""
        best = self._step()
        return [one.step == best for one in checkpoints]


class Checkpoints:
    """Saves asynchronously, keeps the newest, restores into the shardings of the current mesh.

    The directory is made by the first `save`.
    """

    def __init__(self, output_dir: Path, keep: int):
        self.directory, self.keep = (output_dir / "checkpoints").absolute(), keep
        self._best: int | None = None

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:
        newest = policies.LatestN(self.keep or None)
        kept = policies.AnyPreservationPolicy([newest, _Best(lambda: self._best)])
        options = ocp.CheckpointManagerOptions(preservation_policy=kept, create=True)
        return ocp.CheckpointManager(
            self.directory, options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    def steps(self) -> list[int]:
        """Steps with a committed checkpoint, oldest first."""
        return sorted(self._manager.all_steps()) if self.directory.is_dir() else []

    def save(self, step: int, state: Any, best: int | None = None) -> None:
        """Begins to write `state`; it is committed by the next `save` or `close`.

        Args:
          best: a step that stays beside the newest.
        """
        self._best = best
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(_tree(state)))

    def restore(self, step: int, like: Any) -> Any:
        """The state of a step, on the shardings of `like` (arrays, or shapes with shardings).

        Raises:
          UserError: if the checkpoint does not fit the configured model and optimizer.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _tree(like))
        saved, wanted = _shapes(self._manager.item_metadata(step).tree), _shapes(target)
        for name in sorted(saved | wanted):
            if saved.get(name) != wanted.get(name):
                field = "algorithm.adapt's " if name.startswith("memory") else ""
                raise UserError(
                    f"checkpoint {self.directory / str(step)} does not fit this config: {field}"
                    f"{name} is {saved.get(name, 'absent')} there, {wanted.get(name, 'absent')} "
                    "here"
                )
        found = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        return type(like)(**found)

    def saved_memory(self, step: int, place: Any) -> Any:
        """Shapes of a state's `memory` as they were saved, to restore it without its meaning."""
        saved = self._manager.item_metadata(step).tree.get("memory") or ()
        shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)  # noqa: E731
        return jax.tree.map(shape, saved)

    def forget_after(self, step: int) -> None:
        """Deletes later checkpoints: a run that goes back writes these steps again."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def wait(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on disk."""
        if "_manager" in vars(self):
            self._manager.wait_until_finished()
            self._manager.close()


def _tree(state: Any) -> dict[str, Any]:
    """The fields of a state that hold something: checkpoints need not know of the others."""
    return {name: value for name, value in state._asdict().items() if jax.tree.leaves(value)}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    name = partial(jax.tree_util.keystr, simple=True, separator=".")
    return {name(path): tuple(leaf.shape) for path, leaf in leaves}


def step_to_resume(checkpoints: Checkpoints, resume: str, *, option: str = "resume") -> int | None:
    """The step that `option` asks for: auto, never, or a number. None: start from the beginning.

    Only `resume` may be never: what is asked of an export is a checkpoint.

    Raises:
      UserError: if the checkpoint is not there, or is there and must not be.
    """
    steps = checkpoints.steps()
    if resume == "auto":
        return steps[-1] if steps else None
    if resume == "never" and option == "resume":
        if steps:
            raise UserError(
                f"resume is never, but {checkpoints.directory} holds checkpoints (steps {steps}): "
                "choose another output_dir, or remove it"
            )
        return None
    if not resume.isdecimal() or int(resume) not in steps:
        words = "auto, never or" if option == "resume" else "auto or"
        raise UserError(
            f"{option} is {resume!r}; expected {words} one of the steps {steps} that "
            f"{checkpoints.directory} holds"
        )
    return int(resume)
