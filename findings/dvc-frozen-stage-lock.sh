#!/usr/bin/env bash
# DVC 3.67.1: a changed command of a frozen stage enters dvc.lock although it never ran.
#
# A stage has run with `echo one > a.txt`. It is frozen, and its command is edited to `echo two`.
# `dvc repro` says "Verifying outputs in frozen stage", runs nothing, and writes dvc.lock: the new
# command beside the md5 of the old output. `dvc status` is clean afterwards, also once the stage
# is thawed. So a lock entry of a frozen stage does not say what its output was made with.
#
# Seen on 2026-11-29, Python 3.11:
#   a.txt holds: one
#   dvc.lock names: cmd: echo two > a.txt
#   thawed, `dvc status` says: Data and pipelines are up to date.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check dvc==3.67.1 2>/dev/null
export PATH="$folder/env/bin:$PATH" DVC_NO_ANALYTICS=1
mkdir "$folder/project" && cd "$folder/project"
git init --quiet . && dvc init --quiet

declare_stage() {
    printf 'stages:\n  a:\n    cmd: %s\n    frozen: %s\n    outs: [a.txt]\n' "$1" "$2" >dvc.yaml
}
declare_stage 'echo one > a.txt' false
dvc repro --quiet
declare_stage 'echo two > a.txt' true
dvc repro --quiet 2>/dev/null
holds=$(cat a.txt)
names=$(grep -o 'cmd: .*' dvc.lock)
declare_stage 'echo two > a.txt' false
says=$(dvc status)
echo "a.txt holds: $holds"
echo "dvc.lock names: $names"
echo "thawed, \`dvc status\` says: $says"
[ "$holds" = one ] && [ "$names" = 'cmd: echo two > a.txt' ] &&
    [ "$says" = 'Data and pipelines are up to date.' ] || { echo "this has changed"; exit 1; }
