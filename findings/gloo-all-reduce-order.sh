#!/usr/bin/env bash
# torch 2.13.0, gloo: an all_reduce adds the ranks in another order in each part of a tensor.
#
# Four ranks hold the same four numbers at every place of a float64 tensor: rank r holds NUMBERS[r]
# everywhere. All places of the sum should then be equal. They are not: gloo cuts the tensor into
# parts, and begins each part's sum at another rank.
# Whoever compares gradients bit by bit, or moves a parameter within a flat buffer, sees other bits.
# Sums that are exact in any order do not have this problem.
#
# Seen on 2026-11-29, Python 3.11, Linux x86-64:
#   1 ranks: [1.0]
#   2 ranks: [1.0]
#   4 ranks: [1.1102230246251565e-16, 2.220446049250313e-16]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy 2>/dev/null
cat >"$folder/sums.py" <<'PY'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

NUMBERS = [1.0, 2.0**-53, 2.0**-53, -1.0]  # their sum depends on the order


def work(rank: int, ranks: int, store: str) -> None:
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=ranks)
    tensor = torch.full((4096,), NUMBERS[rank], dtype=torch.float64)
    dist.all_reduce(tensor)
    if rank == 0:
        print(f"{ranks} ranks: {sorted(tensor.unique().tolist())}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    for ranks in (1, 2, 4):
        mp.spawn(work, (ranks, f"{sys.argv[1]}/store{ranks}"), nprocs=ranks)
PY
seen=$("$folder/env/bin/python" "$folder/sums.py" "$folder")
echo "$seen"
[ "$seen" = "1 ranks: [1.0]
2 ranks: [1.0]
4 ranks: [1.1102230246251565e-16, 2.220446049250313e-16]" ] || { echo "this has changed"; exit 1; }
