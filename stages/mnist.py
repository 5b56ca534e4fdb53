"""MNIST: what its four files are, how they are checked, and the splits made of them.

Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits" (1998).
"""

import json
import mmap
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save

from stages import files
from stages.errors import InputError

SIDE = 28  # pixels
INPUT_SIDE = 32  # pixels, of what the networks take
CLASSES = 10
SPLITS = ("train", "validation", "test")


class WrongBytes(Exception):
    """Bytes that are not the file of MNIST that they should be; says in what they differ."""


@dataclass(frozen=True)
class IdxFile:
    """One of the four files, uncompressed."""

    name: str
    sha256: str
    shape: tuple[int, ...]  # (images, 28, 28), or (labels,)

    @property
    def header(self) -> bytes:
        """IDX: two zero bytes, 8 for unsigned bytes, the number of dimensions, and each."""
        return struct.pack(f">HBB{len(self.shape)}I", 0, 8, len(self.shape), *self.shape)

    @property
    def length(self) -> int:
        return len(self.header) + int(np.prod(self.shape))


TRAIN_IMAGES = IdxFile(
    "train-images-idx3-ubyte",
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    (60_000, SIDE, SIDE),
)
TRAIN_LABELS = IdxFile(
    "train-labels-idx1-ubyte",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    (60_000,),
)
TEST_IMAGES = IdxFile(
    "t10k-images-idx3-ubyte",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    (10_000, SIDE, SIDE),
)
TEST_LABELS = IdxFile(
    "t10k-labels-idx1-ubyte",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    (10_000,),
)
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)


@dataclass(frozen=True)
class Split:
    """Images (N, 28, 28), or resized (N, 32, 32), and labels (N,), both uint8."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    mapped: mmap.mmap | None = None  # the file, if they are its bytes

    def __len__(self) -> int:
        return len(self.labels)

    def release(self) -> None:
        """Give back the memory of what was read of a mapped file; it is read again if needed."""
        if self.mapped:
            self.mapped.madvise(mmap.MADV_DONTNEED)


def check(file: IdxFile, content: bytes) -> None:
    """Check ``content`` against what ``file`` must be, before anything else reads it.

    Raises:
        WrongBytes: Another length, another SHA-256, another IDX header or a label above 9.
    """
    if len(content) != file.length:
        raise WrongBytes(f"has {len(content):,} bytes, expected {file.length:,}")
    if not content.startswith(file.header):
        raise WrongBytes(f"has the IDX header {content[: len(file.header)].hex(' ')}")
    if len(file.shape) == 1 and max(content[len(file.header) :]) >= CLASSES:
        raise WrongBytes(f"has the label {max(content[len(file.header) :])}")
    if (found := files.sha256(content)) != file.sha256:
        raise WrongBytes(f"has SHA-256 {found[:12]}..., expected {file.sha256[:12]}...")


def gunzip(content: bytes, length: int) -> bytes:
    """Decompress one gzip member of exactly ``length`` bytes.

    ``gzip.decompress`` would also take several members, drop garbage behind them and unpack
    without a limit.

    Raises:
        WrongBytes: Not gzip, damaged, cut, longer than ``length``, or followed by something.
    """
    stream = zlib.decompressobj(wbits=31)
    try:
        plain = stream.decompress(content, length + 1)
    except zlib.error as error:
        raise WrongBytes(f"is not readable as gzip: {error}") from None
    if len(plain) > length:
        raise WrongBytes(f"unpacks to more than {length:,} bytes")
    if not stream.eof:
        raise WrongBytes(f"is cut: {len(plain):,} of {length:,} bytes")
    if stream.unused_data:
        raise WrongBytes(f"has {len(stream.unused_data):,} bytes behind its end")
    return plain


def parse(file: IdxFile, content: bytes) -> NDArray[np.uint8]:
    """The checked bytes of ``file`` as an array of its shape."""
    return np.frombuffer(content, np.uint8, offset=len(file.header)).reshape(file.shape)


def split(
    content: Mapping[IdxFile, bytes], validation_size: int, train_limit: int, seed: int
) -> dict[str, Split]:
    """Train, validation and test.

    The validation images are drawn from the 60,000 at random, as many of each class as its
    share; what is left keeps its order, and ``train_limit`` (0: no limit) keeps its beginning.
    """
    images, labels = (
        parse(TRAIN_IMAGES, content[TRAIN_IMAGES]),
        parse(TRAIN_LABELS, content[TRAIN_LABELS]),
    )
    train, validation = np.arange(len(labels)), np.arange(0)
    if validation_size:
        train, validation = hold_out(labels, validation_size, seed)
    train = train[: train_limit or None]
    return {
        "train": Split(images[train], labels[train]),
        "validation": Split(images[validation], labels[validation]),
        "test": Split(
            parse(TEST_IMAGES, content[TEST_IMAGES]), parse(TEST_LABELS, content[TEST_LABELS])
        ),
    }


def hold_out(
    labels: NDArray[np.uint8], size: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the images that stay and of ``size`` drawn ones, stratified, both ascending."""
    from sklearn.model_selection import train_test_split

    stay, drawn = train_test_split(
        np.arange(len(labels)), test_size=size, stratify=labels, random_state=seed
    )
    return np.sort(stay), np.sort(drawn)


def resize(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (N, 28, 28) to (N, 32, 32) by Pillow's bilinear filter, as the published code did."""
    size = (INPUT_SIDE, INPUT_SIDE)
    resized = np.empty((len(images), *size), np.uint8)
    for index, image in enumerate(images):
        resized[index] = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return resized


def save_split(folder: Path, name: str, part: Split) -> None:
    """Write resized images and their labels."""
    content = save({"images": part.images, "labels": part.labels})
    files.write_bytes(folder / f"{name}.safetensors", content)


def load_split(folder: Path, name: str) -> Split:
    """What :func:`save_split` wrote, mapped: only what is used of it is read, when it is used.

    Raises:
        InputError: The file is missing or is not what the prepare stage writes.
    """
    path = folder / f"{name}.safetensors"
    cure = "`dvc repro prepare` makes it again"
    if not path.is_file():
        raise InputError(f"{path} is missing: {cure}")
    try:
        part = _map(path)
    except Exception as error:  # of whatever kind: its header may say anything
        raise InputError(f"{path} is damaged ({error}): remove it, and {cure}") from None
    if part.images.shape != (len(part), INPUT_SIDE, INPUT_SIDE):
        raise InputError(f"{path} holds images of {part.images.shape}: {cure}")
    return part


def _map(path: Path) -> Split:
    """A safetensors file as a mapping; safetensors' own reader would copy the arrays.

    The format: 8 bytes with the length of a JSON header, the header, then all tensors' bytes.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("it is not a safetensors file")
        header, start = json.loads(file.read(length)), 8 + length
        # A private copy of each page that is written to: PyTorch warns of memory it cannot write
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def array(name: str) -> NDArray[np.uint8]:
        shape, (begin, end) = header[name]["shape"], header[name]["data_offsets"]
        return np.frombuffer(mapped, np.uint8, end - begin, start + begin).reshape(shape)

    return Split(array("images"), array("labels"), mapped)
