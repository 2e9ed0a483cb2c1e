"""Sampling a data set to its end: written as it comes, and taken up where it was left.

What a completion is depends on (parameters, seed, row, sample) alone, never on what else is in its
batch. Kernels may round otherwise for other shapes: where two tokens are within rounding of each
other in the draw, another batch size can draw the other one.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from iapo_jax.answers import extraction
from iapo_jax.answers.checker import POLICY, extract_answer
from iapo_jax.config.sections import InformationSection
from iapo_jax.data.problems import Problems
from iapo_jax.errors import UserError
from iapo_jax.evaluation.records import (
    Completion,
    Record,
    append_completions,
    check_same,
    digest,
    read_completions,
    read_record,
    write_record,
)
from iapo_jax.information.completions import Asked, inspect_problems
from iapo_jax.information.inspection import to_json as to_dict
from iapo_jax.model import checksums
from iapo_jax.pretrained import tokenization
from iapo_jax.pretrained.control_tokens import Prompt
from iapo_jax.pretrained.loaded import LoadedModel
from iapo_jax.rollout import collect
from iapo_jax.rollout import sampler as sampler_module
from iapo_jax.rollout.sampler import Sampler
from iapo_jax.runtime.console import environment, is_writer, progress_bar, say
from iapo_jax.runtime.files import write_json, writing
from iapo_jax.runtime.interruption import Stopped, stop_requested
from iapo_jax.runtime.locks import file_lock
from iapo_jax.runtime.processes import broadcast, on_process_zero
from iapo_jax.sharding import batch_devices, by_prompt, fetch, put
from iapo_jax.types import Params

_EVAL_STEP = 2**31 - 1  # of the random keys: no training step draws from them


class Protocol(NamedTuple):
    """How problems are sampled: with the problems and the parameters, all that decides a result."""

    seed: int
    num_samples: int
    max_completion_length: int
    temperature: float
    top_p: float
    top_k: int
    end_of_thinking: list[str]
    prompts_per_batch: int  # at once; does not change the result, here and below
    samples_per_batch: int = 0  # of each prompt; 0 = all
    gather_weights: bool = True
    inspected: int = 0  # of so many problems the first sample's ids are kept, to be probed

    def settings(self) -> dict[str, Any]:
        """What changes the result."""
        return {name: getattr(self, name) for name in self._fields[:7]}


class Task(NamedTuple):
    """Problems, how they are sampled, and by what."""

    loaded: LoadedModel  # its parameters are passed beside it
    problems: Problems
    protocol: Protocol
    sampler: Sampler


def make_task(
    loaded: LoadedModel, problems: Problems, protocol: Protocol, *, field: str = ""
) -> Task:
    """The task, compiled when it is first run.

    Raises:
      UserError: if a batch cannot be spread over the devices.
    """
    check_batch(protocol.prompts_per_batch, loaded.mesh, field)
    at_once = min(protocol.samples_per_batch or protocol.num_samples, protocol.num_samples)
    sampler = sampler_module.make_sampler(
        loaded,
        problems,
        num_generations=at_once,
        max_length=protocol.max_completion_length,
        sampling=protocol,
    )
    return Task(loaded=loaded, problems=problems, protocol=protocol, sampler=sampler)


def check_batch(prompts_per_batch: int, mesh: Mesh, field: str = "") -> None:
    """Whether a batch can be spread over the devices.

    Raises:
      UserError: naming the field, in the section `field`.
    """
    devices = batch_devices(mesh)
    if prompts_per_batch < 1 or prompts_per_batch % devices:
        name = f"{field}.prompts_per_batch" if field else "prompts_per_batch"
        raise UserError(
            f"{name} is {prompts_per_batch}; expected a multiple of the {devices} devices "
            "that share a batch"
        )


def missing_chunks(known: np.ndarray, samples_per_batch: int) -> list[tuple[int, int]]:
    """(problem, first sample) of the chunks that are left to draw.

    Args:
      known: [P, N] bool: samples that are there.
    """
    chunks = []
    for problem, there in enumerate(known):
        first = 0
        while (left := np.flatnonzero(~there[first:])).size:
            first += int(left[0])
            chunks.append((problem, first))
            first += samples_per_batch
    return chunks


def sample_chunks(
    task: Task, params: Params, chunks: Sequence[tuple[int, int]]
) -> Iterator[list[Completion]]:
    """The completions of these chunks, a batch at a time, each judged."""
    if not chunks:
        return
    prepared = task.sampler.prepare(params)
    size = task.protocol.prompts_per_batch
    for start in range(0, len(chunks), size):
        part = chunks[start : start + size]
        yield _judge(task, part, _draw(task, prepared, part))


def _draw(task: Task, prepared: Params, chunks: Sequence[tuple[int, int]]) -> collect.Rollout:
    # The last batch is filled up, so that every batch has the shape that was compiled.
    filled = [chunks[i % len(chunks)] for i in range(task.protocol.prompts_per_batch)]
    indices, first = (np.asarray(part, np.int32) for part in zip(*filled, strict=True))
    rows = np.asarray(task.problems.rows, np.int32)[indices]
    prompts = sampler_module.prompts_of(task.sampler, task.problems, indices)
    keys = task.sampler.keys(task.protocol.seed, _EVAL_STEP, rows)
    first = put(first, by_prompt(task.loaded.mesh))
    return fetch(task.sampler.draw(prepared, prompts, keys, first=first))


def _judge(
    task: Task, chunks: Sequence[tuple[int, int]], drawn: collect.Rollout
) -> list[Completion]:
    problems, opened = task.problems, task.loaded.pretrained
    samples = drawn.length.shape[1]
    tokens = tokenization.real_tokens(drawn)[: len(chunks) * samples]
    texts = tokenization.decode_completions(opened.tokenizer, tokens, opened.stop_ids)
    indices = np.repeat([problem for problem, _ in chunks], samples)
    whole = extraction.whole_texts([problems.texts[i] for i in indices], texts)
    correct = on_process_zero(
        lambda: collect.check_answers(problems, indices, texts), np.zeros(len(texts), bool)
    )
    thinking = tokenization.thinking_lengths(
        opened.tokenizer, tokens, opened.stop_ids, task.protocol.end_of_thinking
    )
    finished, inspected = drawn.finished.ravel(), task.protocol.inspected
    made = []
    for n, index in enumerate(indices.tolist()):
        sample = chunks[n // samples][1] + n % samples
        if sample < task.protocol.num_samples:
            made.append(
                Completion(
                    row=int(problems.rows[index]),
                    sample=sample,
                    prompt=problems.texts[index],
                    completion=texts[n],
                    answer=problems.answers[index],
                    extracted=extract_answer(whole[n]),
                    correct=bool(correct[n]),
                    length=len(tokens[n]),
                    thinking_length=int(thinking[n]),
                    finished=bool(finished[n]),
                    ids=tokens[n].tolist() if sample == 0 and index < inspected else [],
                )
            )
    return made


def evaluate(
    task: Task,
    params: Params,
    *,
    name: str,
    known: Sequence[Completion] = (),
    keep: Callable[[list[Completion]], Any] = lambda rows: None,
    shown: bool = True,
    leave: bool = True,
) -> list[Completion]:
    """Every completion of the task: those that are known, and those that were missing.

    Args:
      name: beside the progress bar.
      known: of this very task; only those of the first process count.
      keep: hears of each batch, before the next is drawn.
      leave: keep the bar on the screen when it is done.

    Raises:
      Stopped: between two batches, if a signal asks for it.
    """
    problems, samples = task.problems, task.protocol.num_samples
    place = {row: i for i, row in enumerate(problems.rows)}
    there = np.zeros((len(problems.tokens), samples), bool)
    found = [one for one in known if one.row in place and one.sample < samples]
    for one in found:
        there[place[one.row], one.sample] = True
    at_once = min(task.protocol.samples_per_batch or samples, samples)
    chunks = missing_chunks(broadcast(there), at_once)
    right, tokens = sum(one.correct for one in found), sum(one.length for one in found)
    with progress_bar(len(found), there.size, unit="completion", shown=shown, leave=leave) as bar:
        bar.set_description(name)
        for made in sample_chunks(task, params, chunks):
            fresh = [one for one in made if not there[place[one.row], one.sample]]
            keep(fresh)
            found += fresh
            right += sum(one.correct for one in fresh)
            tokens += sum(one.length for one in fresh)
            figures = f"accuracy {right / len(found):.3f} length {tokens / len(found):.1f}"
            bar.set_postfix_str(figures, refresh=False)
            bar.update(len(fresh))
            if len(found) < there.size and stop_requested():
                raise Stopped(
                    f"{name}: {len(found)} of {there.size} completions are sampled; the same "
                    "command goes on"
                )
    return found


def describe(
    task: Task,
    params: Params,
    *,
    model: str,
    dataset: str,
    dataset_name: str = "",
    member: int = 1,
    members: int = 1,
    source: str = "",
    step: int | None = None,
) -> Record:
    """The task as an empty record: what it is, of which parameters."""
    return Record(
        model=model,
        member=member,
        members=members,
        source=source,
        step=step,
        dataset=dataset,
        dataset_name=dataset_name or dataset,
        settings=task.protocol.settings()
        | {
            "dtype": task.loaded.pretrained.config.dtype,
            "stop_ids": [int(i) for i in task.loaded.pretrained.stop_ids],
            "answer_policy": POLICY,
        },
        fingerprint=checksums.fingerprint(params),
        problems=digest(
            [int(row) for row in task.problems.rows],
            *(task.problems.texts, task.problems.answers),
            [str(columns.get("kind")) for columns in task.problems.columns],
        ),
        environment=environment(),
    )


def evaluate_to(
    directory: Path,
    name: str,
    task: Task,
    params: Params,
    record: Record,
    *,
    information: InformationSection | None = None,
    replace: bool = False,
    shown: bool = True,
) -> Record:
    """`evaluate` into DIRECTORY/NAME.json and NAME.completions.jsonl; goes on with what is there.

    Returns the filled record on the process that writes, and `record` on all others.

    Args:
      information: how the first problems are probed, into NAME.inspections.json.
      replace: begin anew over an evaluation that was made in another way, instead of refusing.

    Raises:
      UserError: if the files are of another evaluation, damaged, or cannot be written.
      RunError: if they cannot be written any more.
      Stopped: if a signal asks for it; what was sampled is kept.
    """
    if not is_writer():
        made = evaluate(task, params, name=name, shown=shown)
        _probe(directory, name, task, params, made, information, shown)
        return record
    path, texts = directory / f"{name}.json", directory / f"{name}.completions.jsonl"
    lock = directory / f"{name}.lock"
    with writing(directory, UserError):
        directory.mkdir(parents=True, exist_ok=True)
        with texts.open("ab"):
            pass
    with writing(directory), file_lock(lock, instead="another output_dir (--out)"):
        known = _known(path, texts, record, replace)
        write_record(path, record)
        keep = partial(append_completions, texts)
        made = evaluate(task, params, name=name, known=known, keep=keep, shown=shown)
        _probe(directory, name, task, params, made, information, shown)
        record = record.filled(made)
        write_record(path, record)
    return record


def _probe(
    directory: Path,
    name: str,
    task: Task,
    params: Params,
    made: Sequence[Completion],
    information: InformationSection | None,
    shown: bool,
) -> None:
    if task.protocol.inspected and information is not None:
        path = directory / f"{name}.inspections.json"
        inspect_to(path, task, params, made, information, shown=shown)


def _known(path: Path, texts: Path, record: Record, replace: bool) -> list[Completion]:
    """Completions that are there already, of this very evaluation."""
    try:
        before = read_record(path)
        if before is not None:
            check_same(before, record, path)
        elif texts.stat().st_size and not replace:
            raise UserError(f"{texts} has no {path.name} beside it, which says what it is of")
        return read_completions(texts) if before is not None else _begin(texts)
    except UserError:
        if not replace:
            raise
        return _begin(texts)


def _begin(texts: Path) -> list[Completion]:
    os.truncate(texts, 0)
    return []


def inspect_to(
    path: Path,
    task: Task,
    params: Params,
    completions: Sequence[Completion],
    section: InformationSection,
    *,
    shown: bool = True,
) -> None:
    """Probes the first problems' first samples, and writes `Inspection` objects as a JSON list.

    Args:
      completions: those of the first process count.

    Raises:
      UserError: if something does not fit the model or the estimator.
    """
    problems, width = task.problems, task.protocol.max_completion_length
    count = min(task.protocol.inspected, len(problems.tokens))
    place = {row: i for i, row in enumerate(problems.rows)}
    ids, lengths = np.zeros((count, width), np.int32), np.zeros(count, np.int32)
    for one in completions:
        index = place.get(one.row, count)
        if one.sample == 0 and index < count:
            ids[index, : len(one.ids)], lengths[index] = one.ids, len(one.ids)
    ids, lengths = broadcast((ids, lengths))
    asked = [
        Asked(
            Prompt(problems.texts[i], problems.tokens[i]),
            [ids[i, : lengths[i]]],
            problems.answers[i],
            problems.columns[i].get("kind"),
        )
        for i in np.flatnonzero(lengths)
    ]
    if not asked:
        say("no completion to probe: they were sampled without eval.inspect (--inspect)")
        return
    opened = task.loaded._replace(params=params)
    with progress_bar(0, len(asked), unit="completion", shown=shown) as bar:
        bar.set_description("probing")
        found = inspect_problems(
            opened,
            asked,
            section,
            temperature=task.protocol.temperature,
            advance=bar.update,
        )
    if is_writer():
        write_json(path, [to_dict(one) for one in found])
