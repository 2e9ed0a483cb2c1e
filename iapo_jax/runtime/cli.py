"""The command line that train and sft share: --config FILE, flags, key=value overrides, --help."""

import argparse
import dataclasses
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from iapo_jax.config.loading import Config, load_config, to_yaml
from iapo_jax.errors import FAILED, MISTAKE, STOPPED, RunError, UserError
from iapo_jax.runtime.interruption import Stopped

_FLAGS = {
    "print_config": "print the resolved config and stop",
    "dry_run": "build everything, compile, print the memory, and stop",
}


def describe(schema: type) -> str:
    """Every field with its default and meaning, one a line, by section."""
    lines, sections = [], []
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(field.default_factory):
            sections.append((field.name, field.default_factory))
        else:
            lines.append(_describe_field(field, ""))
    for name, section in sections:
        lines.append(f"\n{name}: {section.__doc__}")
        lines += [_describe_field(field, f"{name}.") for field in dataclasses.fields(section)]
    return "\n".join(lines)


def _describe_field(field: dataclasses.Field, prefix: str) -> str:
    has_factory = field.default_factory is not dataclasses.MISSING
    default = field.default_factory() if has_factory else field.default
    head = f"  {prefix}{field.name} = {default!r}"
    return f"{head:<44} {field.metadata['help']}"


def run_cli(
    schema: type[Config],
    main: Callable[[Config, argparse.Namespace], Any],
    *,
    prog: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Parses `--config FILE [--flag ...] [key=value ...]`, loads the config and calls `main`.

    Returns the exit code, as `exit_code`.
    """
    doc = textwrap.dedent(schema.__doc__ or "")
    parser = argparse.ArgumentParser(
        prog=f"python -m {prog}",
        description=doc,
        epilog=f"fields of the config file, and of key=value:\n{describe(schema)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML; only what differs from the defaults"
    )
    for name, help in _FLAGS.items():
        parser.add_argument(f"--{name}", action="store_true", help=help)
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="as --dry_run, for TPU chips that are not here, such as v5e:2x4 (needs libtpu)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override single fields")
    arguments = parser.parse_args(argv)

    def run() -> None:
        if arguments.config is None and not arguments.overrides:
            raise UserError(f"nothing to do: expected --config FILE (python -m {prog} --help)")
        config = load_config(schema, arguments.config, arguments.overrides)
        if arguments.print_config:
            print(to_yaml(config), end="")
        else:
            main(config, arguments)

    return exit_code(run)


def exit_code(run: Callable[[], Any]) -> int:
    """Calls `run` and tells how it ended (`errors`), after a sentence where it is not 0."""
    try:
        run()
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE if isinstance(error, UserError) else FAILED
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:  # where nobody listens: before a run, or in a short command
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0
