"""Measures the information of each token: `python -m iapo_jax.inspect --model DIR ...`.

Samples completions or takes given ones, makes the model answer after every prefix, and shows the
uncertainty about the answer in the terminal, and optionally as JSON and as an HTML page.
"""

import argparse
import dataclasses
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from iapo_jax.config.checks import check_config, check_writable
from iapo_jax.config.loading import load_config
from iapo_jax.config.train import TrainConfig
from iapo_jax.data import loading, prompts
from iapo_jax.errors import UserError
from iapo_jax.information import probes, terminal
from iapo_jax.information.html import render_page
from iapo_jax.information.inspection import Inspection, to_json
from iapo_jax.information.inspection_inputs import check_answer, check_text
from iapo_jax.information.probed_completions import (
    inspect_completions,
    open_model,
    sample_completions,
)
from iapo_jax.pretrained.loaded_model import LoadedModel
from iapo_jax.runtime import cli
from iapo_jax.runtime.console import say
from iapo_jax.runtime.files import write_atomically, write_json, writing

__all__ = [
    "Inspection",
    "inspect_completions",
    "main",
    "open_model",
    "render_page",
    "sample_completions",
]

_EPILOG = """\
key=value sets any field of a training config, and --config FILE reads one. For example:
  information.postfix=$'</think>\\n<answer>'   information.reference=own   seed=1
  sampling.temperature=0.7   sampling.max_completion_length=512   model.dtype=bfloat16
  prompt.system=r1   prompt.instruction='...'   (with --chat)
Texts are taken literally; in bash $'...' writes a line break as \\n. To pass a text that starts
with "-", write --prompt=-5+3. Uncertainties are in nats.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m iapo_jax.inspect",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--config",
        metavar="FILE",
        help="a training config; its model, prompt (or that of its dataset), information, sampling "
        "and seed are used",
    )
    add("--model", metavar="DIR", help="Hugging Face directory or hub name")
    add("--prompt", metavar="TEXT", help="text that the model reads; with --chat, the question")
    add("--chat", action="store_true", help="use the chat template and the config's prompt")
    source = parser.add_mutually_exclusive_group()
    given = "completion to inspect; can be repeated"
    source.add_argument("--completion", metavar="TEXT", action="append", help=given)
    source.add_argument("--sample", metavar="N", type=int, help="draw N completions; default: 1")
    add("--answer", metavar="TEXT", help="the reference answer")
    add(
        "--estimator",
        metavar="NAME",
        help=f"{', '.join(probes.ESTIMATORS)}; default: answer_entropy",
    )
    add(
        "--json",
        metavar="FILE",
        type=Path,
        help="write a JSON file with an object for each completion",
    )
    add("--html", metavar="FILE", type=Path, help="write a self-contained HTML page")
    add("overrides", nargs="*", metavar="key=value", help="override a field")
    return parser.parse_intermixed_args(argv)


def inspect(arguments: argparse.Namespace) -> list[Inspection]:
    """Probes the given completions, or samples some and probes them.

    Raises:
      UserError: one sentence for the first mistake, before weights are read where possible.
    """
    config = _config(arguments)
    _check_arguments(arguments)
    probes.check_section(config.information)
    check_answer(config.information, arguments.answer, "--answer")
    loaded = open_model(config.model)
    prompt = _prompt(arguments, config, loaded)
    information, sampling = dataclasses.asdict(config.information), config.sampling
    completions = arguments.completion
    if completions is None:
        completions = sample_completions(
            loaded,
            prompt,
            arguments.sample or 1,
            max_length=sampling.max_completion_length,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=config.seed,
            **information,
        )
    return inspect_completions(
        loaded,
        prompt,
        completions,
        answer=arguments.answer,
        temperature=sampling.temperature,
        **information,
    )


def _check_arguments(arguments: argparse.Namespace) -> None:
    if arguments.prompt is None:
        raise UserError("--prompt is missing; expected the text that the model reads")
    if not arguments.prompt:
        raise UserError("--prompt is empty; expected a non-empty string")
    for name in ("prompt", "completion", "answer"):
        given = getattr(arguments, name) or []
        for text in [given] if isinstance(given, str) else given:
            check_text(text, f"--{name}")
    if arguments.sample is not None and arguments.sample < 1:
        raise UserError(f"--sample is {arguments.sample}; expected at least 1")
    for field, path in (("--json", arguments.json), ("--html", arguments.html)):
        if path is not None:
            check_writable(path.parent, f"the directory of {field}")
            if path.is_dir():
                raise UserError(f"{field} is {str(path)!r}, a directory; expected a file")
    if arguments.json and arguments.html and arguments.json.resolve() == arguments.html.resolve():
        raise UserError(f"--json and --html are both {str(arguments.json)!r}; expected two files")


def _prompt(
    arguments: argparse.Namespace, config: TrainConfig, loaded: LoadedModel
) -> str | prompts.Prompt:
    """The text of --prompt, or with --chat what the template makes of it."""
    if not arguments.chat:
        return arguments.prompt
    tokenizer = loaded.pretrained.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        name = config.model.tokenizer or config.model.path
        raise UserError(f"--chat needs a chat template, but the tokenizer of {name} has none")
    section = prompts.resolve_prompt(config.prompt, loading.own_prompt(config.data))
    return prompts.encode_prompt(tokenizer, arguments.prompt, section, "--prompt")


def _config(arguments: argparse.Namespace) -> TrainConfig:
    config = load_config(TrainConfig, arguments.config, arguments.overrides)
    model, section = config.model, config.information
    if arguments.model is not None:
        model = dataclasses.replace(model, path=arguments.model, config=None)
    if arguments.estimator is not None:
        section = dataclasses.replace(section, estimator=arguments.estimator)
    if not model.path and not model.config:
        raise UserError("--model is missing; expected a Hugging Face directory or a hub name")
    check_config(config, writes=False)
    return dataclasses.replace(config, model=model, information=section)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code (`errors`)."""
    arguments = parse(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack a character
        sys.stdout.reconfigure(errors="backslashreplace")

    def run() -> None:
        inspections = inspect(arguments)
        objects, page = [to_json(one) for one in inspections], render_page(inspections)
        mistakes = _written(arguments.json, "--json", lambda path: write_json(path, objects))
        mistakes += _written(arguments.html, "--html", lambda path: write_atomically(path, page))
        # Shown even if a file cannot be written, and last, because the reader of the pipe may have
        # closed it.
        terminal.show(inspections)
        if mistakes:
            raise UserError("; ".join(mistakes))

    return cli.exit_code(run)


def _written(path: Path | None, field: str, write: Callable[[Path], None]) -> list[str]:
    """Writes a file if it has a path; returns the error message, if any, in a list."""
    if path is None:
        return []
    try:
        with writing(f"{field} {str(path)!r}", UserError):
            write(path)
    except UserError as error:
        return [str(error)]
    say(f"wrote {path}")
    return []


if __name__ == "__main__":
    raise SystemExit(main())
