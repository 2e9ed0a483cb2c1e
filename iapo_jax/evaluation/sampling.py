"""Sampling the problems of a dataset, a batch at a time, and checking every completion.

A completion depends on (parameters, seed, row, sample) alone, and on nothing else in its batch.
Kernels may round differently for other shapes: where two tokens tie within rounding, another batch
size can draw the other one.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from jax.sharding import Mesh

from iapo_jax.answers import extraction
from iapo_jax.answers.checker import extract_answer
from iapo_jax.config.sections import GenerationSection, InformationSection
from iapo_jax.data.problems import Problems
from iapo_jax.errors import UserError
from iapo_jax.evaluation.completions_file import Completion
from iapo_jax.pretrained import tokenization
from iapo_jax.pretrained.loaded_model import LoadedModel
from iapo_jax.rollout import generation
from iapo_jax.rollout import sampler as sampler_module
from iapo_jax.rollout.sampler import Sampler
from iapo_jax.runtime.console import progress_bar
from iapo_jax.runtime.interruption import Stopped, stop_requested
from iapo_jax.runtime.processes import broadcast, on_process_zero
from iapo_jax.sharding import batch_devices, by_prompt, fetch, put
from iapo_jax.types import Params, Rollout

_EVAL_STEP = 2**31 - 1  # of the random keys; training never gets that far


class Protocol(NamedTuple):
    """Sampling settings.

    Together with the problems and the parameters they determine the result.
    """

    seed: int
    num_samples: int
    max_completion_length: int
    temperature: float
    top_p: float
    top_k: int
    end_of_thinking: list[str]
    prompts_per_batch: int  # like the fields below, does not change the result
    samples_per_batch: int = 0  # of each prompt at once; 0 = all
    gather_weights: bool = True
    inspected: int = 0  # problems whose first sample keeps its ids, so that it can be probed

    @classmethod
    def from_section(
        cls,
        section: GenerationSection,
        information: InformationSection,
        *,
        seed: int,
        num_samples: int,
        max_completion_length: int,
        prompts_per_batch: int,
        samples_per_batch: int = 0,
        inspected: int = 0,
    ) -> Self:
        """The protocol with the temperature, top_p, top_k and gather_weights of a section."""
        return cls(
            seed=seed,
            num_samples=num_samples,
            max_completion_length=max_completion_length,
            temperature=section.temperature,
            top_p=section.top_p,
            top_k=section.top_k,
            end_of_thinking=information.end_of_thinking,
            prompts_per_batch=prompts_per_batch,
            samples_per_batch=samples_per_batch,
            gather_weights=section.gather_weights,
            inspected=inspected,
        )

    def settings(self) -> dict[str, Any]:
        """The fields that change the result."""
        return {name: getattr(self, name) for name in self._fields[:7]}

    @property
    def samples_at_once(self) -> int:
        """Samples of a prompt in one batch."""
        return min(self.samples_per_batch or self.num_samples, self.num_samples)


class Task(NamedTuple):
    """Problems, how they are sampled, and by which model."""

    loaded: LoadedModel  # its parameters are passed beside it
    problems: Problems
    protocol: Protocol
    sampler: Sampler


def make_task(
    loaded: LoadedModel, problems: Problems, protocol: Protocol, *, field: str = ""
) -> Task:
    """The task; it compiles when it first runs.

    Raises:
      UserError: if a batch cannot be split evenly over the devices.
    """
    check_batch(protocol.prompts_per_batch, loaded.mesh, field)
    sampler = sampler_module.make_sampler(
        loaded,
        problems,
        num_generations=protocol.samples_at_once,
        max_length=protocol.max_completion_length,
        sampling=protocol,
    )
    return Task(loaded=loaded, problems=problems, protocol=protocol, sampler=sampler)


def check_batch(prompts_per_batch: int, mesh: Mesh, field: str = "") -> None:
    """Checks that a batch can be split evenly over the devices.

    Raises:
      UserError: naming the field `prompts_per_batch` of the section `field`.
    """
    devices = batch_devices(mesh)
    if prompts_per_batch < 1 or prompts_per_batch % devices:
        name = f"{field}.prompts_per_batch" if field else "prompts_per_batch"
        raise UserError(
            f"{name} is {prompts_per_batch}; expected a multiple of {devices}, the number of "
            "devices that a batch is split over"
        )


def missing_chunks(known: np.ndarray, samples_per_batch: int) -> list[tuple[int, int]]:
    """(problem, first sample) of the chunks of samples that are still to be drawn.

    Args:
      known: [P, N] bool: the samples that exist.
    """
    chunks = []
    for problem, exists in enumerate(known):
        first = 0
        while (left := np.flatnonzero(~exists[first:])).size:
            first += int(left[0])
            chunks.append((problem, first))
            first += samples_per_batch
    return chunks


def sample_chunks(
    task: Task, params: Params, chunks: Sequence[tuple[int, int]]
) -> Iterator[list[Completion]]:
    """The completions of these chunks, a batch at a time, with verdicts."""
    if not chunks:
        return
    prepared = task.sampler.prepare(params)
    size = task.protocol.prompts_per_batch
    for start in range(0, len(chunks), size):
        batch = chunks[start : start + size]
        yield _check(task, batch, _draw(task, prepared, batch))


def _draw(task: Task, prepared: Params, chunks: Sequence[tuple[int, int]]) -> Rollout:
    # The last batch is padded by repetition, so that every batch has the compiled shape.
    filled = [chunks[i % len(chunks)] for i in range(task.protocol.prompts_per_batch)]
    indices, first = (np.asarray(part, np.int32) for part in zip(*filled, strict=True))
    rows = np.asarray(task.problems.rows, np.int32)[indices]
    prompts = sampler_module.prompts_of(task.sampler, task.problems, indices)
    keys = task.sampler.keys(task.protocol.seed, _EVAL_STEP, rows)
    first = put(first, by_prompt(task.loaded.mesh))
    return fetch(task.sampler.draw(prepared, prompts, keys, first=first))


def _check(task: Task, chunks: Sequence[tuple[int, int]], drawn: Rollout) -> list[Completion]:
    """The completions of a batch, without the samples beyond `num_samples`."""
    problems, pretrained = task.problems, task.loaded.pretrained
    samples = drawn.length.shape[1]
    tokens = tokenization.real_tokens(drawn)[: len(chunks) * samples]
    texts = tokenization.decode_completions(pretrained.tokenizer, tokens, pretrained.stop_ids)
    indices = np.repeat([problem for problem, _ in chunks], samples)
    complete = extraction.whole_texts([problems.texts[i] for i in indices], texts)
    correct = on_process_zero(
        lambda: generation.check_answers(problems, indices, complete), np.zeros(len(texts), bool)
    )
    thinking = tokenization.thinking_lengths(
        pretrained.tokenizer, tokens, pretrained.stop_ids, task.protocol.end_of_thinking
    )
    finished, inspected = drawn.finished.ravel(), task.protocol.inspected
    completions = []
    for n, index in enumerate(indices.tolist()):
        sample = chunks[n // samples][1] + n % samples
        if sample >= task.protocol.num_samples:
            continue
        completions.append(
            Completion(
                row=int(problems.rows[index]),
                sample=sample,
                prompt=problems.texts[index],
                completion=texts[n],
                answer=problems.answers[index],
                extracted=extract_answer(complete[n]),
                correct=bool(correct[n]),
                length=len(tokens[n]),
                thinking_length=int(thinking[n]),
                finished=bool(finished[n]),
                ids=tokens[n].tolist() if sample == 0 and index < inspected else [],
            )
        )
    return completions


def evaluate(
    task: Task,
    params: Params,
    *,
    name: str,
    known: Sequence[Completion] = (),
    keep: Callable[[list[Completion]], None] | None = None,
    shown: bool = True,
    leave: bool = True,
) -> list[Completion]:
    """Every completion of the task: the known ones, and the missing ones newly sampled.

    Args:
      name: beside the progress bar.
      known: existing completions of this task; only those passed on process 0 are used.
      keep: called with each batch, before the next one is drawn.
      leave: keep the bar on the screen at the end.

    Raises:
      Stopped: between two batches, after a signal.
    """
    problems, samples = task.problems, task.protocol.num_samples
    place = {row: i for i, row in enumerate(problems.rows)}
    exists = np.zeros((len(problems.tokens), samples), bool)
    completions = [c for c in known if c.row in place and c.sample < samples]
    for c in completions:
        exists[place[c.row], c.sample] = True
    chunks = missing_chunks(broadcast(exists), task.protocol.samples_at_once)
    with progress_bar(
        len(completions), exists.size, unit="completion", shown=shown, leave=leave
    ) as bar:
        bar.set_description(name)
        for batch in sample_chunks(task, params, chunks):
            fresh = [c for c in batch if not exists[place[c.row], c.sample]]
            if keep is not None:
                keep(fresh)
            completions += fresh
            bar.set_postfix_str(_means(completions), refresh=False)
            bar.update(len(fresh))
            if len(completions) < exists.size and stop_requested():
                raise Stopped(
                    f"{name}: {len(completions)} of {exists.size} completions have been sampled; "
                    "run the same command again to continue"
                )
    return completions


def _means(completions: Sequence[Completion]) -> str:
    accuracy = np.mean([c.correct for c in completions])
    length = np.mean([c.length for c in completions])
    return f"accuracy {accuracy:.3f} length {length:.1f}"
