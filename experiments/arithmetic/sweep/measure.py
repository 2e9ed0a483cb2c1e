"""Measures a trained model: accuracy, length, remaining tokens, where the information is."""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from testbed.categories import READ, categorize
from testbed.pieces import EXIT, Problem, split_tokens
from testbed.settings import SETTINGS, problems_by_question

from iapo_jax.config.evaluate import EvaluateConfig
from iapo_jax.config.sections import InformationSection
from iapo_jax.evaluate import evaluate
from iapo_jax.evaluation.completions_file import Completion, read_completions
from iapo_jax.evaluation.metrics import Outcomes
from iapo_jax.evaluation.records import Record, read_record
from iapo_jax.runtime.files import iterate_jsonl, read_json
from sweep.plan import GRID_SEED
from sweep.problems import digest_of, file_of

PROBLEMS = 512
SAMPLES = {"select": 4, "test": 4, "longer": 4}
INSPECTED = 96
"""The number of test problems whose first completion is probed."""
_END = EXIT.removesuffix("<answer>")


def evaluate_on(
    label: str, model: Path | str, setting: str, split: str, seed: int, out: Path, *, shown: bool
) -> tuple[Record, list[Completion], list[dict]]:
    """A model's record on a split of the setting, its completions, and its probed completions.

    Resumes an interrupted evaluation in `out`.
    """
    config = EvaluateConfig(
        models=[f"{label}={model}"],
        datasets=[f"{file_of(setting, split)}:first {PROBLEMS}"],
        output_dir=str(out),
        num_samples=SAMPLES[split],
        k=[1, SAMPLES[split]],
        budgets=[SETTINGS[setting].max_length],
        seed=seed,
        max_completion_length=SETTINGS[setting].max_length,
        max_prompt_length=SETTINGS[setting].max_prompt,
        prompts_per_batch=64,
        inspect=INSPECTED if split == "test" else 0,
        information=InformationSection(postfix=EXIT, estimator="answer_log_prob", reference="gold"),
        progress=shown,
    )
    evaluate(config)
    [texts] = out.glob(f"{label}.{split}*.completions.jsonl")
    stem = texts.name.removesuffix(".completions.jsonl")
    record = read_record(out / f"{stem}.json")
    probed = out / f"{stem}.inspections.json"
    inspections = read_json(probed, kind=list) if probed.is_file() else []
    return record, read_completions(texts), inspections


def reasoning(completion: str) -> str:
    """The text before the end of thinking."""
    return completion.partition(_END)[0]


def count_categories(
    problems: dict[str, Problem], completions: Iterable[Completion]
) -> dict[str, float]:
    """The mean number of tokens of each category in a correct completion.

    Args:
      problems: by question.
    """
    total: Counter[str] = Counter()
    correct = 0
    for one in completions:
        if one.correct:
            correct += 1
            problem = problems[question_of(one.prompt)]
            total.update(categorize(problem, split_tokens(reasoning(one.completion))))
    return {name: total[name] / max(correct, 1) for name in READ}


def question_of(prompt: str) -> str:
    """The question in a rendered prompt."""
    return prompt.removeprefix("<user>").partition("<assistant>")[0]


def where_information_sits(
    problems: dict[str, Problem], inspections: Sequence[dict], bins: int = 10
) -> dict[str, Any]:
    """Nats by category and by position, over the correct completions among those probed.

    Returns `nats` and `tokens` of each category (means over completions), and `profile`: nats in
    each tenth of the thinking tokens (means over completions with at least `bins` of them).
    """
    inspections = [one for one in inspections if one["correct"]]
    nats: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    profiles = []
    for one in inspections:
        size, informativeness = one["thinking_length"], one["informativeness"]
        problem = problems[question_of(one["prompt"])]
        names = categorize(problem, one["tokens"][:size])
        for name, value in zip(names, informativeness, strict=False):
            nats[name] += value
            tokens[name] += 1
        if size >= bins:
            parts = np.array_split(np.asarray(informativeness[:size]), bins)
            profiles.append([float(part.sum()) for part in parts])
    count = max(len(inspections), 1)
    return {
        "completions": len(inspections),
        "nats": {name: nats[name] / count for name in READ},
        "tokens": {name: tokens[name] / count for name in READ},
        "profile": np.mean(profiles, 0).tolist() if profiles else [],
    }


def folder_of(out: Path, setting: str, split: str) -> Path:
    """The directory of the evaluation on a split's current problems."""
    return out / f"{split}-{digest_of(setting, split)}"


@functools.cache
def _problems(setting: str, split: str) -> dict[str, Problem]:
    """The problems of a split, drawn once in a process."""
    questions = [row["question"] for _, row in iterate_jsonl(file_of(setting, split))]
    return problems_by_question(SETTINGS[setting], split, questions)


def measured(
    label: str,
    model: Path | str,
    setting: str,
    splits: Sequence[str],
    out: Path,
    *,
    seed: int = GRID_SEED,
    shown: bool = False,
) -> dict[str, Any]:
    """The measured fields of a `records.Result`; categories are those of the last split."""
    outcomes: dict[str, Outcomes] = {}
    fields: dict[str, Any] = {}
    for split in splits:
        problems = _problems(setting, split)
        place = folder_of(out, setting, split)
        record, completions, inspections = evaluate_on(
            label, model, setting, split, seed, place, shown=shown
        )
        outcomes[split] = record.outcomes()
        fields["categories"] = count_categories(problems, completions)
        if inspections:
            fields["information"] = where_information_sits(problems, inspections)
    digests = {split: digest_of(setting, split) for split in splits}
    return fields | {"outcomes": outcomes, "problems": digests}
