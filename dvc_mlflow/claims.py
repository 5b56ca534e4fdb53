"""One writer at a time among all that share a tracking store: ``with claims.held(): ...``.

Two machines that sync the same results share only the store, so the claim is kept there. The name
of an experiment is unique in a store, also if two processes ask for it at the same moment. So the
process that creates the experiment `NAME-claim` holds the claim. To release it, the experiment is
renamed, which frees the name, and deleted. Both use the id of the experiment. So nobody releases a
claim by mistake that another process has taken meanwhile.

The holder changes a tag every few seconds. A claim also ends if its process has ended on this
machine, or if the tag has not changed for SILENCE seconds.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dvc_kit.errors import StageError
from dvc_mlflow import schema, store, writers
from dvc_mlflow.store import client

BEAT = 5.0  # seconds between two changes of the tag
SILENCE = 30.0  # seconds without a change after which a waiting process ends the claim
PATIENCE = 120.0  # seconds to wait for a holder that is alive
INTERVAL = 0.5  # seconds between two tries


@contextmanager
def held(patience: float = PATIENCE) -> Iterator[None]:
    """Run the body while no other process with this store is in such a body.

    Args:
        patience: Seconds to wait for another holder.

    Raises:
        StageError: Another process held the claim all that time. Names it.
    """
    name = f"{store.experiment()}{schema.CLAIM}"
    experiment_id = _take(name, patience)
    done = threading.Event()
    beats = threading.Thread(target=_beat, args=(experiment_id, done), daemon=True)
    beats.start()
    try:
        yield
    finally:
        done.set()
        beats.join(BEAT)
        _drop(experiment_id, name)


def _take(name: str, patience: float) -> str:
    from mlflow.exceptions import MlflowException

    started = since = time.monotonic()
    seen: tuple[str, str] | None = None
    holder = "another process"
    while True:
        try:
            tags = {schema.PROCESS: writers.this_process(), schema.BEAT: "0"}
            created: str = client().create_experiment(name, store.location(), tags)
            return created
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        now = time.monotonic()
        claim = client().get_experiment_by_name(name)
        if claim is not None:  # not released since
            holder = claim.tags.get(schema.PROCESS, holder)
            state = (claim.experiment_id, claim.tags.get(schema.BEAT, ""))
            if state != seen:
                seen, since = state, now
            is_over = claim.lifecycle_stage == "deleted" or writers.is_over(holder)
            if is_over or now > since + SILENCE:
                _drop(claim.experiment_id, name)
        if now > started + patience:
            raise StageError(
                f"another process writes to {store.name()} and has not ended in {patience:.0f} s "
                f"(host, process, start: {holder}): wait for it or end it"
            )
        time.sleep(INTERVAL)


def _drop(experiment_id: str, name: str) -> None:
    """End a claim. If that fails, the next process that wants the claim ends it."""
    with contextlib.suppress(Exception):
        claim = client().get_experiment(experiment_id)
        if claim.name != name:
            return  # another process has ended it
        if claim.lifecycle_stage == "deleted":
            client().restore_experiment(experiment_id)  # a deleted one cannot be renamed
        client().rename_experiment(experiment_id, f"{name}-{experiment_id}")
        client().delete_experiment(experiment_id)


def _beat(experiment_id: str, done: threading.Event) -> None:
    count = 0
    while not done.wait(BEAT):
        count += 1
        with contextlib.suppress(Exception):
            client().set_experiment_tag(experiment_id, schema.BEAT, str(count))
