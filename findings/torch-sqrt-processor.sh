#!/usr/bin/env bash
# torch 2.13.0, CPU: the square root of a float32 depends on the processor.
#
# IEEE 754 asks for a correctly rounded square root, and NumPy's is one. PyTorch takes that of oneMKL's
# vector library, which has other code for each set of instructions. Of the 16,777,216 float32 numbers
# in [1, 4), so many have a root whose last bit is wrong. Adam takes square roots at each step, so two
# processors soon train different weights. A root in float64 that is rounded to float32 has no wrong bit.
#
# MKL_ENABLE_INSTRUCTIONS makes a processor of Intel choose as an older one does.
# Before: https://github.com/pytorch/pytorch/issues/31250 (2019, CPU and GPU).
#
# Seen on 2026-11-30, Python 3.11, an Intel Xeon with AVX-512:
#   SSE4_2: sqrt 2831466, NumPy 0, by float64 0
#   AVX2: sqrt 0, NumPy 0, by float64 0
#   AVX512: sqrt 98955, NumPy 0, by float64 0
set -euo pipefail
if ! grep -q GenuineIntel /proc/cpuinfo || ! grep -qw avx512f /proc/cpuinfo; then
    echo "needs a processor of Intel with AVX-512" >&2
    exit 2
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 2>/dev/null
cat >"$folder/roots.py" <<'PY'
import numpy as np
import torch

one, four = (int(np.float32(number).view(np.uint32)) for number in (1, 4))
found = np.arange(one, four, dtype=np.uint32).view(np.float32)
exact = np.sqrt(found.astype(np.float64)).astype(np.float32)  # float64 has bits to spare
numbers = torch.from_numpy(found)
roots = [numbers.sqrt().numpy(), np.sqrt(found), numbers.double().sqrt().float().numpy()]
print("sqrt {}, NumPy {}, by float64 {}".format(*((root != exact).sum() for root in roots)))
PY
seen=$(for set in SSE4_2 AVX2 AVX512; do
    echo "$set: $(MKL_ENABLE_INSTRUCTIONS=$set "$folder/env/bin/python" "$folder/roots.py")"
done)
echo "$seen"
[ "$seen" = "SSE4_2: sqrt 2831466, NumPy 0, by float64 0
AVX2: sqrt 0, NumPy 0, by float64 0
AVX512: sqrt 98955, NumPy 0, by float64 0" ] || { echo "this has changed" >&2; exit 1; }
