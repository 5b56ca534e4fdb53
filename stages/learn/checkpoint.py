"""The state of a training after its last finished epoch, in a file.

A checkpoint is not a result. It is in a folder that git and DVC ignore, and is deleted when the
stage has written its outs. It is used only for exactly the same training, see :func:`key`.
"""

import hashlib
import io
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from dvc_guard.alone import FOLDER
from dvc_kit.files import sha256, write_bytes
from stages.base.params import Recipe
from stages.base.splits import Split
from stages.learn.training import State
from stages.networks import models

CODE = Path(__file__).parents[1]  # of the pipeline


def digests(state: State, splits: Mapping[str, Split], recipe: Recipe) -> dict[str, str]:
    """SHA-256, by name, of everything that a training depends on, before its first step: our code,
    the libraries, the settings, the images, the initial weights and the state of every generator.

    They are the same on each processor.
    """
    sources = {getattr(module, "__file__", None) for module in [*sys.modules.values()]}
    paths = {path for path in map(Path, filter(None, sources)) if CODE in path.parents}
    paths |= {*CODE.glob("arithmetic/**/*.py")}  # kernels are imported by the first computation
    # Without what tells the builds of a version for different processors apart
    libraries = torch.__version__.partition("+")[0], np.__version__, sys.version.split()[0]
    found = {name: hashlib.sha256() for name in ("code", "images", "initial weights")}
    for path in sorted(paths):
        found["code"].update(path.read_bytes())
    for name, part in splits.items():
        found["images"].update(f"{name} {len(part)}".encode())
        found["images"].update(np.ascontiguousarray(part.images).data)
        found["images"].update(np.ascontiguousarray(part.labels).data)
        part.release()
    found["initial weights"].update(models.to_bytes(state.network))
    for generator in (state.generator.get_state(), torch.get_rng_state()):
        found["initial weights"].update(generator.numpy().data)
    given = {"libraries": libraries, "settings": (recipe, state.generator.initial_seed())}
    return {name: sha256(repr(value).encode()) for name, value in given.items()} | {
        name: digest.hexdigest() for name, digest in found.items()
    }


def key(found: Mapping[str, str]) -> bytes:
    """SHA-256 of :func:`digests`."""
    return hashlib.sha256(repr(found).encode()).digest()


def written(state: State) -> bytes:
    buffer = io.BytesIO()
    torch.save(state.state_dict(), buffer)
    return buffer.getvalue()


def read(state: State, content: bytes) -> None:
    """Load what :func:`written` has returned."""
    state.load_state_dict(torch.load(io.BytesIO(content), "cpu", weights_only=True))


class Checkpoint:
    """The file of one stage. It holds a SHA-256 of the rest of the file, the key, and the state."""

    def __init__(self, stage: str, key: bytes) -> None:
        self.path = FOLDER / f"{stage}.pt"
        self.key = key

    def save(self, state: State) -> None:
        content = self.key + written(state)
        write_bytes(self.path, hashlib.sha256(content).digest() + content)

    def restore(self, state: State) -> None:
        """Load the saved state, if there is one. A damaged file is named, and not used."""
        size = hashlib.sha256().digest_size
        try:
            found = self.path.read_bytes()
        except FileNotFoundError:
            return
        if hashlib.sha256(found[size:]).digest() != found[:size]:
            print(f"warning: {self.path} is damaged, so the training starts again", file=sys.stderr)
        elif found[size : 2 * size] == self.key:
            read(state, found[2 * size :])

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
