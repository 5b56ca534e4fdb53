"""What a project tells dvc_mlflow that dvc.yaml cannot say: settings in pyproject.toml, and hooks.

[tool.dvc-mlflow]
experiment = "..."       # of the main project; another project's has its folder behind a hyphen
hooks = "package.module" # optional: a module with some of the functions of Hooks
registered_model = "..." # optional: the name of the models in MLflow's registry
model_card = "..."       # optional: an out of an evaluation. The registered model has that
                         # of its champion's evaluation as its description
view = "make ui"         # optional: the command that opens the pages, if not `dvc-mlflow view`
strip = ["recipe"]       # optional: settings, keys of a matrix, `item.FIELD` of a `foreach`; their
                         # values, which templates put into keys of settings, are left out there
run_name = ["recipe"]    # optional: settings whose values stand in the names of runs

[tool.dvc-mlflow.pages.main]     # optional: the page of runs; for another project, its folder
description = "..."
order_by = "metrics.`accuracy`"  # the highest comes first
columns = ["tags.`stage`"]

[tool.dvc-mlflow.pages.main.charts]  # optional: see pages._charts; by default the curves
draw = [["params.`rate`", "metrics.`accuracy`"]]
filter = "metrics.`accuracy` > 0"
"""

import functools
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dvc_kit import files
from dvc_kit.errors import InputError, StageError, one_line
from dvc_mlflow.result import Result


@dataclass(frozen=True)
class Dataset:
    """A file that a stage reads, for the column "Dataset" of MLflow."""

    name: str
    path: Path
    context: str  # `training` or `evaluation`
    schema: str  # as a JSON text
    rows: int


class Hooks(Protocol):
    """The functions that a module of hooks may have."""

    def check(self) -> None:
        """Check the settings of the project; raise InputError if they cannot be used."""

    def export(self, result: Result, path: Path, folder: Path, **ids: Any) -> None:
        """Write the model in the file at ``path`` into ``folder``, in the format of MLflow.

        Args:
            result: The result of the stage that made the file.
            ids: For `mlflow.models.Model`, such as `run_id`.
        """

    def model_files(self, path: Path) -> Sequence[str]:
        """The files that :meth:`export` writes, and without which the model is not complete."""

    def reads(self, result: Result) -> Sequence[str]:
        """The outs of other stages that :meth:`export` and :meth:`datasets` read for a result."""

    def datasets(self, result: Result) -> Sequence[Dataset]:
        """The data sets that a stage reads."""

    def metrics(self, path: Path) -> Mapping[str, float]:
        """Further metrics from an out that DVC does not take for metrics. Of a folder, only the
        files that people look at may be there, such as tables and figures."""

    def downloads(self) -> Sequence[Path]:
        """Folders that a fresh clone may copy instead of downloading their files again."""

    def explain(self, path: str, committed: str, computed: str) -> str:
        """Where two versions of an out first differ, in words; empty if that says nothing."""

    def colors(self) -> Mapping[str, Mapping[str, str]]:
        """The colours (#RRGGBB) of runs in charts, by setting and value. The values of `run_name`
        and the DVC experiment make a colour darker or lighter."""

    def history(self, path: Path) -> Mapping[str, Sequence[float]]:
        """The columns of the curves in an out, `epoch` among them; empty if there are none."""

    def evidence(self, model: str) -> Path:
        """The out of an evaluation by which a model is judged."""

    def score(self, evidence: Path) -> float:
        """A number by which models are ordered: a higher one is better."""

    def judge(self, evidence: Path, champion: str | None, against: Path | None) -> tuple[bool, str]:
        """Whether a model becomes champion, and the reason.

        Args:
            champion: The version of the present champion, if there is one.
            against: Its evidence. None if it is lost.
        """


@functools.cache
def settings() -> dict[str, Any]:
    """The table `tool.dvc-mlflow` of the pyproject.toml in the main folder."""
    try:
        path = Path("pyproject.toml")
        content = files.parse_toml(files.read_text(path), f"{path}:") if path.is_file() else {}
    except StageError as error:
        raise InputError(str(error)) from None
    found: dict[str, Any] = content.get("tool", {}).get("dvc-mlflow", {})
    return found


def hook(name: str, otherwise: Any = None) -> Any:
    """A function of the project's module of hooks, or another one if it has none."""
    module = settings().get("hooks")
    try:
        return getattr(importlib.import_module(module), name, otherwise) if module else otherwise
    except ImportError as error:
        raise InputError(f"hooks in pyproject.toml: {one_line(error)}") from None
