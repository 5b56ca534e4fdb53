#!/usr/bin/env bash
# DVC 3.67.1: `dvc exp run -S` on a Python file of parameters may change nothing, with exit code 0.
#
# params.py has `rate=0.1` (no spaces), `small = 1e-3` (an exponent) and `plain = 1`. DVC reads all
# three as parameters. `-S params.py:plain=7` changes the file. `-S params.py:rate=0.5` and
# `-S params.py:small=0.5` leave it as it is, and the experiment counts as run with the old value.
#
# Seen on 2026-11-29, Python 3.11:
#   plain: exit code 0, plain = 7
#   rate: exit code 0, rate=0.1
#   small: exit code 0, small = 1e-3
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check dvc==3.67.1 2>/dev/null
export PATH="$folder/env/bin:$PATH" DVC_NO_ANALYTICS=1
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
mkdir "$folder/project" && cd "$folder/project"
git init --quiet . && dvc init --quiet
printf 'rate=0.1\nsmall = 1e-3\nplain = 1\n' >params.py
cat >dvc.yaml <<'YAML'
stages:
  a:
    cmd: cp params.py used.py
    params: [params.py: [rate, small, plain]]
    outs: [used.py]
YAML
git add . && git commit --quiet --message first
seen=""
for setting in plain=7 rate=0.5 small=0.5; do
    name=${setting%=*} code=0
    dvc exp run --quiet -S "params.py:$setting" >/dev/null 2>&1 || code=$?
    seen+="$name: exit code $code, $(grep "^$name" params.py)"$'\n'
done
printf '%s' "$seen"
[ "$seen" = $'plain: exit code 0, plain = 7\nrate: exit code 0, rate=0.1\nsmall: exit code 0, small = 1e-3\n' ] ||
    { echo "this has changed"; exit 1; }
