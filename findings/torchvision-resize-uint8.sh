#!/usr/bin/env bash
# torchvision 0.28.0, torch 2.13.0: transforms.v2 resizes uint8 images to other pixels on x86
# processors without AVX2.
#
# With AVX2, `transforms.v2.functional.resize` hands uint8 tensors to torch's kernel for bytes.
# Without, it converts to float, resizes, and rounds. The two ways differ by one in 18 % of the
# pixels of random images (1,000 of 28 x 28, to 32 x 32, bilinear, antialias).
# `torch.nn.functional.interpolate` of the uint8 tensor itself gives the same bytes on both.
# ATEN_CPU_CAPABILITY=default shows it on one machine: it takes torch's kernels without AVX2.
# A model that was evaluated on one kind of machine sees other inputs on the other.
#
# Seen on 2026-11-29, Python 3.11, Linux x86-64 with AVX2:
#   transforms.v2 differs in 183066 of 1024000 pixels, at most by 1
#   interpolate differs in 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 2>/dev/null
cat >"$folder/resize.py" <<'PY'
import sys

import numpy as np
import torch

try:  # a torchvision for CUDA does not load its operators beside a torch for CPUs; none is used
    import torchvision
except RuntimeError:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from torchvision.transforms.v2 import functional

images = np.random.default_rng(0).integers(0, 256, (1000, 1, 28, 28), np.uint8)
tensor = torch.from_numpy(images)
by_transforms = functional.resize(tensor, [32, 32], antialias=True)
by_interpolate = torch.nn.functional.interpolate(
    tensor, (32, 32), mode="bilinear", antialias=True
)
np.savez(sys.argv[1], transforms=by_transforms.numpy(), interpolate=by_interpolate.numpy())
PY
"$folder/env/bin/python" "$folder/resize.py" "$folder/with.npz"
ATEN_CPU_CAPABILITY=default "$folder/env/bin/python" "$folder/resize.py" "$folder/without.npz"
seen=$("$folder/env/bin/python" - "$folder" <<'PY'
import sys

import numpy as np

first, second = (np.load(f"{sys.argv[1]}/{name}.npz") for name in ("with", "without"))
apart = {name: np.abs(first[name].astype(int) - second[name]) for name in first}
many, size, most = (apart["transforms"] > 0).sum(), apart["transforms"].size, apart["transforms"].max()
print(f"transforms.v2 differs in {many} of {size} pixels, at most by {most}")
print(f"interpolate differs in {(apart['interpolate'] > 0).sum()}")
PY
)
echo "$seen"
[ "$seen" = "transforms.v2 differs in 183066 of 1024000 pixels, at most by 1
interpolate differs in 0" ] || { echo "this has changed"; exit 1; }
