"""Reading a config: the defaults < one YAML file < dotted arguments.

config = load_config("jobs/configs/nightly.yaml", ["storage.root=s3://recs/nightly"])
"""

import datetime as dt
import difflib
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, SecretStr, ValidationError

from crossrec.config import Config
from crossrec.errors import ConfigError, explain


def load_config(path: str, overrides: list[str]) -> Config:
    """Read a YAML file, apply dotted `section.key=value` arguments, and validate.

    Raises:
        ConfigError: the file cannot be read, an argument has no `=`, or a key or value is wrong.
    """
    values = _read_yaml(path)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            name = "of storage or notify" if _is_secret(override) else repr(override)
            raise ConfigError(
                explain(
                    f"argument {name}",
                    "section.key=value",
                    "no '='",
                    "write it as score.top_k=50",
                )
            )
        _assign(values, key, text)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_describe(error, path)) from None


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            explain(path, "a YAML config file", error.strerror or str(error), "check the path")
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        # A ValueError: no UTF-8, or a date that is none, such as 2026-13-01. Without what PyYAML
        # cites of the file, which may be a secret; nor is it the cause.
        raise ConfigError(explain(path, "valid YAML", _problem(error), "mend the file")) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            explain(path, "sections with keys", type(values).__name__, "see jobs/configs/demo.yaml")
        )
    return values


def _problem(error: yaml.YAMLError | ValueError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"
    if not isinstance(error, yaml.YAMLError | UnicodeDecodeError):
        return "a date or number that is none"
    return str(getattr(error, "reason", type(error).__name__))


def _assign(values: dict[str, Any], key: str, text: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            said = key if _is_secret(key) else f"{key}={text}"
            raise ConfigError(
                explain(
                    f"argument {said}",
                    f"{section} to be a section",
                    "a value",
                    "check the key",
                )
            )
        values = inner
    try:
        # A string field keeps the text as typed: run_id=2014-06-08 must not become a date.
        is_text = key in _TEXT_KEYS or (key in _OPTIONAL_TEXT_KEYS and text != "null")
        if is_text:
            values[last] = text
        elif key.startswith("storage.options."):
            values[last] = _read_option(last, text)
        else:
            values[last] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        found = "a secret that is none" if _is_secret(key) else repr(text)
        raise ConfigError(explain(f"argument {key}", "a YAML value", found, "quote it")) from error


def _read_option(name: str, text: str) -> Any:
    """Return an option of a filesystem: as typed, unless it is plainly something else than text.

    YAML makes 754 of 12:34, 83 of 0123 and nothing of #abc, which all may be secrets.
    """
    is_secret = _SECRET_NAME.search(name) is not None
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        if is_secret:
            return text
        raise
    if text[:1] in {"{", "[", "'", '"'} or text in {"", "null", "~"}:
        return value
    is_number = isinstance(value, int | float) and str(value) == text
    is_other = isinstance(value, bool) or is_number
    return value if is_other and not is_secret else text


_SECRET_NAME = re.compile("key|secret|token|password|user", re.IGNORECASE)


def _keys_of_type(section: type[BaseModel], *types: Any) -> set[str]:
    """Return the keys of fields of a type in full: another section may use the same name."""
    keys: set[str] = set()
    for name, info in section.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys |= {f"{name}.{key}" for key in _keys_of_type(annotation, *types)}
        elif annotation in types:
            keys.add(name)
    return keys


_TEXT_KEYS = _keys_of_type(Config, str)
_OPTIONAL_TEXT_KEYS = _keys_of_type(Config, str | None, dt.datetime | None, SecretStr | None)


def _describe(error: ValidationError, path: str) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or path
        if problem["type"] == "extra_forbidden":
            close = difflib.get_close_matches(
                str(problem["loc"][-1]), _known_keys(problem["loc"][:-1]), n=1
            )
            mend = f"did you mean {close[0]}?" if close else "see crossrec/config.py for the keys"
            lines.append(explain(where, "a known key", "a key that does not exist", mend))
        elif problem["type"] == "missing":
            lines.append(explain(where, "a value", "none", f"give {where}=... or set it in {path}"))
        elif problem["type"] == "value_error" and _is_section(problem["loc"]):
            # A rule of several keys, which says them: all that was given would hide it.
            lines.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}")
        else:
            found = _shown(where, problem["input"])
            expected = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            lines.append(
                explain(
                    where,
                    expected,
                    found if len(found) < 80 else found[:77] + "...",
                    "change the value",
                )
            )
    return " | ".join(lines)


def _shown(where: str, value: object) -> str:
    if where.startswith("storage") and isinstance(value, dict | list):
        # A stray dash or indentation: options may be inside.
        return f"a {type(value).__name__}"
    return "a secret" if _is_secret(where) else repr(value)


def _is_secret(where: str) -> bool:
    """Whether what stands at a place, or below it, may be a secret, also where it is misplaced."""
    inside = "storage.options", "storage.root.", "notify"
    return where == "storage" or where.startswith(inside)


def _is_section(location: tuple[int | str, ...]) -> bool:
    section = _type_at(location)
    return isinstance(section, type) and issubclass(section, BaseModel)


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    return list(getattr(_type_at(location), "model_fields", {}))


def _type_at(location: tuple[int | str, ...]) -> Any:
    """Return the type of what stands at a place of the config; None where it says nothing."""
    found: Any = Config
    for part in location:
        if isinstance(part, int):
            # An entry of a list, as of score.rules.
            found = next(iter(get_args(found)), None)
        else:
            field = getattr(found, "model_fields", {}).get(part)
            found = field.annotation if field else None
    return found
