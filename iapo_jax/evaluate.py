"""Accuracy and length on held-out problems, with 95% intervals by a bootstrap over problems."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iapo_jax import data, pretrained
from iapo_jax.config import TrainConfig
from iapo_jax.data import Problems
from iapo_jax.errors import UserError
from iapo_jax.metrics import is_writer, progress_bar
from iapo_jax.rollouts import Sampler, check_answers, draw_rollout, make_sampler, real_tokens
from iapo_jax.run import Run
from iapo_jax.sharding import batch_devices, from_first
from iapo_jax.types import Params

_EVAL_STEP = 2**31 - 1  # of the random keys: no training step draws from them
_RESAMPLES = 2000


class EvalResult(NamedTuple):
    """Every completion of an evaluation; arrays [problems, samples]."""

    correct: np.ndarray  # bool
    length: np.ndarray  # int32, tokens with the stop token
    finished: np.ndarray  # bool; False where the length limit cut the completion


class Estimate(NamedTuple):
    """A figure and its 95% interval."""

    value: float
    low: float
    high: float


def evaluate(
    sampler: Sampler,
    params: Params,
    problems: Problems,
    *,
    prompts_per_batch: int,
    seed: int,
    advance: Callable[[int], Any] = lambda n: None,
) -> EvalResult:
    """Samples every problem; what one gets depends on (seed, its row), not on the batch."""
    rows = np.arange(len(problems.tokens))
    parts = []
    for start in range(0, len(rows), prompts_per_batch):
        indices = rows[start : start + prompts_per_batch]
        count = len(indices)
        # The last batch is filled up, so that every batch has the shape that was compiled.
        indices = np.resize(indices, prompts_per_batch)
        rollout = draw_rollout(sampler, params, problems, indices, seed, _EVAL_STEP)
        opened = sampler.run.pretrained
        texts = pretrained.decode_completions(
            opened.tokenizer, real_tokens(rollout), opened.stop_ids
        )
        repeated = np.repeat(indices, rollout.length.shape[1])
        correct = check_answers(problems, repeated, texts).reshape(rollout.length.shape)
        parts.append((correct[:count], rollout.length[:count], rollout.finished[:count]))
        advance(count)
    return EvalResult(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _figures(correct: np.ndarray, length: np.ndarray) -> dict[str, np.ndarray]:
    # ratio: accuracy per 100 tokens; Pass@1 / Length@1 of arXiv:2602.19049, times 100
    return {"accuracy": correct, "length": length, "ratio": 100 * correct / length}


def summarise(before: EvalResult, after: EvalResult | None = None) -> dict[str, Estimate]:
    """accuracy, length (tokens) and ratio (accuracy per 100 tokens) of one result, or their
    differences after - before on the same problems.

    Intervals are percentiles over resamples of the problems; samples of a problem stay together.
    """
    results = [before] if after is None else [before, after]
    count = len(before.correct)
    draws = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))
    means = [(r.correct.mean(1), r.length.mean(1)) for r in results]
    point = [_figures(c.mean(), n.mean()) for c, n in means]
    spread = [_figures(c[draws].mean(1), n[draws].mean(1)) for c, n in means]
    estimates = {}
    for name in point[0]:
        value, samples = point[-1][name], spread[-1][name]
        if after is not None:
            value, samples = value - point[0][name], samples - spread[0][name]
        low, high = np.percentile(samples, [2.5, 97.5])
        estimates[name] = Estimate(float(value), float(low), float(high))
    return estimates


def table(before: EvalResult, after: EvalResult) -> str:
    """The before-and-after table as text, with the paired difference."""
    columns = [summarise(before), summarise(after), summarise(before, after)]
    labels = {
        "accuracy": ("accuracy", "{:.3f}"),
        "length": ("mean length (tokens)", "{:.1f}"),
        "ratio": ("accuracy per 100 tokens", "{:.2f}"),
    }
    lines = [f"{'':<24} {'before':<24} {'after':<24} {'difference':<24}"]
    for name, (label, form) in labels.items():
        cells = []
        for index, column in enumerate(columns):
            one = form.replace(":", ":+") if index == 2 else form
            value, low, high = (one.format(x) for x in column[name])
            cells.append(f"{f'{value} [{low}, {high}]':<24}")
        lines.append(f"{label:<24} {' '.join(cells)}")
    cut = [f"{100 * (1 - result.finished.mean()):.1f}%" for result in (before, after)]
    lines.append(f"{'cut at the limit':<24} {cut[0]:<24} {cut[1]:<24}")
    count = before.correct.shape
    lines.append(f"{count[0]} held-out problems, {count[1]} sample(s) each; [95% intervals]")
    return "\n".join(line.rstrip() for line in lines)


class HeldOut:
    """The held-out problems of `config.EvalSection`, sampled before and after a run.

    Raises:
      UserError: if they cannot be read, or share a prompt with the training data.
    """

    def __init__(self, config: TrainConfig, run: Run, training_texts: Iterable[str]):
        self.config, self.run, self.problems = config, run, None
        section = config.eval
        if not section.dataset:
            return
        devices = batch_devices(run.mesh)
        if section.prompts_per_batch < 1 or section.prompts_per_batch % devices:
            raise UserError(
                f"eval.prompts_per_batch is {section.prompts_per_batch}; expected a multiple of "
                f"the {devices} devices that share a batch"
            )
        rows = data.parse_rows(data.load_rows(section, "eval.dataset"), section.dataset)
        self.problems = data.make_problems(
            rows, run.pretrained.tokenizer, config.prompt, config.data.max_prompt_length
        )
        shared = set(self.problems.texts) & set(training_texts)
        if shared:
            raise UserError(
                f"eval.dataset {section.dataset!r} shares {len(shared)} prompts with the training "
                "data; expected held-out problems"
            )
        self.sampler = make_sampler(
            run,
            self.problems,
            num_generations=section.num_samples,
            max_length=config.sampling.max_completion_length,
            sampling=section,
        )

    def before(self, params: Params, *, resumed: bool) -> EvalResult | None:
        """The start model's result; a resumed run takes the one that it wrote down.

        That is only done if it was made from the same problems in the same way.
        """
        if self.problems is None:
            return None
        known = read_result(self._path("before"), self._identity()) if resumed else None
        # Process 0 has the file; all of them sample, or none does.
        if from_first(np.int32(known is not None)):
            return known
        return self._sample(params, "before")

    def after(self, params: Params) -> EvalResult:
        """The trained model's result."""
        return self._sample(params, "after")

    def compare(self, before: EvalResult, after: EvalResult) -> str:
        """Writes eval/summary.json and returns the table."""
        parts = {
            "before": summarise(before),
            "after": summarise(after),
            "difference": summarise(before, after),
        }
        named = {key: {k: v._asdict() for k, v in part.items()} for key, part in parts.items()}
        text = json.dumps(named, indent=2) + "\n"
        self._path("summary").write_text(text, encoding="utf-8")
        return table(before, after)

    def _path(self, name: str) -> Path:
        return self.run.output_dir / "eval" / f"{name}.json"

    def _identity(self) -> str:
        """A digest of all that an evaluation depends on besides the parameters."""
        sampled = self.config.sampling.max_completion_length, self.config.seed
        section = dataclasses.astuple(self.config.eval)
        parts = (self.problems.texts, self.problems.answers, section, sampled)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _sample(self, params: Params, name: str) -> EvalResult:
        shown = self.config.log.progress
        with progress_bar(0, len(self.problems.tokens), unit="problem", shown=shown) as bar:
            bar.set_description(f"evaluating {name}")
            result = evaluate(
                self.sampler,
                params,
                self.problems,
                prompts_per_batch=self.config.eval.prompts_per_batch,
                seed=self.config.seed,
                advance=bar.update,
            )
        if is_writer():
            write_result(self._path(name), result, self._identity())
        return result


def write_result(path: Path, result: EvalResult, identity: str) -> None:
    """Every completion's verdict and length as JSON, with what they were made from."""
    path.parent.mkdir(exist_ok=True)
    values = {name: np.asarray(value).tolist() for name, value in result._asdict().items()}
    path.write_text(json.dumps({"identity": identity, **values}) + "\n", encoding="utf-8")


def read_result(path: Path, identity: str) -> EvalResult | None:
    """The inverse of `write_result`; None if nothing of this identity was written."""
    if not path.is_file():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.pop("identity", None) != identity:
        return None
    return EvalResult(**{name: np.asarray(value) for name, value in values.items()})
