"""Kills a training run again and again, and compares the result with an undisturbed run.

    python tests/faults/torture.py                 # 50 kills
    python tests/faults/torture.py --kills 5 --seed 3 --out DIR
    python tests/faults/torture.py --pairs 10      # runs of two processes, one of which is struck

Each kill is a SIGKILL: at a random moment; when a checkpoint is half written; inside the optimizer
step; or inside the export. The run is started again by the same command until it ends by itself.
Then everything must be, bit for bit, as it is without kills: model, metrics, completions,
evaluations, selection. And after each kill the newest checkpoint must be whole.

Of two processes one is killed, or gets SIGTERM; both must end in bounded time, and the pair that is
started again must end like an undisturbed one.
"""

import argparse
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pairs
import victims

PLACES = ("anywhere", "checkpoint", "update", "export")


def kill_once(
    directory: Path, place: str, rng: random.Random, seconds: float, options: Sequence[str]
) -> bool:
    """Starts the run and kills it at such a place; False where it ended by itself before."""
    output, marks = directory / "run", directory / "marks"
    shutil.rmtree(marks, ignore_errors=True)
    marks.mkdir(parents=True)
    log = directory / "log.txt"
    number = rng.choice((2, 2, 3))
    process = victims.start(
        output, directory / "programs", *options, marks=marks, number=number, log=log
    )
    try:
        if place == "anywhere":
            delay = rng.uniform(0.0, seconds)
            until = time.monotonic() + delay
            alive = victims.wait_for(lambda: time.monotonic() > until, process)
        elif place == "checkpoint":
            alive = victims.wait_for(lambda: victims.writes_checkpoint(output), process)
            time.sleep(rng.uniform(0.0, 0.2))  # in the middle, in the renaming, in the deletions
        else:
            alive = victims.wait_for(lambda: (marks / place).exists(), process)
            if alive:
                time.sleep(rng.uniform(0.0, 0.05))
        alive = alive and process.poll() is None
        return alive
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def finish(directory: Path, options: Sequence[str]) -> float:
    """Runs to the end; seconds."""
    started = time.monotonic()
    log = directory / "log.txt"
    process = victims.start(directory / "run", directory / "programs", *options, log=log)
    if process.wait():
        raise RuntimeError(f"the run failed: see {log}")
    return time.monotonic() - started


def newest_is_whole(directory: Path) -> bool:
    """Whether the log tells of no damage: a kill must not leave any."""
    return "is damaged" not in (directory / "log.txt").read_text()


def torture(
    kills: int,
    seed: int,
    out: Path,
    *,
    places: Sequence[str] = PLACES,
    options: Sequence[str] = victims.WHOLE,
    say: Callable[[str], Any] = print,
) -> list[str]:
    """What differed, or was damaged; empty if nothing."""
    rng = random.Random(seed)
    calm = out / "calm"
    calm.mkdir(parents=True)
    seconds = finish(calm, options)
    expected = victims.result(calm / "run")
    say(f"one run takes {seconds:.0f} s")
    left, told, number = kills, [], 0
    while left:
        number += 1
        directory = out / f"trial_{number}"
        directory.mkdir()
        shutil.copytree(calm / "programs", directory / "programs")
        struck = []
        while left and len(struck) < 6:  # several on one run, so that it is resumed from anywhere
            place = places[(kills - left) % len(places)]
            if not kill_once(directory, place, rng, seconds, options):
                break  # it was through
            struck.append(place)
            left -= 1
        finish(directory, options)
        if not struck:
            seconds /= 2  # the machine has become faster: the run had already ended
        found = victims.differences(expected, victims.result(directory / "run"))
        if not newest_is_whole(directory):
            found.append("a checkpoint was damaged")
        say(
            f"{kills - left} of {kills} kills; run {number}: {', '.join(struck)}: "
            f"{'; '.join(found) or 'bit for bit the same'}"
        )
        told += [f"run {number}: {text}" for text in found]
        if not found:
            shutil.rmtree(directory)
    return told


def strike_pair(directory: Path, rng: random.Random, seconds: float) -> str:
    """Starts a pair and strikes one of the two; how they ended, or "" if they finished before."""
    log, arguments = directory / "log", pair_arguments(directory)
    pair = pairs.start_pair(arguments, log)
    victim, number = rng.randrange(2), rng.choice((signal.SIGKILL, signal.SIGTERM))
    until = time.monotonic() + rng.uniform(0.3, 1.0) * seconds
    victims.wait_for(lambda: time.monotonic() > until, pair[0])
    if pair[0].poll() is not None:
        pairs.ended(pair)
        return ""
    pair[victim].send_signal(number)
    struck = time.monotonic()
    codes = pairs.ended(pair, 6 * pairs.HEARTBEAT)
    took = time.monotonic() - struck
    return f"{number.name} to {victim}: exit codes {codes} after {took:.1f} s"


def pair_arguments(directory: Path) -> list[str]:
    """The command line of a run of two processes."""
    options = (*victims.WHOLE, "max_steps=12", "mesh.data=4", "selection.problems=0")
    return victims.arguments(directory / "run", directory / "programs", *options)


def torture_pairs(strikes: int, seed: int, out: Path, say: Callable[[str], Any]) -> list[str]:
    """What differed; empty if nothing."""
    rng, calm, told = random.Random(seed), out / "calm_pair", []
    calm.mkdir(parents=True)
    started = time.monotonic()
    if any(pairs.ended(pairs.start_pair(pair_arguments(calm), calm / "log"), 900)):
        raise RuntimeError(f"the run failed: see {calm}/log.0")
    seconds = time.monotonic() - started
    expected = victims.result(calm / "run")
    say(f"one run of two processes takes {seconds:.0f} s")
    for number in range(strikes):
        directory = out / f"pair_{number}"
        directory.mkdir()
        shutil.copytree(calm / "programs", directory / "programs")
        how = strike_pair(directory, rng, seconds) or "was through"
        codes = pairs.ended(pairs.start_pair(pair_arguments(directory), directory / "log"), 900)
        found = [f"exit codes {codes}"] if any(codes) else []
        found += victims.differences(expected, victims.result(directory / "run"))
        say(f"pair {number + 1} of {strikes}: {how}: {'; '.join(found) or 'bit for bit the same'}")
        told += [f"pair {number + 1}: {text}" for text in found]
    return told


def main() -> int:
    """The command line; 0 if nothing was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="kept afterwards; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = arguments.out or Path(folder)

        def say(text):
            return print(text, flush=True)

        if arguments.pairs:
            told = torture_pairs(arguments.pairs, arguments.seed, out, say)
        else:
            told = torture(arguments.kills, arguments.seed, out, say=say)
    print("\n".join(told) or "nothing was lost")
    return bool(told)


if __name__ == "__main__":
    raise SystemExit(main())
