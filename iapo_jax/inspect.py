"""What each token tells about the answer: `python -m iapo_jax.inspect --model DIR --prompt TEXT`.

Samples completions or takes given ones, asks for the answer after every prefix, and shows them in
the terminal, as JSON and as one HTML page.
"""

import argparse
import dataclasses
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from iapo_jax.config.checks import check_config, check_writable
from iapo_jax.config.loading import load_config
from iapo_jax.config.train import TrainConfig
from iapo_jax.data import loading, prompts
from iapo_jax.errors import UserError
from iapo_jax.information import probes, terminal
from iapo_jax.information.completions import (
    check_answer,
    check_text,
    inspect_completions,
    open_model,
    sample_completions,
)
from iapo_jax.information.html import render_page
from iapo_jax.information.inspection import Inspection, to_json
from iapo_jax.runtime.console import say
from iapo_jax.runtime.files import write_atomically, write_json, writing

_EPILOG = """\
key=value sets any field of a training config, and --config FILE reads one, such as:
  information.postfix=$'</think>\\n<answer>'   information.reference=own   seed=1
  sampling.temperature=0.7   sampling.max_completion_length=512   model.dtype=bfloat16
  prompt.system=r1   prompt.instruction='...'   (with --chat)
Texts are taken as they stand; in bash $'...' writes a new line as \\n. A text that begins with -
is given as --prompt=-5+3. Uncertainty is in nats.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line as it is."""
    parser = argparse.ArgumentParser(
        prog="python -m iapo_jax.inspect",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="a training config: model, prompt, information, sampling")
    add("--model", metavar="DIR", help="Hugging Face directory or hub name")
    add("--prompt", metavar="TEXT", help="what the model reads; with --chat the question")
    add("--chat", action="store_true", help="the model's chat template and the config's prompt")
    one = parser.add_mutually_exclusive_group()
    one.add_argument(
        "--completion", metavar="TEXT", action="append", help="to look at; may come several times"
    )
    one.add_argument("--sample", metavar="N", type=int, help="draw N completions; default: 1")
    add("--answer", metavar="TEXT", help="the gold answer")
    add("--estimator", metavar="NAME", help=f"{', '.join(probes.ESTIMATORS)}; default: the first")
    add("--json", metavar="FILE", type=Path, help="write one object for each completion")
    add("--html", metavar="FILE", type=Path, help="write one self-contained page")
    add("overrides", nargs="*", metavar="key=value", help="fields of the config")
    return parser.parse_intermixed_args(argv)


def inspect(arguments: argparse.Namespace) -> list[Inspection]:
    """Everything between the command line and its output.

    Raises:
      UserError: one sentence for the first thing that is wrong, as soon as it can be known.
    """
    config = _config(arguments)
    section = config.information
    if arguments.prompt is None:
        raise UserError("--prompt is missing: expected the text that the model reads")
    for name in ("prompt", "completion", "answer"):
        given = getattr(arguments, name) or []
        for text in [given] if isinstance(given, str) else given:
            check_text(text, f"--{name}")
    if arguments.sample is not None and arguments.sample < 1:
        raise UserError(f"--sample is {arguments.sample}; expected at least 1")
    probes.check_section(section)
    if not arguments.prompt:
        raise UserError("--prompt is empty: expected a text")
    check_answer(section, arguments.answer, "--answer")
    for field, path in (("--json", arguments.json), ("--html", arguments.html)):
        if path is not None:
            check_writable(path.parent, f"the directory of {field}")
            if path.is_dir():
                raise UserError(f"{field} is {str(path)!r}, a directory; expected a file")
    if arguments.json and arguments.html and arguments.json.resolve() == arguments.html.resolve():
        raise UserError(f"--json and --html are both {str(arguments.json)!r}; expected two files")
    opened = open_model(config.model)
    tokenizer, prompt = opened.pretrained.tokenizer, arguments.prompt
    if arguments.chat:
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(f"--chat: the tokenizer of {config.model.path} has no chat template")
        told = prompts.resolve_prompt(config.prompt, loading.own_prompt(config.data))
        prompt = prompts.encode_prompt(tokenizer, prompt, told, "--prompt")
    completions, asked = arguments.completion, dataclasses.asdict(section)
    if completions is None:
        count, sampling = arguments.sample or 1, config.sampling
        completions = sample_completions(
            opened,
            prompt,
            count,
            max_length=sampling.max_completion_length,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=config.seed,
            **asked,
        )
    return inspect_completions(
        opened,
        prompt,
        completions,
        answer=arguments.answer,
        temperature=config.sampling.temperature,
        **asked,
    )


def _config(arguments: argparse.Namespace) -> TrainConfig:
    config = load_config(TrainConfig, arguments.config, arguments.overrides)
    model, section = config.model, config.information
    if arguments.model is not None:
        model = dataclasses.replace(model, path=arguments.model, config=None)
    if arguments.estimator is not None:
        section = dataclasses.replace(section, estimator=arguments.estimator)
    if not model.path and not model.config:
        raise UserError("--model is missing: expected a Hugging Face directory or a hub name")
    check_config(config, writes=False)
    return dataclasses.replace(config, model=model, information=section)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit code is 0, or 2 after a mistake in it."""
    arguments = parse(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        found = inspect(arguments)
    except UserError as error:
        return _complain(error)
    code = 0
    try:
        if arguments.json is not None:
            with writing(f"--json {str(arguments.json)!r}", UserError):
                write_json(arguments.json, [to_json(one) for one in found])
            say(f"wrote {arguments.json}")
    except UserError as error:  # what was computed is shown all the same
        code = _complain(error)
    try:
        if arguments.html is not None:
            with writing(f"--html {str(arguments.html)!r}", UserError):
                write_atomically(arguments.html, render_page(found))
            say(f"wrote {arguments.html}")
    except UserError as error:
        code = _complain(error)
    terminal.show(found)  # last: nobody may be reading
    return code


def _complain(error: UserError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
