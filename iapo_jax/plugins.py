"""A user's own function, found by what the config says: FILE.py:NAME or package.module.NAME."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from iapo_jax.errors import UserError


def names_a_place(spec: str) -> bool:
    """Whether this is FILE.py:NAME or package.module.NAME, and not a plain name."""
    return ".py:" in spec or "." in spec.strip(".")


def load(spec: str, what: str, error: type[UserError] = UserError) -> Any:
    """What `spec` names; `what` begins every sentence, such as "Reward 'my.py:f'".

    Raises:
      UserError: if the file, the module or the name is missing, or importing it raises.
    """
    place, separator, name = spec.rpartition(":" if ".py:" in spec else ".")
    if not separator or not place or not name or spec.endswith(".py"):
        raise error(f"{what}: expected 'path/to/file.py:name' or 'package.module.name'.")
    module = _load_module(place, what, error, is_file=separator == ":")
    if not hasattr(module, name):
        raise error(f"{what}: {place} was found but defines no {name!r}.")
    return getattr(module, name)


def _load_module(place: str, what: str, error: type[UserError], *, is_file: bool) -> ModuleType:
    if is_file and not Path(place).is_file():
        raise error(f"{what}: there is no file {place!r} in {Path.cwd()}.")
    try:
        if not is_file:
            return importlib.import_module(place)
        found = importlib.util.spec_from_file_location(f"plugin_file_{Path(place).stem}", place)
        module = importlib.util.module_from_spec(found)
        sys.modules[found.name] = module  # dataclasses look up the module of a class by name
        found.loader.exec_module(module)
        return module
    except Exception as raised:
        raise error(f"{what}: importing {place} raised {raised!r}.") from raised
