"""The command line of train and sft, and what other commands use too: field help, exit codes."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from iapo_jax.config.loading import Config, load_config, to_yaml
from iapo_jax.config.reference import describe, summary
from iapo_jax.errors import FAILED, MISTAKE, STOPPED, RunError, UserError
from iapo_jax.runtime.interruption import Stopped

_FLAGS = {
    "print_config": "print the resolved config and exit",
    "dry_run": "check everything, compile a step, print the memory that it needs, and exit",
}


def add_field_help(parser: argparse.ArgumentParser, schema: type, title: str) -> None:
    """Lists the config's ordinary fields in --help, and all fields in --help-all."""
    more = "\n\n--help-all also lists the advanced fields; docs/configuration.md has all fields"

    class HelpAll(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
            parser.epilog = f"{title}\n{describe(schema)}"
            parser.print_help()
            parser.exit()

    parser.epilog = f"{title}\n{describe(schema, advanced=False)}{more}"
    parser.add_argument("--help-all", action=HelpAll, nargs=0, help="also list the advanced fields")


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
    parser = argparse.ArgumentParser(
        prog=f"python -m {prog}",
        description=summary(schema),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_field_help(parser, schema, "fields of the config file, and of key=value:")
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with the fields that differ from the defaults"
    )
    for name, help in _FLAGS.items():
        parser.add_argument(f"--{name}", action="store_true", help=help)
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="as --dry_run, for a TPU topology such as v5e:2x4; needs libtpu, but no TPU",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a field")
    arguments = parser.parse_args(argv)

    def run() -> None:
        if arguments.config is None and not arguments.overrides:
            raise UserError(
                f"nothing to do; expected --config FILE or key=value (see python -m {prog} --help)"
            )
        config = load_config(schema, arguments.config, arguments.overrides)
        if arguments.print_config:
            print(to_yaml(config), end="")
        else:
            main(config, arguments)

    return exit_code(run)


def exit_code(run: Callable[[], Any]) -> int:
    """Calls `run` and returns the exit code (`errors`); if it is not 0, prints one sentence."""
    try:
        run()
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE if isinstance(error, UserError) else FAILED
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:  # outside of `handling_signals`
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0
