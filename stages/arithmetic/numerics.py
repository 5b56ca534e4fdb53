"""How PyTorch computes: its threads, its seeds, and no shortcuts.

Neither the number of threads nor the processor changes a bit of a result: see
:mod:`stages.arithmetic.exact`.
"""

import ctypes
import os
import sys
from typing import TYPE_CHECKING

from dvc_kit.errors import InputError
from stages.arithmetic import threads as pool

if TYPE_CHECKING:
    import torch


def _keep_freed_memory() -> None:
    """Let the C library reuse the memory of freed tensors instead of returning it to the system.

    Without this, a quarter of a LeNet-5 epoch goes into page faults. Works with glibc only.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, malloc.h
        mallopt(trim_threshold, 2**29)
        mallopt(mmap_threshold, 2**25)  # the largest that glibc takes


def configure(threads: int, seed: int, device: str = "cpu") -> "torch.Generator":
    """Switch off PyTorch's shortcuts and seed its generators.

    Args:
        threads: Of each computation; 0: as many as there are cores. They change no result.
        seed: For the global generator, which initialisation and dropout use, and for the returned
            one, which the order of the training images uses. All numbers are drawn on the CPU.
        device: Where the network will be trained, `cpu` or `cuda`.

    Returns:
        A generator on the CPU.

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
    # oneMKL chooses the code of a function at its first call. Threads that make this call at once
    # may get code of low precision (https://github.com/pytorch/pytorch/issues/188792): so alone
    torch.ones(1, dtype=torch.float64).sqrt()
    pool.use(threads)
    torch.set_num_threads(pool.number())
    # As use_deterministic_algorithms(True), which also imports a compiler, for a second
    torch.set_deterministic_debug_mode("error")
    # No code here reads memory before writing to it. Filling it first would cost 3 % of a step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    for library in (torch.backends.mkldnn, torch.backends.cuda):  # no TF32, no bfloat16
        library.matmul.fp32_precision = "ieee"
    torch.backends.nnpack.set_flags(False)  # type: ignore[no-untyped-call]
    torch.set_flush_denormal(False)
    _check_arithmetic(device)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def _check_arithmetic(device: str) -> None:
    """Check the assumptions of :mod:`stages.arithmetic.exact`, on all threads.

    Raises:
        InputError: One of them does not hold on this device.
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
