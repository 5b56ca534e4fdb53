"""The names of settings in MLflow: those of dvc.yaml, but the same in runs that are compared.

No two settings share a name. A value changes a name only where that is declared.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dvc_mlflow.errors import InputError


@dataclass(frozen=True)
class Setting:
    """One key that a stage tracks."""

    file: str  # from the root
    is_default: bool  # whether the file is the one that DVC does not name
    key: str
    values: Mapping[str, Any]  # by the name below the key; "" for a value that is no mapping

    def named(self, key: str) -> dict[str, Any]:
        return {".".join(filter(None, (key, below))): v for below, v in self.values.items()}


@dataclass(frozen=True)
class Item:
    """What one item of a matrix or a `foreach` is."""

    params: Mapping[str, Any]  # by their names in MLflow
    declared: Mapping[str, Any]  # by the names that `strip` may have
    former: Mapping[str, Any]  # by the names of earlier versions


NONE = Item({}, {}, {})


def stripped(table: Mapping[str, Any]) -> list[str]:
    """The setting `strip`: the names whose values are left out of keys.

    Raises:
        InputError: It is no list of names.
    """
    names = table.get("strip", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"strip under [tool.dvc-mlflow] in pyproject.toml is {names!r}, expected the names of "
            'settings, such as ["recipe"]'
        )
    return names


def names(
    settings: Sequence[Setting], item: Item, strip: Iterable[str]
) -> tuple[dict[str, Any], list[str], tuple[str, ...]]:
    """Settings by name, the key of each as it is shown, and the values left out of keys.

    A template such as `${recipe}.lenet5` puts the value of a setting into a key. If ``strip`` has
    `recipe`, that value is left out: with `recipe: published`, `published.lenet5.epochs` becomes
    `lenet5.epochs`. A key stays whole if its name would be empty, or that of another setting.

    Where two files have the same key, it is `lr` in DVC's default file and `other.yaml:lr` in
    others. Where a setting has the name of a part of an item, that is `item.NAME`.
    """
    whole = [setting.named(setting.key) for setting in settings]
    told = {name: value for named in whole for name, value in named.items()} | dict(item.declared)
    values = {str(told[name]) for name in strip if name in told}
    keys = [".".join(p for p in one.key.split(".") if p not in values) for one in settings]
    short = [one.named(key) for one, key in zip(settings, keys, strict=True)]
    in_files = Counter({(one.file, n) for one, w in zip(settings, whole, strict=True) for n in w})
    taken = Counter(name for _, name in in_files)
    wanted = Counter(name for named in short for name in named)
    found: dict[str, Any] = {}
    shown: list[str] = []
    chosen: list[str] = []
    for one, key, named in zip(settings, keys, short, strict=True):
        others = {"", *taken, *item.params}
        if key != one.key and not any(n in others or wanted[n] > 1 for n in named):
            chosen += [part for part in one.key.split(".") if part in values]
        else:
            key, named = one.key, one.named(one.key)
        if not one.is_default and any(taken[name] > 1 for name in named):
            key, named = f"{one.file}:{key}", {f"{one.file}:{n}": v for n, v in named.items()}
        found |= named
        shown.append(key)
    found |= {f"item.{name}" if name in found else name: v for name, v in item.params.items()}
    return found, shown, tuple(dict.fromkeys(chosen))


def alone(
    full: Mapping[str, Any], sections: Iterable[str], models: Sequence[str]
) -> dict[str, Any]:
    """Settings under names that are the same in the runs of similar stages, and the model.

    If a stage tracks one section of a file, such as `lenet5`, then `lenet5.epochs` becomes
    `epochs`. All names stay as they are if two of them would become the same. A stage that makes
    one model has its name as the setting `model`.
    """
    params = dict(full)
    for section in sections:
        cut = {key.removeprefix(f"{section}."): value for key, value in params.items()}
        params = cut if len(cut) == len(params) else params
    return params if len(models) != 1 else {"model": models[0], **params}


def former(settings: Iterable[Setting], item: Item) -> dict[str, Any]:
    """Settings by the names of earlier versions, which left every value out of every key.

    Only a hash of them is used: by it, the runs of those versions are recognised.
    """
    tracked = {one.key: one for one in settings}
    told = [one.values[""] for one in tracked.values() if "" in one.values]
    values = {str(value) for value in (*told, *item.former.values())}
    found: dict[str, Any] = {}
    for one in tracked.values():
        named = one.named(".".join(part for part in one.key.split(".") if part not in values))
        found |= one.named(one.key) if {"", *found, *item.former} & named.keys() else named
    return {**found, **item.former}
