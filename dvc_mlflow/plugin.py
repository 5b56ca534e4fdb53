"""Tags for every `mlflow.start_run()` that happens in a stage, without a change of its code.

MLflow finds :class:`StageContext` by an entry point. `dvc-mlflow sync` later recognises such a run
by its tags, and gives it the outs of the stage.
"""

import os
from contextlib import chdir
from pathlib import Path

from mlflow.tracking.context.abstract_context import RunContextProvider


class StageContext(RunContextProvider):
    """The stage that `dvc repro` runs, and the files and settings that it reads."""

    def in_context(self) -> bool:
        return bool(os.environ.get("DVC_STAGE"))

    def tags(self) -> dict[str, str]:
        """The tags, or none if they cannot be had: a run is never stopped for them."""
        try:
            return _tags()
        except Exception:
            return {}


def _tags() -> dict[str, str]:
    from dvc_mlflow import alone, git, projects, results

    root = projects.root(Path(os.environ["DVC_ROOT"]))
    assert root
    address = alone.address()
    with chdir(root):
        project, stage = results.project_of(address)
        result = project.here(stage, with_outs=False)
        code = git.provenance(results.changing())
    return {
        "stage": stage,
        "project": project.folder.as_posix(),
        "read": result.read,
        "mlflow.note.content": result.desc,
        **code,
    }
