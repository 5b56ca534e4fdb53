"""The result of one stage: the files that DVC keeps, and the files and settings behind them."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvc_mlflow import schema
from dvc_mlflow.naming import named


@dataclass(frozen=True)
class Result:
    """The results of one stage. Paths start in the root; md5s are those of dvc.lock."""

    project: Path
    stage: str  # as `dvc repro` in the folder of the project calls it
    desc: str
    params: dict[str, Any]  # flat, by short names: see naming.py
    outs: dict[str, str]  # md5 by path
    deps: dict[str, str]
    data: dict[str, str] = field(default_factory=dict)  # names of those deps that are no code
    sizes: dict[str, int] = field(default_factory=dict)  # of the outs, in bytes
    metrics: tuple[str, ...] = ()  # files that are outs, or lie in one
    plots: dict[str, dict[str, Any]] = field(default_factory=dict)  # likewise, with their options
    models: dict[str, str] = field(default_factory=dict)  # the name of each model, by path
    chosen: tuple[str, ...] = ()  # the values that the names of the params leave out
    full: dict[str, Any] = field(default_factory=dict)  # the params by names that tell stages apart
    state: str = ""  # for the run over all stages, instead of outs: the state of dvc.lock
    identity: str = ""  # see identity.py

    @property
    def tags(self) -> dict[str, str]:
        """The tags by which a run is found: its identity and its links."""
        return {**({schema.RESULT: self.identity} if self.identity else {}), **self.links}

    @property
    def links(self) -> dict[str, str]:
        """The tags that link a run to its outs; without any, one for everything that it read."""
        if self.state:
            return {schema.STATE: self.state}
        outs = {named(f"{schema.OUT}{path}"): md5 for path, md5 in self.outs.items()}
        return outs or {schema.READ: self.read}

    @property
    def read(self) -> str:
        """A hash of everything that the stage read."""
        everything = [self.project.as_posix(), self.stage, self.deps, self.params]
        return hashlib.md5(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()


def made_by(results: Iterable[Result]) -> dict[str, str]:
    """The md5 of each out of these results, by path."""
    return {path: md5 for result in results for path, md5 in result.outs.items()}
