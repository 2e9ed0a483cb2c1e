"""Probes every prefix of all completions of a batch at once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from iapo_jax.answers import checker, extraction
from iapo_jax.config.sections import InformationSection
from iapo_jax.data.problems import pad_rows
from iapo_jax.errors import UserError
from iapo_jax.information import probes
from iapo_jax.information.estimators import Probe
from iapo_jax.information.inspection import Inspection
from iapo_jax.information.inspection_inputs import (
    check_answer,
    encode_prompt,
    note_other_text,
    prompt_text,
)
from iapo_jax.information.signals import compute_signals
from iapo_jax.pretrained import control_tokens, tokenization
from iapo_jax.pretrained.control_tokens import Prompt
from iapo_jax.pretrained.loaded_model import LoadedModel
from iapo_jax.sharding import by_prompt, fetch, put
from iapo_jax.types import Answers, Array, Prompts, Rollout, Signals

_LENGTHS = 64  # completions are padded to a multiple of it: few shapes, few compilations
_PROMPTS = 16  # and prompts to a multiple of this


class PromptGroup(NamedTuple):
    """A prompt and those of its completions that are inspected."""

    prompt: str | Prompt
    completions: list[np.ndarray]  # ids
    answer: str | None  # the reference answer
    kind: str | None = None  # of the answer


class Prober(NamedTuple):
    """How the completions of some groups are probed."""

    loaded: LoadedModel
    section: InformationSection
    probe_maker: probes.ProbeMaker
    temperature: float  # of log_prob and entropy


def make_prober(
    loaded: LoadedModel,
    section: InformationSection,
    groups: Sequence[PromptGroup],
    temperature: float,
) -> Prober:
    """Makes the prober of these groups, and checks their answers.

    Raises:
      UserError: if an answer is missing, or cannot be written by this tokenizer.
    """
    tokenizer = loaded.pretrained.tokenizer
    extracted = [
        checker.extract_answer(text) for group in groups for text in complete_texts(loaded, group)
    ]
    own = [text for text in extracted if text and _can_be_forced(tokenizer, text)]
    references = [group.answer for group in groups if group.answer is not None]
    for group in groups:
        check_answer(section, group.answer, "the answer")
        if group.answer is not None and section.estimator != "answer_entropy":
            answer = group.answer.strip()
            ids = control_tokens.encode_text(tokenizer, answer)
            note_other_text(tokenizer, ids, answer, "the answer")
    if section.estimator == "answer_set_entropy":
        answers = references + own
    else:
        answers = own if section.reference == "own" else references
    probe_maker = probes.make_probe_maker(
        section, loaded.pretrained, loaded.mesh, list(dict.fromkeys(answers))
    )
    return Prober(
        loaded=loaded, section=section, probe_maker=probe_maker, temperature=float(temperature)
    )


def _can_be_forced(tokenizer: Any, text: str) -> bool:
    """Whether a completion's own answer can be written without control tokens."""
    try:
        return bool(control_tokens.encode_text(tokenizer, text.strip()))
    except UserError:
        return False


def complete_texts(loaded: LoadedModel, group: PromptGroup) -> list[str]:
    """The completions' texts, preceded by `<think>` if the prompt ends with it."""
    pretrained = loaded.pretrained
    return extraction.whole_texts(
        [prompt_text(group.prompt)] * len(group.completions),
        tokenization.decode_completions(
            pretrained.tokenizer, group.completions, pretrained.stop_ids
        ),
    )


def padded_length(longest: int) -> int:
    """The length to which completions are padded."""
    return max(-(-longest // _LENGTHS), 1) * _LENGTHS


def inspect_batch(
    prober: Prober, groups: Sequence[PromptGroup], length: int, *, prompt_length: int = 0
) -> list[Inspection]:
    """Inspects G completions of each of P prompts; results are in the order of the prompts.

    Args:
      length: tokens to which completions are padded.
      prompt_length: prompts are padded to at least this many tokens.

    Raises:
      UserError: if the model computes values that are not finite.
    """
    loaded, section = prober.loaded, prober.section
    pretrained, split = loaded.pretrained, by_prompt(loaded.mesh)
    rows = [row for group in groups for row in group.completions]
    shape = (len(groups), len(rows) // len(groups))
    ids, lengths = pad_rows(rows, length)
    tokens, lengths = put(ids.reshape(*shape, length), split), put(lengths.reshape(shape), split)
    texts = [complete_texts(loaded, group) for group in groups]
    references = [group.answer for group in groups]
    probe = probes.make_probe(prober.probe_maker, tokens, lengths, references, texts)
    forced = probe.answers and fetch(probe.answers)
    prompts = _encode_prompts(prober, groups, forced)
    padded = pad_prompts(loaded, prompts, prompt_length)
    signals = _signals(prober, padded, tokens, lengths, probe)
    thinking = tokenization.thinking_lengths(
        pretrained.tokenizer, rows, pretrained.stop_ids, section.end_of_thinking
    )
    decoded = tokenization.decode_completions(pretrained.tokenizer, rows, pretrained.stop_ids)
    inspections = []
    for p, group in enumerate(groups):
        verdicts = _verdicts(group, texts[p])
        for g, row in enumerate(group.completions):
            n = p * shape[1] + g
            described = Inspection(
                prompt=tokenization.decode(pretrained.tokenizer, prompts[p]),
                prompt_ids=prompts[p],
                postfix=section.postfix,
                postfix_ids=np.asarray(prober.probe_maker.postfix).tolist(),
                estimator=section.estimator,
                reference=section.reference,
                temperature=prober.temperature,
                answer=group.answer,
                completion=decoded[n],
                extracted=checker.extract_answer(texts[p][g]),
                correct=verdicts[g],
                thinking_length=int(thinking[n]),
                finished=bool(len(row) and row[-1] in pretrained.stop_ids),
                **_teacher_forced(forced, p, g),
            )
            values = Signals(*(np.asarray(x[p, g], np.float64) for x in signals))
            inspections.append(_fill(described, pretrained.tokenizer, row, values))
    return inspections


def _verdicts(group: PromptGroup, texts: Sequence[str]) -> list[bool | None]:
    """Whether each completion's answer is correct; None without a reference answer."""
    if group.answer is None:
        return [None] * len(texts)
    count = len(texts)
    return checker.are_correct(texts, [group.answer] * count, [group.kind] * count)


def _encode_prompts(
    prober: Prober, groups: Sequence[PromptGroup], forced: Answers | None
) -> list[list[int]]:
    """The prompts' ids, with room for the longest completion, the postfix and the answers."""
    probe = prober.probe_maker.postfix.shape[0]
    if forced:
        probe += max(int(forced.length.max()) - 1, 0)
    return [
        encode_prompt(prober.loaded, group.prompt, max(map(len, group.completions)), probe)
        for group in groups
    ]


def pad_prompts(loaded: LoadedModel, prompts: Sequence[list[int]], at_least: int = 0) -> Prompts:
    """The prompts, padded, on the mesh."""
    longest = max([at_least, *map(len, prompts)])
    padded = Prompts(*pad_rows(prompts, -(-longest // _PROMPTS) * _PROMPTS))
    return put(padded, by_prompt(loaded.mesh))


def _signals(
    prober: Prober, prompts: Prompts, tokens: Array, lengths: Array, probe: Probe
) -> Signals:
    """`signals.compute_signals` of each prompt's completions, on the host.

    Raises:
      UserError: if the model computes values that are not finite.
    """
    loaded = prober.loaded
    floats = put(np.zeros(tokens.shape, np.float32), by_prompt(loaded.mesh))
    rollout = Rollout(prompts, tokens, lengths, floats, lengths > 0)
    signals = fetch(
        compute_signals(
            loaded.model,
            loaded.params,
            rollout,
            probe,
            temperature=np.float32(prober.temperature),
            estimator=prober.section.estimator,
        )
    )
    for name, values in zip(Signals._fields, signals, strict=True):
        if not np.isfinite(values).all():
            raise UserError(
                f"the model computes {name} values that are not finite; its weights may be damaged"
            )
    return signals


def _fill(inspection: Inspection, tokenizer: Any, row: np.ndarray, signals: Signals) -> Inspection:
    """Adds the values of one completion, without padding."""
    size = len(row)
    uncertainty = signals.uncertainty[: size + 1]
    thinks = np.arange(size) < inspection.thinking_length
    return inspection._replace(
        completion_ids=row.tolist(),
        tokens=[tokenization.token_text(tokenizer, i) for i in row.tolist()],
        uncertainty=uncertainty.tolist(),
        informativeness=np.where(thinks, uncertainty[:-1] - uncertainty[1:], 0.0).tolist(),
        entropy=signals.entropy[:size].tolist(),
        log_prob=signals.log_prob[:size].tolist(),
    )


def _teacher_forced(forced: Answers | None, prompt: int, completion: int) -> dict[str, list]:
    """The answers that the estimator read for one completion, as fields of `Inspection`."""
    if forced is None:
        return {}
    tokens, length, meaning = (x[prompt, min(completion, x.shape[1] - 1)] for x in forced)
    present = np.flatnonzero(length).tolist()
    return {
        "answer_ids": [tokens[y, : length[y]].tolist() for y in present],
        "answer_meanings": meaning[present].tolist(),
    }
