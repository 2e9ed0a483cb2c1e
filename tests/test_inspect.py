"""The command that shows what each token tells: its figures, its files, its sentences."""

import io
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xla_flags
from before_jax import DEVICES
from conftest import plain_logits

from iapo_jax import inspect
from iapo_jax.errors import UserError
from iapo_jax.inspect import inspect_completions, open_model, sample_completions

POSTFIX = "</think><answer>"
TEXT = "12+30=42. check 12+30=42. </think><answer>42</answer>"
FIELDS = {
    *("prompt_ids", "completion_ids", "postfix_ids", "tokens"),
    *("uncertainty", "informativeness", "entropy", "log_prob"),
}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """The command takes all devices; most of these tests are of words and files, and the cache
    keeps no programs of several devices."""
    first = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: first)
        yield


@pytest.fixture(scope="module")
def directory(root):
    return str(root / "experiments" / "arithmetic" / "model")


@pytest.fixture(scope="module")
def opened(directory):
    return open_model(directory)


@pytest.fixture(scope="module")
def prompt(opened):
    chat = [{"role": "user", "content": "12+30"}]
    tokenizer = opened.pretrained.tokenizer
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)


@pytest.fixture(scope="module")
def seen(opened, prompt):
    """A text with an end of thinking, one without, and none at all, side by side."""
    texts = [TEXT, "12+30=", ""]
    return inspect_completions(opened, prompt, texts, answer="42", postfix=POSTFIX)


def log_softmax(opened, rows):
    """Log-probabilities behind every token of whole texts, one plain forward; float64."""
    tokens = np.zeros((64, 128), np.int32)  # one program for all
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
    logits = np.float64(np.asarray(plain_logits(opened.model, opened.params, tokens)))
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def test_uncertainty_is_a_full_forward_of_every_prefix(opened, seen):
    """prompt_ids + completion_ids[:t] + postfix_ids, its next token's entropy; T + 1 of them."""
    for one in seen:
        rows = [
            one.prompt_ids + one.completion_ids[:t] + one.postfix_ids
            for t in range(len(one.tokens) + 1)
        ]
        log_p = log_softmax(opened, rows)
        last = log_p[np.arange(len(rows)), [len(row) - 1 for row in rows]]
        want = -(np.exp(last) * last).sum(-1)
        assert len(one.uncertainty) == len(rows)
        np.testing.assert_allclose(one.uncertainty, want, atol=1e-4)


@pytest.mark.nightly
def test_devices_change_nothing(directory, prompt, seen, monkeypatch):
    """The command takes all that it finds."""
    monkeypatch.setattr(jax, "devices", jax.local_devices)
    opened = open_model(directory)
    assert opened.mesh.size == opened.mesh.shape["tensor"] == DEVICES
    found = inspect_completions(opened, prompt, [TEXT, "12+30=", ""], answer="42", postfix=POSTFIX)
    for one, other in zip(found, seen, strict=True):
        for name in ("uncertainty", "informativeness", "entropy", "log_prob"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-4)
        assert one.tokens == other.tokens and one.extracted == other.extracted


def test_scores_are_those_of_the_policy(opened, seen):
    one = seen[0]
    log_p = log_softmax(opened, [one.prompt_ids + one.completion_ids])[0]
    before = log_p[len(one.prompt_ids) - 1 :][: len(one.tokens)]
    np.testing.assert_allclose(
        one.log_prob, before[np.arange(len(one.tokens)), one.completion_ids], atol=1e-4
    )
    np.testing.assert_allclose(one.entropy, -(np.exp(before) * before).sum(-1), atol=1e-4)


def test_informativeness_is_thinking_alone(seen):
    one = seen[0]
    end = one.tokens.index("</think>")
    assert one.thinking_length == end
    assert one.informativeness[end:] == [0.0] * (len(one.tokens) - end)
    total = one.uncertainty[0] - one.uncertainty[end]
    assert abs(sum(one.informativeness) - total) < 1e-6
    assert one.correct is True and one.extracted == "42" and "".join(one.tokens) == TEXT


def test_without_an_end_all_tokens_think(seen):
    one = seen[1]
    assert one.thinking_length == len(one.tokens) > 0
    assert one.correct is False and one.extracted is None
    total = one.uncertainty[0] - one.uncertainty[-1]
    assert abs(sum(one.informativeness) - total) < 1e-6


def test_an_empty_completion_has_the_uncertainty_of_the_prompt(seen):
    one = seen[2]
    assert one.tokens == one.informativeness == one.entropy == one.log_prob == []
    np.testing.assert_allclose(one.uncertainty, seen[0].uncertainty[:1], atol=1e-6)


def test_the_reference_answer_is_teacher_forced(opened, prompt):
    """-log p of 42 and its closing tag behind every prefix, by plain forwards."""
    options = dict(answer="42", estimator="answer_log_prob", postfix=POSTFIX)
    (one,) = inspect_completions(opened, prompt, [TEXT], **options, max_answer_length=4)
    answer = opened.pretrained.tokenizer.encode("42</answer>", add_special_tokens=False)
    assert one.answer_ids == [answer] and one.answer_meanings == [0]
    for t in (0, 5, len(one.tokens)):
        row = one.prompt_ids + one.completion_ids[:t] + one.postfix_ids + answer
        log_p = log_softmax(opened, [row])[0]
        at = np.arange(len(row) - len(answer), len(row))
        assert abs(one.uncertainty[t] + log_p[at - 1, answer].sum()) < 1e-4


def test_completions_of_one_group_are_the_set(opened, prompt):
    """With completions that answer differently there is uncertainty; with one correct one, none."""
    other = TEXT.replace("<answer>42", "<answer>43")
    options = dict(answer="42", estimator="answer_set_entropy", postfix=POSTFIX)
    options |= {"max_answer_length": 4}  # fewer widths to compile
    both = inspect_completions(opened, prompt, [TEXT, other], **options)
    assert 0 < both[0].uncertainty[0] <= np.log(2) + 1e-6
    assert both[0].answer_ids == both[1].answer_ids and both[0].answer_meanings == [0, 1]
    prefix = both[0].prompt_ids + both[0].completion_ids[:9] + both[0].postfix_ids
    totals = []
    for ids in both[0].answer_ids:
        log_p = log_softmax(opened, [prefix + ids])[0]
        at = np.arange(len(prefix), len(prefix) + len(ids))
        totals.append(log_p[at - 1, ids].sum())
    q = np.exp(totals) / np.exp(totals).sum()
    assert abs(both[0].uncertainty[9] + (q * np.log(q)).sum()) < 1e-4
    (alone,) = inspect_completions(opened, prompt, [TEXT], **options)
    assert max(map(abs, alone.uncertainty)) < 1e-6


def test_what_is_asked_is_said(opened, prompt, capsys):
    """Also that a reference answer exceeds the limit, since its value would mislead."""
    options = dict(answer="123456", estimator="answer_log_prob", postfix=POSTFIX)
    (one,) = inspect_completions(opened, prompt, [TEXT], **options)
    said = capsys.readouterr().out
    assert (
        "answer_log_prob of the gold answer after every token; exit postfix '</think><answer>'"
        in said
    )
    assert "answers of up to 32 tokens" in said and "reference answer" not in said
    (cut,) = inspect_completions(opened, prompt, [TEXT], **options, max_answer_length=4)
    assert cut.answer_ids == [one.answer_ids[0][:4]]
    assert "1 reference answer is longer than this and truncated" in capsys.readouterr().out


def test_samples_are_those_of_the_seed(opened, prompt):
    def draw(seed):
        return sample_completions(opened, prompt, 2, max_length=64, seed=seed)

    first = draw(0)
    assert first == draw(0) != draw(1)
    stops = opened.pretrained.stop_ids
    assert all(len(row) == 64 or (0 < len(row) < 64 and row[-1] in stops) for row in first)


def test_the_command_writes_what_it_shows(directory, tmp_path, capsys):
    json_path, html_path = tmp_path / "new" / "seen.json", tmp_path / "seen.html"
    code = inspect.main(
        [
            *("--model", directory, "--chat", "--prompt", "12+30", "--completion", TEXT),
            *("--answer", "42", "--json", str(json_path), "--html", str(html_path)),
            f"information.postfix={POSTFIX}",
        ]
    )
    shown = capsys.readouterr().out
    assert code == 0 and "answer 42 (correct)" in shown and f"wrote {html_path}" in shown

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    (one,) = json.loads(json_path.read_text(), parse_constant=refuse)
    assert set(one) >= FIELDS
    count = len(one["completion_ids"])
    assert len(one["uncertainty"]) == count + 1
    assert {len(one[name]) for name in FIELDS - {"uncertainty", "prompt_ids", "postfix_ids"}} == {
        count
    }
    assert html_path.read_text().startswith("<!DOCTYPE html>")


def test_the_command_samples(directory, capsys):
    arguments = ["--model", directory, "--chat", "--prompt", "12+30", "--sample", "2"]
    arguments += ["sampling.max_completion_length=64", f"information.postfix={POSTFIX}"]
    assert inspect.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "sampling 2 completions" in shown and "completion 2 of 2" in shown


MISTAKES = {
    "no model": ([], "--model is missing"),
    "no prompt": (["--model", "DIR"], "--prompt is missing"),
    "empty prompt": (["--model", "DIR", "--prompt", ""], "--prompt is empty"),
    "empty question": (["--model", "DIR", "--chat", "--prompt", ""], "--prompt is empty"),
    "no such model": (["--model", "/nowhere", "--prompt", "1"], "'/nowhere' does not exist"),
    "no sample": (["--model", "DIR", "--prompt", "1", "--sample", "0"], "--sample is 0; expected"),
    "empty answer": (["--model", "DIR", "--prompt", "1", "--answer", " "], "--answer is empty"),
    "unknown estimator": (
        ["--model", "DIR", "--prompt", "1", "--estimator", "entropy"],
        "information.estimator is 'entropy'; expected one of answer_entropy, answer_log_prob",
    ),
    "no reference": (
        ["--model", "DIR", "--prompt", "1", "--estimator", "answer_log_prob"],
        "answer_log_prob needs a reference answer; expected --answer, or",
    ),
    "too long": (
        ["--model", "DIR", "--prompt", "1+" * 3000, "--completion", "2"],
        "expected at most .*, the context length of the model",
    ),
    "too long to sample": (
        ["--model", "DIR", "--prompt", "1+" * 3000, "--sample", "1"],
        "expected at most .*, the context length of the model",
    ),
    "no text": (["--model", "DIR", "--prompt", "1\udcff"], "--prompt is .*expected UTF-8 text"),
    "no texts": (
        ["--model", "DIR", "--prompt", "1", "--completion", "2", "--completion", "\udcff"],
        "--completion is .*expected UTF-8 text",
    ),
    "misspelt": (["--model", "DIR", "--prompt", "1", "informaton.postfix=x"], "did you mean inf"),
    "a directory": (["--model", "DIR", "--prompt", "1", "--json", "/tmp"], "'/tmp', a directory"),
    "one file twice": (
        ["--model", "DIR", "--prompt", "1", "--json", "/tmp/x", "--html", "/tmp/../tmp/x"],
        "--json and --html are both '/tmp/x'; expected two files",
    ),
    "no end": (
        ["--model", "DIR", "--prompt", "1", "information.end_of_thinking=['']"],
        "information.end_of_thinking contains an empty string",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name, directory, capsys):
    arguments, sentence = MISTAKES[name]
    arguments = [directory if word == "DIR" else word for word in arguments]
    assert inspect.main(arguments) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ")
    assert re.search(sentence, errors[0]), errors[0]


def test_a_model_without_a_tokenizer_is_said(directory, tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(f"{directory}/{name}", tmp_path)
    assert inspect.main(["--model", str(tmp_path), "--prompt", "1"]) == 2
    assert "tokenizer" in capsys.readouterr().err


def test_completion_and_sample_exclude_each_other(directory):
    with pytest.raises(SystemExit):
        inspect.parse(["--model", directory, "--completion", "1", "--sample", "2"])


@pytest.mark.parametrize(
    "completions, options, sentence",
    [
        ([], {}, "completions is empty"),
        ("12+30=42", {}, "completions is the string '12\\+30=42'; expected a list"),
        ([[1, 99999]], {}, "completion 1 contains the id 99999; expected ids from 0 to 63"),
        (["1", [-1]], {}, "completion 2 contains the id -1; expected ids from 0 to"),
        ([[0.5]], {}, r"completion 1 is \[0.5\]; expected a string or a list of token ids"),
        (["\udcff"], {}, "completion 1 is .*expected UTF-8 text"),
        (
            ["1"],
            {"estimater": "answer_entropy"},
            "information.estimater is not a field; expected one of",
        ),
        (
            ["1"],
            {"max_answer_length": 0},
            "information.max_answer_length is 0; expected at least 1",
        ),
        (["1" * 300], {}, r"prompt \(8 tokens\), the completion \(at least 300\) .* \(up to 2; "),
        (["1"], {"answer": 42}, "the answer is 42; expected a string"),
        (["1"], {"answer": " "}, "the answer is empty"),
        (["1"], {"estimator": "answer_log_prob"}, "expected the answer, or information.reference"),
        (["1"], {"temperature": 0.0}, "sampling.temperature is 0.0; expected more than 0"),
        (["1"], {"end_of_thinking": "<answer>"}, "end_of_thinking is '<answer>'; expected a list"),
        (["1"], {"boundaries": "."}, "information.boundaries is '.'; expected a list of strings"),
    ],
)
def test_a_mistake_in_python_is_one_sentence_too(opened, prompt, completions, options, sentence):
    with pytest.raises(UserError, match=sentence):
        inspect_completions(opened, prompt, completions, postfix=POSTFIX, **options)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"count": 0}, "count is 0; expected at least 1"),
        ({"max_length": 0}, "sampling.max_completion_length is 0; expected at least 1"),
        ({"temperature": 0.0}, "sampling.temperature is 0.0; expected more than 0"),
        ({"top_p": 0.0}, "sampling.top_p is 0.0; expected more than 0"),
        ({"prompt": None}, "the prompt is None; expected a string"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "1" * 300}, r"prompt \(300 tokens\), the completion \(at least 1\) and"),
    ],
)
def test_a_mistake_in_sampling_is_one_sentence(opened, options, sentence):
    arguments = {"prompt": "1+1=", "count": 1} | options
    with pytest.raises(UserError, match=sentence):
        sample_completions(opened, arguments.pop("prompt"), arguments.pop("count"), **arguments)


@pytest.mark.parametrize("estimator, room", [("answer_entropy", 0), ("answer_set_entropy", 31)])
def test_samples_leave_room_for_what_will_be_asked_and_no_more(opened, estimator, room):
    """The longest prompt that fits beside one token, the postfix and the longest answer."""
    limit = opened.pretrained.hf_config["max_position_embeddings"]
    options = dict(estimator=estimator, postfix=POSTFIX)
    longest = limit - 1 - 2 - room
    rows = sample_completions(opened, "1" * longest, 1, **options)
    assert len(rows[0]) == 1
    (one,) = inspect_completions(opened, "1" * longest, rows, answer="1", **options)
    assert len(one.prompt_ids) == longest
    with pytest.raises(UserError, match="expected at most"):
        sample_completions(opened, "1" * (longest + 1), 1, **options)


def test_temperature_is_that_of_the_policy_and_not_of_the_probe(opened, prompt, seen):
    (one,) = inspect_completions(opened, prompt, [TEXT], postfix=POSTFIX, temperature=2.0)
    row = one.prompt_ids + one.completion_ids
    log_p = log_softmax(opened, [row])[0] / 2
    log_p -= np.logaddexp.reduce(log_p, axis=-1, keepdims=True)
    at = np.arange(len(one.prompt_ids), len(row))
    np.testing.assert_allclose(one.log_prob, log_p[at - 1, one.completion_ids], atol=1e-4)
    entropy = -(np.exp(log_p) * log_p).sum(-1)[at - 1]
    np.testing.assert_allclose(one.entropy, entropy, atol=1e-4)
    np.testing.assert_allclose(one.uncertainty, seen[0].uncertainty, atol=1e-5)


def test_behind_the_first_stop_token_nothing_thinks(opened, prompt):
    stop = opened.pretrained.stop_ids[0]
    (one,) = inspect_completions(opened, prompt, [[10, 11, stop, 12, stop]], postfix=POSTFIX)
    assert one.thinking_length == 2 and not any(one.informativeness[2:])


def test_known_answers_are_counted_once_and_where_they_are_asked(opened, prompt, capsys):
    options = dict(postfix=POSTFIX, max_answer_length=1, answer="42")
    inspect_completions(opened, prompt, [TEXT, TEXT], estimator="answer_log_prob", **options)
    assert "1 reference answer is longer than this and truncated" in capsys.readouterr().out
    inspect_completions(opened, prompt, [TEXT, TEXT], estimator="answer_set_entropy", **options)
    assert "1 reference answer is longer than this and truncated" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_costs_no_view(directory, tmp_path, capsys, monkeypatch):
    """Whatever the disk says after the model has run."""

    def full(path, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    arguments = ["--model", directory, "--chat", "--prompt", "12+30", "--completion", TEXT]
    arguments += ["--json", str(tmp_path / "seen.json"), f"information.postfix={POSTFIX}"]
    assert inspect.main(arguments) == 2
    told = capsys.readouterr()
    assert "information in the thinking" in told.out
    assert re.fullmatch("error: --json .* cannot be written: .*No space left.*", told.err.strip())


def test_an_interrupt_has_its_exit_code_and_no_traceback(directory, capsys, monkeypatch):
    def interrupt(model):
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "open_model", interrupt)
    assert inspect.main(["--model", directory, "--prompt", "1+1"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_broken_weights_are_said(opened, prompt):
    broken = opened._replace(params=jax.tree.map(lambda x: x * jnp.nan, opened.params))
    with pytest.raises(
        UserError, match="computes log_prob values that are not finite; its weights may be damaged"
    ):
        inspect_completions(broken, prompt, ["1"], postfix=POSTFIX)


def test_characters_without_tokens_are_said(opened, prompt, capsys):
    options = dict(postfix=POSTFIX, answer="é42", estimator="answer_log_prob")
    (one,) = inspect_completions(opened, prompt, [TEXT + "\x00"], **options)
    said = capsys.readouterr().out
    assert "note: completion 1 does not survive tokenization: '12+30=42." in said
    assert "note: the answer does not survive tokenization: 'é42' becomes '42'" in said
    assert "note: the prompt" not in said and one.prompt == prompt


def test_every_prefix_is_probed_whatever_training_does(opened, prompt, seen, capsys):
    """A training config may probe some only."""
    (one,) = inspect_completions(opened, prompt, [TEXT], postfix=POSTFIX, stride=4, answer="42")
    np.testing.assert_allclose(one.uncertainty, seen[0].uncertainty, atol=1e-5)
    assert "are ignored here: every prefix is probed" in capsys.readouterr().out


def options(path):
    """A command line that writes one view: overrides on both sides of the options."""
    return [
        *("--chat", "--prompt", "12+30", f"information.postfix={POSTFIX}"),
        *("--completion", TEXT, f"--{path.suffix[1:]}", str(path)),
        "information.max_answer_length=4",
    ]


def test_a_terminal_that_lacks_characters_loses_nothing(directory, tmp_path, monkeypatch):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    link.symlink_to(target)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert inspect.main(["--model", directory, *options(link)]) == 0
    terminal.flush()
    out = terminal.buffer.getvalue()
    assert b"information in the thinking" in out and b"\\u" in out  # in place of bars
    assert link.is_symlink() and len(json.loads(target.read_text())) == 1


def test_a_closed_pipe_loses_nothing(directory, tmp_path, monkeypatch):
    """As behind `| head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert inspect.main(["--model", directory, *options(tmp_path / "seen.json")]) == 0
    assert len(json.loads((tmp_path / "seen.json").read_text())) == 1


@pytest.mark.nightly
def test_nobody_reading_loses_nothing(directory, tmp_path):
    """The same for a process, which also flushes at its end."""
    command = [sys.executable, "-m", "iapo_jax.inspect", "--model", directory]
    process = subprocess.Popen(
        [*command, *options(tmp_path / "seen.html")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags.QUICK},
    )
    process.stdout.close()
    err = process.stderr.read()
    process.wait(timeout=120)
    process.stderr.close()
    assert b"Traceback" not in err and (tmp_path / "seen.html").is_file()
