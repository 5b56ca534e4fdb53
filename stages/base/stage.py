"""A stage while it runs: alone in this checkout, and shown as a run in MLflow."""

from collections.abc import Iterator
from contextlib import contextmanager

import dvc_mlflow
from dvc_guard import alone
from stages.base import params


@contextmanager
def running(stage: str) -> Iterator[dvc_mlflow.Run]:
    """Run the body of ``stage``. Its results are the files that it writes.

    Raises:
        InputError: dvc.yaml and the registry of the models do not agree.
        StageError: Another process runs this stage in this checkout.
    """
    params.check_stages()
    with alone.holding(stage), dvc_mlflow.run(stage) as run:
        yield run
