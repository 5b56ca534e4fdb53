"""Tags for every `mlflow.start_run()` that happens in a stage, without a change of its code.

MLflow finds :class:`StageContext` by an entry point. `dvc-mlflow sync` later recognises such a run
by its tags, and gives it the outs of the stage.
"""

import functools
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
        from dvc_mlflow import schema, writers

        try:
            tags = _tags(os.environ["DVC_STAGE"], os.environ["DVC_ROOT"])
            return {**tags, schema.PROCESS: writers.this_process()}
        except Exception:
            return {}


@functools.cache  # code may begin hundreds of runs, one below the other
def _tags(stage: str, dvc_root: str) -> dict[str, str]:
    """The tags of all runs of a stage, from the values of DVC_STAGE and DVC_ROOT."""
    from dvc_mlflow import git, projects, results, runs

    root = projects.root(Path(dvc_root))
    assert root
    address = projects.address()  # of ``stage``, from the folder of its project
    with chdir(root):
        project, stage = results.project_of(address)
        result = project.here(stage, with_outs=False)
        code = git.provenance(results.changing())
    return {**runs.of_stage(result), **code}
