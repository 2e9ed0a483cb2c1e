"""Hyper-parameters of a method's pieces, checked against the signatures of these functions.

The keyword parameters of a piece are its options. A parameter that is annotated as an array comes
from an `adaptation` and is not an option; a parameter that a partial has bound is fixed.
"""

import difflib
import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, get_args

from iapo_jax.types import Array

RENAMED = {
    "alpha": ("information_weight", "entropy_weight"),
    "beta": ("exploration_weight",),
    "normaliser": ("normalizer",),
    "worth": ("correct_bonus",),
}
"""Earlier names of options, and the names that replace them."""


def parameters_of(piece: Callable) -> dict[str, inspect.Parameter]:
    """Hyper-parameters by name, including those that a partial has bound."""

    def is_option(p: inspect.Parameter) -> bool:
        named = p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty and p.name != "key"
        return p.kind is p.KEYWORD_ONLY or named

    try:
        parameters = inspect.signature(piece).parameters.values()
    except ValueError:  # for a callable written in C
        raise ValueError(f"{piece!r} has no readable signature; expected (group, key)") from None
    return {p.name: p for p in parameters if is_option(p)}


def accepted_by(piece: Callable, values: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that the piece accepts by name."""
    return {name: values[name] for name in parameters_of(piece) if name in values}


def bind_options(piece: Callable, options: dict[str, Any]) -> Callable:
    """Binds the options that the piece accepts; returns the piece itself if it accepts none."""
    known = accepted_by(piece, options)
    return cached(partial, piece, **known) if known else piece


def cached(make: Callable[..., Any], /, *given: Any, **options: Any) -> Any:
    """`make(*given, **options)`: the same object for equal arguments, as `jax.jit` requires."""
    key = tuple((name, type(value), value) for name, value in sorted(options.items()))
    try:
        hash((make, given, key))
    except TypeError:
        return make(*given, **options)
    return _made(make, given, key)


@lru_cache(maxsize=64)
def _made(make: Callable[..., Any], given: tuple, key: tuple) -> Any:
    return make(*given, **{name: value for name, _, value in key})


def check_options(name: str, options: dict[str, Any], pieces: dict[str, Callable]) -> None:
    """Checks that every option belongs to a piece that does not fix it, and is of the right type.

    Raises:
      ValueError: naming the option, what was found and what is expected.
    """
    known: dict[str, inspect.Parameter] = {}
    fixed: dict[str, Any] = {}
    for piece in pieces.values():
        fixed |= getattr(piece, "keywords", {})
        known |= {
            key: p
            for key, p in parameters_of(piece).items()
            if key != "max_length" and Array not in (p.annotation, *get_args(p.annotation))
        }
    for key, value in options.items():
        if key in fixed:
            raise ValueError(
                f"algorithm.options.{key} cannot be set: {name} is defined by "
                f"{key}={fixed[key]!r}; choose another algorithm.name to use a different value"
            )
        if key not in known:
            expected = nearest(key, list(known)) if known else f"{name} has none"
            for renamed in RENAMED.get(key, ()):
                if renamed in known or renamed in fixed:
                    expected = f"its name is now {renamed}"
            raise ValueError(f"algorithm.options.{key} is unknown; {expected}")
        default = known[key].default
        bare = default is inspect.Parameter.empty or default is None
        kind = known[key].annotation if bare else type(default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = {float: number, int: number and isinstance(value, int)}
        if kind in (float, int, str, bool) and not fits.get(kind, isinstance(value, kind)):
            such = "" if default is inspect.Parameter.empty else f", such as {default!r}"
            raise ValueError(
                f"algorithm.options.{key} is {value!r}; expected {kind.__name__}{such}"
            )


def check_complete(
    name: str, piece: Callable, options: dict[str, Any], *, needs_length: bool = False
) -> None:
    """Checks that every option without a default is given.

    Raises:
      ValueError: naming the first missing option, and its type.
    """
    for key, parameter in parameters_of(piece).items():
        missing = parameter.default is inspect.Parameter.empty and key not in options
        if missing and not (key == "max_length" and needs_length):
            kind = getattr(parameter.annotation, "__name__", "a value")
            raise ValueError(f"algorithm.options.{key} is missing; {name} needs it ({kind})")


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """The known name that a misspelled one may mean."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
