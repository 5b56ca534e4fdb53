"""How PyTorch computes: its threads, its seeds, and no shortcuts.

No number of threads and no processor changes a bit of a result: see :mod:`stages.exact`.
"""

import ctypes
import os
import sys
from typing import TYPE_CHECKING

from stages.errors import InputError

if TYPE_CHECKING:
    import torch

# A thread that waits for another one spins this often before it sleeps; libgomp's default is
# 300,000. Touches no bit. A thread that spins keeps the processor from the one that it waits for,
# which beside other busy processes costs many times the training; one that sleeps at once costs a
# quarter of it on a quiet machine, where it has to be woken. benchmarks/busy.py has the curve.
SPINS = "1200"


def set_spins() -> None:
    """Takes effect only before torch is imported."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def _keep_freed_memory() -> None:
    """Let the C library reuse the memory of freed tensors instead of returning it to the system.

    Touches no bit; without it a quarter of a LeNet-5 epoch goes into page faults (glibc only).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, malloc.h
        mallopt(trim_threshold, 2**29)
        mallopt(mmap_threshold, 2**25)  # the largest that glibc takes


def configure(threads: int, seed: int, device: str = "cpu") -> "torch.Generator":
    """Take PyTorch's shortcuts away and seed it.

    Args:
        threads: Threads of every operation. They change the time, and no result.
        seed: Seeds initialisation and dropout (the global generator) and the order of the
            training images (the returned one). All numbers are drawn on the CPU.
        device: What will compute.

    Raises:
        InputError: PyTorch cannot use the device, or it does not compute as IEEE 754 says.
    """
    import torch

    if device == "cuda":
        if not torch.cuda.is_available():
            raise InputError(
                "params.yaml: device is 'cuda', but this torch "
                f"({torch.__version__}) finds no GPU that it can use: set device to cpu"
            )
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # deterministic algorithms ask for it

    _keep_freed_memory()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory before it is written; filling it first costs 3 % of a step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    for library in (torch.backends.mkldnn, torch.backends.cuda):  # neither TF32 nor bfloat16
        library.matmul.fp32_precision = "ieee"
    torch.backends.nnpack.set_flags(False)  # type: ignore[no-untyped-call]
    torch.set_flush_denormal(False)
    _check_arithmetic(device)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def _check_arithmetic(device: str) -> None:
    """What :mod:`stages.exact` assumes, on all threads.

    Raises:
        InputError: It does not hold here.
    """
    import torch

    smallest_normal = torch.full((2**18,), 2.0**-126, device=device)
    if not (smallest_normal * 0.5).all():
        raise InputError(
            f"{device}: numbers below 2^-126 become zero here, so that the results would not be "
            "those of other machines"
        )
    whole = torch.full((256, 256), 2.0**12 + 1, device=device)
    if not (whole @ torch.eye(256, device=device)).equal(whole):
        raise InputError(
            f"{device}: matrix products shorten their numbers here, so that the results would not "
            "be those of other machines; does ONEDNN_DEFAULT_FPMATH_MODE or NVIDIA_TF32_OVERRIDE "
            "ask for it?"
        )
