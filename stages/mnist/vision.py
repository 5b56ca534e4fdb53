"""torchvision, also beside a torch that it was not built for."""

import sys
from typing import Any

from dvc_kit.errors import StageError, one_line

_schemas: list[Any] = []  # a torch.library.Library withdraws its definitions when collected


def torchvision() -> Any:
    """The package.

    Raises:
        StageError: It cannot be imported.
    """
    try:
        define_missing_operators()
        import torchvision
        import torchvision.datasets
        import torchvision.utils
    except Exception as error:  # a mismatched build may raise anything
        raise StageError(
            f"torchvision cannot be imported ({one_line(error)}): `make install` installs it"
        ) from None
    return torchvision


def define_missing_operators() -> None:
    """Allow the import of a torchvision that was built for another torch.

    Beside a CPU-only torch, a torchvision for CUDA cannot load its compiled operators. Its import
    then fails with "operator torchvision::nms does not exist", because it describes two of these
    operators in any case. It only needs their schemas, which are defined here. No code of this
    project calls the operators.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        _schemas.append(library)
        for operator in ("nms", "qnms"):
            library.define(  # type: ignore[no-untyped-call]
                f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
