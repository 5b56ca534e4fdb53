"""One writer at a time of all that share a store: ``with claims.held(): ...``.

Two machines that sync the same results share nothing but the tracking store, so the claim is kept
there. In a store, an experiment's name exists once, also when two ask for it at the same moment:
whoever creates the experiment `mnist-claim` holds the claim. Releasing it renames the experiment,
which frees the name, and deletes it. Both go by the experiment's id, so that a claim which somebody
else has taken in the meantime is never released by mistake.

The holder changes a tag every few seconds. A claim ends without its holder when that process is
gone from this machine, or when the tag has stayed the same for SILENCE seconds.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stages import runs, store
from stages.errors import StageError
from stages.runs import Say, client, silent

BEAT = 5.0  # seconds between two signs of life of the holder
SILENCE = 30.0  # seconds without one, measured by who waits
PATIENCE = 120.0  # seconds to wait for a holder that is alive
INTERVAL = 0.5  # seconds between two tries


@contextmanager
def held(what: str = "mnist", *, patience: float = PATIENCE, say: Say = silent) -> Iterator[None]:
    """Run the body while no other process that uses this store is in such a body.

    Args:
        what: The runs that are written.
        patience: Seconds to wait for another holder.
        say: Told `ready` at each try.

    Raises:
        StageError: Somebody else held the claim all that time; names who.
    """
    name = f"{what}-claim"
    experiment_id = _take(name, patience, say)
    done = threading.Event()
    beats = threading.Thread(target=_beat, args=(experiment_id, done), daemon=True)
    beats.start()
    try:
        yield
    finally:
        done.set()
        beats.join(BEAT)
        _drop(experiment_id, name)


def _take(name: str, patience: float, say: Say) -> str:
    from mlflow.exceptions import MlflowException

    started = since = time.monotonic()
    seen: tuple[str, str] | None = None
    holder = "another process"
    while True:
        say("ready")
        try:
            tags = {"process": runs.this_process(), "beat": "0"}
            created: str = client().create_experiment(name, store.location(), tags)
            return created
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        now = time.monotonic()
        claim = client().get_experiment_by_name(name)
        if claim is not None:  # not released since
            holder = claim.tags.get("process", holder)
            state = (claim.experiment_id, claim.tags.get("beat", ""))
            if state != seen:
                seen, since = state, now
            if _is_over(claim) or now > since + SILENCE:
                _drop(claim.experiment_id, name)
        if now > started + patience:
            raise StageError(
                f"another process writes to {store.name()} and has not ended in {patience:.0f} s "
                f"(host, process, start: {holder}): wait for it or end it"
            )
        time.sleep(INTERVAL)


def _is_over(claim: Any) -> bool:
    return claim.lifecycle_stage == "deleted" or runs.is_over(claim.tags.get("process", ""))


def _drop(experiment_id: str, name: str) -> None:
    """End a claim. What fails here is ended by the next who wants to hold it."""
    with contextlib.suppress(Exception):
        claim = client().get_experiment(experiment_id)
        if claim.name != name:
            return  # somebody else has ended it
        if claim.lifecycle_stage == "deleted":
            client().restore_experiment(experiment_id)  # a deleted one cannot be renamed
        client().rename_experiment(experiment_id, f"{name}-{experiment_id}")
        client().delete_experiment(experiment_id)


def _beat(experiment_id: str, done: threading.Event) -> None:
    count = 0
    while not done.wait(BEAT):
        count += 1
        with contextlib.suppress(Exception):
            client().set_experiment_tag(experiment_id, "beat", str(count))
