"""A YAML file of settings as one frozen object, checked whole before any computation."""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from dvc_mlflow.errors import InputError, did_you_mean

Kind = TypeVar("Kind")
Location = tuple[int | str, ...]  # of a setting: the keys and indices that lead to it


class Section(BaseModel):
    """A mapping in a file of settings: no unknown keys, no conversion between types, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def read(path: Path) -> dict[str, Any]:
    """The content of a YAML file, read as YAML 1.2, like DVC does.

    Raises:
        InputError: It is missing, is not YAML, or is not a mapping.
    """
    try:
        # pure: where libyaml is installed, a list nested 50,000 deep would end the process
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; run this in the project's folder") from None
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{path}: {line}{error.problem}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split()) or 'nested too deep'}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: is {shown(content)}, expected a mapping")
    return content


def check(
    kind: type[Kind],
    path: Path,
    content: Mapping[str, Any],
    names: Mapping[str, Sequence[str]] | None = None,
    inherited: Callable[[Location], Location] = lambda location: location,
) -> Kind:
    """``content`` of the file at ``path`` as an object of this kind.

    Args:
        names: Names that the values of some top-level keys are chosen from.
        inherited: The part of a location that tells mistakes apart. Where one section takes over
            the settings of another, the same mistake is found in both, and is reported once.

    Raises:
        InputError: One line per mistake: the file, the key, the value, and what is allowed.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        lines: dict[Any, str] = {}
        for detail in error.errors():
            what = inherited(detail["loc"]), detail["msg"], shown(detail["input"])
            lines.setdefault(what, _line(kind, path, detail, names or {}))
        raise InputError("\nerror: ".join(lines.values())) from None


def unknown_name(path: Path, key: str, name: str, names: Sequence[str]) -> InputError:
    """The error for a value that is not one of ``names``."""
    near = did_you_mean(name, names)
    return InputError(f"{path}: {key} is {shown(name)}, expected {_listed(names)}{near}")


def _line(kind: Any, path: Path, detail: Any, names: Mapping[str, Sequence[str]]) -> str:
    """One of pydantic's errors as `FILE: KEY is VALUE, expected ...`."""
    loc, error, given = detail["loc"], detail["type"], detail["input"]
    key = ".".join(str(part) for part in loc if part != "[key]")
    if error == "extra_forbidden":
        section = _section(kind, loc)
        near = did_you_mean(loc[-1], section.model_fields)
        return f"{path}: {key} is not a setting, expected here: {_keys(section)}{near}"
    choices = names.get(str(loc[0])) or _choices(kind, loc)
    if error == "missing":
        return f"{path}: {key} is missing" + (f", expected {_listed(choices)}" if choices else "")
    near = did_you_mean(given, choices) if error == "literal_error" else ""
    if error == "model_type":
        expected = f"keys: {_keys(_section(kind, (*loc, '')))}"
    elif error == "too_short":
        expected = f"at least {detail['ctx']['min_length']} item"
        expected += "s" if detail["ctx"]["min_length"] > 1 else ""
        expected += f" of: {', '.join(choices)}" if choices else ""
    elif error == "list_type" and choices:
        expected = f"a list of: {', '.join(choices)}"
    elif error == "string_type" and choices:
        expected = _listed(choices)
    elif error == "bool_type":
        expected = "true or false"
    else:
        expected = detail["msg"].replace("Input should be ", "").replace("String should", "to")
    return f"{path}: {key} is {shown(given)}, expected {expected}{near}"


def _section(kind: Any, loc: Location) -> type[Section]:
    """The section that holds the key at ``loc``: the last one on the way there."""
    section = _sections(kind)[0]
    found: Any = kind
    for part in loc[:-1]:
        if [found] == _sections(found)[:1]:
            found = section.model_fields[str(part)].annotation
        found = next(iter(_sections(found)), found)
        section = next(iter(_sections(found)), section)
    return section


def _sections(annotation: Any) -> list[type[Section]]:
    """The sections within a type, from the outside to the inside."""
    inner = [annotation, *_arguments(annotation)]
    return [one for one in inner if isinstance(one, type) and issubclass(one, Section)]


def _arguments(annotation: Any) -> list[Any]:
    """The types within a type: of `dict[str, int | None]`, all four."""
    direct = get_args(annotation)
    return [*direct, *(one for argument in direct for one in _arguments(argument))]


def _choices(kind: Any, loc: Location) -> list[str]:
    """The values that the setting at ``loc`` may have, if its type lists them."""
    name = next((part for part in reversed(loc) if isinstance(part, str)), "")
    field = _section(kind, loc).model_fields.get(name)
    return _literals(field.annotation) if field else []


def _literals(annotation: Any) -> list[str]:
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return [str(argument) for argument in arguments]
    return [literal for argument in arguments for literal in _literals(argument)]


def _listed(choices: Sequence[str]) -> str:
    return f"one of: {', '.join(choices)}"


def _keys(section: type[Section]) -> str:
    return ", ".join(section.model_fields)


def shown(value: Any) -> str:
    """A value as an error message shows it: at most 60 characters."""
    if value is None:
        return "empty"
    # Not repr: a few lines of YAML with aliases can stand for a list too long for any memory
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxlong, short.maxother = 3, 80, 80, 80
    text = short.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
