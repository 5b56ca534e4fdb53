"""The splits as the stages exchange them: resized images and their labels, in safetensors files."""

import json
import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from dvc_kit.errors import InputError
from dvc_kit.files import write_bytes

SIDE = 28  # pixels, of an image of MNIST
INPUT_SIDE = 32  # pixels, of a resized image, as the networks take it
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Images (N, 28, 28), or resized ones (N, 32, 32), and labels (N,). Both are uint8."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    mapped: mmap.mmap | None = None  # the file, if the arrays are its bytes

    def __len__(self) -> int:
        return len(self.labels)

    def release(self) -> None:
        """Free the memory of a mapped file. Its pages are read again when they are needed."""
        if self.mapped:
            self.mapped.madvise(mmap.MADV_DONTNEED)


def hold_out(
    labels: NDArray[np.uint8], size: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw ``size`` images at random, as many of each class as its share.

    Returns:
        The indices of the images that stay, and those of the drawn ones, both ascending.
    """
    from sklearn.model_selection import train_test_split

    stay, drawn = train_test_split(
        np.arange(len(labels)), test_size=size, stratify=labels, random_state=seed
    )
    return np.sort(stay), np.sort(drawn)


def save_split(folder: Path, name: str, part: Split) -> None:
    """Write resized images and their labels."""
    content = save({"images": part.images, "labels": part.labels})
    write_bytes(folder / f"{name}.safetensors", content)


def load_split(folder: Path, name: str) -> Split:
    """A split that :func:`save_split` wrote. The file is mapped: a page is read when it is used.

    Raises:
        InputError: The file is missing, or was not written by the stage prepare.
    """
    path = folder / f"{name}.safetensors"
    cure = "`dvc repro prepare` makes it again"
    if not path.is_file():
        raise InputError(f"{path} is missing: {cure}")
    try:
        part = _map(path)
    except Exception as error:  # of any kind, because any bytes may stand there
        raise InputError(f"{path} is damaged ({error}): remove it, and {cure}") from None
    if part.images.shape != (len(part), INPUT_SIDE, INPUT_SIDE):
        raise InputError(f"{path} holds images of {part.images.shape}: {cure}")
    return part


def _map(path: Path) -> Split:
    """Map a safetensors file. The reader of safetensors would copy the arrays.

    The format: 8 bytes with the length of a JSON header, the header, and the bytes of all tensors.
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
