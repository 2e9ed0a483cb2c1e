"""Run the experiment: every method in every setting, grid first, then fresh seeds.

    python experiments/arithmetic/run_sweep.py [SETTING ...] [--methods NAME ...] [--workers 2]

Run `make_testbed.py` first; it makes the problems and initial models. Each run writes
SETTING/NAME.json in `--results`, and a run with a result is not repeated, so the same command
resumes after an interruption (also within a run). By default `--results` is `results` in `--work`,
which starts with the results of the repository; with an empty directory, everything is run again.
Run directories go to `--work`. A run takes one to ten minutes on one CPU core. Start the command in
the project's root. The default is all settings except *large*, which needs a GPU. `pack_results.py`
puts the results into the repository's file, and `summarise_sweep.py` makes the tables.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sweep import archive, queue
from sweep.execute import execute, measure_start
from sweep.plan import DECIDES, START, methods_of
from sweep.problems import file_of
from sweep.records import read, write
from testbed.settings import SETTINGS, SMALL
from tqdm import tqdm

from iapo_jax.errors import UserError
from iapo_jax.runtime.interruption import Stopped, handling_signals, stop_requested

HERE = Path(__file__).resolve().parent
_WAIT = 5.0  # seconds between two checks of the results
_STOPPED, _AGAIN = 75, 76
_JOBS = 20  # per process: compiled programs stay mapped, and Linux allows 65,530 mappings

# The allocator keeps its memory, on large pages; otherwise each step returns pages to the system
# and faults them in again.
_MALLOC = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
}


def work_on(arguments: argparse.Namespace) -> int:
    """Runs jobs in this process, so that they share compiled programs.

    Returns 0 when no job is left, and `_AGAIN` after `_JOBS` of them.
    """
    settings, methods = arguments.settings, arguments.methods
    results, work = arguments.results, arguments.work
    begun = 0
    while begun < _JOBS:
        if stop_requested():
            raise Stopped("finished runs are kept; run the same command again to continue")
        with queue.claimed(settings, results, work, methods) as job:
            if job is not None:
                begun += 1
                print(f"begin {job.setting} {job.name}", flush=True)
                if job.method == START:
                    measure_start(job.setting, work, results)
                else:
                    execute(job, work, results)
                continue
        if not any(True for _ in queue.ready(settings, results, methods)):
            return 0
        time.sleep(_WAIT)  # other workers are running the jobs that the next ones depend on
    return _AGAIN


def begin_with_published(results: Path) -> None:
    """Creates the directory, if it does not exist, with the results of the repository."""
    if results.exists():
        return
    partial = results.with_name(results.name + ".partial")
    for row in archive.load(HERE / "results.parquet"):
        if not row.withdrawn:
            write(partial, row.result)
    partial.rename(results)


def check_made(arguments: argparse.Namespace) -> None:
    """Checks that the problems and the initial model of every setting with runs left exist.

    Raises:
      UserError: naming the command that makes them.
    """
    for name in arguments.settings:
        if any(True for _ in queue.ready([name], arguments.results, arguments.methods)):
            for path in (HERE / "models" / name / "model.safetensors", file_of(name, "train")):
                if not path.is_file():
                    raise UserError(
                        f"{path} is missing; make it with: python "
                        f"experiments/arithmetic/make_testbed.py {name}"
                    )


def _cpus() -> list[int]:
    """The CPUs of this process; all of them where the system does not report it (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _stay_on(cpus: Sequence[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


def _log_of(worker: int, arguments: argparse.Namespace) -> Path:
    return arguments.work / f"worker_{worker}.log"


def _start(worker: int, arguments: argparse.Namespace) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).resolve()), *arguments.settings]
    command += ["--work", str(arguments.work), "--results", str(arguments.results)]
    command += ["--methods", *arguments.methods]
    own = _cpus()[worker :: arguments.workers] or _cpus()
    with _log_of(worker, arguments).open("ab") as file:
        return subprocess.Popen(
            [*command, "--worker"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_MALLOC | os.environ,
            preexec_fn=lambda: _stay_on(own),
            start_new_session=True,  # Ctrl-C in the terminal reaches only the overseer
        )


def _summary(path: Path) -> str:
    one = read(path)
    split, found = next(reversed(one.outcomes.items()))
    name = START if one.method == START else one.job.name
    return (
        f"{one.setting} {name} ({split}): accuracy {found.correct.mean():.3f}, "
        f"{found.length.mean():.1f} tokens"
    )


def oversee(arguments: argparse.Namespace) -> int:
    """Starts the workers, shows progress, and passes signals on."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    known = {one for name in arguments.settings for one in _results(arguments.results, name)}
    begun = queue.done(arguments.settings, arguments.results, arguments.methods)
    total = queue.total(arguments.settings, arguments.methods)
    workers: list[subprocess.Popen] = []
    asked = False

    def stop(*_: object) -> None:
        nonlocal asked
        asked = True
        for worker in workers:
            worker.terminate()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        for place in range(arguments.workers):
            if not asked:
                workers.append(_start(place, arguments))
        with tqdm(total=total, initial=begun, unit="run") as bar:
            while True:
                codes = [worker.poll() for worker in workers]
                for place, code in enumerate(codes):
                    if code == _AGAIN and not asked:
                        workers[place], codes[place] = _start(place, arguments), None
                for name in arguments.settings:
                    for one in sorted(_results(arguments.results, name) - known):
                        known.add(one)
                        bar.write(_summary(one[0]))
                        bar.update()
                if None not in codes:
                    break
                if any(code not in (None, 0) for code in codes) and not asked:
                    stop()
                time.sleep(_WAIT)
    finally:  # even if the terminal is gone, no worker is left running
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
    if workers and all(code == 0 for code in codes):
        return 0
    stops = _STOPPED, _AGAIN, -signal.SIGTERM
    if asked and all(code in (0, *stops) for code in codes):
        print("stopped; run the same command again to continue")
        return _STOPPED
    for place, code in enumerate(codes):
        if code not in (0, *stops):
            log = _log_of(place, arguments)
            text = log.read_text(errors="replace").strip() if log.is_file() else ""
            last = text.rpartition("\n")[2]
            print(f"error: a worker failed; see {log}, which ends with: {last}", file=sys.stderr)
    return 1


def _results(directory: Path, setting: str) -> set[tuple[Path, int]]:
    """Files and when they were written, since a changed grid rewrites a file."""
    found = (directory / setting).glob("*.json")
    return {(path, path.stat().st_mtime_ns) for path in found}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=", ".join(SETTINGS))
    parser.add_argument("--methods", nargs="*", default=[], metavar="NAME", help="only these")
    parser.add_argument("--workers", type=int, default=len(_cpus()))
    parser.add_argument("--work", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--results", type=Path, metavar="DIR")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.settings) - set(SETTINGS))
    if unknown:
        parser.error(f"unknown setting {unknown[0]!r}; expected one of {', '.join(SETTINGS)}")
    if arguments.workers < 1:
        parser.error(f"--workers is {arguments.workers}; expected at least 1")
    arguments.settings = arguments.settings or list(SMALL)
    known = {name for setting in arguments.settings for name in methods_of(setting)}
    for name in set(arguments.methods) - known:
        parser.error(f"unknown method {name!r}; expected one of {', '.join(sorted(known))}")
    for name in arguments.methods:
        if DECIDES.get(name, name) not in arguments.methods:
            parser.error(
                f"--methods has {name}, which runs at the point chosen for {DECIDES[name]}; "
                f"expected {DECIDES[name]} as well"
            )
    if not Path("experiments/arithmetic/testbed.yaml").is_file():
        parser.error(f"{Path.cwd()} is not the project's root, where this command must run")
    for name in ("work", "results"):
        place = getattr(arguments, name)
        if place is not None and place.exists() and not place.is_dir():
            parser.error(f"--{name} is the file {place}; expected a directory")
    try:
        if arguments.results is None:
            arguments.results = arguments.work / "results"
            begin_with_published(arguments.results)
        if not arguments.worker:
            check_made(arguments)
            return oversee(arguments)
        with handling_signals():
            return work_on(arguments)
    except Stopped as error:
        print(error)
        return _STOPPED
    except UserError as error:
        print(f"error: {error}", file=None if arguments.worker else sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
