"""Run and evaluation directories made by code, whose contents are known in closed form."""

import dataclasses
import json
import re

import numpy as np

from iapo_jax.config.loading import to_yaml
from iapo_jax.config.train import TrainConfig

METRICS = ("reward", "accuracy", "completions/mean_length", "entropy", "kl",
           "iapo/information_per_token")  # fmt: skip


def config(seed=0, method="iapo_priced", output_dir="runs/x", **sections):
    """A resolved config; `optimizer={"learning_rate": 1e-4}` changes fields of a section."""
    plain = TrainConfig(seed=seed, output_dir=str(output_dir))
    sections = {"algorithm": {}, "model": {}} | sections
    sections["algorithm"] = {"name": method} | sections["algorithm"]
    sections["model"] = {"path": "start/model"} | sections["model"]
    parts = {n: dataclasses.replace(getattr(plain, n), **fields) for n, fields in sections.items()}
    return dataclasses.replace(plain, **parts)


def metric(name, step, seed, rate=1.0):
    """What a run logs: a line over the steps, each seed 0.5 above the one before."""
    return METRICS.index(name) + rate * step + 0.5 * seed


def member(
    model="priced",
    *,
    dataset="arithmetic:test:first 4",
    correct=((True, False), (True, True), (False, False), (True, True)),
    length=((10, 30), (20, 20), (96, 96), (12, 8)),
    limit=96,
    seed=0,
    **changed,
):
    """A member's file: 4 problems of 2 samples; 5 of 8 are right in 36.5 tokens of 8 to 96."""
    count = len(correct)
    fields = dict(
        format=1,
        model=model,
        member=0,
        members=1,
        source=f"models/{model}",
        step=None,
        dataset=dataset,
        dataset_name=dataset.partition(":")[0],
        settings={"seed": seed, "temperature": 1.0, "max_completion_length": limit},
        fingerprint="",
        problems="",
        identity="0" * 64,
        rows=list(range(count)),
        prompts=[f"<user>{row}+{row}<assistant><think>" for row in range(count)],
        answers=[str(2 * row) for row in range(count)],
        correct=[list(row) for row in correct],
        length=[list(row) for row in length],
        finished=[[n < limit for n in row] for row in length],
        votes=[[0 if ok else -1 for ok in row] for row in correct],
        thinking_length=[[max(n - 5, 0) for n in row] for row in length],
        environment={},
    )
    return fields | changed


def drawn(share, mean, *, problems=60, samples=4, seed=0):
    """Verdicts and lengths of many problems, for `member`: about `share` right, `mean` tokens."""
    rng = np.random.default_rng(seed)
    length = np.clip(rng.normal(mean, mean / 4, (problems, samples)), 5, 96).astype(int)
    return {"correct": (rng.random((problems, samples)) < share).tolist(),
            "length": length.tolist()}  # fmt: skip


def inspection(prompt, told, *, after=0, answer="4", correct=True, text="w"):
    """One probed completion: token t carries told[t] nats; then `after` tokens that carry none."""
    told = [float(x) for x in told]
    u = [sum(told[t:]) for t in range(len(told) + 1)] + [0.0] * after
    count = len(told) + after
    return dict(
        prompt=prompt,
        completion=text * count,
        prompt_ids=[1, 2],
        completion_ids=list(range(count)),
        postfix_ids=[3],
        tokens=[f"{text}{t} " for t in range(count)],
        uncertainty=u,
        informativeness=told + [0.0] * after,
        entropy=[0.5] * count,
        log_prob=[-0.5] * count,
        thinking_length=len(told),
        estimator="answer_entropy",
        postfix="</think>",
        answer=answer,
        extracted=answer,
        correct=correct,
        finished=True,
    )


def completion(found, row, sample=0, **changed):
    """A line of completions.jsonl that fits a member's file."""
    fields = dict(
        row=row,
        sample=sample,
        prompt=found["prompts"][row],
        completion=f"{found['model']} says {row}",
        answer=found["answers"][row],
        extracted=found["answers"][row],
        correct=found["correct"][row][sample],
        length=found["length"][row][sample],
        thinking_length=found["thinking_length"][row][sample],
        finished=True,
    )
    return fields | changed


def write_lines(path, rows):
    """A JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_member(directory, found, *, inspections=None, completions=None, stem=None):
    """A member's file with what lies beside it."""
    stem = stem or f"{found['model']}.{found['dataset_name']}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{stem}.json").write_text(json.dumps(found))
    if inspections is not None:
        (directory / f"{stem}.inspections.json").write_text(json.dumps(inspections))
    if completions is not None:
        write_lines(directory / f"{stem}.completions.jsonl", completions)


def write_run(
    directory,
    *,
    seed=0,
    method="iapo_priced",
    steps=5,
    rate=1.0,
    without=(),
    before=None,
    after=None,
    inspections=(None, None),
    texts=True,
    **sections,
):
    """A run directory; before and after are members' files, or None."""
    directory.mkdir(parents=True)
    found = config(seed, method, directory, **sections)
    (directory / "config.yaml").write_text(to_yaml(found))
    names = [name for name in METRICS if name not in without]
    rows = [
        {"step": step, **{name: metric(name, step, seed, rate) for name in names}}
        for step in range(1, steps + 1)
    ]
    write_lines(directory / "metrics.jsonl", rows)
    for step in (1, steps) if texts else ():
        row = dict(row=step, prompt=f"problem {step}", completion=f"<b>step {step}</b>", answer="1")
        row |= dict(reward=1.0, correct=True, length=9, thinking_length=3)
        write_lines(directory / "completions" / f"step_{step}.jsonl", [row])
    for name, fields, seen in zip(("before", "after"), (before, after), inspections, strict=True):
        if fields is not None:
            write_member(directory / "eval", fields | {"model": name}, inspections=seen, stem=name)
    return directory


def write_evaluation(directory, members, *, summary=None, **beside):
    """An evaluation directory of members' files."""
    for found in members:
        number = f"-{found['member']}" if found["members"] > 1 else ""
        stem = f"{found['model']}{number}.{found['dataset_name']}"
        write_member(directory, found, stem=re.sub(r"[^\w.-]", "_", stem), **beside)
    if summary is not None:
        (directory / "summary.json").write_text(json.dumps({"format": 1, **summary}))
    return directory
