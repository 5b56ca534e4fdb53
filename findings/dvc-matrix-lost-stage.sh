#!/usr/bin/env bash
# DVC 3.67.1: a matrix of two by two values may have three stages, and nothing is said.
#
# DVC joins the values of a stage of a `matrix` with hyphens: `train@MODEL-DATA`. With the models
# `net` and `net-small`, and the data `mnist` and `small-mnist`, two of the four stages are
# `train@net-small-mnist`. The later takes the place of the earlier. `dvc repro` trains three
# networks, ends with exit code 0, and `dvc status` is clean. (Here, a recipe's name and a seed cannot
# have a hyphen, so each cell's name RECIPE-MODEL-SEED has one meaning.)
#
# Seen on 2026-11-30, Python 3.11:
#   dvc.yaml: 2 models x 2 kinds of data
#   exit code 0, 3 results: net_mnist net-small_small-mnist net-small_mnist
#   status: Data and pipelines are up to date.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check dvc==3.67.1 2>/dev/null
export PATH="$folder/env/bin:$PATH" DVC_NO_ANALYTICS=1
mkdir "$folder/project" && cd "$folder/project"
git init --quiet . && dvc init --quiet
cat >dvc.yaml <<'YAML'
stages:
  train:
    matrix:
      model: [net, net-small]
      data: [mnist, small-mnist]
    cmd: echo done > ${item.model}_${item.data}.txt
    outs: ["${item.model}_${item.data}.txt"]
YAML
code=0
dvc repro --quiet || code=$?
results=$(LC_ALL=C ls ./*.txt | sed 's/^..//; s/.txt$//' | LC_ALL=C sort -r | xargs)
status=$(dvc status)
echo "dvc.yaml: 2 models x 2 kinds of data
exit code $code, $(wc -w <<<"$results") results: $results
status: $status"
[ "$code" = 0 ] && [ "$results" = "net_mnist net-small_small-mnist net-small_mnist" ] &&
    [ "$status" = "Data and pipelines are up to date." ] || { echo "this has changed"; exit 1; }
