"""Which jobs are left; workers claim jobs with locks that are released when a process ends."""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from iapo_jax.errors import UserError
from iapo_jax.runtime.locks import file_lock
from sweep.choose import TOLERANCE, choose
from sweep.plan import (
    CONFIRMED,
    CONFIRMING,
    DECIDES,
    FINAL_SEEDS,
    GRID_SEED,
    SEEDS,
    START,
    TOLERANCES,
    Job,
    confirming_jobs,
    final_jobs,
    grid_jobs,
    methods_of,
)
from sweep.store import find, is_written


def start_job(setting: str) -> Job:
    """The measurement of the initial model."""
    return Job(setting, START, 0, GRID_SEED)


def total(settings: Sequence[str], methods: Collection[str] = ()) -> int:
    """The number of jobs, whatever is chosen; only of `methods`, if any are given."""
    grids = sum(
        1 + sum(job.method in _methods(setting, methods) for job in grid_jobs(setting))
        for setting in settings
    )
    return grids + sum(
        FINAL_SEEDS.get(method, SEEDS) + len(CONFIRMING) * (method in CONFIRMED.get(setting, ()))
        for setting in settings
        for method in _methods(setting, methods)
    )


def chosen(setting: str, method: str, results: Path) -> int | None:
    """The index of the grid point at which a method runs again; None while it is unknown.

    A control uses the grid of the method that it controls.
    """
    decides = DECIDES.get(method, method)
    jobs = [job for job in grid_jobs(setting) if job.method == decides]
    if not all(is_written(results, job) for job in jobs):
        return None
    found = [find(results, job) for job in jobs]
    return choose(found, TOLERANCES.get(method, TOLERANCE)).choice


def ready(settings: Sequence[str], results: Path, methods: Collection[str] = ()) -> Iterator[Job]:
    """Jobs that can run now: final runs wait for the grid that decides."""
    for setting in settings:
        known = _known(setting, results, methods)
        yield from (job for job in known if not is_written(results, job))


def done(settings: Sequence[str], results: Path, methods: Collection[str] = ()) -> int:
    """The number of finished jobs of the plan; results of an earlier grid do not count."""
    known = [job for setting in settings for job in _known(setting, results, methods)]
    return sum(is_written(results, job) for job in known)


def _methods(setting: str, methods: Collection[str]) -> list[str]:
    return [name for name in methods_of(setting) if not methods or name in methods]


def _known(setting: str, results: Path, methods: Collection[str]) -> Iterator[Job]:
    """The jobs of a setting; final runs only where their choice is known."""
    yield start_job(setting)
    grids = grid_jobs(setting)
    for method in _methods(setting, methods):
        yield from (job for job in grids if job.method == method)
        choice = chosen(setting, method, results)
        if choice is not None:
            yield from final_jobs(setting, method, choice)
            yield from confirming_jobs(setting, method, choice)


@contextlib.contextmanager
def claimed(
    settings: Sequence[str], results: Path, work: Path, methods: Collection[str] = ()
) -> Iterator[Job | None]:
    """The first job that no other worker is running, locked meanwhile; None if there is none."""
    for job in ready(settings, results, methods):
        claim = work / job.setting / f"{job.name}.claim"
        claim.parent.mkdir(parents=True, exist_ok=True)
        try:
            hold = file_lock(claim, instead="another worker")
            locked = hold.__enter__()
        except UserError:
            continue
        if not locked:
            raise UserError(
                f"{claim.parent} is on a file system without locks, so two workers might run "
                "the same job; expected --work on a file system with locks"
            )
        try:
            if is_written(results, job):  # by another worker, since it was listed
                continue
            yield job
            return
        finally:
            hold.__exit__(None, None, None)
    yield None
