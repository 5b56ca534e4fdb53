"""Arbitrary bytes for all that reads what comes from outside: ``python tests/fuzz.py EXAMPLES``.

Only our own errors may come out. Ends with the peak of resident memory, in MB.
"""

import gzip
import io
import json
import string
import sys
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

import stages  # noqa: F401  (before torch is imported)
from dvc_guard import mend
from dvc_kit.errors import StageError
from stages.base import params, splits
from stages.mnist import idx
from study import settings as study_settings

EXAMPLES = int(sys.argv[1]) if len(sys.argv) > 1 else 100
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
# The files of settings, and what reads them
READERS = {
    params.PATH: params.load,
    params.RECIPES_PATH: params.load,
    study_settings.PATH: study_settings.load,
}
GIVEN = {path: path.read_text(encoding="utf-8") for path in READERS}
# In milliseconds: 100,000 brackets take 4 s on a slow processor, and 7 s beside another test
DEADLINE = 30_000
quick = settings(
    max_examples=EXAMPLES, deadline=DEADLINE, suppress_health_check=list(HealthCheck), database=None
)

FILE = idx.TEST_LABELS
WHOLE = FILE.header + bytes(FILE.length - len(FILE.header))


def bomb(megabytes: int) -> bytes:
    """So many million zeros as a gzip file, made without having them all in memory."""
    packer = zlib.compressobj(1, wbits=31)
    return b"".join(packer.compress(bytes(10**6)) for _ in range(megabytes)) + packer.flush()


# YAML that stands for a list of 2 ** 40 items
LAUGHS = "[&a0 [1, 1], " + ", ".join(f"&a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)) + "]"


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` with some bytes overwritten, cut out or put in."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(found)))
        new = draw(st.binary(max_size=8))
        found[at : at + draw(st.sampled_from([0, len(new), 100]))] = new
    return bytes(found)


@quick
@given(st.one_of(st.binary(max_size=4_000), mutated(gzip.compress(WHOLE))))
@example(bomb(300))
def fuzz_gunzip(content: bytes) -> None:
    with suppress(idx.WrongBytes):
        assert len(idx.gunzip(content, FILE.length)) <= FILE.length


@quick
@given(st.one_of(st.binary(max_size=4_000), mutated(WHOLE)))
def fuzz_idx(content: bytes) -> None:
    with suppress(idx.WrongBytes):
        idx.check(FILE, content)
        raise AssertionError("zeros, or something near them, are not MNIST's labels")


def header(**tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


offsets = st.lists(st.integers(-(2**70), 2**70), max_size=3)
tensor = st.fixed_dictionaries(
    {"shape": st.one_of(offsets, st.text()), "data_offsets": st.one_of(offsets, st.none())}
)


@quick
@given(
    st.one_of(
        st.binary(max_size=2_000),
        st.builds(lambda a, b: header(images=a, labels=b) + bytes(3_000), tensor, tensor),
        st.builds(lambda a: header(images=a) + bytes(100), st.recursive(st.none(), st.lists)),
    )
)
@example((2**20).to_bytes(8, "little") + b"[" * 2**20)
@example((2**63).to_bytes(8, "little"))
def fuzz_split(content: bytes) -> None:
    (FOLDER / "train.safetensors").write_bytes(content)
    with suppress(StageError):
        splits.load_split(FOLDER, "train")


yaml_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(string.printable)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(string.ascii_letters), inner)
    ),
    max_leaves=10,
)


def read_settings(path: Path, content: bytes) -> None:
    """Read the settings with another content in one of their files."""
    path.write_bytes(content)
    try:
        with suppress(StageError):
            READERS[path]()
    finally:
        path.write_text(GIVEN[path], encoding="utf-8")


def contents(path: Path) -> st.SearchStrategy[tuple[Path, bytes]]:
    text = st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass"))
    content = st.one_of(st.binary(max_size=500), mutated(GIVEN[path].encode()), text)
    return st.tuples(st.just(path), content)


@quick
@given(st.one_of(*map(contents, READERS)))
@example((params.PATH, b"[" * 100_000))
@example(
    (params.PATH, b"a: &a [x]\n" + b"".join(b"b%d: &b%d [*a, *a]\n" % (i, i) for i in range(30)))
)
@example((params.PATH, b"\xff\xfe"))
@example((params.PATH, ("seed: " + LAUGHS).encode()))
@example((params.RECIPES_PATH, ("fast: " + LAUGHS).encode()))
@example((study_settings.PATH, ("seeds: " + LAUGHS).encode()))
@example((params.PATH, b"!!python/object/apply:os.system [echo]"))
def fuzz_settings_text(given: tuple[Path, bytes]) -> None:
    read_settings(*given)


@quick
@given(st.data())
def fuzz_settings_values(data: st.DataObject) -> None:
    """A file of settings with one value, anywhere in it, replaced."""
    path = data.draw(st.sampled_from(list(READERS)))
    content = YAML(typ="safe").load(GIVEN[path])
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(yaml_values)
        break
    with io.BytesIO() as file:
        YAML(typ="safe").dump(content, file)
        read_settings(path, file.getvalue())


@quick
@given(st.one_of(st.binary(max_size=500), mutated(Path("dvc.lock").read_bytes()[:3_000])))
def fuzz_dvc_lock(content: bytes) -> None:
    (FOLDER / "dvc.lock").write_bytes(content)
    mend.is_whole(FOLDER / "dvc.lock")


def peak() -> int:
    """Most resident memory so far, in MB. Not getrusage's, which begins with the parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) // 1024


if __name__ == "__main__":
    for name, fuzz in list(globals().items()):
        if name.startswith("fuzz_"):
            fuzz()
            print(f"{name} {EXAMPLES} examples, {peak()} MB", flush=True)
