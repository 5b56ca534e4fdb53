"""The pins: what fixes the order and the kind of every floating-point operation.

Libraries choose their kernels by the processor that they find, and a sum over 16 lanes rounds
differently from a sum over 8. Each variable below takes one such choice away, so that every x86-64
processor with AVX2 computes the same bits. benchmarks/epoch.py measures what they cost.

With ``UNPINNED=1`` in the environment nothing is pinned and no processor refused; the results are
then this machine's own, and their MLflow runs are tagged so.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stages.errors import InputError

if TYPE_CHECKING:
    import torch

PINS = {
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own vector kernels
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    "MKL_CBWR": "COMPATIBLE",  # matrix products: one code path on Intel and AMD
    "MKL_DYNAMIC": "FALSE",  # never fewer threads than asked for
    "OMP_DYNAMIC": "FALSE",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",  # NumPy's vector kernels
    "OPENBLAS_CORETYPE": "Haswell",  # NumPy's and SciPy's matrix products
}

# A thread that waits for another one spins this often before it sleeps; libgomp's default is
# 300,000. Touches no bit. A thread that spins keeps the processor from the one that it waits for,
# which beside other busy processes costs many times the training; one that sleeps at once costs a
# quarter of it on a quiet machine, where it has to be woken. benchmarks/busy.py has the curve.
SPINS = "1200"


def is_pinned() -> bool:
    """Whether this process computes the bits that every processor computes."""
    return os.environ.get("UNPINNED", "") in ("", "0")


def pin() -> None:
    """Set the pins. Nothing that computes may be imported before.

    A variable that the environment sets otherwise is overridden, and named.

    Raises:
        InputError: torch or numpy is already imported and read another value of a pin, or the
            processor lacks AVX2 and FMA, without which the pinned kernels cannot run.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if not is_pinned():
        return
    found = {name: os.environ.get(name) for name in PINS}
    wrong = {name: value for name, value in found.items() if value != PINS[name]}
    loaded = [library for library in ("torch", "numpy") if library in sys.modules]
    if wrong and loaded:
        raise InputError(
            f"{' and '.join(loaded)} was imported before {', '.join(wrong)} could be set: import "
            "`stages` first, or go on with UNPINNED=1 and other bits than everybody's"
        )
    for name, value in wrong.items():
        if value is not None:
            print(
                f"warning: {name}={value} in the environment is overridden with {PINS[name]}, "
                "which the committed results were computed with",
                file=sys.stderr,
            )
        os.environ[name] = PINS[name]
    if not _has_avx2():
        raise InputError(
            "this processor lacks AVX2 or FMA, so the bits will differ from the committed ones: go "
            "on with UNPINNED=1 in the environment"
        )


def _has_avx2() -> bool:
    """Ask NumPy, which only looks: a torch that is pinned to AVX2 dies where there is none."""
    from numpy._core import _multiarray_umath  # type: ignore[attr-defined]

    features: dict[str, bool] = _multiarray_umath.__cpu_features__
    return features.get("AVX2", False) and features.get("FMA3", False)


def _keep_freed_memory() -> None:
    """Let the C library reuse the memory of freed tensors instead of returning it to the system.

    Touches no bit; without it a quarter of a LeNet-5 epoch goes into page faults (glibc only).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, malloc.h
        mallopt(trim_threshold, 2**29)
        mallopt(mmap_threshold, 2**25)  # the largest that glibc takes


@contextmanager
def one_thread() -> Iterator[None]:
    """For small operations whose bits no number of threads changes: to wake a thread costs more."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def configure(threads: int, seed: int, device: str = "cpu") -> "torch.Generator":
    """Pin PyTorch's own settings and seed it.

    Args:
        threads: Threads of every operation. Part of the recipe: another number splits sums
            elsewhere and gives another model, so it is never taken from the machine.
        seed: Seeds initialisation and dropout (the global generator) and the order of the
            training images (the returned one, on the CPU).
        device: What will compute. On a GPU the same GPU and libraries repeat their bits, others
            do not.

    Raises:
        InputError: PyTorch cannot use the device.
    """
    import torch

    if device == "cuda":
        if not torch.cuda.is_available():
            raise InputError(
                "params.yaml: device is 'cuda', but this torch "
                f"({torch.__version__}) finds no GPU that it can use: set device to cpu"
            )
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # its results vary without a fixed one
        torch.backends.cudnn.allow_tf32 = False

    _keep_freed_memory()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory before it is written; filling it first costs 3 % of a step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)
