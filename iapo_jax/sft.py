"""Supervised fine-tuning: `python -m iapo_jax.sft --config FILE [key=value ...]`.

Rows have `prompt` or `question`, and `completion`: a text, or a list of [text, weight] pieces, of
which each is tokenized by itself and its tokens enter the loss with that weight.

    loss = - sum_t w_t log p(o_t | q, o_<t) / sum_t w_t
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from iapo_jax.config.checks import check_config
from iapo_jax.config.sft import SftConfig
from iapo_jax.data import loading, problems
from iapo_jax.data import prompts as chat_prompts
from iapo_jax.data.cleaning import name_rows
from iapo_jax.data.order import batch_order
from iapo_jax.data.questions import question_text
from iapo_jax.errors import UserError, check_unicode
from iapo_jax.model.scoring import score_completions
from iapo_jax.pretrained.control_tokens import hide
from iapo_jax.pretrained.directory import check_replaceable
from iapo_jax.pretrained.loaded import (
    LoadedModel,
    abstract_params,
    initial_params,
    prepare_model,
    start_mesh,
)
from iapo_jax.pretrained.tokenization import encode
from iapo_jax.runtime.cli import run_cli
from iapo_jax.runtime.console import compiles, progress_bar, report_memory, say
from iapo_jax.runtime.processes import exit_with
from iapo_jax.sharding import batch_devices, by_prompt, fetch, put
from iapo_jax.training import optimizer as update
from iapo_jax.training.optimizer import TrainState
from iapo_jax.training.progress import Progress
from iapo_jax.training.run_directory import (
    export_final,
    prepare_directory,
    resume_state,
    run_directory,
)
from iapo_jax.training.run_writer import RunWriter
from iapo_jax.types import Array, Mean, Params, Prompts


class SftBatch(NamedTuple):
    """Rows of one update."""

    prompts: Prompts
    tokens: Array  # [P, 1, T] int32
    weight: Array  # [P, 1, T] float32 >= 0; 0 on padding


def read_pieces(completion: Any, where: str) -> list[tuple[str, float]]:
    """The weighted pieces of a row's completion.

    Raises:
      UserError: naming the row, if a piece is no [text, weight] pair, or there is no text.
    """
    pieces = [[completion, 1.0]] if isinstance(completion, str) else completion
    for piece in pieces if isinstance(pieces, list) else [pieces]:
        if not (isinstance(piece, list | tuple) and len(piece) == 2 and isinstance(piece[0], str)):
            raise UserError(
                f"{where}: `completion` is a text or a list of [text, weight], found {piece!r:.60}"
            )
        check_unicode(piece[0], f"{where}: `completion`")
        weight = piece[1]
        if not (isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0):
            raise UserError(
                f"{where}: `completion` is a text or a list of [text, weight] with finite weights "
                f"of at least 0, found the weight {weight!r:.60}"
            )
    if not any(text.strip() for text, _ in pieces):
        raise UserError(f"{where}: `completion` is empty: {completion!r:.60}; expected a text")
    return [(text, float(weight)) for text, weight in pieces]


def encode_completion(
    tokenizer: Any, completion: str | list, where: str
) -> tuple[list[int], list[float]]:
    """Token ids and weights of a row's completion, with the end-of-sequence token after it."""
    ids, weights = [], []
    for text, weight in read_pieces(completion, where):
        part = encode(tokenizer, text)
        ids += part
        weights += [weight] * len(part)
    return [*ids, tokenizer.eos_token_id], [*weights, 1.0]


class _Rows:
    """Encodes rows when a step asks for them; what could be wrong with one is found at the start.

    Raises:
      UserError: naming the first row that is wrong; if no row fits into the limits.
    """

    def __init__(self, config: SftConfig, tokenizer: Any):
        self.config, self.tokenizer = config, tokenizer
        self.rows = loading.load_rows(config.data)
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no eos_token, which ends every completion; set one")
        questions = [self._read(index) for index in range(len(self.rows))]
        self.notes = self._repeats(questions)
        self.limits = config.data.max_prompt_length, config.batch.max_length
        self._too_long: set[int] = set()
        lengths = []
        for index in range(len(self.rows)):  # until one fits
            prompt, ids, _ = self._tokens(index)
            lengths.append((len(prompt), len(ids)))
            if self._fits(prompt, ids):
                break
        else:
            shortest = tuple(map(min, zip(*lengths, strict=True)))
            raise UserError(
                f"{config.data.dataset}: none of {len(lengths)} rows fits into "
                f"data.max_prompt_length ({self.limits[0]}) and batch.max_length "
                f"({self.limits[1]}); the shortest prompt has {shortest[0]} tokens, the shortest "
                f"completion {shortest[1]}"
            )
        for index, question in enumerate(questions):
            # What a template, or the vocabulary, may refuse in one row and not in another.
            if not isinstance(question, str) or hide(tokenizer, question) != question:
                self._tokens(index)
        self.order = batch_order(len(self.rows), config.batch.rows_per_step, config.seed)
        if config.data.strict:
            for index in range(len(self.rows)):
                self._encode(index)
            if self._too_long:
                raise UserError(f"{self.told_left_out()}; expected none (strict)")

    @property
    def left_out(self) -> int:
        """Rows that were too long, of those that a step asked for."""
        return len(self._too_long)

    def told_left_out(self) -> str:
        """Which these are."""
        rows = name_rows([index + 1 for index in sorted(self._too_long)])
        return (
            f"{self.config.data.dataset}, {rows}: more tokens than data.max_prompt_length "
            f"({self.limits[0]}) or batch.max_length ({self.limits[1]})"
        )

    def _repeats(self, questions: list[str | list[dict]]) -> list[str]:
        """A sentence about rows that are there twice; one question may have many completions."""
        first: dict[tuple[str, str], int] = {}
        again = []
        for number, (question, row) in enumerate(zip(questions, self.rows, strict=True), 1):
            key = question_text(question), json.dumps(row["completion"])
            if first.setdefault(key, number) != number:
                again.append((first[key], number))
        if not again:
            return []
        told = (
            f"{self.config.data.dataset}: {len(again):,} of {len(self.rows):,} rows are there "
            f"before with the same question and completion, as {name_rows(again[0])}"
        )
        if self.config.data.strict:
            raise UserError(f"{told}; expected each row once (strict)")
        return [told]

    def batch(self, step: int) -> SftBatch:
        """The rows of a step; those that are too long stay as empty rows of weight 0."""
        prompts, tokens, weights = zip(*map(self._encode, self.order(step)), strict=True)
        longest = max(map(len, tokens))
        size = problems.bucket(longest, 32, self.config.batch.max_length)
        width = problems.bucket(max(map(len, prompts)), 32, self.config.data.max_prompt_length)
        padded = Prompts(*problems.pad_rows(prompts, width))
        weight = np.zeros((len(tokens), size), np.float32)
        for index, row in enumerate(weights):
            weight[index, : len(row)] = row
        return SftBatch(padded, problems.pad_rows(tokens, size)[0][:, None], weight[:, None])

    def _where(self, index: int) -> str:
        return f"{self.config.data.dataset}, row {index + 1}"

    def _read(self, index: int) -> str | list[dict]:
        """The question of a row whose fields are right."""
        row, where = self.rows[index], self._where(index)
        if row.get("prompt", row.get("question")) is None or "completion" not in row:
            raise UserError(
                f"{where}: expected `prompt` or `question`, and `completion`, "
                f"found {', '.join(row)}"
            )
        read_pieces(row["completion"], where)
        return chat_prompts.read_question(row, where)

    def _tokens(self, index: int) -> tuple[list[int], list[int], list[float]]:
        where, completion = self._where(index), self.rows[index]["completion"]
        prompt = chat_prompts.encode_prompt(
            self.tokenizer, self._read(index), self.config.prompt, f"{where}: the question"
        )
        ids, weights = encode_completion(self.tokenizer, completion, where)
        return prompt.ids, ids, weights

    def _fits(self, prompt: list[int], ids: list[int]) -> bool:
        return len(prompt) <= self.limits[0] and len(ids) <= self.limits[1]

    def _encode(self, index: int) -> tuple[list[int], list[int], list[float]]:
        prompt, ids, weights = self._tokens(index)
        if not self._fits(prompt, ids):
            self._too_long.add(index)
            return [0], [0], [0.0]
        return prompt, ids, weights


@partial(jax.jit, static_argnames=("mesh", "model", "optimizer", "micro"), donate_argnames="state")
def sft_step(
    state: TrainState, batch: SftBatch, *, mesh: Mesh, model: Any, optimizer: Any, micro: int
) -> tuple[TrainState, dict[str, Array]]:
    """One update on a batch, in `micro` micro-batches."""
    weights = batch.weight.sum()
    total = jnp.where(weights > 0, weights, 1.0)

    def loss(params: Params, part: SftBatch) -> tuple[Array, dict[str, Mean]]:
        scores = score_completions(model, params, part.prompts, part.tokens, 1.0)
        weight = part.weight
        metrics = {"entropy": Mean((scores.entropy * weight).sum(), weight.sum())}
        return -(scores.log_prob * weight).sum() / total, metrics

    gradient, value, metrics = update.accumulate_gradients(loss, state.params, batch, micro)
    state, told = update.apply_gradient(mesh, optimizer, state, gradient, value)
    metrics = {name: mean.value() for name, mean in metrics.items()}
    return state, told | metrics | {"num_tokens": total}


def _check(config: SftConfig, loaded: LoadedModel) -> int:
    """The number of micro-batches of a step."""
    rows = config.batch.rows_per_step
    micro = config.batch.micro_batch_size or rows
    devices = batch_devices(loaded.mesh)
    if not config.batch.micro_batch_size and rows % devices:
        raise UserError(
            f"batch.rows_per_step is {rows}; expected a multiple of the {devices} devices that "
            "share a batch"
        )
    if rows % micro or micro % devices:
        raise UserError(
            f"batch.micro_batch_size is {micro}; it must divide rows_per_step ({rows}) and be a "
            f"multiple of the {devices} devices that share a batch"
        )
    return rows // micro


def train_sft(
    config: SftConfig, dry_run: bool = False, topology: str | None = None
) -> TrainState | None:
    """Fine-tunes, saves checkpoints, and exports the model to `OUTPUT_DIR/hf`.

    With `dry_run` everything is checked and compiled, from shapes alone, and the memory is said;
    with a `topology`, such as v5e:2x4, for TPU chips that are not here (needs libtpu).
    """
    check_config(config)
    check_replaceable(Path(config.output_dir) / "hf")
    mesh = start_mesh(
        config.mesh, compilation_cache=config.log.compilation_cache, topology=topology
    )
    loaded = prepare_model(config.model, mesh)
    micro = _check(config, loaded)
    rows = _Rows(config, loaded.pretrained.tokenizer)
    for note in rows.notes:
        say(note)
    optimizer = update.make_optimizer(config.optimizer, config.max_steps)
    schedule = update.make_schedule(config.optimizer, config.max_steps)
    fixed = dict(mesh=loaded.mesh, model=loaded.model, optimizer=optimizer, micro=micro)
    if dry_run or topology is not None:
        state = update.abstract_state(loaded.mesh, optimizer, abstract_params(loaded))
        batch = put(rows.batch(0), by_prompt(loaded.mesh))
        report_memory({"update": sft_step.lower(state, batch, **fixed)})
        return None
    with run_directory(config) as checkpoints:
        like = update.abstract_state(loaded.mesh, optimizer, abstract_params(loaded))
        state, first, notes = resume_state(checkpoints, config, like)
        if state is None:
            state = update.init_state(loaded.mesh, optimizer, initial_params(loaded, config.seed))
        checkpoints.compile(state)
        prepare_directory(config)
        writer = RunWriter(
            Path(config.output_dir), tensorboard=config.log.tensorboard, resume_step=first
        )
        try:
            progress = Progress(config, checkpoints, writer, notes)
            state = _steps(progress, rows, partial(sft_step, **fixed), schedule, state, first)
        finally:
            writer.close()
        if rows.left_out:
            say(f"{rows.told_left_out()}; left out ({rows.left_out} rows)")
        say(f"model: {export_final(loaded, state.params, Path(config.output_dir))}")
    return state


def _steps(
    progress: Progress,
    rows: _Rows,
    update_on: Callable[..., tuple[TrainState, dict[str, Array]]],
    schedule: Callable[[Any], Array],
    state: TrainState,
    first: int,
) -> TrainState:
    """The loop: every step is written down, then its progress is crossed."""
    config, split = progress.config, by_prompt(update_on.keywords["mesh"])
    updates, logged, started = int(state.updates), first, time.perf_counter()
    with progress_bar(first, config.max_steps, shown=config.log.progress) as bar:
        coming = rows.batch(first)
        for step in range(first + 1, config.max_steps + 1):
            with progress.guard(step - 1, state):
                state, metrics = update_on(state, put(coming, split))
                batch, coming = coming, rows.batch(step)  # the next one, while the devices work
                row = {name: float(value) for name, value in fetch(metrics).items()}
            skipped = row.pop("skipped")
            row["learning_rate"] = float(schedule(updates))
            row |= {"skipped/updates": skipped, "skipped/in_a_row": progress.count(bool(skipped))}
            updates += not skipped
            if step % config.log.logging_steps == 0 or step == config.max_steps:
                now = time.perf_counter()
                row["time/step"] = (now - started) / (step - logged)
                row["compiles"] = compiles()
                logged, started = step, now
                progress.writer.metrics(step, row)
            why = {}
            if skipped:
                why = {name: str(row[name]) for name in ("loss", "grad_norm")}
                progress.writer.skipped(step, why, *_told(rows, batch, step))
            text = f"loss {row['loss']:.4f} entropy {row['entropy']:.3f}"
            bar.set_postfix_str(text, refresh=False)
            bar.update()
            progress.after_step(step, state, why)
    progress.restore_point(config.max_steps, state)
    return state


def _told(rows: _Rows, batch: SftBatch, step: int) -> tuple[dict[str, np.ndarray], list[dict]]:
    """The batch of a step, counted from 1, and its rows, to be looked at."""
    arrays = {"tokens": batch.tokens, "weight": batch.weight}
    arrays |= {f"prompts.{name}": x for name, x in batch.prompts._asdict().items()}
    indices = [int(index) for index in rows.order(step - 1)]
    return arrays, [{"row": index, **rows.rows[index]} for index in indices]


def _main(config: SftConfig, arguments: argparse.Namespace) -> None:
    train_sft(config, dry_run=arguments.dry_run, topology=arguments.topology)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_cli(SftConfig, _main, prog="iapo_jax.sft", argv=argv)


if __name__ == "__main__":
    exit_with(main)
