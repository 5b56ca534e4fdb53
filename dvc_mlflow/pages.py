"""The pages of runs in MLflow: columns and charts, each as a view that the experiment shares.

MLflow keeps a view as JSON in a tag. Its names are those of MLflow 3.17.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dvc_mlflow import projects, schema
from dvc_mlflow.hooks import settings

TABLE, CHARTS = f"{schema.VIEW}stages", f"{schema.VIEW}charts"
MOST = 6  # charts, and curves in one of them: MLflow takes 5,000 characters


def settings_of(project: Path) -> dict[str, Any]:
    """The settings of the page of a project."""
    name = "main" if project == projects.MAIN else project.as_posix()
    page: dict[str, Any] = settings().get("pages", {}).get(name, {})
    return page


def views(project: Path, metrics: Sequence[str] = (), curves: Sequence[str] = ()) -> dict[str, str]:
    """The views of a project, by tag.

    Args:
        metrics: Columns for a project whose settings name none.
        curves: Metrics by step, for charts that no settings name.
    """
    page = settings_of(project)
    default = [
        f"tags.`{schema.STAGE}`",
        f"tags.`{schema.COMMIT}`",
        *(f"metrics.`{metric}`" for metric in metrics),
    ]
    columns = page.get("columns", default)
    views = {TABLE: _table(columns, page.get("order_by", "attributes.start_time"))}
    if drawn := page.get("charts") or _lines(curves):
        views[CHARTS] = _charts(columns, **drawn)
    return {tag: json.dumps(view) for tag, view in views.items()}


def _table(columns: Sequence[str], order_by: str) -> dict[str, Any]:
    """A table view: columns as wide as their names, sorted by `order_by`, highest first."""
    fixed = {"attributes.`Run Name`": 290, "runDateAndNestInfo": 140}
    return {
        "orderByKey": order_by,
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": [*fixed, *columns],
        "columnWidths": fixed | {name: max(95, 25 + 6 * len(_key(name))) for name in columns},
    }


def _key(name: str) -> str:
    """`loss` of "metrics.`loss`"."""
    return name.partition(".")[2].strip("`")


def _charts(
    columns: Sequence[str],
    draw: Sequence[Sequence[str]],
    filter: str,
    order_by: str = f"tags.`{schema.USER}`",  # by time, the UI folds runs into the pipeline's
    list_runs: bool = True,
    per_row: int = 2,
) -> dict[str, Any]:
    """Charts of those runs that pass a filter.

    Args:
        draw: For each chart, the names on its axes. Metrics alone are curves in one chart, one
            setting and one metric make a scatter plot, all others lines over parallel axes.
        per_row: Charts beside each other.
    """
    return {
        **_table(columns, order_by),
        "searchFilter": filter,
        "runsHiddenMode": "FIRST_20_RUNS" if list_runs else "SHOW_ALL",
        "runListHidden": not list_runs,
        "isAccordionReordered": True,  # else the UI sorts the sections
        "compareRunSections": [
            {
                "uuid": "ours",
                "name": "Charts",
                "display": True,
                "columns": per_row,
                "cardHeight": 440,
            },
            {"uuid": "all", "name": "Model metrics", "display": False},
        ],
        "compareRunCharts": [_chart(names) for names in draw],
    }


def _lines(curves: Sequence[str]) -> dict[str, Any]:
    """A chart for each kind of curve, such as `train_loss` and `test_loss`."""
    charts: dict[str, list[str]] = {}
    for name in sorted(curves):
        charts.setdefault(re.split(r"[_./ ]", name)[-1], []).append(f"metrics.`{name}`")
    draw = [names[:MOST] for names in charts.values()][:MOST]
    if not draw:
        return {}
    # The UI shows two lines of a legend. In a wide chart they have room for some six curves
    return {"draw": draw, "filter": f"metrics.`{curves[0]}` > -1e300", "per_row": 1}


def _chart(names: Sequence[str]) -> dict[str, Any]:
    params = [_key(name) for name in names if name.startswith("params.")]
    metrics = [_key(name) for name in names if name.startswith("metrics.")]
    base = {"uuid": " ".join(names), "metricSectionId": "ours", "runsCountToCompare": 100}
    if not params:
        lines = {"metricKey": metrics[0], "selectedMetricKeys": metrics, "xAxisKey": "step"}
        plain = {"scaleType": "linear", "xAxisScaleType": "linear", "lineSmoothness": 0}
        return {**base, "type": "LINE", **lines, **plain, "range": {}, "yAxisKey": "metric"}
    if len(params) == len(metrics) == 1:
        x, y = {"key": params[0], "type": "PARAM"}, {"key": metrics[0], "type": "METRIC"}
        return {**base, "type": "SCATTER", "xaxis": x, "yaxis": y}
    parallel = {"selectedParams": params, "selectedMetrics": metrics, "showAllRuns": True}
    return {**base, "type": "PARALLEL", **parallel}
