"""What a config's values must be, checked before anything is opened."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iapo_jax.config import EvaluateConfig, SftConfig, TrainConfig
from iapo_jax.errors import UserError

_ZERO_OR_MORE = """
    max_steps save_steps mesh.process_id log.completion_steps log.save_total_limit
    data.max_rows eval.max_rows
    batch.micro_batch_size sampling.length_bucket sampling.top_k eval.top_k
    optimizer.warmup_steps optimizer.learning_rate optimizer.weight_decay optimizer.max_grad_norm
    algorithm.beta algorithm.epsilon algorithm.epsilon_high
    selection.problems selection.tolerance eval.inspect inspect samples_per_batch top_k
"""
_ONE_OR_MORE = """
    max_skipped mesh.num_processes mesh.heartbeat_timeout log.logging_steps
    data.max_prompt_length sampling.max_completion_length
    batch.prompts_per_step batch.num_generations batch.mini_batches batch.num_iterations
    batch.rows_per_step batch.max_length eval.num_samples eval.prompts_per_batch
    information.stride information.max_answer_length algorithm.max_rounds
    selection.num_samples selection.prompts_per_batch
    num_samples prompts_per_batch max_completion_length max_prompt_length
"""
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
]


def check_config(config: TrainConfig | SftConfig | EvaluateConfig) -> None:
    """Ranges of all numbers, and whether the run can write at all. Leaves nothing behind.

    Raises:
      UserError: naming the first field that is wrong, its value, and what is expected.
    """
    check_ranges(config)
    check_writable(Path(config.output_dir), "output_dir")


def check_ranges(config: TrainConfig | SftConfig | EvaluateConfig) -> None:
    """Ranges of all numbers, as `check_config`."""
    for names, expected, fits in RANGES:
        for name in names.split():
            value = _value(config, name)
            finite = not isinstance(value, float) or math.isfinite(value)
            if value is not None and not (finite and fits(value)):
                raise UserError(f"{name} is {value!r}; expected {expected}")
    if isinstance(config, TrainConfig):
        for name, value in config.algorithm.options.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"algorithm.options.{name} is {value}; expected a finite number")


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part, None)
    return config


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
