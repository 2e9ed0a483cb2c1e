"""Completions under the probe, one by one: what each of their tokens tells about the answer."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from iapo_jax.answers import checker, extraction
from iapo_jax.config import checks
from iapo_jax.config.sections import InformationSection, LogSection, MeshSection, ModelSection
from iapo_jax.config.train import SamplingSection, TrainConfig
from iapo_jax.data.problems import pad_rows
from iapo_jax.errors import UserError, check_unicode
from iapo_jax.information import probes
from iapo_jax.information.estimators import Probe
from iapo_jax.information.inspection import Inspection
from iapo_jax.information.signals import compute_signals
from iapo_jax.model.sampling import prompt_keys, sample
from iapo_jax.pretrained import control_tokens, tokenization
from iapo_jax.pretrained.control_tokens import Prompt
from iapo_jax.pretrained.loaded import LoadedModel, load_model, start_mesh
from iapo_jax.pretrained.tokenization import real_tokens, thinking_lengths
from iapo_jax.runtime.console import say
from iapo_jax.sharding import batch_devices, by_prompt, fetch, put
from iapo_jax.types import Answers, Array, Prompts, Rollout, Signals

_LENGTHS = 64  # completions are padded to a multiple of it: few shapes, few compilations


class Asked(NamedTuple):
    """A prompt and the completions that are looked at."""

    prompt: str | Prompt
    completions: list[np.ndarray]  # ids
    answer: str | None
    kind: str | None = None  # of the answer


def open_model(model: str | ModelSection) -> LoadedModel:
    """A Hugging Face directory or hub name, its weights split over all devices.

    Raises:
      UserError: if it is no model directory, or has no tokenizer.
    """
    section = ModelSection(path=model) if isinstance(model, str) else model
    if section.config:
        raise UserError("model.config starts a random model: there is nothing to look at")
    mesh = start_mesh(MeshSection(1, 1, -1), compilation_cache=LogSection().compilation_cache)
    return load_model(section, mesh)


def encode_prompt(
    opened: LoadedModel, prompt: str | Prompt, completion: int, probe: int
) -> list[int]:
    """The prompt's ids, without special tokens around them.

    Args:
      prompt: a text whose control tokens are meant as such, or one with its ids.
      completion, probe: tokens behind it, of the longest completion, and of postfix and answer.

    Raises:
      UserError: if there are none, or all together do not fit the model's context.
    """
    known = isinstance(prompt, Prompt)
    if not known:
        check_text(prompt, "the prompt")
    ids = _bare_ids(opened, prompt)
    if not known:
        _noted(opened.pretrained.tokenizer, ids, prompt, "the prompt")
    if not ids:
        raise UserError("the prompt is empty: expected a text")
    limit = _context_length(opened)
    if len(ids) + completion + probe > limit:
        raise UserError(
            f"the prompt has {len(ids)} tokens, a completion behind it at least {completion}, "
            f"postfix and answer (information.max_answer_length) up to {probe}; expected at most "
            f"{limit} together, the model's context (max_position_embeddings)"
        )
    return ids


def check_text(text: str, field: str) -> None:
    """Whether it is a text at all: bytes of a command line may not be.

    Raises:
      UserError: naming the field.
    """
    if not isinstance(text, str):
        raise UserError(f"{field} is {text!r}; expected a text")
    check_unicode(text, field)


def _encode(opened: LoadedModel, text: str, field: str) -> list[int]:
    """Ids of a text; says so where they are those of another one, as of unknown characters."""
    check_text(text, field)
    tokenizer = opened.pretrained.tokenizer
    return _noted(tokenizer, tokenization.encode(tokenizer, text), text, field)


def _noted(tokenizer: Any, ids: list[int], text: str, field: str) -> list[int]:
    read = tokenization.decode(tokenizer, ids)
    if read != text:
        say(f"note: {field} is {_short(text)}, which this tokenizer writes as {_short(read)}")
    return ids


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _context_length(opened: LoadedModel) -> int:
    """Tokens that the model was made for; unbounded where its config.json does not say."""
    return opened.pretrained.hf_config.get("max_position_embeddings") or sys.maxsize


def sample_completions(
    opened: LoadedModel,
    prompt: str | Prompt,
    count: int,
    *,
    max_length: int = 2048,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    **information: Any,
) -> list[list[int]]:
    """Ids of `count` completions, with the stop token where one ended; the same for a seed.

    Args:
      max_length: in tokens; cut to what the model's context leaves beside the prompt and the probe.
      information: as for `inspect_completions`, which then has room for postfix and answer.

    Raises:
      UserError: one sentence, for a value out of its range or a prompt that does not fit.
    """
    if count < 1:
        raise UserError(f"count is {count}; expected at least 1")
    sampling = SamplingSection(
        temperature=temperature, top_p=top_p, top_k=top_k, max_completion_length=max_length
    )
    section = _section(information, sampling)
    known, mesh = opened.pretrained, opened.mesh
    room = len(tokenization.encode(known.tokenizer, section.postfix))
    if section.estimator != "answer_entropy":
        room += section.max_answer_length - 1
    ids = encode_prompt(opened, prompt, 1, room)
    max_length = min(max_length, _context_length(opened) - len(ids) - room)
    say(f"sampling {count} completion(s) of at most {max_length} tokens")
    made = sample(
        opened.model,
        jax.jit(opened.model.unroll)(opened.params),
        _prompts(opened, [ids]),
        jax.jit(prompt_keys, out_shardings=by_prompt(mesh))(seed, 0, np.zeros(1, np.int32)),
        num_generations=count,
        max_length=max_length,
        stop_ids=np.asarray(known.stop_ids, np.int32),
        allowed=known.allowed,
        temperature=np.float32(temperature),
        top_p=top_p,
        top_k=top_k,
    )
    return [row.tolist() for row in real_tokens(fetch(made))]


def inspect_completions(
    opened: LoadedModel,
    prompt: str | Prompt,
    completions: Sequence[str | Sequence[int]],
    *,
    answer: str | None = None,
    temperature: float = 1.0,
    **information: Any,
) -> list[Inspection]:
    """Each completion's uncertainty about the answer after every prefix, and its tokens' share.

    Args:
      prompt: the whole text that the model reads, with its ids where a part of it is untrusted.
      completions: texts, or ids (with the stop token, if one was drawn).
      answer: the gold answer, which `answer_log_prob` and `answer_set_entropy` teacher-force.
      temperature: of `log_prob` and `entropy`; the probe's is 1.
      information: fields of `config.InformationSection`; probes stand after every prefix.

    Without an end of thinking all tokens but the stop token think. An empty completion has one
    uncertainty, that of the prompt.

    Raises:
      UserError: one sentence, if something does not fit the model or the estimator.
    """
    if isinstance(completions, str):
        raise UserError(f"completions is the text {_short(completions)}; expected a list of them")
    if not len(completions):
        raise UserError("no completion: expected at least one")
    if answer is not None:
        check_text(answer, "the answer")
    check_text(_text(prompt), "the prompt")
    section = _section(information, SamplingSection(temperature=temperature))
    if section.stride > 1 or section.boundaries:
        say(
            "note: information.stride and information.boundaries are those of training; here every "
            "prefix is probed"
        )
    rows = [_ids(opened, one, f"completion {i}") for i, one in enumerate(completions, 1)]
    asked = [Asked(prompt, rows, answer)]
    section = dataclasses.replace(section, stride=1, boundaries=[])
    probe_maker = _asker(opened, section, asked, _texts(opened, asked))
    say(f"asking: {probes.describe(probe_maker)}")
    return _inspect(
        opened, probe_maker, section, asked, temperature, _round_up(max(map(len, rows)))
    )


def inspect_problems(
    opened: LoadedModel,
    asked: Sequence[Asked],
    section: InformationSection,
    *,
    temperature: float = 1.0,
    advance: Callable[[int], Any] = lambda n: None,
) -> list[Inspection]:
    """`inspect_completions` of many problems with equally many completions each, on any mesh.

    Raises:
      UserError: as there.
    """
    section = dataclasses.replace(probes.settle(section), stride=1, boundaries=[])
    probe_maker = _asker(opened, section, asked, _texts(opened, asked))
    size = _round_up(max((len(row) for one in asked for row in one.completions), default=0))
    width = max(len(_bare_ids(opened, one.prompt)) for one in asked)
    devices = batch_devices(opened.mesh)
    found = []
    for start in range(0, len(asked), devices):
        part = list(asked[start : start + devices])
        # The last batch is filled up: every device needs a row.
        filled = part + part[:1] * (devices - len(part))
        made = _inspect(opened, probe_maker, section, filled, temperature, size, width)
        found += made[: len(made) * len(part) // len(filled)]
        advance(len(part))
    return found


def _text(prompt: str | Prompt) -> str:
    return prompt.text if isinstance(prompt, Prompt) else prompt


def _bare_ids(opened: LoadedModel, prompt: str | Prompt) -> list[int]:
    known = isinstance(prompt, Prompt)
    return prompt.ids if known else tokenization.encode(opened.pretrained.tokenizer, prompt)


def _round_up(longest: int) -> int:
    return max(-(-longest // _LENGTHS), 1) * _LENGTHS


def _texts(opened: LoadedModel, asked: Sequence[Asked]) -> list[list[str]]:
    """The completions' texts, with the `<think>` of a prompt that ended in it."""
    known = opened.pretrained
    return [
        extraction.whole_texts(
            [_text(one.prompt)] * len(one.completions),
            tokenization.decode_completions(known.tokenizer, one.completions, known.stop_ids),
        )
        for one in asked
    ]


def _inspect(
    opened: LoadedModel,
    probe_maker: probes.ProbeMaker,
    section: InformationSection,
    asked: Sequence[Asked],
    temperature: float,
    size: int,
    width: int = 0,
) -> list[Inspection]:
    """The completions of P prompts in one batch, those of a prompt beside each other."""
    known, split = opened.pretrained, by_prompt(opened.mesh)
    whole = _texts(opened, asked)
    rows = [row for one in asked for row in one.completions]
    flat = [text for group in whole for text in group]
    shape = (len(asked), len(rows) // len(asked))
    ids, lengths = pad_rows(rows, size)
    tokens, length = put(ids.reshape(*shape, size), split), put(lengths.reshape(shape), split)
    golds = [one.answer for one in asked]
    probe = probes.make_probe(probe_maker, tokens, length, golds, whole)
    forced = probe.answers and fetch(probe.answers)
    room = probe_maker.postfix.shape[0] + (max(int(forced.length.max()) - 1, 0) if forced else 0)
    prompts = [
        encode_prompt(opened, one.prompt, max(map(len, one.completions)), room) for one in asked
    ]
    padded = _prompts(opened, prompts, width)
    signals = _signals(opened, padded, tokens, length, probe, section.estimator, temperature)
    thinking = thinking_lengths(known.tokenizer, rows, known.stop_ids, section.end_of_thinking)
    texts = tokenization.decode_completions(known.tokenizer, rows, known.stop_ids)
    judged = [gold is not None for gold in golds for _ in range(shape[1])]
    named = [gold or "" for gold in golds for _ in range(shape[1])]
    kinds = [one.kind for one in asked for _ in range(shape[1])]
    right = checker.are_correct(flat, named, kinds)
    found = []
    for n, row in enumerate(rows):
        p, g = divmod(n, shape[1])
        told = Inspection(
            prompt=tokenization.decode(known.tokenizer, prompts[p]),
            prompt_ids=prompts[p],
            postfix=section.postfix,
            postfix_ids=np.asarray(probe_maker.postfix).tolist(),
            estimator=section.estimator,
            reference=section.reference,
            temperature=float(temperature),
            answer=golds[p],
            completion=texts[n],
            extracted=checker.extract_answer(flat[n]),
            correct=right[n] if judged[n] else None,
            thinking_length=int(thinking[n]),
            finished=bool(len(row) and row[-1] in known.stop_ids),
            **_teacher_forced(forced, p, g),
        )
        figures = Signals(*(np.asarray(x[p, g], np.float64) for x in signals))
        found.append(_fill(told, known.tokenizer, row, figures))
    return found


def _fill(told: Inspection, tokenizer: Any, row: np.ndarray, signals: Signals) -> Inspection:
    """The figures of one completion, without padding."""
    size = len(row)
    uncertainty = signals.uncertainty[: size + 1]
    thinks = np.arange(size) < told.thinking_length
    return told._replace(
        completion_ids=row.tolist(),
        tokens=[tokenization.token_text(tokenizer, i) for i in row.tolist()],
        uncertainty=uncertainty.tolist(),
        informativeness=np.where(thinks, uncertainty[:-1] - uncertainty[1:], 0.0).tolist(),
        entropy=signals.entropy[:size].tolist(),
        log_prob=signals.log_prob[:size].tolist(),
    )


def _teacher_forced(asked: Answers | None, prompt: int, completion: int) -> dict[str, list]:
    """The answers that the estimator looked at for one completion, as fields of `Inspection`."""
    if asked is None:
        return {}
    tokens, length, meaning = (x[prompt, min(completion, x.shape[1] - 1)] for x in asked)
    there = np.flatnonzero(length).tolist()
    return {
        "answer_ids": [tokens[y, : length[y]].tolist() for y in there],
        "answer_meanings": meaning[there].tolist(),
    }


def _section(information: dict[str, Any], sampling: SamplingSection) -> InformationSection:
    """The section of these fields.

    Raises:
      UserError: for an unknown field, or a value out of its range, those of `sampling` included.
    """
    fields = {field.name: field for field in dataclasses.fields(InformationSection)}
    for name, value in information.items():
        if name not in fields:
            raise UserError(f"{name!r} is no field of information; expected {', '.join(fields)}")
        if isinstance(value, str) and name in ("boundaries", "end_of_thinking"):
            raise UserError(f"information.{name} is {value!r}; expected a list of texts")
    section = InformationSection(**information)
    checks.check_ranges(TrainConfig(information=section, sampling=sampling))
    return probes.settle(section)


def _ids(opened: LoadedModel, completion: str | Sequence[int], field: str) -> np.ndarray:
    """Ids of a text, or given ones.

    Raises:
      UserError: if they are no ids of this model, or the text is none.
    """
    if isinstance(completion, str):
        return np.asarray(_encode(opened, completion, field), np.int32)
    ids, size = np.asarray(completion), opened.pretrained.config.vocab_size
    if ids.size == 0:
        return ids.astype(np.int32)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"{field} is neither a text nor a list of token ids")
    if ids.min() < 0 or ids.max() >= size:
        wrong = ids[(ids < 0) | (ids >= size)][0]
        raise UserError(f"{field} has the id {wrong}; expected 0 to {size - 1}, the vocabulary")
    return ids.astype(np.int32)


def check_answer(section: InformationSection, answer: str | None, field: str) -> None:
    """Whether the estimator has what it teacher-forces, as far as can be said beforehand."""
    if answer is not None and not answer.strip():
        raise UserError(f"{field} is empty: expected the gold answer")
    if section.estimator == "answer_log_prob" and section.reference == "gold" and answer is None:
        raise UserError(
            f"answer_log_prob teacher-forces a reference answer: expected {field}, or "
            "information.reference=own for each completion's own"
        )


def _asker(
    opened: LoadedModel,
    section: InformationSection,
    asked: Sequence[Asked],
    texts: Sequence[Sequence[str]],
) -> probes.ProbeMaker:
    """The probe at every prefix, checked."""
    known, tokenizer = opened.pretrained, opened.pretrained.tokenizer
    extracted = [checker.extract_answer(text) for group in texts for text in group]
    own = [text for text in extracted if text and _writable(tokenizer, text)]
    golds = [one.answer for one in asked if one.answer is not None]
    for one in asked:
        check_answer(section, one.answer, "the answer")
        if one.answer is not None and section.estimator != "answer_entropy":
            answer = one.answer.strip()
            _noted(tokenizer, control_tokens.encode_text(tokenizer, answer), answer, "the answer")
    if section.estimator == "answer_set_entropy":
        golds += own
    elif section.reference == "own":
        golds = own
    return probes.make_probe_maker(section, known, opened.mesh, list(dict.fromkeys(golds)))


def _writable(tokenizer: Any, text: str) -> bool:
    """Whether an answer that a model wrote has ids of its own, none of which steers a model."""
    try:
        return bool(control_tokens.encode_text(tokenizer, text.strip()))
    except UserError:
        return False


def _signals(
    opened: LoadedModel,
    prompts: Prompts,
    tokens: Array,
    length: Array,
    probe: Probe,
    estimator: str,
    temperature: float,
) -> Signals:
    """`signals.compute_signals` of each prompt's completions.

    Raises:
      UserError: if the model gives figures that are not finite.
    """
    floats = put(np.zeros(tokens.shape, np.float32), by_prompt(opened.mesh))
    rollout = Rollout(prompts, tokens, length, floats, length > 0)
    made = compute_signals(
        opened.model,
        opened.params,
        rollout,
        probe,
        temperature=np.float32(temperature),
        estimator=estimator,
    )
    made = fetch(made)
    for name, figures in zip(Signals._fields, made, strict=True):
        if not np.isfinite(figures).all():
            raise UserError(f"the model gives no finite {name}: are its weights whole?")
    return made


def _prompts(opened: LoadedModel, prompts: Sequence[list[int]], width: int = 0) -> Prompts:
    longest = max([width, *map(len, prompts)])
    padded = Prompts(*pad_rows(prompts, -(-longest // 16) * 16))
    return put(padded, by_prompt(opened.mesh))
