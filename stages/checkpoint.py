"""What a training that was stopped goes on from: its state after its last finished epoch.

A checkpoint is no result: it lies where neither git nor DVC looks, and is deleted when the stage
has written its outs. It counts only for exactly the same training, see :func:`key`.
"""

import hashlib
import io
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from stages import alone, files, models
from stages.mnist import Split
from stages.params import Recipe
from stages.training import State


def key(state: State, splits: Mapping[str, Split], recipe: Recipe) -> bytes:
    """SHA-256 of all that a training depends on, before its first step: our code, the settings,
    the libraries, the images, the initial weights and the state of every generator."""
    digest = hashlib.sha256()
    sources = {getattr(module, "__file__", None) for module in [*sys.modules.values()]}
    for path in sorted(Path(name) for name in sources if name):
        if path.parent == Path(__file__).parent:
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
    """The file of one stage: a SHA-256 of all that follows, the key, the state."""

    def __init__(self, stage: str, key: bytes) -> None:
        self.path = alone.FOLDER / f"{stage}.pt"
        self.key = key

    def save(self, state: State) -> None:
        buffer = io.BytesIO()
        torch.save(state.state_dict(), buffer)
        content = self.key + buffer.getvalue()
        files.write_bytes(self.path, hashlib.sha256(content).digest() + content)

    def restore(self, state: State) -> None:
        """Take over what was saved; a damaged file is named and ignored."""
        size = hashlib.sha256().digest_size
        try:
            found = self.path.read_bytes()
        except FileNotFoundError:
            return
        if hashlib.sha256(found[size:]).digest() != found[:size]:
            print(f"warning: {self.path} is damaged, so the training begins anew", file=sys.stderr)
        elif found[size : 2 * size] == self.key:
            saved = torch.load(io.BytesIO(found[2 * size :]), "cpu", weights_only=True)
            state.load_state_dict(saved)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
