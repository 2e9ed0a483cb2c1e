"""A small training run as a process of its own, to be killed; and what it must leave behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import xla_flags

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--config", "experiments/quickstart.yaml", "max_steps=6", "save_steps=2"),
    *("batch.prompts_per_step=4", "batch.num_generations=2", "sampling.max_completion_length=24"),
    *("selection.problems=8", "selection.prompts_per_batch=8"),
    *("eval.max_rows=8", "eval.prompts_per_batch=4", "log.progress=false"),
]
# With information, which is what takes the time, and a price that remembers.
WHOLE = ["algorithm.adapt=price_for_length", "algorithm.options={target_length: 16}"]
# Without: a filter that remembers, and nothing that is probed.
QUICK = [
    *("algorithm.name=gfpo", "algorithm.adapt=keep_for_difficulty", "eval.inspect=0"),
    *("algorithm.options={start_questions: 8}", "sampling.max_completion_length=8"),
]
# Code added to a run, which reports where a signal shall strike. The first argument is a folder, in
# which a file with the name of the place appears when the run enters it. An update is reported at
# the call whose number is the second argument, because the first call loads its program.
_HOOKED = """
import sys, pathlib
import jax
from iapo_jax import train
from iapo_jax.pretrained import model_directory
from iapo_jax.training import step
told, number = pathlib.Path(sys.argv[1]), int(sys.argv[2])

def tell(module, name, mark, number):
    inner, calls = getattr(module, name), []
    def outer(*args, **keywords):
        calls.append(None)
        if len(calls) == number:
            (told / mark).touch()
        return jax.block_until_ready(inner(*args, **keywords))
    setattr(module, name, outer)

tell(step, "policy_update", "update", number)
tell(model_directory, "save_weights", "export", 1)
raise SystemExit(train.main(sys.argv[3:]))
"""


def environment() -> dict[str, str]:
    """One device, quick compilation."""
    return {**os.environ, "XLA_FLAGS": xla_flags.QUICK}


def arguments(output_dir: Path, programs: Path, *options: str) -> list[str]:
    """The command line of the run."""
    return [*SMALL, f"output_dir={output_dir}", f"log.compilation_cache={programs}", *options]


def start(
    output_dir: Path,
    programs: Path,
    *options: str,
    marks: Path | None = None,
    number: int = 1,
    log: Path,
):
    """Starts a run; with `marks`, files there tell where it is (update `number`, export)."""
    entry = ["-m", "iapo_jax.train"]
    if marks is not None:
        entry = ["-c", _HOOKED, str(marks), str(number)]
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, *entry, *arguments(output_dir, programs, *options)],
            cwd=ROOT,
            env=environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def wait_for(found, process: subprocess.Popen, seconds: float = 300.0) -> bool:
    """Waits until `found()` is true; False where the process ended before."""
    until = time.monotonic() + seconds
    while not found():
        if process.poll() is not None:
            return False
        if time.monotonic() > until:
            raise TimeoutError(f"nothing to be seen after {seconds} s")
        time.sleep(0.002)
    return True


def writes_checkpoint(output_dir: Path) -> bool:
    """Whether a checkpoint is half written."""
    return any((output_dir / "checkpoints").glob("*tmp*"))


def result(output_dir: Path) -> dict:
    """All of a finished run that must not depend on where it was interrupted."""
    rows = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    unsteady = ("time/", "perf/")
    kept = [
        {k: v for k, v in row.items() if not k.startswith(unsteady) and k != "compiles"}
        for row in rows
    ]

    def read(*names):
        return {
            str(path.relative_to(output_dir)): path.read_bytes()
            for name in names
            for path in sorted(output_dir.glob(name))
        }

    evaluations = {}
    for path in sorted((output_dir / "eval").glob("*.json")):
        told = json.loads(path.read_text())
        if isinstance(told, dict):
            for name in ("environment", "source", "command"):
                told.pop(name, None)
        evaluations[path.name] = told
    summary = evaluations.pop("summary.json")
    return {
        "metrics": kept,
        "model": read("hf/*"),
        "completions": read("completions/*", "eval/*.jsonl", "selection.jsonl"),
        "evaluations": evaluations,
        "summary": json.dumps(summary).replace(str(output_dir), ""),
        "checkpoints": sorted(p.name for p in (output_dir / "checkpoints").iterdir()),
    }


def differences(expected: dict, found: dict) -> list[str]:
    """The parts of two results that are not the same, for people."""
    told = []
    for part, value in expected.items():
        other = found[part]
        if value == other:
            continue
        if isinstance(value, dict):
            names = [n for n in value.keys() | other.keys() if value.get(n) != other.get(n)]
            told += [f"{part}: {name}" for name in sorted(names)]
        elif part == "metrics":
            steps = [row["step"] for row in value], [row["step"] for row in other]
            names = {k for a, b in zip(value, other, strict=False) for k in a if a[k] != b.get(k)}
            told.append(f"metrics: steps {steps}, fields {sorted(names)}")
        else:
            told.append(f"{part}: {value} expected, {other} found")
    return told
