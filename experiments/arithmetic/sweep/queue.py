"""What is left to do, and who does it: workers claim jobs by locks that die with them."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from iapo_jax.errors import UserError
from iapo_jax.locks import held
from sweep.choose import choose
from sweep.plan import FINAL_SEEDS, GRID_SEED, SEEDS, Job, final_jobs, grid_jobs, methods_of
from sweep.records import START, path_of, read


def start_job(setting: str) -> Job:
    """The measurement of the start model."""
    return Job(setting, START, 0, GRID_SEED)


def total(settings: Sequence[str]) -> int:
    """How many jobs there are, whatever is chosen."""
    return sum(
        1 + sum(4 + FINAL_SEEDS.get(method, SEEDS) for method in methods_of(setting))
        for setting in settings
    )


def is_done(results: Path, job: Job) -> bool:
    """Whether its result is there."""
    return path_of(results, job).is_file()


def ready(settings: Sequence[str], results: Path) -> Iterator[Job]:
    """Jobs that can be done now and are not: a method's last runs wait for its grid."""
    for setting in settings:
        if not is_done(results, start_job(setting)):
            yield start_job(setting)
        grids = grid_jobs(setting)
        for method in methods_of(setting):
            jobs = [job for job in grids if job.method == method]
            missing = [job for job in jobs if not is_done(results, job)]
            yield from missing
            if not missing:
                found = choose([read(path_of(results, job)) for job in jobs])
                last = final_jobs(setting, method, found.choice)
                yield from (job for job in last if not is_done(results, job))


def done(settings: Sequence[str], results: Path) -> int:
    """How many jobs are done."""
    return sum(len(list((results / setting).glob("*.json"))) for setting in settings)


@contextlib.contextmanager
def claimed(settings: Sequence[str], results: Path, work: Path) -> Iterator[Job | None]:
    """The first job that nobody else is doing, held meanwhile; None if there is none."""
    for job in ready(settings, results):
        claim = work / job.setting / f"{job.name}.claim"
        claim.parent.mkdir(parents=True, exist_ok=True)
        try:
            hold = held(claim, instead="another worker")
            hold.__enter__()
        except UserError:
            continue
        try:
            if is_done(results, job):  # since it was listed
                continue
            yield job
            return
        finally:
            hold.__exit__(None, None, None)
    yield None
