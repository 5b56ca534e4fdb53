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
from dvc_kit.files import write_bytes
from stages.base.params import Recipe
from stages.base.splits import Split
from stages.learn.training import State
from stages.networks import models

CODE = Path(__file__).parents[1]  # of the pipeline


def key(state: State, splits: Mapping[str, Split], recipe: Recipe) -> bytes:
    """SHA-256 of everything that a training depends on, before its first step: our code, the
    settings, the libraries, the images, the initial weights, and the state of every generator."""
    digest = hashlib.sha256()
    sources = {getattr(module, "__file__", None) for module in [*sys.modules.values()]}
    for path in sorted(Path(name) for name in sources if name):
        if CODE in path.parents:
            digest.update(path.read_bytes())
    digest.update(repr((recipe, torch.__version__, np.__version__, sys.version)).encode())
    digest.update(models.to_bytes(state.network))
    for generator in (state.generator.get_state(), torch.get_rng_state()):
        digest.update(generator.numpy().data)
    for name, part in splits.items():
        digest.update(f"{name} {len(part)}".encode())
        digest.update(np.ascontiguousarray(part.images).data)
        digest.update(np.ascontiguousarray(part.labels).data)
        part.release()
    return digest.digest()


class Checkpoint:
    """The file of one stage. It holds a SHA-256 of the rest of the file, the key, and the state."""

    def __init__(self, stage: str, key: bytes) -> None:
        self.path = FOLDER / f"{stage}.pt"
        self.key = key

    def save(self, state: State) -> None:
        buffer = io.BytesIO()
        torch.save(state.state_dict(), buffer)
        content = self.key + buffer.getvalue()
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
            saved = torch.load(io.BytesIO(found[2 * size :]), "cpu", weights_only=True)
            state.load_state_dict(saved)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
