"""Checks of a config that need no model and no data."""

import dataclasses
import math
import os
import tempfile
from operator import attrgetter
from pathlib import Path

from iapo_jax.config.evaluate import EvaluateConfig
from iapo_jax.config.fields import check_range, leaves
from iapo_jax.config.loading import walk
from iapo_jax.config.sections import ModelSection, PromptSection
from iapo_jax.config.sft import SftConfig
from iapo_jax.config.train import TrainConfig
from iapo_jax.errors import UserError, check_unicode


def check_config(config: TrainConfig | SftConfig | EvaluateConfig, *, writes: bool = True) -> None:
    """Checks the range of every field, and that fields do not contradict each other.

    Args:
      writes: also check that output_dir can be written; this leaves no files behind.

    Raises:
      UserError: naming the first field that is wrong, its value, and what is expected.
    """
    check_ranges(config)
    _check_texts(config)
    _check_example(config.prompt)
    if isinstance(config, EvaluateConfig):
        _check_evaluation(config)
    else:
        _check_model(config.model)
        _check_warmup(config)
    if writes:
        _check_own_directory(config)
        check_writable(Path(config.output_dir), "output_dir")


def check_ranges(config: TrainConfig | SftConfig | EvaluateConfig) -> None:
    """Checks only the ranges of the fields (`fields.Range`); raises as `check_config` does."""
    for leaf in leaves(type(config)):
        problem = check_range(leaf, attrgetter(leaf.name)(config))
        if problem:
            raise UserError(problem)
    if isinstance(config, TrainConfig):
        for name, value in config.algorithm.options.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"algorithm.options.{name} is {value}; expected a finite number")


def _check_example(section: PromptSection) -> None:
    for part, other in (("question", "answer"), ("answer", "question")):
        text = getattr(section, f"example_{part}")
        if text and not getattr(section, f"example_{other}"):
            raise UserError(
                f"prompt.example_{part} is {text!r:.60} without prompt.example_{other}; expected "
                "both or neither"
            )


def _check_texts(config: TrainConfig | SftConfig | EvaluateConfig) -> None:
    """Checks that every string can be written to a file, and used as a file name."""
    for name, value in walk(dataclasses.asdict(config)):
        if isinstance(value, str):
            check_unicode(value, name)
            if "\0" in value:
                raise UserError(f"{name} is {value!r:.80}; expected UTF-8 text without '\\x00'")


def _check_model(section: ModelSection) -> None:
    if section.path and section.config:
        raise UserError(
            f"model.path is {section.path!r} and model.config is {section.config!r}; expected only "
            "one: the path of an existing model, or the config of a new one"
        )
    place = Path(section.path or ".").expanduser()
    local = section.config or (section.path and place.is_dir())
    if section.revision is not None and local:
        raise UserError(
            f"model.revision is {section.revision!r}, but "
            f"{'model.config' if section.config else 'model.path'} is local "
            f"({str(section.config or section.path)!r}); expected model.revision only with a hub "
            "name"
        )


def _check_evaluation(config: EvaluateConfig) -> None:
    for name in ("path", "config"):
        value = getattr(config.model, name)
        if value:
            raise UserError(
                f"model.{name} is {value!r}, but evaluate takes its models from `models` "
                f"(--model); expected model.{name} to be empty"
            )
    for budget in config.budgets:
        # A completion that was truncated might have become correct within a larger budget.
        if not 1 <= budget <= config.max_completion_length:
            raise UserError(
                f"budgets has {budget}; expected numbers of tokens from 1 to max_completion_length "
                f"({config.max_completion_length})"
            )


def _check_own_directory(config: TrainConfig | SftConfig | EvaluateConfig) -> None:
    """Refuses an output_dir that is the model to train, or, for an evaluation, any model or run."""
    out = Path(config.output_dir).expanduser().absolute()
    if isinstance(config, EvaluateConfig):
        for name, kind in (("config.json", "model"), ("config.yaml", "run")):
            if (out / name).is_file():
                raise UserError(
                    f"output_dir (--out) is {config.output_dir!r}, the directory of a {kind}; "
                    "expected another directory"
                )
    elif config.model.path:
        place = Path(config.model.path).expanduser().absolute()
        if place.is_dir() and place in (out, out / "hf"):
            raise UserError(
                f"model.path is {config.model.path!r}, where the run would write (output_dir is "
                f"{config.output_dir!r}); expected another output_dir"
            )


def _check_warmup(config: TrainConfig | SftConfig) -> None:
    warmup, updates, count = config.optimizer.warmup_steps, config.max_steps, "max_steps"
    if isinstance(config, TrainConfig):
        updates *= config.batch.mini_batches * config.batch.num_iterations
        if updates != config.max_steps:
            count += " times mini_batches times num_iterations"
    if updates and warmup >= updates:
        raise UserError(
            f"optimizer.warmup_steps is {warmup}, but the run has only {updates} optimizer updates "
            f"({count}), so the learning rate would never reach its peak; expected fewer than "
            f"{updates}"
        )


def check_writable(directory: Path, field: str) -> None:
    """Checks that `directory`, or its nearest existing parent, is a writable directory.

    Raises:
      UserError: if it is a file, or is not writable.
    """
    place = directory.absolute()
    while not os.path.exists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{field} is {str(directory)!r}, but {place} is not a directory")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{field} is {str(directory)!r}, but {place} is not writable")
    try:
        with tempfile.TemporaryFile(dir=place):  # for root, os.access ignores permissions
            pass
    except OSError as error:
        raise UserError(
            f"{field} is {str(directory)!r}, but {place} is not writable: {error}"
        ) from None
