"""Merges defaults, a YAML file and `key=value` overrides into one config.

The only module that imports omegaconf.
"""

import dataclasses
import difflib
import functools
import io
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, OmegaConf, StringNode
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    ValidationError,
)

from iapo_jax.config.evaluate import EvaluateConfig
from iapo_jax.config.fields import leaves, own_fields
from iapo_jax.config.sft import SftConfig
from iapo_jax.config.train import TrainConfig
from iapo_jax.errors import UserError

Config = TypeVar("Config")
_STRUCTURED = ("'", '"', "[", "{")  # an override that begins with one of these is YAML
_LARGEST_FILE = 1_000_000  # bytes; no config is longer
_INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")  # `\${` is literal
_KINDS = {str: "a string", int: "an integer", float: "a number"}
_NODES = {
    BooleanNode: "true or false",
    FloatNode: "a number",
    IntegerNode: "an integer",
    StringNode: "a string",
}


def load_config(schema: type[Config], path: str | None, overrides: Sequence[str] = ()) -> Config:
    """Merges the defaults, the YAML file and the `section.key=value` overrides, in this order.

    If an override changes algorithm.name, the file's algorithm.options are dropped.

    Raises:
      UserError: naming the file, the field, what was found and what is expected.
    """
    base = pickle.loads(_defaults(schema))
    layers = []
    if path is not None:
        layers.append((path, _read_yaml(path)))
    for text in overrides:
        layers.append((f"{text!r} on the command line", _read_override(text)))
    named = [name for _, layer in layers[1:] if (name := _method_of(layer)) is not None]
    for number, (source, layer) in enumerate(layers):
        try:
            _check_names(schema, layer, source)
            base = OmegaConf.unsafe_merge(base, layer)  # faster: copies neither
            if number == 0 and path is not None and named and named[-1] != _method_of(base):
                base.algorithm.options = {}  # the file's belong to another method
        except (OmegaConfBaseException, TypeError) as error:  # TypeError: a path through a value
            raise UserError(f"{source}: {_first_line(error)}") from None
    try:
        config = OmegaConf.to_object(base)
    except OmegaConfBaseException as error:
        raise UserError(_first_line(error)) from None
    _check_entries(config)
    return config


@functools.cache
def _defaults(schema: type) -> bytes:
    """The defaults of a schema as a pickled node, which is much faster to load than to build."""
    base = OmegaConf.structured(schema)
    for node in (base, *(base[k] for k in base if OmegaConf.is_config(base[k]))):
        OmegaConf.set_readonly(node, False)
    return pickle.dumps(base)


def load_run_config(path: Path) -> TrainConfig | SftConfig:
    """Loads the config.yaml of a run directory, whichever command wrote it.

    Raises:
      UserError: as `load_config`; also for `${...}`: a run writes resolved values, and the file of
        somebody else's run must not read this machine's environment.
    """
    layer = _read_yaml(str(path))
    for name, value in walk(OmegaConf.to_container(layer, resolve=False)):
        if isinstance(value, str) and _INTERPOLATION.search(value):
            raise UserError(
                f"{path}: {name} is {value!r:.80}; expected a plain value without ${{...}} (runs "
                "write resolved configs)"
            )
    return load_config(TrainConfig if "sampling" in layer else SftConfig, str(path))


def walk(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every value in nested mappings and lists."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from walk(inner, f"{name}[{number}]")
    else:
        yield name, value


def _check_entries(section: Any, prefix: str = "") -> None:
    """Checks the types of list entries; omegaconf accepts a list in place of a string."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            _check_entries(value, f"{prefix}{field.name}.")
        elif get_origin(field.type) is list:
            (kind,) = get_args(field.type)
            for entry in value:
                if not isinstance(entry, kind):
                    raise UserError(
                        f"{prefix}{field.name} has the entry {entry!r:.80}; expected {_KINDS[kind]}"
                    )


def _first_line(error: Exception) -> str:
    message = str(error).splitlines()[0]
    expected = _NODES.get(type(getattr(error, "child_node", None)))
    entries = getattr(error, "ref_type", None)
    if get_origin(entries) is list:
        expected = _KINDS.get(get_args(entries)[0])
    if isinstance(error, ValidationError) and expected:
        return f"{error.full_key} is {error.value!r:.80}; expected {expected}"
    if isinstance(error, InterpolationResolutionError | GrammarParseError):
        message += " (write a literal ${ as \\${)"
    return f"field {error.full_key}: {message}" if getattr(error, "full_key", None) else message


def _read_override(text: str) -> DictConfig:
    """`key=value` as a layer.

    The value is YAML if it is quoted, a list, a mapping, a number, true, false or null. Any other
    value is a literal string, in which `#` and `:` have no special meaning.
    """
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UserError(f"{text!r} on the command line: expected key=value, such as max_steps=10")
    found: Any = value
    try:
        layer = OmegaConf.from_dotlist([f"value={value}"])
        found = OmegaConf.to_container(layer, resolve=False)["value"]
    except Exception as error:  # yaml's and omegaconf's own errors share no base class
        if value.startswith(_STRUCTURED):
            reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ")
            raise UserError(
                f"{text!r} on the command line: not readable as YAML: {reason}"
            ) from None
    plain = not isinstance(found, bool | int | float | None) or re.search(r"(^|\s)#", value)
    if not value or (plain and not value.startswith(_STRUCTURED)):
        found = value
    layer = OmegaConf.create({})
    try:
        OmegaConf.update(layer, key, found)
    except Exception as error:  # a key such as `a..b`, or a broken ${...}
        raise UserError(f"{text!r} on the command line: {_first_line(error)}") from None
    return layer


def _method_of(layer: DictConfig) -> str | None:
    return OmegaConf.select(layer, "algorithm.name") if OmegaConf.is_dict(layer) else None


def _read_yaml(path: str) -> DictConfig:
    try:
        layer = OmegaConf.load(io.StringIO(_read_text(path)))
    except UserError:
        raise
    except Exception as error:  # yaml's and omegaconf's own errors share no base class
        reason = " ".join(str(error).split()).replace('in "<file>", ', "in ")
        raise UserError(f"{path}: not readable as YAML: {reason}") from None
    if not OmegaConf.is_dict(layer):
        raise UserError(f"{path} is a list; expected a mapping of fields, such as max_steps: 10")
    if not layer:
        raise UserError(f"{path} is empty; expected a mapping of fields, such as max_steps: 10")
    return layer


def _read_text(path: str) -> str:
    place = Path(path)
    if not place.exists():
        where = "" if place.is_absolute() else f" in {Path.cwd()}"
        raise UserError(f"config file {path!r} does not exist{where}")
    if place.is_dir():
        raise UserError(f"config file {path!r} is a directory; expected a YAML file")
    try:
        with place.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise UserError(
                f"config file {path!r} has more than {_LARGEST_FILE:,} bytes; expected a YAML "
                "file of fields"
            )
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"config file {path!r} cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not readable as YAML: not UTF-8: {error}") from None


def _check_names(
    schema: type, layer: DictConfig, source: str, prefix: str = "", root: type | None = None
) -> None:
    """Rejects unknown fields, suggesting a known one, and values of the wrong structure."""
    fields = {f.name: f for f in own_fields(schema)}
    for key in layer:
        if key not in fields:
            hint = _nearest(str(key), fields, prefix, root or schema)
            raise UserError(f"{source}: unknown field {prefix}{key}; {hint}")
        if OmegaConf.is_missing(layer, key):
            raise UserError(f"{source}: {prefix}{key} is ???; expected a value")
        inner = fields[key].default_factory
        if inner is dataclasses.MISSING:
            continue
        value = layer[key]
        if dataclasses.is_dataclass(inner):
            if not OmegaConf.is_dict(value):
                raise UserError(
                    f"{source}: {prefix}{key} is {value!r}; expected a section, such as "
                    f"{prefix}{key}.NAME=VALUE"
                )
            _check_names(inner, value, source, f"{prefix}{key}.", root or schema)
        elif isinstance(inner(), list) and not OmegaConf.is_list(value):
            raise UserError(
                f"{source}: {prefix}{key} is {value!r}; expected a list, such as [a, b]"
            )
        elif isinstance(inner(), dict) and not OmegaConf.is_dict(value):
            raise UserError(
                f"{source}: {prefix}{key} is {value!r}; expected a mapping, such as {{a: 1}}"
            )


def _nearest(key: str, fields: dict[str, Any], prefix: str, root: type) -> str:
    """Suggests a field by an earlier name, a TRL name or a similar spelling."""
    plain = key.lower().replace("-", "_")
    found = list(leaves(root))
    for leaf in found:
        if prefix + plain in leaf.formerly:
            return f"its name is now {leaf.name}"
    if plain in fields:
        return f"did you mean {prefix}{plain}?"
    for leaf in found:
        if leaf.name.rpartition(".")[2] == plain:
            return f"did you mean {leaf.name}?"
    for leaf in found:
        if plain in leaf.aliases:
            difference = f" ({leaf.aliases[plain]})" if leaf.aliases[plain] else ""
            return f"did you mean {leaf.name}{difference}?"
    near = difflib.get_close_matches(plain, fields, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else f"expected one of {', '.join(fields)}"


def to_yaml(config: TrainConfig | SftConfig | EvaluateConfig) -> str:
    """The resolved config as YAML, which loads back to an equal config."""
    return OmegaConf.to_yaml(OmegaConf.create(_escape(dataclasses.asdict(config))))


def _escape(value: Any) -> Any:
    """Escapes `${` in strings: the values are resolved, so it is literal."""
    if isinstance(value, dict):
        return {key: _escape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escape(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", value)
