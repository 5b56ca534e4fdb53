"""Names as MLflow takes them, and the names of settings.

Settings are called as in dvc.yaml, but the same in runs that are compared. No two settings share a
name. A value changes a name only where that is declared.
"""

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LONGEST_KEY = 250  # characters that MLflow takes


def marked(text: str, longest: int, whole: object) -> str:
    """The beginning of a text, and a hash of what it stands for."""
    digest = hashlib.sha256(str(whole).encode()).hexdigest()
    return f"{text[: longest - 9]}-{digest[:8]}"


def cut(text: str, longest: int, whole: str | None = None) -> str:
    """A text as it is, or its beginning and a hash, so that two long ones do not look equal.

    Args:
        whole: What the text stands for, if it is not that itself.
    """
    return text if len(text) <= longest else marked(text, longest, whole or text)


def named(key: str) -> str:
    """A key as MLflow takes it: other characters become ``_``, and a long one ends in a hash."""
    valid = re.sub(r"[^/\w.\- :]", "_", posixpath.normpath(key).lstrip("/"))
    if not valid.strip("./"):  # an empty key, or one of dots
        valid = "_" * max(1, len(valid))
    valid = re.sub(r"^(\.\./)*\.\.", lambda dots: dots[0].replace(".", "_"), valid)
    return cut(valid, LONGEST_KEY, key)


def leaves(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Everything in a tree that is no mapping, and the keys that lead to it."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, (*above, key))
    else:
        yield above, tree


def flat(tree: Any) -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``: MLflow shows a nested mapping as one string."""
    return {".".join(map(str, keys)): value for keys, value in leaves(tree)}


# --- settings ---


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


NONE = Item({}, {})


def names(
    settings: Sequence[Setting], item: Item, strip: Iterable[str], model: str = ""
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Settings by name, and the values that are left out of names.

    A template such as `${recipe}.lenet5` puts the value of a setting into a key. If ``strip`` has
    `recipe`, that value is left out: with `recipe: published`, `published.lenet5.epochs` becomes
    `lenet5.epochs`. A key stays whole if its name would be empty, or that of another setting.

    Where two files have the same key, it is `lr` in DVC's default file and `other.yaml:lr` in
    others. Where a setting has the name of a part of an item, that is `item.NAME`.

    Args:
        model: The only model that the stage makes. It is the setting `model`, if none is called so.
    """
    whole = [setting.named(setting.key) for setting in settings]
    told = {"model": model, **{name: value for named in whole for name, value in named.items()}}
    told |= item.declared
    values = {str(told[name]) for name in strip if told.get(name, "") != ""}
    keys = [".".join(p for p in s.key.split(".") if p not in values) for s in settings]
    short = [setting.named(key) for setting, key in zip(settings, keys, strict=True)]
    taken = Counter(
        name for _, name in {(s.file, name) for s in settings for name in s.named(s.key)}
    )
    wanted = Counter(name for named in short for name in named)
    params: dict[str, Any] = {}
    chosen: list[str] = []
    for setting, key, named in zip(settings, keys, short, strict=True):
        others = {"", *taken, *item.params}
        if key != setting.key and not any(n in others or wanted[n] > 1 for n in named):
            chosen += [part for part in setting.key.split(".") if part in values]
        else:
            named = setting.named(setting.key)
        if not setting.is_default and any(taken[name] > 1 for name in named):
            named = {f"{setting.file}:{name}": value for name, value in named.items()}
        params |= named
    params |= {f"item.{name}" if name in params else name: v for name, v in item.params.items()}
    return ({"model": model, **params} if model else params), tuple(dict.fromkeys(chosen))
