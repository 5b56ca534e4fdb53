"""What the engine asks a worker for, what comes back, and who asks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import Field

from dvc_kit.strict import Section


@dataclass(frozen=True)
class Order:
    """What a worker needs to compute a cell of the study, or a trial of the search.

    Attributes:
        stage: Its name, such as `cell@fast-mlp-0`.
        module: That computes it, in a process of its own.
        arguments: Those of the module. A person can give them too.
        path: Of the file that it writes, from the main folder.
        settings: One more argument, which the worker's clone does not have. JSON, or nothing.
        commit: That of the worker's clone. Empty: compute in this folder as it is.
        versions: Of Python and the libraries that compute.
        prepared: The md5 of the prepared images.
    """

    stage: str
    module: str
    arguments: tuple[str, ...]
    path: str
    settings: str = ""
    commit: str = ""
    versions: Mapping[str, str] | None = None
    prepared: str = ""


class Reply(Section):
    """The file of an order, or the reason why there is none.

    Attributes:
        worker: The machine, and the folder of its clone.
        address: That of the worker for Dask.
        seconds: That the training took.
        fault: One line. Empty if the order was computed.
        unfit: Whether this worker cannot compute any other order either.
    """

    stage: str
    worker: Annotated[str, Field(min_length=1)]
    address: str = ""
    seconds: Annotated[float, Field(ge=0)] = 0.0
    content: bytes = b""
    fault: str = ""
    unfit: bool = False


class Task(Protocol):
    """A training that is wanted: study.missing and study.search have one each."""

    @property
    def order(self) -> Order: ...

    @property
    def epochs(self) -> int: ...

    @property
    def here(self) -> bool:
        """Whether its file has come already."""

    def mistake(self, content: bytes) -> str:
        """Why these bytes are not its file, or nothing."""

    def check(self) -> None:
        """Raise a StageError if this folder is not any more as the order was made for."""

    def keep(self, content: bytes) -> None:
        """Write its file, so that a next process finds it."""

    def forget(self) -> None:
        """Remove what ``keep`` has written."""
