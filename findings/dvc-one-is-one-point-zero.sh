#!/usr/bin/env bash
# DVC 3.67.1 with scikit-learn 1.9.1: to DVC, a parameter that goes from 1 to 1.0 has not changed.
#
# To scikit-learn, `max_features: 1` is one feature, and `max_features: 1.0` is all of them. DVC
# compares parameters with Python's `==`, and `1 == 1.0` is true. So `dvc status` and
# `dvc params diff` show nothing, `dvc repro` runs nothing, and `dvc exp run -S max_features=1.0`
# keeps an experiment that has the new setting and the old score. `dvc repro --force` shows the score
# that belongs to it. NaN is the opposite: with `max_features: .nan`, a stage that takes it is
# modified after each run, and `dvc status` is never clean.
#
# Seen on 2026-11-30, Python 3.11:
#   max_features: 1 has 206 of 360 images right
#   status of 1.0: Data and pipelines are up to date.
#   repro of 1.0: Stage 'train' didn't change, skipping
#   the experiment with 1.0: 206 of 360
#   forced, 1.0 has 277 of 360
#   status of .nan after its run: modified
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check dvc==3.67.1 scikit-learn==1.9.1 2>/dev/null
export PATH="$folder/env/bin:$PATH" DVC_NO_ANALYTICS=1
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
mkdir "$folder/project" && cd "$folder/project"
git init --quiet . && dvc init --quiet
echo 'max_features: 1' >params.yaml
cat >dvc.yaml <<'YAML'
stages:
  train:
    cmd: python train.py
    deps: [train.py]
    params: [max_features]
    metrics: [score.json: {cache: false}]
YAML
cat >train.py <<'PYTHON'
import json
import math

from ruamel.yaml import YAML
from sklearn.datasets import load_digits
from sklearn.tree import DecisionTreeClassifier

with open("params.yaml") as file:
    setting = YAML(typ="safe").load(file)["max_features"]
images, labels = load_digits(return_X_y=True)
tree = DecisionTreeClassifier(
    max_features=None if math.isnan(setting) else setting, random_state=0
).fit(images[360:], labels[360:])
with open("score.json", "w") as file:
    json.dump({"right": int((tree.predict(images[:360]) == labels[:360]).sum())}, file)
PYTHON
score() { python -c 'import json, sys; print(json.load(sys.stdin)["right"], "of 360")'; }
dvc repro --quiet
git add . && git commit --quiet --message first
few=$(score <score.json)
sed -i 's/1/1.0/' params.yaml
status=$(dvc status)
changes=$(dvc params diff)
repro=$(dvc repro | grep train)
git checkout --quiet params.yaml
dvc exp run --quiet --name all --set-param max_features=1.0
experiment=$(git for-each-ref --format='%(objectname)' 'refs/exps/**/all')
setting=$(git show "$experiment:params.yaml")
kept=$(git show "$experiment:score.json" | score)
dvc repro --quiet --force
all=$(score <score.json)
echo 'max_features: .nan' >params.yaml
dvc repro --quiet
nan=$(dvc status | grep --only-matching modified)
echo "max_features: 1 has $few images right
status of 1.0: $status
repro of 1.0: $repro
the experiment with 1.0: $kept
forced, 1.0 has $all
status of .nan after its run: $nan"
[ "$status" = "Data and pipelines are up to date." ] && [ -z "$changes" ] && [ "$repro" = "Stage 'train' didn't change, skipping" ] &&
    [ "$few" = "206 of 360" ] && [ "$setting" = "max_features: 1.0" ] && [ "$kept" = "$few" ] &&
    [ "$all" = "277 of 360" ] && [ "$nan" = modified ] ||
    { echo "this has changed"; exit 1; }
