"""A field of a config: its default, its meaning, the values it accepts, and its other names."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

LARGEST = 2**31 - 1  # counts and ids are int32 on the devices


class Range(NamedTuple):
    """The values that a field accepts; None means that there is no such bound."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    one_of: Sequence[str] = ()
    nonempty: str = ""  # what the string names, such as "a directory"
    hint: str = ""  # in parentheses after the bounds

    def accepts(self, value: Any) -> bool:
        """Whether the value is inside the bounds; no number may be infinite or NaN."""
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
            and (not self.one_of or value in self.one_of)
            and (not self.nonempty or bool(value))
        )

    def __str__(self) -> str:
        if self.one_of:
            return f"{', '.join(self.one_of[:-1])} or {self.one_of[-1]}"
        if self.nonempty:
            return self.nonempty
        if self.at_least is not None and self.at_most is not None:
            text = f"from {self.at_least} to {self.at_most}"
        else:
            bounds = [
                ("at least", self.at_least),
                ("more than", self.above),
                ("at most", self.at_most),
                ("below", self.below),
            ]
            text = " and ".join(f"{word} {x}" for word, x in bounds if x is not None)
        return f"{text} ({self.hint})" if self.hint else text


class Leaf(NamedTuple):
    """A field that holds a value."""

    name: str  # with its section, such as optimizer.learning_rate
    default: Any
    help: str
    range: Range
    advanced: bool
    aliases: Mapping[str, str]
    formerly: Sequence[str]


def option(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    one_of: Sequence[str] = (),
    nonempty: str = "",
    hint: str = "",
    advanced: bool = False,
    trl: str | Mapping[str, str] = (),
    formerly: Sequence[str] = (),
) -> Any:
    """A config field.

    Args:
      default: a value, or a function that returns one.
      at_least, above, at_most, below, one_of, nonempty, hint: as `Range`.
      advanced: `--help` leaves it out, `--help-all` lists it.
      trl: its names in TRL and transformers, each with what differs here.
      formerly: its names in earlier versions, with their sections.
    """
    accepted = Range(
        at_least=at_least,
        above=above,
        at_most=at_most,
        below=below,
        one_of=one_of,
        nonempty=nonempty,
        hint=hint,
    )
    metadata = {
        "help": help,
        "range": accepted,
        "advanced": advanced,
        "aliases": {trl: ""} if isinstance(trl, str) else dict(trl),
        "formerly": formerly,
    }
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def own_fields(schema: type) -> list[dataclasses.Field]:
    """The fields of a section, those of its base class last."""
    first = [name for base in schema.__mro__ for name in base.__dict__.get("__annotations__", ())]
    return sorted(dataclasses.fields(schema), key=lambda field: first.index(field.name))


def sections(schema: type) -> Iterator[tuple[str, type]]:
    """(name, class) of each section of a config."""
    for field in own_fields(schema):
        if dataclasses.is_dataclass(field.default_factory):
            yield field.name, field.default_factory


def own_leaves(schema: type, prefix: str = "") -> Iterator[Leaf]:
    """The fields of a config, or of a section, that hold values."""
    for field in own_fields(schema):
        if dataclasses.is_dataclass(field.default_factory):
            continue
        has_factory = field.default_factory is not dataclasses.MISSING
        yield Leaf(
            name=prefix + field.name,
            default=field.default_factory() if has_factory else field.default,
            **field.metadata,
        )


def leaves(schema: type) -> Iterator[Leaf]:
    """Every field of a config that holds a value, with those of its sections."""
    yield from own_leaves(schema)
    for name, section in sections(schema):
        yield from own_leaves(section, f"{name}.")


def check_range(leaf: Leaf, value: Any) -> str | None:
    """The error message for a value out of range; None for a value in range, or for None."""
    if value is None:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return f"{leaf.name} is {value!r}; expected a finite number"
    if isinstance(value, int | float | str) and not leaf.range.accepts(value):
        return f"{leaf.name} is {value!r}; expected {leaf.range}"
    if isinstance(value, int) and value > LARGEST:
        return f"{leaf.name} is {value!r}; expected at most {LARGEST}"
    return None
