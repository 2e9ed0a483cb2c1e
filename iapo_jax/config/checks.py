"""What a config's values must be, checked before anything is opened."""

import dataclasses
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iapo_jax.config.loading import walk
from iapo_jax.config.schema import (
    EvaluateConfig,
    ModelSection,
    PromptSection,
    SftConfig,
    TrainConfig,
)
from iapo_jax.errors import UserError, check_unicode

_ZERO_OR_MORE = """
    max_steps max_sampled_tokens save_steps log.completion_steps log.save_total_limit
    mesh.process_id
    data.max_rows eval.max_rows
    batch.micro_batch_size sampling.length_bucket sampling.top_k eval.top_k
    optimizer.warmup_steps optimizer.learning_rate optimizer.weight_decay optimizer.max_grad_norm
    algorithm.beta algorithm.epsilon algorithm.epsilon_high
    selection.problems selection.tolerance eval.inspect inspect samples_per_batch top_k
"""


_ONE_OR_MORE = """
    max_skipped mesh.num_processes mesh.heartbeat_timeout mesh.join_timeout log.logging_steps
    data.max_prompt_length sampling.max_completion_length
    batch.prompts_per_step batch.num_generations batch.mini_batches batch.num_iterations
    batch.rows_per_step batch.max_length eval.num_samples eval.prompts_per_batch
    information.stride information.max_answer_length algorithm.max_rounds
    selection.num_samples selection.prompts_per_batch
    num_samples prompts_per_batch max_completion_length max_prompt_length
"""


_TOO_LARGE = 2**31  # counts and ids are int32 on the devices


# Names of fields, what is expected of them, and the test of it. Fields that the schema lacks, or
# that are null, pass. No number may be infinite or NaN.
RANGES: list[tuple[str, str, Callable[[Any], bool]]] = [
    (_ZERO_OR_MORE, "at least 0", lambda x: x >= 0),
    (_ONE_OR_MORE, "at least 1", lambda x: x >= 1),
    ("seed", "from 0 to 2147483647", lambda x: 0 <= x < 2**31),
    (
        "sampling.temperature eval.temperature temperature",
        "more than 0 (for greedy decoding use top_k=1)",
        lambda x: x > 0,
    ),
    ("sampling.top_p eval.top_p top_p", "more than 0 and at most 1", lambda x: 0 < x <= 1),
    ("optimizer.adam_beta1 optimizer.adam_beta2", "from 0 to below 1", lambda x: 0 <= x < 1),
    ("optimizer.adam_epsilon", "more than 0", lambda x: x > 0),
    ("information.redundant_below", "more than 0", lambda x: x > 0),
    ("output_dir", "a directory", bool),
    ("selection.criterion", "accuracy or ratio", lambda x: x in ("accuracy", "ratio")),
    ("eval.shared", "refuse or leave_out", lambda x: x in ("refuse", "leave_out")),
]


def check_config(config: TrainConfig | SftConfig | EvaluateConfig, *, writes: bool = True) -> None:
    """Ranges of all numbers, fields that contradict each other, and, if it `writes`, whether it
    can write to its output_dir. Leaves nothing behind.

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
    """Ranges of all numbers, as `check_config`."""
    for names, expected, fits in RANGES:
        for name in names.split():
            value = _value(config, name)
            finite = not isinstance(value, float) or math.isfinite(value)
            if value is not None and not (finite and fits(value)):
                raise UserError(f"{name} is {value!r}; expected {expected}")
            if isinstance(value, int) and value >= _TOO_LARGE:
                raise UserError(f"{name} is {value!r}; expected at most {_TOO_LARGE - 1}")
    if isinstance(config, TrainConfig):
        for name, value in config.algorithm.options.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"algorithm.options.{name} is {value}; expected a finite number")


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part, None)
    return config


def _check_example(section: PromptSection) -> None:
    for one, other in (("question", "answer"), ("answer", "question")):
        given = getattr(section, f"example_{one}")
        if given and not getattr(section, f"example_{other}"):
            raise UserError(
                f"prompt.example_{one} is {given!r:.60} without prompt.example_{other}; expected "
                "both, or none"
            )


def _check_texts(config: TrainConfig | SftConfig | EvaluateConfig) -> None:
    """Every text can be written to a file, and name one."""
    for name, value in walk(dataclasses.asdict(config)):
        if isinstance(value, str):
            check_unicode(value, name)
            if "\0" in value:
                raise UserError(f"{name} is {value!r:.80}; expected UTF-8 text without '\\x00'")


def _check_model(section: ModelSection) -> None:
    if section.path and section.config:
        raise UserError(
            f"model.path is {section.path!r} and model.config {section.config!r}: expected one of "
            "them, a model that is there or the architecture of a new one"
        )
    place = Path(section.path or ".").expanduser()
    local = section.config or (section.path and place.is_dir())
    if section.revision is not None and local:
        raise UserError(
            f"model.revision is {section.revision!r}, but "
            f"{'model.config' if section.config else 'model.path'} is local "
            f"({str(section.config or section.path)!r}); expected a revision of a hub name only"
        )


def _check_evaluation(config: EvaluateConfig) -> None:
    for name in ("path", "config"):
        value = getattr(config.model, name)
        if value:
            raise UserError(f"model.{name} is {value!r}; expected models in models (--model)")
    for budget in config.budgets:
        if not 1 <= budget <= config.max_completion_length:  # what was cut might have been right
            raise UserError(
                f"budgets has {budget}; expected numbers of tokens from 1 to max_completion_length "
                f"({config.max_completion_length})"
            )


def _check_own_directory(config: TrainConfig | SftConfig | EvaluateConfig) -> None:
    """Nothing is written over the model that is read, nor an evaluation among a run's files."""
    out = Path(config.output_dir).expanduser().absolute()
    if isinstance(config, EvaluateConfig):
        for name, kind in (("config.json", "model"), ("config.yaml", "run")):
            if (out / name).is_file():
                raise UserError(
                    f"output_dir (--out) is {config.output_dir!r}, the directory of a {kind}; "
                    "expected one of its own"
                )
    elif config.model.path:
        place = Path(config.model.path).expanduser().absolute()
        if place.is_dir() and place in (out, out / "hf"):
            raise UserError(
                f"model.path {config.model.path!r} is what the run writes to (output_dir is "
                f"{config.output_dir!r}); expected another output_dir"
            )


def _check_warmup(config: TrainConfig | SftConfig) -> None:
    warmup, updates, told = config.optimizer.warmup_steps, config.max_steps, "max_steps"
    if isinstance(config, TrainConfig):
        updates *= config.batch.mini_batches * config.batch.num_iterations
        told += " times mini_batches times num_iterations" * (updates != config.max_steps)
    if updates and warmup >= updates:
        raise UserError(
            f"optimizer.warmup_steps is {warmup}; expected less than the {updates} updates of the "
            f"run ({told}), or the learning rate never comes to its peak"
        )


def check_writable(directory: Path, field: str) -> None:
    """Whether `directory` can be made and written, by looking at what is there of it.

    Raises:
      UserError: if it, or what it would lie in, is a file, or is not writable.
    """
    place = directory.absolute()
    while not os.path.exists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{field} is {str(directory)!r}, but {place} is no directory")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{field} is {str(directory)!r}, but {place} is not writable")
    try:
        with tempfile.TemporaryFile(dir=place):  # what root is told by the attempt alone
            pass
    except OSError as error:
        raise UserError(
            f"{field} is {str(directory)!r}, but {place} is not writable: {error}"
        ) from None
