"""The reference of all fields: the text of --help, and docs/configuration.md."""

import inspect
import json
from collections.abc import Iterator

from iapo_jax.config.evaluate import EvaluateConfig
from iapo_jax.config.fields import Leaf, leaves, own_leaves, sections
from iapo_jax.config.sft import SftConfig
from iapo_jax.config.train import TrainConfig

_HEAD = """\
# Configuration

This page is generated from the fields: `python -m iapo_jax.config > docs/configuration.md`.

A config file is YAML and holds only what differs from the defaults; `section.field=value` on the
command line overrides it. `--print_config` prints the resolved config. `--help` lists the common
fields of a command, and `--help-all` also the advanced ones, which are marked *advanced* here.
Every range is checked before a model is loaded.
"""

_COMMANDS = {
    "train": (TrainConfig, "A step is one rollout and all optimizer updates made from it."),
    "sft": (SftConfig, "A step is one optimizer update."),
    "evaluate": (
        EvaluateConfig,
        "Some of these fields have a command-line flag of their own, which --help lists. Leave "
        "`model.path` and `model.config` empty: the models are given by `models`.",
    ),
}

_ALIASES = """\
## TRL and transformers field names

Fields are grouped into sections here, and some are renamed. If a config uses a TRL name that does
not exist here, the error message gives the name to use. `max_steps` and `save_steps` exist here
with a different meaning.

| TRL, transformers | here | difference here |
|---|---|---|
"""


def describe(schema: type, *, advanced: bool = True) -> str:
    """Every field with its default and meaning, one per line, by section.

    Args:
      advanced: include the advanced fields.
    """
    lines = [_line(leaf) for leaf in own_leaves(schema) if advanced or not leaf.advanced]
    for name, section in sections(schema):
        inside = [x for x in own_leaves(section, f"{name}.") if advanced or not x.advanced]
        if inside:
            lines.append(f"\n{name}: {summary(section)}")
            lines += map(_line, inside)
    return "\n".join(lines)


def summary(section: type) -> str:
    """The docstring of a config or a section as one paragraph."""
    return " ".join(inspect.getdoc(section).split())


def _line(leaf: Leaf) -> str:
    head = f"  {leaf.name} = {_yaml(leaf.default)}"
    return f"{head:<44} {leaf.help}"


def to_markdown() -> str:
    """The text of docs/configuration.md."""
    parts = [_HEAD]
    known: dict[tuple[str, type], str] = {}
    for command, (schema, note) in _COMMANDS.items():
        parts.append(f"## {command}\n\n{summary(schema)}\n\n{note}\n\n{_table(own_leaves(schema))}")
        for name, section in sections(schema):
            first = known.setdefault((name, section), command)
            text = f"### {command}: {name}\n\n{summary(section)}\n"
            if first == command:
                text += "\n" + _table(own_leaves(section, f"{name}."))
            else:
                text += f"\nThe fields are those of [{first}](#{first}-{name}).\n"
            parts.append(text)
    return "\n".join([*parts, _ALIASES + _alias_rows()])


def _alias_rows() -> str:
    names: dict[str, list[str]] = {}
    differences: dict[str, str] = {}
    for leaf in leaves(TrainConfig):
        for alias, difference in leaf.aliases.items():
            if alias != leaf.name or difference:
                names.setdefault(alias, []).append(f"`{leaf.name}`")
                differences[alias] = difference
    return "".join(
        f"| `{alias}` | {', '.join(names[alias])} | {differences[alias]} |\n"
        for alias in sorted(names)
    )


def _table(found: Iterator[Leaf]) -> str:
    rows = ["| field | default | range | meaning |\n|---|---|---|---|\n"]
    for leaf in found:
        meaning = leaf.help.replace("<", "&lt;")
        if leaf.advanced:
            meaning += " (*advanced*)"
        cells = (f"`{leaf.name}`", f"`{_yaml(leaf.default)}`", str(leaf.range), meaning)
        rows.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n")
    return "".join(rows)


def _yaml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
