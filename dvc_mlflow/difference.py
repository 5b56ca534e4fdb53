"""Where two versions of a file or a folder first differ, in the terms of its format."""

import contextlib
import csv
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dvc_kit import files

LARGEST = 200 * 10**6  # bytes of a file that is parsed; of a larger one only the byte is told
LONGEST = 60  # characters of a value
BLOCK = 2**20  # bytes that are compared at a time
TREES = (".json", ".yaml", ".yml", ".toml")
TABLES = {".csv": ",", ".tsv": "\t"}
ARRAYS = (".npy", ".npz", ".safetensors")
IMAGES = (".png", ".jpg", ".jpeg")


def first(was: Path, now: Path) -> str:
    """Where the second version first differs from the first; empty if all bytes are the same."""
    if was.is_dir() and now.is_dir():
        return _first_file(was, now)
    if was.is_dir() or now.is_dir():
        return "a folder on one side, a file on the other"
    at = _first_byte(was, now)
    if not at or max(was.stat().st_size, now.stat().st_size) > LARGEST:
        return at
    readers = {**dict.fromkeys(TREES, _tree), **dict.fromkeys(TABLES, _table),
               **dict.fromkeys(ARRAYS, _arrays), **dict.fromkeys(IMAGES, _image)}  # fmt: skip
    for read in filter(None, [readers.get(now.suffix.lower()), _lines]):
        with contextlib.suppress(Exception):  # it is not of the format that its name says
            parts = itertools.zip_longest(read(was), read(now), fillvalue=("", None))
            for (place, before), (place_now, after) in parts:
                if place != place_now:
                    return _moved(place, place_now)
                if told := _differing(place, before, after):
                    return told
    return at


def _first_file(was: Path, now: Path) -> str:
    names = [{*files.inside(folder)} for folder in (was, now)]
    for name in sorted(names[0] | names[1]):
        if name not in names[1]:
            return f"{name} is missing"
        if name not in names[0]:
            return f"{name} is new"
        if told := first(was / name, now / name):
            return f"{name}: {told}"
    return ""


def _first_byte(was: Path, now: Path) -> str:
    at = 0
    with was.open("rb") as old, now.open("rb") as new:
        while True:
            before, after = old.read(BLOCK), new.read(BLOCK)
            if before != after:
                at += _same_start(before, after)
                break
            if not before:
                return ""
            at += len(before)
    sizes = was.stat().st_size, now.stat().st_size
    changed = f", of {sizes[0]:,} bytes; now {sizes[1]:,}" if sizes[0] != sizes[1] else ""
    return f"byte {at:,}{changed}"


def _same_start(was: Sequence[Any], now: Sequence[Any]) -> int:
    """The number of bytes or characters before the first that differs."""
    pairs = enumerate(zip(was, now, strict=False))
    return next((at for at, (old, new) in pairs if old != new), min(len(was), len(now)))


def _moved(place: str, place_now: str) -> str:
    if place and place_now:
        return f"{place_now} is in the place of {place}"
    return f"{place} is missing" if place else f"{place_now} is new"


def _differing(place: str, was: Any, now: Any) -> str:
    """A value at a place in both versions, if it differs."""
    if hasattr(was, "dtype") and hasattr(now, "dtype"):
        return _differing_array(place, was, now)
    if type(was) is type(now) and repr(was) == repr(now):  # NaN is the same as NaN
        return ""
    before, after = (" ".join(str(value).split()) for value in (was, now))
    start = max(0, _same_start(before, after) - LONGEST // 2)
    return f"{place} is {_shown(after, start)}, was {_shown(before, start)}"


def _differing_array(place: str, was: Any, now: Any) -> str:
    import numpy as np

    if (was.dtype, was.shape) != (now.dtype, now.shape):
        return f"{place} is {now.dtype}{[*now.shape]}, was {was.dtype}{[*was.shape]}"
    size = was.dtype.itemsize  # by bytes, because 0.0 equals -0.0, and NaN not NaN
    old, new = (np.frombuffer(its.tobytes(), np.uint8).reshape(-1, size) for its in (was, now))
    wrong = np.flatnonzero((old != new).any(axis=1))
    if not wrong.size:
        return ""
    at = tuple(map(int, np.unravel_index(wrong[0], was.shape)))
    name = f"{place}[{', '.join(map(str, at))}]"
    count = f" ({wrong.size:,} of {was.size:,} values differ)"
    return f"{name} is {now[at]}, was {was[at]}{count}"


def _shown(text: str, start: int) -> str:
    """A text, or its part behind a place if it is long."""
    return text if len(text) <= LONGEST else f"{'... ' * (start > 0)}{text[start:][:LONGEST]} ..."


# --- the parts of a file in its order, with the name of each ---

Parts = Iterator[tuple[str, Any]]


def _tree(path: Path) -> Parts:
    def leaves(tree: Any, place: str) -> Parts:
        pairs = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, value in pairs:
            name = f"{place}.{key}" if place else str(key)
            if isinstance(value, Mapping | list) and value:
                yield from leaves(value, name)
            else:
                yield name, value

    content = files.read_tree(path)
    is_tree = isinstance(content, Mapping | list)
    yield from leaves(content, "") if is_tree else [("the value", content)]


def _table(path: Path) -> Parts:
    text = path.read_text(encoding="utf-8")
    rows = csv.reader(io.StringIO(text), delimiter=TABLES[path.suffix.lower()])
    titles: list[str] = []
    for number, row in enumerate(rows):
        titles = titles or row
        for column, value in enumerate(row):
            title = titles[column] if column < len(titles) else str(column + 1)
            yield f"row {number}, column {title}" if number else f"title {column + 1}", value


def _arrays(path: Path) -> Parts:
    import numpy as np

    if path.suffix.lower() == ".safetensors":
        from safetensors.numpy import load_file

        yield from sorted(load_file(path).items())
        return
    loaded = np.load(path, allow_pickle=False)
    yield from loaded.items() if path.suffix.lower() == ".npz" else [("value", loaded)]


def _image(path: Path) -> Parts:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        yield "the size", f"{image.width} x {image.height} {image.mode}"
        yield "pixel", np.asarray(image)


def _lines(path: Path) -> Parts:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        yield f"line {number}", line
