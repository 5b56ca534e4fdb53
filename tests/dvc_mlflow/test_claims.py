"""A claim in a real store: one holder at a time, and none that stays when its holder is gone."""

import threading
import time

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from world import dead_process

from dvc_kit.errors import StageError
from dvc_mlflow import claims, writers


@pytest.fixture
def client(mlflow_store, monkeypatch, tmp_path):
    """A client of a store in which nothing is claimed, and claims that hurry."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mnist")
    for name, seconds in {"BEAT": 0.05, "INTERVAL": 0.02}.items():
        monkeypatch.setattr(claims, name, seconds)
    with mlflow_store():
        client = MlflowClient()
        yield client
        assert client.get_experiment_by_name("mnist-claim") is None, "a claim is left"


def claim_of(client, what: str = "mnist"):
    found = client.get_experiment_by_name(f"{what}-claim")
    return found if found and found.lifecycle_stage == "active" else None


def left(client, experiment_id: str) -> tuple[str, str]:
    found = client.get_experiment(experiment_id)
    return found.name, found.lifecycle_stage


def test_a_claim_is_in_the_store_while_its_body_runs_with_its_process_and_signs_of_life(client):
    threads = threading.active_count()
    with claims.held():
        claim = claim_of(client)
        assert claim.tags["process"] == writers.this_process()
        beats = []
        while len(set(beats)) < 3:
            beats.append(int(claim_of(client).tags["beat"]))
            time.sleep(0.02)
        assert sorted(set(beats)) == sorted(beats[0] + at for at in range(beats[-1] - beats[0] + 1))
    assert claim_of(client) is None
    assert left(client, claim.experiment_id) == (f"mnist-claim-{claim.experiment_id}", "deleted")
    assert threading.active_count() == threads  # the signs of life have ended


def test_who_waits_in_vain_is_told_who_holds_it_and_does_not_end_it(client):
    with claims.held():
        claim = claim_of(client)
        started = time.monotonic()
        with (
            pytest.raises(
                StageError, match=r"not ended in 1 s \(.*: .* \d+ \d+\): wait for"
            ) as told,
            claims.held(patience=0.8),
        ):
            pytest.fail("two hold it")
        assert 0.8 <= time.monotonic() - started < 5
        assert writers.this_process() in str(told.value)
        assert claim_of(client).experiment_id == claim.experiment_id


@pytest.mark.parametrize("deleted", [False, True])  # it was not renamed
def test_a_claim_whose_process_or_which_itself_is_gone_is_taken_at_once(client, deleted):
    process = writers.this_process() if deleted else dead_process()
    claim = client.create_experiment("mnist-claim", tags={"process": process, "beat": "0"})
    if deleted:
        client.delete_experiment(claim)
    started = time.monotonic()
    with claims.held():
        assert claim_of(client).experiment_id != claim
    assert time.monotonic() - started < claims.SILENCE / 2
    assert left(client, claim) == (f"mnist-claim-{claim}", "deleted")


def test_the_claim_of_another_machine_is_taken_when_it_falls_silent_and_not_before(
    client, monkeypatch
):
    monkeypatch.setattr(claims, "SILENCE", 2)  # a busy machine may miss some beats
    claim = client.create_experiment("mnist-claim", tags={"process": "elsewhere 1 0"})
    beats: list[float] = []

    def beat() -> None:
        for number in range(8):
            beats.append(time.monotonic())
            client.set_experiment_tag(claim, "beat", str(number))
            time.sleep(0.1)

    elsewhere = threading.Thread(target=beat)
    elsewhere.start()
    with claims.held(patience=20):
        assert time.monotonic() - beats[-1] >= claims.SILENCE
        assert left(client, claim) == (f"mnist-claim-{claim}", "deleted")
    elsewhere.join()
    assert len(beats) == 8


def test_a_claim_that_somebody_else_has_taken_over_is_not_released(client):
    with claims.held():
        mine = claim_of(client).experiment_id
        client.rename_experiment(mine, "taken away")
        theirs = client.create_experiment("mnist-claim", tags={"process": "elsewhere 1 0"})
    assert left(client, theirs) == ("mnist-claim", "active")
    assert left(client, mine) == ("taken away", "active")
    claims._drop(theirs, "mnist-claim")
    assert claim_of(client) is None
    deleted = client.search_experiments(ViewType.DELETED_ONLY)
    assert theirs in [found.experiment_id for found in deleted]
