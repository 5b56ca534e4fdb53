#!/usr/bin/env bash
# safetensors 0.8.0: the same tensors and the same metadata give other bytes in each process.
#
# `save_file(tensors, path, metadata)` writes the metadata in the order of a hash map whose seed is
# drawn per process. Six keys have 720 orders, so two processes nearly never write the same file. The
# tensors and what the reader returns are the same. As an out of DVC, such a file has another hash
# after each run, so all stages behind it run again, and a hash that was published is never met. With a
# single key, or without metadata, the bytes are always the same. (Files here have no metadata. The
# order is known: github.com/safetensors/safetensors/issues/584.)
#
# Seen on 2026-11-30, Python 3.11, NumPy 2.4.6:
#   5 processes, 6 keys: 5 different files
#   5 processes, 1 key: 1 different file
#   what is read from the files: the same metadata
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6 2>/dev/null
cd "$folder"
cat >save.py <<'PYTHON'
import sys

import numpy as np
from safetensors.numpy import save_file

path, keys = sys.argv[1], int(sys.argv[2])
metadata = {key: "1" for key in "abcdef"[:keys]}
save_file({"weight": np.arange(4, dtype=np.float32)}, path, metadata)
PYTHON
for process in 1 2 3 4 5; do
    env/bin/python save.py "six.$process" 6
    env/bin/python save.py "one.$process" 1
done
six=$(sha256sum six.* | cut -d ' ' -f 1 | sort -u | wc -l)
one=$(sha256sum one.* | cut -d ' ' -f 1 | sort -u | wc -l)
read=$(env/bin/python -c '
from safetensors import safe_open
found = [safe_open(f"six.{process}", "np").metadata() for process in range(1, 6)]
print("the same metadata" if all(each == found[0] for each in found) else "other metadata")')
echo "5 processes, 6 keys: $six different files
5 processes, 1 key: $one different file
what is read from the files: $read"
[ "$six" -gt 1 ] && [ "$one" = 1 ] && [ "$read" = "the same metadata" ] || { echo "this has changed"; exit 1; }
