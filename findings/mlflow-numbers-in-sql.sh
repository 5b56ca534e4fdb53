#!/usr/bin/env bash
# MLflow 3.17.2, SQL store: infinity, -0.0 and long settings come back as other values.
#
# `log_metric` keeps NaN. It takes infinity for the largest float64, and -0.0 for 0.0, and
# `log_param` cuts a value after 6,000 characters. Nothing is said. A loss that diverged to infinity
# therefore looks finite, and two settings that differ behind their 6,000th character look equal.
#
# Seen on 2026-11-29, Python 3.11, SQLite:
#   nan -> nan
#   inf -> 1.7976931348623157e+308
#   -0.0 -> 0.0
#   7000 characters -> 6000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check mlflow==3.17.2 2>/dev/null
cd "$folder"
seen=$("$folder/env/bin/python" - 2>/dev/null <<'PY'
import mlflow

mlflow.set_tracking_uri("sqlite:///runs.db")
values = [float("nan"), float("inf"), -0.0]
with mlflow.start_run() as run:
    for at, value in enumerate(values):
        mlflow.log_metric(f"metric{at}", value)
    mlflow.log_param("setting", "x" * 7_000)
stored = mlflow.get_run(run.info.run_id).data
for at, value in enumerate(values):
    print(f"{value} -> {stored.metrics[f'metric{at}']}")
print("7000 characters ->", len(stored.params["setting"]))
PY
)
echo "$seen"
[ "$seen" = "nan -> nan
inf -> 1.7976931348623157e+308
-0.0 -> 0.0
7000 characters -> 6000" ] || { echo "this has changed"; exit 1; }
