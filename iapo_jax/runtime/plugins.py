"""Loads a user's function that the config names as FILE.py:NAME or package.module.NAME."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from iapo_jax.errors import UserError

_PACKAGE = Path(__file__).parents[1]


def names_a_place(spec: str) -> bool:
    """Whether the spec is FILE.py:NAME or package.module.NAME, and not a plain name."""
    return ".py:" in spec or "." in spec.strip(".")


def load(spec: str, what: str, error: type[UserError] = UserError) -> Any:
    """The object that `spec` names.

    Args:
      what: the beginning of every error, such as "reward 'my.py:f'".

    Raises:
      UserError (or `error`): if the file, the module or the name is missing, or importing raises.
    """
    place, separator, name = spec.rpartition(":" if ".py:" in spec else ".")
    if not separator or not place or not name or spec.endswith(".py"):
        raise error(f"{what}: expected 'path/to/file.py:name' or 'package.module.name'")
    module = _load_module(place, what, error, is_file=separator == ":")
    if not hasattr(module, name):
        raise error(f"{what}: {place} does not define {name!r}")
    return getattr(module, name)


def _load_module(place: str, what: str, error: type[UserError], *, is_file: bool) -> ModuleType:
    path = Path(place).expanduser()
    if is_file and not path.is_file():
        raise error(f"{what}: file {str(path.absolute())!r} does not exist")
    try:
        if not is_file:
            return importlib.import_module(place)
        found = importlib.util.spec_from_file_location(f"plugin_file_{path.stem}", path)
        module = importlib.util.module_from_spec(found)
        sys.modules[found.name] = module  # dataclasses look up the module of a class by name
        found.loader.exec_module(module)
        return module
    except (Exception, SystemExit) as raised:  # a file may call sys.exit()
        reason = one_line(raised)
        if isinstance(raised, SyntaxError):
            reason = f"{type(raised).__name__}: {raised.msg}"
        reason += place_of(raised, str(path) if is_file else None)
        raise error(f"{what}: importing {place} raised {reason}") from raised


def one_line(value: Any, limit: int = 200) -> str:
    """The repr of a value on one line of at most `limit` characters."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of a user's class
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def place_of(raised: BaseException, file: str | None) -> str:
    """` (FILE, line N)`: the place in a user's file that raised; empty if it is not known.

    Args:
      file: the user's file as Python compiled it; None for any file outside this library and
        Python's import machinery.
    """
    if isinstance(raised, SyntaxError) and raised.filename and raised.lineno:
        return f" ({Path(raised.filename).name}, line {raised.lineno})"
    frames = [
        frame
        for frame in traceback.extract_tb(raised.__traceback__)
        if (_same_file(frame.filename, file) if file else not _is_machinery(frame.filename))
    ]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _same_file(first: str, second: str) -> bool:
    return os.path.abspath(first) == os.path.abspath(second)


def _is_machinery(file: str) -> bool:
    own = _PACKAGE in Path(file).parents
    return own or file.startswith("<frozen") or "importlib" in Path(file).parts


def file_of(function: Any) -> str | None:
    """The file that defines a user's function; None for a function of this library."""
    inner = inspect.unwrap(function)
    inner = getattr(inner, "func", inner)  # the function of a partial
    called = inner if hasattr(inner, "__code__") else type(inner).__dict__.get("__call__")
    code = getattr(called, "__code__", None)
    if code is None or _PACKAGE in Path(code.co_filename).parents:
        return None
    return code.co_filename
