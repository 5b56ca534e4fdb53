"""Arbitrary bytes for all that reads what comes from outside: only our own errors come out.

EXAMPLES in the environment is how many there are of each.
"""

import gzip
import io
import json
import os
import string
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from conftest import ROOT
from dvc_guard import mend
from dvc_kit.errors import StageError
from stages.base import params, splits
from stages.mnist import idx
from study import settings as study_settings

# The files of settings, and what reads them
READERS = {
    params.PATH: params.load,
    params.RECIPES_PATH: params.load,
    study_settings.PATH: study_settings.load,
}
GIVEN = {path: (ROOT / path).read_text(encoding="utf-8") for path in READERS}
# YAML that stands for a list of 2 ** 40 items
LAUGHS = "[&a0 [1, 1], " + ", ".join(f"&a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)) + "]"
FILE = idx.TEST_LABELS
WHOLE = FILE.header + bytes(FILE.length - len(FILE.header))
some = settings(
    max_examples=int(os.environ.get("EXAMPLES", "20")),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study_settings.FOLDER.mkdir()
    for path, text in GIVEN.items():
        path.write_text(text, encoding="utf-8")


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` with some bytes overwritten, cut out or put in."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(found)))
        new = draw(st.binary(max_size=8))
        found[at : at + draw(st.sampled_from([0, len(new), 100]))] = new
    return bytes(found)


def of_bytes(content: bytes) -> st.SearchStrategy[bytes]:
    return st.one_of(st.binary(max_size=4_000), mutated(content))


@some
@given(of_bytes(gzip.compress(WHOLE)), of_bytes(WHOLE))
def test_a_download(packed, content):
    with suppress(idx.WrongBytes):
        assert len(idx.gunzip(packed, FILE.length)) <= FILE.length
    with pytest.raises(idx.WrongBytes):  # zeros, or something near them, are not MNIST's labels
        idx.check(FILE, content)


def header(**tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


offsets = st.lists(st.integers(-(2**70), 2**70), max_size=3)
tensor = st.fixed_dictionaries(
    {"shape": st.one_of(offsets, st.text()), "data_offsets": st.one_of(offsets, st.none())}
)


@some
@given(
    st.binary(max_size=2_000)
    | st.builds(lambda a, b: header(images=a, labels=b) + bytes(3_000), tensor, tensor)
)
@example((2**20).to_bytes(8, "little") + b"[" * 2**20)
@example((2**63).to_bytes(8, "little"))
def test_a_split(content):
    Path("train.safetensors").write_bytes(content)
    with suppress(StageError):
        splits.load_split(Path(), "train")


def read_settings(path: Path, content: bytes) -> None:
    """Read the settings with another content in one of their files."""
    path.write_bytes(content)
    try:
        with suppress(StageError):
            READERS[path]()
    finally:
        path.write_text(GIVEN[path], encoding="utf-8")


@some
@given(st.one_of(*(st.tuples(st.just(p), of_bytes(t.encode())) for p, t in GIVEN.items())))
@example((params.PATH, b"[" * 100_000))
@example((params.PATH, b"\xff\xfe"))
@example((params.PATH, ("seed: " + LAUGHS).encode()))
@example((params.RECIPES_PATH, ("fast: " + LAUGHS).encode()))
@example((study_settings.PATH, ("seeds: " + LAUGHS).encode()))
@example((params.PATH, b"!!python/object/apply:os.system [echo]"))
def test_a_file_of_settings(given):
    read_settings(*given)


yaml_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(string.printable)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(string.ascii_letters), inner)
    ),
    max_leaves=10,
)


@some
@given(st.data())
def test_a_file_of_settings_with_another_value_anywhere_in_it(data):
    path = data.draw(st.sampled_from(list(READERS)))
    content = YAML(typ="safe").load(GIVEN[path])
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not (isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans())):
            break
        place = place[key]
    place[key] = data.draw(yaml_values)
    with io.BytesIO() as file:
        YAML(typ="safe").dump(content, file)
        read_settings(path, file.getvalue())


@some
@given(of_bytes((ROOT / "dvc.lock").read_bytes()[:3_000]))
def test_a_lock(content):
    Path("dvc.lock").write_bytes(content)
    mend.is_whole(Path("dvc.lock"))
