"""One run of the experiment: train, measure, write down. Goes on where it was stopped."""

import time
from pathlib import Path

from iapo_jax.config import TrainConfig, load_config
from iapo_jax.metrics import read_jsonl
from iapo_jax.train import train
from sweep.measure import HERE, measured, splits_of, test_splits
from sweep.plan import GRID_SEED, Job, overrides
from sweep.records import START, Result, write

_CURVES = {
    "length": "completions/mean_length",
    "accuracy": "accuracy",
    "sampled_tokens": "sampled_tokens",
    "redundant": "iapo/redundant_tokens",
}


def execute(job: Job, work: Path, results: Path, *, shown: bool = False) -> Result:
    """Trains as the job says in `work`, measures, and writes the result."""
    started = time.time()
    place = work / job.setting / job.name
    own = overrides(job)
    config = load_config(
        TrainConfig,
        str(HERE / "testbed.yaml"),
        [*own, f"output_dir={place}", f"log.progress={str(shown).lower()}"],
    )
    train(config)
    rows = read_jsonl(place / "metrics.jsonl")
    told = measured(
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
        if all(row.get(key) is not None for row in rows)
    }
    result = Result(
        *job,
        config=" ".join(own),
        updates=len(rows),
        sampled_tokens=int(rows[-1]["sampled_tokens"]),
        seconds=round(time.time() - started, 1),
        curves=curves,
        **told,
    )
    write(results, result)
    return result


def measure_start(setting: str, work: Path, results: Path, *, shown: bool = False) -> Result:
    """The start model of a setting on every split."""
    splits = ["select", *test_splits(setting)]
    model = HERE / "models" / setting
    out = work / setting / START
    told = measured(START, model, setting, splits, out, shown=shown)
    result = Result(setting, START, 0, GRID_SEED, config="", **told)
    write(results, result)
    return result
