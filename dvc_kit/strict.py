"""A YAML file of settings as one frozen object, checked whole before any computation."""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from dvc_kit.errors import InputError, did_you_mean

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
    return InputError(f"{path}: {key} is {shown(name)}, expected one of: {', '.join(names)}{near}")


def _line(kind: Any, path: Path, detail: Any, names: Mapping[str, Sequence[str]]) -> str:
    """One of pydantic's errors as `FILE: KEY is VALUE, expected ...`."""
    loc, error, given = detail["loc"], detail["type"], detail["input"]
    key = ".".join(str(part) for part in loc if part != "[key]")
    if error == "extra_forbidden":
        keys = [*_described(kind, loc[:-1]).get("properties", {})]
        near = did_you_mean(loc[-1], keys)
        return f"{path}: {key} is not a setting, expected here: {', '.join(keys)}{near}"
    here = _described(kind, loc)
    choices = names.get(str(loc[0])) or here.get("items", here).get("enum", [])
    of = f" of: {', '.join(choices)}" if choices else ""
    if error == "missing":
        return f"{path}: {key} is missing" + (f", expected one{of}" if of else "")
    expected = detail["msg"].replace("Input should be ", "").replace("String should", "to")
    if error == "literal_error":
        expected += did_you_mean(given, choices)
    elif error == "model_type":
        expected = f"keys: {', '.join(here['properties'])}"
    elif error == "too_short":
        least = detail["ctx"]["min_length"]
        expected = f"at least {least} item{'s' if least > 1 else ''}{of}"
    elif error in ("list_type", "string_type") and choices:
        expected = f"{'a list' if error == 'list_type' else 'one'}{of}"
    elif error == "bool_type":
        expected = "true or false"
    return f"{path}: {key} is {shown(given)}, expected {expected}"


def _described(kind: Any, loc: Location) -> dict[str, Any]:
    """What the JSON schema of this kind says of the setting at ``loc``."""
    schema = TypeAdapter(kind).json_schema()
    found = _plain(schema, schema)
    for part in (part for part in loc if part != "[key]"):
        named = found.get("properties", {}).get(part)
        others = [*found.get("patternProperties", {}).values(), found.get("additionalProperties")]
        found = _plain(named or found.get("items") or next(filter(None, others), {}), schema)
    return found


def _plain(found: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A part of a schema, without references, and without `null` where that is allowed too."""
    while "$ref" in found or "anyOf" in found:
        found = found["anyOf"][0] if "anyOf" in found else schema["$defs"][found["$ref"][8:]]
    return found


def shown(value: Any) -> str:
    """A value as an error message shows it: at most 60 characters."""
    if value is None:
        return "empty"
    # Not repr: a few lines of YAML with aliases can stand for a list too long for any memory
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxlong, short.maxother = 3, 80, 80, 80
    text = short.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
