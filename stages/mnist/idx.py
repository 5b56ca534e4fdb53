"""MNIST: its four files, how they are checked, and the splits made of them.

Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits" (1998).
"""

import struct
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dvc_kit.files import sha256, writing
from stages.base.params import CLASSES
from stages.base.splits import INPUT_SIDE, SIDE, Split, hold_out
from stages.mnist.vision import torchvision


class WrongBytes(Exception):
    """Bytes that are not the expected file of MNIST. The message says how they differ."""


class SourceFailed(Exception):
    """A source cannot give the four files. The message says why."""


@dataclass(frozen=True)
class IdxFile:
    """One of the four files, uncompressed."""

    name: str
    sha256: str
    shape: tuple[int, ...]  # (images, 28, 28), or (labels,)

    @property
    def header(self) -> bytes:
        """In the IDX format: two zero bytes, 8 for unsigned bytes, the number of dimensions, and
        the size of each."""
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
AT_ONCE = 2**12  # images in one call of Pillow


def check(file: IdxFile, content: bytes) -> None:
    """Check that ``content`` is ``file``, before any other code reads it.

    Raises:
        WrongBytes: Its length, its SHA-256 or its header is wrong, or a label is above 9.
    """
    if len(content) != file.length:
        raise WrongBytes(f"has {len(content):,} bytes, expected {file.length:,}")
    if not content.startswith(file.header):
        raise WrongBytes(f"has the IDX header {content[: len(file.header)].hex(' ')}")
    if len(file.shape) == 1 and max(content[len(file.header) :]) >= CLASSES:
        raise WrongBytes(f"has the label {max(content[len(file.header) :])}")
    if (found := sha256(content)) != file.sha256:
        raise WrongBytes(f"has SHA-256 {found[:12]}..., expected {file.sha256[:12]}...")


def gunzip(content: bytes, length: int) -> bytes:
    """Decompress one gzip member of exactly ``length`` bytes.

    ``gzip.decompress`` would also accept several members, ignore bytes after them, and unpack
    without a limit.

    Raises:
        WrongBytes: It is not gzip, is damaged, cut or too long, or other bytes follow.
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


def read(content: Mapping[IdxFile, bytes]) -> dict[str, Split]:
    """The sets train and test as torchvision's MNIST reads them.

    torchvision reads files. So it gets a temporary folder, which holds nothing but the checked
    bytes: what lies in data/raw may have changed since the check.

    Raises:
        StageError: The folder cannot be written.
    """
    mnist, sets = torchvision().datasets.MNIST, {}
    with writing(Path("the temporary folder")), tempfile.TemporaryDirectory() as root:
        folder = Path(root, "MNIST", "raw")  # where torchvision looks
        folder.mkdir(parents=True)
        for file in FILES:
            (folder / file.name).write_bytes(content[file])
        for name in ("train", "test"):
            part = mnist(root, train=name == "train")
            sets[name] = Split(part.data.numpy(), part.targets.numpy().astype(np.uint8))
    return sets


def split(
    content: Mapping[IdxFile, bytes], validation_size: int, train_limit: int, seed: int
) -> dict[str, Split]:
    """The splits train, validation and test.

    Args:
        content: The checked bytes of all four files.
        validation_size: How many of the 60,000 images are drawn for validation, see
            :func:`hold_out`. The others keep their order.
        train_limit: Keep only the first so many training images. 0 means no limit.

    Raises:
        StageError: See :func:`read`.
    """
    sets = read(content)
    images, labels = sets["train"].images, sets["train"].labels
    train, validation = np.arange(len(labels)), np.arange(0)
    if validation_size:
        train, validation = hold_out(labels, validation_size, seed)
    train = train[: train_limit or None]
    return {
        "train": Split(images[train], labels[train]),
        "validation": Split(images[validation], labels[validation]),
        "test": sets["test"],
    }


def resize(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (N, 28, 28) to (N, 32, 32), with Pillow's bilinear filter, like the published code.

    Not with torchvision's `transforms.v2.resize`: for uint8 it takes another way where PyTorch has
    no AVX2 kernels, and 18 % of the pixels of random images then differ by 1 (torch 2.13.0,
    torchvision 0.28.0, `ATEN_CPU_CAPABILITY=default`). Pillow, and the `F.interpolate` of
    :mod:`stages.networks.models`, give the same bytes with and without these kernels.
    """
    resized = np.empty((len(images), INPUT_SIDE, INPUT_SIDE), np.uint8)
    for start in range(0, len(images), AT_ONCE):
        wide = _stretched(images[start : start + AT_ONCE])
        resized[start : start + AT_ONCE] = _stretched(wide.swapaxes(1, 2)).swapaxes(1, 2)
    return resized


def _stretched(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The rows of images (N, rows, 28), resized to (N, rows, 32).

    Pillow, too, resizes all rows, rounds, and then resizes all columns. With a call for each image,
    half of the time goes into the calls.
    """
    count, rows, side = images.shape
    stack = Image.fromarray(images.reshape(count * rows, side))
    stretched = stack.resize((INPUT_SIDE, count * rows), Image.Resampling.BILINEAR)
    return np.asarray(stretched).reshape(count, rows, INPUT_SIDE)
