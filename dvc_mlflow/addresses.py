"""The addresses of the pages in the UI of MLflow."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dvc_mlflow import pages, schema, store
from dvc_mlflow.hooks import settings

TRAINING = "workflowType=machine_learning"  # the side of the UI that knows runs, not its GenAI side
UI = "http://127.0.0.1:5000"  # where `dvc-mlflow view` opens it
MOST_COMPARED = 10  # runs


def overview(experiment_id: str, ui: str = UI, view: str = pages.TABLE) -> str:
    """Where the UI shows all runs, with the columns that tell them apart, or their charts.

    Args:
        ui: The address of the UI, for a store that no server keeps.
    """
    return f"{_ui(ui)}/{page_of_runs(experiment_id, view)}"


def page_of_runs(experiment_id: str, view: str = pages.TABLE) -> str:
    """The page of all runs, below the address of the UI."""
    mode = "&compareRunsMode=CHART" if view == pages.CHARTS else ""
    asked = f"viewStateShareKey={view.removeprefix(schema.VIEW)}{mode}&{_side()}"
    return f"#/experiments/{experiment_id}/runs?{asked}"


def print_pages(experiment_id: str) -> None:
    """Say where plain `mlflow ui`, or the server, shows the runs and their charts."""
    has_charts = pages.CHARTS in store.client().get_experiment(experiment_id).tags
    opens = "" if store.is_remote(store.uri()) else f", when `{_mlflow()} ui` runs in this folder"
    # Each address has a line of its own: most terminals have 120 columns, and make it a link
    print(f"Runs{' and charts' * has_charts}{opens}:\n{overview(experiment_id)}")
    if has_charts:
        print(overview(experiment_id, view=pages.CHARTS))


def _mlflow() -> str:
    """What starts MLflow, also where no environment is activated."""
    beside, here = Path(sys.executable).with_name("mlflow"), Path.cwd()
    return shlex.quote(str(beside.relative_to(here))) if beside.is_relative_to(here) else "mlflow"


def print_how_to_open() -> None:
    """Say what opens the addresses of a store without a server: nothing answers there by itself."""
    if not store.is_remote(store.uri()):
        opens = settings().get("view", "dvc-mlflow view")
        print(f"note: `{opens}` opens the addresses at {UI}", file=sys.stderr)


def address(*, run: Any = None, model: Any = None) -> str:
    """Where the UI shows a run or a logged model."""
    if run is not None:
        return f"{_ui()}/{page_of(run)}"
    return f"{_ui()}/#/experiments/{model.experiment_id}/models/{model.model_id}?{_side()}"


def page_of(run: Any) -> str:
    """The page of a run, below the address of the UI: its curves, if it has any."""
    tab = "/model-metrics" if curves_of(run) else ""
    return f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}{tab}?{_side()}"


def curves_of(run: Any) -> list[str]:
    """The names of the metrics of a run that have steps."""
    metrics = run.data._metric_objs  # `metrics` has no steps
    return [it.key for it in metrics if it.step > 0 and not it.key.startswith("system/")]


def comparison(runs: Sequence[Any], ui: str = UI) -> str:
    """Where the UI compares those of some runs that have curves; empty if that says nothing."""
    compared = [run for run in runs if curves_of(run)]
    if not 1 < len(compared) <= MOST_COMPARED:
        return ""
    ids = quote(json.dumps([run.info.run_id for run in compared]))
    of = quote(json.dumps([compared[0].info.experiment_id]))
    return f"{_ui(ui)}/#/compare-runs?runs={ids}&experiments={of}&{_side()}"


def _side() -> str:
    """What each address asks for: the side of the UI that knows runs, and the workspace of them."""
    workspace = os.environ.get("MLFLOW_WORKSPACE", "default")
    return TRAINING if workspace == "default" else f"{TRAINING}&workspace={quote(workspace)}"


def _ui(ui: str = UI) -> str:
    return store.name().rstrip("/") if store.is_remote(store.uri()) else ui
