"""Configuration: dataclass defaults < YAML files < ``key=value``, checked in one place.

OmegaConf owns the YAML dialect: ``1e-4`` is a number, a key twice is an error, and what it writes
it reads back as the same. Types are checked here instead of by its structured configs, because
those take ``b=3`` for true, refuse ``total_timesteps=1e6``, read ``run=1e3`` as "1000.0", let NaN
pass and skip the value ``???``. What leaves this module is the caller's own dataclass or plain
dicts, never an OmegaConf object, and no text is ever evaluated: ``${...}``, YAML tags and aliases
are refused.

Every mistake of a user ends as a :class:`ConfigError` of one line.
"""

import ast
import contextlib
import dataclasses
import difflib
import hashlib
import inspect
import itertools
import json
import math
import os
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml
from omegaconf import OmegaConf

T = TypeVar("T")

_DEPTH_LIMIT = 16
_FILE_LIMIT = 256 << 10  # [byte] the YAML parser is slow, and no configuration is that long
_NULLS = ("", "~", "null", "None")
# What YAML 1.1 reads as octal or base 60: `seed=010` would be 8, and `1:30` would be 90.
_TREACHEROUS = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-9]+)+(\.[0-9_]*)?)")


class ConfigError(ValueError):
    """A mistake in a configuration: one line with the key, the value and what was expected."""

    def __init__(self, message: str) -> None:
        """Collapse white space, since keys and values may bring line breaks of their own."""
        super().__init__(" ".join(message.split())[:500])


def require(condition: bool, key: str, value: object, expected: str) -> None:
    """Raise a ConfigError unless ``condition``; for the ``__post_init__`` of a config.

    Args:
        condition: whether ``value`` is allowed; must be False for NaN.
        key: the field.
        value: its value.
        expected: what it should be, such as "> 0".

    Raises:
        ConfigError: ``condition`` is False.
    """
    if not condition:
        raise ConfigError(f"{key}={_show(value)}: expected {expected}")


def build(
    cls: type[T],
    layers: Sequence[Mapping[str, Any] | Path] = (),
    overrides: Sequence[str] | Mapping[str, object] = (),
) -> T:
    """A ``cls`` from its defaults, then ``layers`` in order, then ``overrides``; last one wins.

    Args:
        cls: a dataclass of int, float, str, bool, Literal, list, tuple, dict[str, ...], Any,
            unions with None or one another, and further dataclasses.
        layers: mappings or YAML files.
        overrides: "key=value" strings, whose values are YAML except for fields of text, which
            take it as it is; or a mapping of such keys to Python values. A dotted key reaches into
            a nested dataclass or dict: ``env_kwargs.start=hard``.

    Returns:
        An instance of ``cls``; values have exactly the annotated types.

    Raises:
        ConfigError: anything in the layers or overrides is not as it should be.
    """
    merged = _defaults(cls)
    for layer in layers:
        source = read_yaml(layer) if isinstance(layer, Path) else _plain(layer, _title(cls))
        merged = _merge(merged, source)
    for key, value in _pairs(overrides):
        hint = _hint_at(cls, key)
        if not isinstance(overrides, Mapping):
            value = _parse_text(hint, key, str(value))
        value = _plain(value, key)
        for part in reversed(key.split(".")):
            value = {part: value}
        merged = _merge(merged, value)
    return _coerce_dataclass(cls, merged, "")


def to_dict(config: object) -> dict[str, Any]:
    """The settable fields of a config dataclass as dicts, lists and scalars, ready for JSON."""
    return _plain(config, _title(type(config)))


def save_yaml(
    config: object, path: str | os.PathLike[str], extra: Mapping[str, Any] | None = None
) -> None:
    """Write a config as YAML that ``read_yaml`` and ``build`` read back exactly.

    Args:
        config: a config dataclass.
        path: the file; replaced in one step, so that a killed run leaves no half of it.
        extra: further top-level entries, such as the agent's name.

    Raises:
        ConfigError: ``extra`` repeats a field, or the file cannot be written.
    """
    content, path = to_dict(config), Path(path)
    for key, value in (extra or {}).items():
        require(key not in content, key, value, f"no field of {_title(type(config))}")
        content[key] = _plain(value, key)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(content)), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot write: {error.strerror}") from error


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a YAML file, as plain dicts, lists and scalars; empty for an empty file.

    Raises:
        ConfigError: the file cannot be read, is not valid YAML, or holds a tag, an alias, an
            interpolation, a key twice, or something other than a mapping.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_FILE_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or a zero byte in the path
        raise ConfigError(f"{path}: invalid YAML: {error}") from error
    if len(text) > _FILE_LIMIT:
        raise ConfigError(f"{path}: expected at most {_FILE_LIMIT >> 10} KiB of YAML")
    content = _parse_yaml(text, str(path), is_file=True)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, got {_show(content)}")
    return content


def field_docs(cls: type) -> dict[str, str]:
    """The string literal under each field of a dataclass, inherited fields included."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError):  # a class without source, as in a notebook
            continue
        body = node.body if isinstance(node, ast.ClassDef) else []
        for field, text in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                docs[field.target.id] = " ".join(text.value.value.split())
    return docs


def describe(cls: type, width: int | None = None) -> str:
    """A help table of a config: name, type, default and documentation of each field.

    Args:
        cls: the dataclass; fields of nested dataclasses appear under their dotted key.
        width: columns to fill; those of the terminal by default.
    """
    width = width or shutil.get_terminal_size().columns
    rows = list(_rows(cls, "", _defaults(cls)))
    columns = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    columns[1:] = [min(column, max(width // 5, 8)) for column in columns[1:]]
    columns.append(max(width - sum(columns) - 2 * len(columns), 16))
    lines = []
    for row in rows:
        cells = [textwrap.wrap(cell, column) for cell, column in zip(row, columns, strict=True)]
        for line in itertools.zip_longest(*cells, fillvalue=""):
            padded = [cell.ljust(column) for cell, column in zip(line, columns, strict=True)]
            lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def run_directory(
    agent: str, env: str, overrides: Sequence[str] | Mapping[str, object] = ()
) -> Path:
    """The directory of a run, a pure function of what is asked: ``runs/slim-point/lr=3e-4/seed=1``.

    Different overrides give different directories, at most 120 characters per component. A
    component that had to be altered to be a safe file name ends in ``~`` and a hash.

    Args:
        agent: name of the agent.
        env: name of the environment.
        overrides: as for :func:`build`; their order does not matter. ``env``, ``run`` and
            ``device`` are left out, as they do not change the experiment any further.

    Raises:
        ConfigError: an override is not "key=value", or there twice.
    """
    pairs = {key: str(value) for key, value in _pairs(overrides)}
    names = [_file_name(f"{agent}-{env}", [agent, env], ambiguous="-" in agent)]
    for keys in (sorted(pairs.keys() - {"seed", "env", "run", "device"}), pairs.keys() & {"seed"}):
        parts = [text for key in keys for text in (key, pairs[key])]
        if parts:
            joined = ",".join(f"{key}={pairs[key]}" for key in keys)
            ambiguous = any(mark in text for text in parts for mark in "=,")
            names.append(_file_name(joined, parts, ambiguous))
    return Path("runs", *names)


# --- values --------------------------------------------------------------------------------------


def _show(value: object) -> str:
    """A short, one-line repr."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _plain(value: object, where: str, depth: int = 0) -> Any:
    """``value`` with dataclasses as dicts and tuples as lists; refuses what YAML cannot say."""
    if depth > _DEPTH_LIMIT:
        raise ConfigError(f"{where}: nested too deeply, expected at most {_DEPTH_LIMIT} levels")
    if isinstance(value, str):
        if "${" in value:
            raise ConfigError(f"{where}={_show(value)}: interpolation is not supported")
        # Bytes of a command line that are not UTF-8 arrive as surrogates, which no file can hold.
        is_text = not any("\ud800" <= character <= "\udfff" for character in value)
        require(is_text, where, value, "UTF-8 text")
        return str(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ConfigError(f"{where}: expected an int of 64 bits")  # Python may not print it at all
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        require(math.isfinite(value), where, value, "a finite number")
        return float(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{where}: key {_show(key)}: expected a str")
            _plain(key, f"{where}: key")
        return {key: _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise ConfigError(f"{where}: expected plain data, got a {type(value).__name__}")


def _merge(base: dict[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``update`` on top; dicts merge by key, everything else is replaced."""
    merged = dict(base)
    for key, value in update.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged


def _parse_yaml(text: str, where: str, is_file: bool = False) -> Any:
    """``text`` as plain data, None if it is empty; errors give the line in a file."""
    try:
        # A first pass over the tokens, before any object exists that a tag or alias could multiply.
        _check_yaml(text, where, is_file)
        content = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except ConfigError:
        raise
    except Exception as error:  # yaml.YAMLError, and what OmegaConf raises on top of it
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark and is_file else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}{line}: invalid YAML: {problem}") from error
    assert isinstance(content, dict)
    return _plain(content["value"], where)


def _check_yaml(text: str, where: str, is_file: bool) -> None:
    """Refuse the parts of YAML that have no place in a configuration."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = f"{where}:{event.start_mark.line + 1}" if is_file else where
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError(f"{line}: YAML anchors and aliases are not supported")
        if getattr(event, "tag", None):
            raise ConfigError(f"{line}: YAML tags are not supported")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH_LIMIT:
            raise ConfigError(f"{line}: nested too deeply, expected at most {_DEPTH_LIMIT} levels")
        if isinstance(event, yaml.ScalarEvent):
            if "${" in event.value:
                raise ConfigError(f"{line}: {_show(event.value)}: interpolation is not supported")
            if event.implicit[0] and _TREACHEROUS.fullmatch(event.value):
                raise ConfigError(
                    f"{line}: {event.value} is octal or base 60 in YAML, "
                    "expected a decimal number or quotes"
                )


# --- overrides -----------------------------------------------------------------------------------


def _pairs(overrides: Sequence[str] | Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The keys and values of overrides in either form."""
    if isinstance(overrides, Mapping):
        items = [(key, "=", value) for key, value in overrides.items()]
    else:
        items = [text.partition("=") for text in overrides]
    seen: set[str] = set()
    for key, equals, value in items:
        if not equals or not isinstance(key, str) or "" in key.split("."):
            text = f"{key}{equals}{value}"
            raise ConfigError(f"malformed override {_show(text)}, expected key=value")
        if key in seen:
            raise ConfigError(f"{key}={_show(value)}: expected one override of {key}, got two")
        seen.add(key)
        yield key, value


def _hint_at(cls: type, key: str) -> Any:
    """The type annotation at a dotted key; Any inside a dict."""
    if "${" in key:
        raise ConfigError(f"key {_show(key)}: interpolation is not supported")
    hint: Any = cls
    parts = key.split(".")
    for i, part in enumerate(parts):
        parent = ".".join(parts[:i])
        for option in _options(hint):
            if option is Any or typing.get_origin(option) is dict:
                return Any
            if dataclasses.is_dataclass(option):
                hints = _hints(typing.cast(type, option))
                if part not in hints:
                    _unknown(typing.cast(type, option), part, parent)
                hint = hints[part]
                break
        else:
            raise ConfigError(f"unknown key {_show(key)}; {parent} is {_name(hint)}, not a mapping")
    return hint


def _parse_text(hint: Any, key: str, text: str) -> Any:
    """The value of a command-line override: as it is for a field of text, YAML for the others."""
    if "${" in text:
        raise ConfigError(f"{key}={_show(text)}: interpolation is not supported")
    kinds = set()
    for option in _options(hint):
        is_literal = typing.get_origin(option) is Literal
        kinds |= {type(choice) for choice in option.__args__} if is_literal else {option}
    if str in kinds and kinds <= {str, types.NoneType}:
        return None if types.NoneType in kinds and text in _NULLS else text
    return _parse_yaml(text, key)


def _file_name(text: str, parts: Sequence[str], ambiguous: bool) -> str:
    """``text`` as a file name, with a hash of ``parts`` if it alone does not tell them apart."""
    safe = re.sub(r"[^A-Za-z0-9._+=,-]", "_", text)
    if safe == text and len(text) <= 120 and not ambiguous:
        return text
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    return f"{safe[:107]}~{digest}"


# --- types ---------------------------------------------------------------------------------------


def _title(cls: type) -> str:
    """The name of a config class, with that of its agent if it is defined inside one."""
    return cls.__qualname__.rpartition("<locals>.")[2]


def _hints(cls: type) -> dict[str, Any]:
    """The annotation of every field that a config can set."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def _defaults(cls: type) -> dict[str, Any]:
    """The default values of a dataclass as plain data; required fields are left out."""
    defaults = {}
    for field in dataclasses.fields(cls):
        if field.init and field.default is not dataclasses.MISSING:
            defaults[field.name] = _plain(field.default, field.name)
        elif field.init and field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = _plain(field.default_factory(), field.name)
    return defaults


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union; the type itself if it is none."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _name(hint: Any) -> str:
    """A type in the words of an error message."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if len(_options(hint)) > 1:
        return " or ".join(map(_name, args))
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin is tuple and args[-1] is not Ellipsis:
        return f"[{', '.join(map(_name, args))}]"
    if origin in (list, tuple):
        return f"list of {_name(args[0])}"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "mapping"
    return "None" if hint is types.NoneType else getattr(hint, "__name__", str(hint))


def _unknown(cls: type, key: str, where: str) -> NoReturn:
    """Raise the error for a key that ``cls`` does not have."""
    prefix = f"{where}." if where else ""
    known = list(_hints(cls))
    nearest = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {prefix + nearest[0]!r}?" if nearest else f"expected {', '.join(known)}"
    raise ConfigError(f"unknown key {_show(prefix + key)} in {_title(cls)}; {hint}")


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """Plain data as exactly the type ``hint``, without loss.

    Args:
        hint: a type annotation.
        value: what :func:`_plain` returns.
        where: the dotted key, for the error.
    """
    options, origin, args = _options(hint), typing.get_origin(hint), typing.get_args(hint)
    if len(options) > 1:
        return _coerce_union(options, value, where, hint)
    if hint is Any or (hint is types.NoneType and value is None):
        return value
    if origin is Literal:
        for choice in args:
            if type(choice) is type(value) and choice == value:
                return choice
    elif dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _coerce_dataclass(hint, value, where)
    elif origin is dict and isinstance(value, dict):
        return {key: _coerce(args[1], item, f"{where}.{key}") for key, item in value.items()}
    elif origin in (list, tuple) and isinstance(value, list):
        if args[-1] is Ellipsis or origin is list:
            args = args[:1] * len(value)
        if len(args) == len(value):
            pairs = enumerate(zip(args, value, strict=True))
            return origin(_coerce(arg, item, f"{where}[{i}]") for i, (arg, item) in pairs)
    elif isinstance(value, bool):
        if hint is bool:
            return value
    elif hint is float and isinstance(value, (int, float)):
        return float(value)
    elif hint is int and isinstance(value, (int, float)):
        # 1e6 is how one writes a number of steps; beyond 2**53 a float may not be the one meant.
        if isinstance(value, int) or (value.is_integer() and abs(value) <= 2**53):
            return int(value)
    elif hint is str and isinstance(value, (str, int)):
        return str(value)
    raise ConfigError(f"{where}: expected {_name(hint)}, got {_show(value)}")


def _coerce_union(options: tuple[Any, ...], value: Any, where: str, hint: Any) -> Any:
    """``value`` as the option of its own type, else as the first one that takes it."""
    if value is None and types.NoneType in options:
        return None
    options = tuple(option for option in options if option is not types.NoneType)
    if len(options) == 1 and isinstance(value, (dict, list)):
        return _coerce(options[0], value, where)  # its error names the very item
    for option in sorted(options, key=lambda option: option is not type(value)):
        with contextlib.suppress(ConfigError):
            return _coerce(option, value, where)
    raise ConfigError(f"{where}: expected {_name(hint)}, got {_show(value)}")


def _coerce_dataclass(cls: type[T], value: dict[str, Any], where: str) -> T:
    """An instance of ``cls`` from plain data."""
    hints = _hints(cls)
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in hints:
            _unknown(cls, key, where)
    values = {key: _coerce(hints[key], item, prefix + key) for key, item in value.items()}
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        required = field.default is field.default_factory is dataclasses.MISSING
        if field.init and required and field.name not in values:
            key = prefix + field.name
            raise ConfigError(f"{key}: expected {_name(hints[field.name])}, got nothing")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{where or _title(cls)}: {error}") from error


def _rows(cls: type, prefix: str, defaults: Any) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and documentation of every field, those of nested dataclasses too."""
    docs = field_docs(cls)
    for name, hint in _hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _rows(typing.cast(type, hint), f"{prefix}{name}.", defaults.get(name, {}))
            continue
        default = json.dumps(defaults[name]) if name in defaults else "required"
        yield prefix + name, _name(hint), default.strip('"'), docs.get(name, "")
