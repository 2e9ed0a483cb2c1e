"""Checkpoints of a `TrainState` in `OUTPUT_DIR/checkpoints`. The only module that imports orbax.

A checkpoint appears only when it is complete: orbax renames its directory once everything is
written, and then deletes older checkpoints. Each checkpoint stores a digest of the bits of every
array, which is compared after reading, so any damage is found, on any mesh.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from iapo_jax.errors import RunError, UserError
from iapo_jax.model.checksums import digests
from iapo_jax.runtime.processes import any_process, connection_lost
from iapo_jax.training.optimizer import TrainState

logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs every file

# The names of the fields of a `TrainState` in checkpoints. They are those of the first release, so
# that checkpoints restore across versions although fields are renamed.
_ON_DISK = {"updates": "step", "adaptation": "memory"}
_IN_MEMORY = {on_disk: field for field, on_disk in _ON_DISK.items()}


class DamagedCheckpoint(UserError):
    """A checkpoint differs from what was saved: files are missing, truncated or altered."""


class _Named:
    """Preserves the checkpoints of the steps that a function returns."""

    def __init__(self, steps: Callable[[], Collection[int]]):
        self._steps = steps

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """orbax's `PreservationPolicy`."""
        return [checkpoint.step in self._steps() for checkpoint in checkpoints]


class Checkpoints:
    """Saves asynchronously, keeps the newest checkpoints, and restores onto the current mesh.

    The first `save` creates the directory.

    Args:
      keep: the number of newest checkpoints that are kept; 0 = all.
      writes: whether this process owns the directory. If it does not, a run may be writing there,
        and nothing is deleted, not even an incomplete checkpoint.
    """

    def __init__(self, output_dir: Path, keep: int = 0, *, writes: bool = False):
        self.directory, self.keep = (output_dir / "checkpoints").absolute(), keep
        self.writes = writes
        self._preserved: Collection[int] = ()
        self._writing: int | None = None  # the step whose checkpoint may not be committed yet

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:
        newest = policies.LatestN(self.keep or None)
        kept = policies.AnyPreservationPolicy([newest, _Named(lambda: self._preserved)])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=kept,
            create=self.writes,
            read_only=not self.writes,
        )
        if self.writes:
            self._sweep("*")  # incomplete checkpoints of a killed run
        return ocp.CheckpointManager(
            self.directory, options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    def steps(self) -> list[int]:
        """The steps with a committed checkpoint, oldest first."""
        return sorted(self._manager.all_steps()) if self.directory.is_dir() else []

    def compile(self, state: TrainState) -> None:
        """Compiles the digests that `save` computes, before the first step."""
        _describe(_tree(state))

    def save(
        self,
        step: int,
        state: TrainState,
        preserved: Collection[int] = (),
        notes: dict[str, Any] | None = None,
    ) -> None:
        """Starts to write `state`; the next `save`, `wait` or `close` waits until it is committed.

        Args:
          preserved: steps whose checkpoints are kept in addition to the newest.
          notes: JSON values that are stored with the state; `notes` returns them.

        Raises:
          RunError: if this checkpoint or the previous one cannot be written. Earlier checkpoints
            stay complete.
        """
        self._preserved = tuple(preserved)
        tree = _tree(state)
        with self._reporting_failure():
            self._manager.wait_until_finished()
            if step in self._manager.all_steps():
                return
            self._writing = step
            about = {"digests": _describe(tree), "notes": notes or {}}
            about["seal"] = _seal(about)
            args = ocp.args.StandardSave(tree)
            if not self._manager.save(step, args=args, custom_metadata=about):
                raise RuntimeError(f"there are later checkpoints (steps {self.steps()})")

    @contextlib.contextmanager
    def _reporting_failure(self) -> Iterator[None]:
        """Turns a failed write into a `RunError`, and deletes the incomplete checkpoint."""
        try:
            yield
        except Exception as error:  # of orbax, tensorstore, asyncio or the system
            step, self._writing = self._writing, None
            self._sweep(str(step))
            vars(self).pop("_manager", None)  # closing it would raise the same error again
            if connection_lost(error):
                raise
            complete = [int(p.name) for p in self.directory.glob("*") if p.name.isdecimal()]
            raise RunError(
                f"checkpoint {self.directory / str(step)} could not be written: "
                f"{_reason(error)}; complete checkpoints: {sorted(complete) or 'none'}"
            ) from error

    def _sweep(self, step: str) -> None:
        """Deletes incomplete checkpoints."""
        if jax.process_index() == 0:
            for leftover in self.directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def notes(self, step: int) -> dict[str, Any]:
        """The notes that were saved with the state."""
        return self._metadata(step)[0]["notes"]

    def _metadata(self, step: int) -> tuple[dict[str, Any], Any]:
        """The notes and digests of a checkpoint, and the tree of metadata of its arrays."""
        if not (self.directory / str(step) / "_CHECKPOINT_METADATA").is_file():
            raise ValueError("it has no _CHECKPOINT_METADATA")
        metadata = self._manager.metadata(step)
        about = json.loads(json.dumps(metadata.custom_metadata or {}))
        if "digests" not in about:
            raise ValueError("the checksums of its arrays are missing")
        if about.get("seal") != _seal(about):
            raise ValueError("its metadata does not match its checksum")
        return about, metadata.item_metadata.tree

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step, on the shardings of `like` (arrays, or shapes with shardings).

        Raises:
          UserError: if the checkpoint does not fit the configured model and optimizer.
          DamagedCheckpoint: naming the first file or array that differs from what was saved.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _tree(like))
        with self._read(step):
            stored, arrays = self._metadata(step)
            about, saved = stored["digests"], _shapes(arrays)
            if {name: list(shape) for name, shape in saved.items()} != {
                name: shape for name, (shape, _) in about.items()
            }:
                raise ValueError("its list of arrays does not match its metadata")
        wanted = _shapes(target)
        for name in sorted(saved | wanted):
            if saved.get(name) != wanted.get(name):
                field = "algorithm.adapt's " if name.startswith(_ON_DISK["adaptation"]) else ""
                found = f"has shape {saved[name]}" if name in saved else "is absent"
                expected = f"shape {wanted[name]}" if name in wanted else "it to be absent"
                raise UserError(
                    f"checkpoint {self.directory / str(step)} does not match this config: {field}"
                    f"{name} {found} in the checkpoint; expected {expected}"
                )
        with self._read(step):
            restored = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        with self._read(step):
            for name, described in _describe(restored).items():
                if described != about[name]:
                    raise ValueError(f"{name} does not match its checksum")
        return type(like)(**{_IN_MEMORY.get(name, name): x for name, x in restored.items()})

    @contextlib.contextmanager
    def _read(self, step: int) -> Iterator[None]:
        reason = None
        try:
            yield
        except Exception as error:  # damage may raise any exception
            if connection_lost(error):
                raise
            reason = _reason(error)
        if any_process(reason is not None):
            raise DamagedCheckpoint(
                f"checkpoint {self.directory / str(step)} is damaged: "
                f"{reason or 'another process cannot read it'}"
            )

    def restore_undamaged(
        self, steps: Sequence[int], like: Callable[[int], TrainState]
    ) -> tuple[int, TrainState, list[DamagedCheckpoint]]:
        """The first of `steps` that is undamaged, its state, and the errors of those before it.

        Args:
          like: returns the argument `like` of `restore` for a step.

        Raises:
          UserError: if all are damaged, or the first undamaged one does not fit (as `restore`).
        """
        damaged: list[DamagedCheckpoint] = []
        for step in steps:
            try:
                return step, self.restore(step, like(step)), damaged
            except DamagedCheckpoint as error:
                damaged.append(error)
        if len(damaged) == 1:
            raise damaged[0]
        reasons = "; ".join(map(str, damaged))
        raise UserError(f"{self.directory} has no intact checkpoint: {reasons}")

    def set_aside(self, step: int) -> Path:
        """Moves a damaged checkpoint to `OUTPUT_DIR/damaged`: its step will be saved again."""
        place = self.directory.parent / "damaged"
        target = place / str(step)
        number = 1
        while target.exists():
            number += 1
            target = place / f"{step}_{number}"
        if jax.process_index() == 0:
            place.mkdir(exist_ok=True)
            os.replace(self.directory / str(step), target)
        any_process(False)  # waits until it is moved
        self._manager.reload()
        return target

    def saved_adaptation(self, step: int, sharding: NamedSharding) -> Any:
        """The shapes of the saved `adaptation`, to restore it without its algorithm.

        Raises:
          DamagedCheckpoint: if the checkpoint cannot be read.
        """

        def shape(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        with self._read(step):
            saved = self._manager.item_metadata(step).tree.get(_ON_DISK["adaptation"]) or ()
            return jax.tree.map(shape, saved)

    def forget_after(self, step: int) -> None:
        """Deletes later checkpoints, whose steps a resumed run saves again."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
          RunError: if the checkpoint cannot be written.
        """
        with self._reporting_failure():
            self._manager.wait_until_finished()
            self._writing = None

    def close(self) -> None:
        """Waits until everything is on disk, and releases the resources of orbax.

        Raises:
          RunError: if the checkpoint cannot be written.
        """
        if "_manager" in vars(self):
            self.wait()
            self._manager.close()


def _tree(state: TrainState) -> dict[str, Any]:
    """The fields of a state that hold arrays, by their names on disk."""
    return {
        _ON_DISK.get(name, name): value
        for name, value in state._asdict().items()
        if jax.tree.leaves(value)
    }


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    name = partial(jax.tree_util.keystr, simple=True, separator=".")
    return {name(path): tuple(leaf.shape) for path, leaf in leaves}


def _seal(about: dict[str, Any]) -> str:
    """A digest of the notes and of the digests of the arrays."""
    sealed = {name: value for name, value in about.items() if name != "seal"}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def _describe(tree: dict[str, Any]) -> dict[str, list]:
    """[shape, digest] of each array, by its name."""
    shapes, numbers = _shapes(tree), digests(tree).values()
    return {
        name: [list(shape), number]
        for (name, shape), number in zip(shapes.items(), numbers, strict=True)
    }


def _reason(error: BaseException) -> str:
    """The first line of an error, or of the innermost error that caused it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0]:.300}"


def step_to_resume(checkpoints: Checkpoints, resume: str, *, option: str = "resume") -> int | None:
    """The step that the value of `option` refers to; None if the run starts from the beginning.

    Args:
      resume: auto, never or a number. Only the option `resume` may be never.
      option: its name, for errors.

    Raises:
      UserError: if there is no such checkpoint, or if `resume` is never and there is a checkpoint.
    """
    steps = checkpoints.steps()
    if resume == "auto":
        return steps[-1] if steps else None
    if resume == "never" and option == "resume":
        if steps:
            raise UserError(
                f"resume is never, but {checkpoints.directory} holds checkpoints (steps {steps}); "
                "expected resume=auto, or another output_dir"
            )
        return None
    if not resume.isdecimal() or int(resume) not in steps:
        if not steps:
            raise UserError(
                f"{option} is {resume!r}, but {checkpoints.directory} has no checkpoints"
            )
        words = "auto, never or" if option == "resume" else "auto or"
        raise UserError(
            f"{option} is {resume!r}; expected {words} one of the steps {steps} that "
            f"{checkpoints.directory} holds"
        )
    return int(resume)
