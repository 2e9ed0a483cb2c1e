"""One run of the experiment: train, measure, write the result. It resumes where it stopped."""

import dataclasses
import itertools
import os
import time
from pathlib import Path

from iapo_jax.config.loading import load_config, load_run_config
from iapo_jax.config.train import TrainConfig
from iapo_jax.runtime.files import read_jsonl
from iapo_jax.train import train
from sweep.measure import measured
from sweep.plan import START, Job, overrides, splits_of
from sweep.problems import HERE
from sweep.queue import start_job
from sweep.records import Result, path_of, read, write

_CURVES = {
    "length": "completions/mean_length",
    "accuracy": "accuracy",
    "sampled_tokens": "sampled_tokens",
    "stop_bonus": "credit/stop_bonus",
    "rival_bonus": "credit/rival_bonus",
    "length_bonus_covariance": "credit/length_bonus_covariance",
}


def execute(job: Job, work: Path, results: Path, *, shown: bool = False) -> Result:
    """Trains the job in `work`, measures the model, and writes the result.

    A run directory with a different config, for example of an earlier grid, is moved aside.
    """
    started, before = time.time(), 0.0
    place = work / job.setting / job.name
    own = overrides(job)
    config = load_config(
        TrainConfig,
        str(HERE / "testbed.yaml"),
        [*own, f"output_dir={place}", f"log.progress={str(shown).lower()}"],
    )
    _set_aside_another(place, config)
    path = path_of(results, job)
    if path.is_file() and (earlier := read(path)).config == " ".join(own) and place.is_dir():
        before = earlier.seconds  # the run is measured again, on different problems
    train(config)
    rows = read_jsonl(place / "metrics.jsonl")
    fields = measured(
        job.method,
        place,
        job.setting,
        splits_of(job),
        place / "measured",
        shown=shown,
    )
    curves = {
        name: [round(row[key], 4) for row in rows]
        for name, key in _CURVES.items()
        if all(key in row for row in rows)
    }
    result = Result(
        *job,
        config=" ".join(own),
        updates=len(rows),
        sampled_tokens=int(rows[-1]["sampled_tokens"]),
        seconds=round(before + time.time() - started, 1),
        curves=curves,
        **fields,
    )
    write(results, result)
    return result


def measure_start(setting: str, work: Path, results: Path, *, shown: bool = False) -> Result:
    """Measures the initial model of a setting on every split."""
    job = start_job(setting)
    # Relative, so that no page shows a path of this machine.
    model = Path(os.path.relpath(HERE / "models" / setting))
    out = work / setting / START
    fields = measured(START, model, setting, splits_of(job), out, shown=shown)
    result = Result(*job, config="", **fields)
    write(results, result)
    return result


def _set_aside_another(place: Path, config: TrainConfig) -> None:
    """Renames a run directory with a different config, which `train` would resume."""
    path = place / "config.yaml"
    if not path.is_file():
        return
    there, here = (dataclasses.asdict(one) for one in (load_run_config(path), config))
    for one in (there, here):
        one |= {"log": None, "resume": None, "output_dir": None}
        if config.information.estimator == "auto":  # the run's config has the resolved one
            one["information"] |= {"estimator": None}
    if there != here:
        number = next(n for n in itertools.count(1) if not _aside(place, n).exists())
        place.rename(_aside(place, number))


def _aside(place: Path, number: int) -> Path:
    return place.with_name(f"{place.name}.before_{number}")
