"""The champion's gate, with a real MLflow store, our hooks, and predictions made by hand."""

import contextlib
import itertools
import json
import shutil
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from scipy.stats import binom, binomtest

from conftest import ROOT
from dvc_mlflow import registry
from dvc_mlflow.hooks import settings
from dvc_mlflow.result import Result
from stages import hooks
from stages.base import files
from stages.base.params import MODEL_NAMES, Registry

IMAGES = 1_000
GATE = Registry(min_accuracy=0.9, max_p=0.05)
NUMBER = itertools.count()


@pytest.fixture(scope="module")
def experiment(mlflow_store):
    with mlflow_store() as experiment_id:
        yield experiment_id


@pytest.fixture
def client(experiment, tmp_path, monkeypatch):
    """A client of that store, in which nothing is registered."""
    (tmp_path / "reports").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hooks, "ROOT", tmp_path)  # where its params.yaml is
    client = MlflowClient()
    yield client
    with contextlib.suppress(MlflowException):
        client.delete_registered_model("mnist")


def right(count: int, images: int = IMAGES) -> np.ndarray:
    """The first so many images."""
    return np.arange(images) < count


def against(correct: np.ndarray, only_here: int, only_there: int) -> np.ndarray:
    """A classifier that is alone right on some images, and alone wrong on others."""
    found = correct.copy()
    found[np.flatnonzero(~correct)[:only_here]] = True
    found[np.flatnonzero(correct)[:only_there]] = False
    return found


def result(stage: str, outs=(), deps=(), models=()) -> Result:
    return Result(Path(), stage, "", {}, dict(outs), dict(deps), models=dict(models))


def trainings(made: dict[str, str]) -> dict[str, Result]:
    """The results of the stages that made some models."""
    return {path: result(path, {path: md5}, models={path: Path(path).stem})
            for path, md5 in made.items()}  # fmt: skip


class Evaluation:
    """An evaluation of two models: its predictions lie here and in a run, the models are logged."""

    def __init__(self, client: MlflowClient, experiment: str, **correct: np.ndarray) -> None:
        self.client, self.experiment = client, experiment
        self.number = next(NUMBER)
        self.run_id = client.create_run(experiment).info.run_id
        self.deps = {}
        for name in MODEL_NAMES:
            self.write_predictions(name, correct[name])
            client.log_artifact(self.run_id, str(files.predictions_path(name)))
            path = f"models/{name}.safetensors"
            self.deps[path] = f"md5 of {name} {self.number}"
            tags = {"md5": self.deps[path], "file": path}
            model = client.create_logged_model(
                experiment, name=name, source_run_id=self.run_id, tags=tags
            )
            client.finalize_logged_model(model.model_id, "READY")

    def write_predictions(self, name: str, correct: np.ndarray) -> None:
        rows = [f"{at},{at % 10},{(at + 1 - good) % 10},0.9" for at, good in enumerate(correct)]
        text = "\n".join(["index,actual,predicted,confidence", *rows])
        files.predictions_path(name).write_text(f"{text}\n", encoding="utf-8")

    def register(self, gate: Registry = GATE) -> None:
        content = {"registry": gate.model_dump()}
        Path("params.yaml").write_text(json.dumps(content), encoding="utf-8")
        evaluation = result("evaluate", {settings()["model_card"]: "md5"}, self.deps)
        registry.register(evaluation, trainings(self.deps), self.run_id)

    def version(self, name: str):
        md5 = self.deps[f"models/{name}.safetensors"]
        (found,) = self.client.search_model_versions(f"name = 'mnist' and tag.md5 = '{md5}'")
        return found

    def said(self, name: str) -> str:
        return self.version(name).description


def champion(client: MlflowClient) -> str | None:
    """The md5 of its weights."""
    registered = client.get_registered_model("mnist")
    if "champion" not in registered.aliases:
        return None
    return client.get_model_version_by_alias("mnist", "champion").tags["md5"]


@pytest.fixture
def evaluated(client, experiment):
    """Registers an evaluation in which LeNet-5 stands and the MLP is below every gate."""

    def register(correct: np.ndarray, gate: Registry = GATE) -> Evaluation:
        found = Evaluation(client, experiment, lenet5=correct, mlp=right(10, len(correct)))
        found.register(gate)
        return found

    return register


PRESENT = right(950)


def stood(client, evaluated, only_here: int, only_there: int, gate: Registry = GATE):
    """Whether a challenger of a champion with 950 right answers of 1,000 wins, and the reason."""
    first = evaluated(PRESENT)
    assert champion(client) == first.deps["models/lenet5.safetensors"]
    second = evaluated(against(PRESENT, only_here, only_there), gate)
    winner = champion(client)
    assert winner in (e.deps["models/lenet5.safetensors"] for e in (first, second))
    # The mirror's note, by which a lost alias comes back, names the same one
    assert client.get_registered_model("mnist").tags["champion"] == winner
    return winner == second.deps["models/lenet5.safetensors"], second.said("lenet5")


def test_the_first_that_reaches_the_accuracy_is_champion(client, evaluated):
    found = evaluated(right(899))
    assert champion(client) is None
    assert found.said("lenet5") == "not champion: accuracy 0.8990, needed is 0.9"
    assert "version 1 (lenet5): not champion: accuracy 0.8990" in registry.without_champion()
    found = evaluated(right(900))
    assert champion(client) == found.deps["models/lenet5.safetensors"]
    said = "champion: accuracy 0.9000, at least 0.9; there was none before"
    assert found.said("lenet5") == said
    assert found.said("mlp") == "not champion: accuracy 0.0100, needed is 0.9"


def test_the_registered_model_has_the_card_of_the_evaluation_of_its_champion(client, evaluated):
    def register(correct: np.ndarray, text: str) -> str:
        Path(card).write_text(text, encoding="utf-8")
        evaluated(correct)
        return client.get_registered_model("mnist").description

    card = settings()["model_card"]
    plain = settings()["registered_model_description"]
    assert register(right(899), "of none") == plain  # nobody is champion
    assert register(PRESENT, "# Card") == "# Card"
    assert register(against(PRESENT, 3, 40), "of a worse one") == "# Card"
    long = register(against(PRESENT, 40, 3), "x" * 6_000)
    assert len(long) == 5_000


EXACT = float(binomtest(12, 16).pvalue)  # of a challenger that is alone right 12 times, wrong 4


@pytest.mark.parametrize(
    ("only_here", "only_there", "max_p", "moves", "accuracy"),
    [
        (15, 3, 0.05, True, "0.9620"),
        (12, 4, 0.05, False, "0.9580"),
        (12, 4, EXACT, True, "0.9580"),  # the largest p is one that passes
        (12, 4, 0.999 * EXACT, False, "0.9580"),
        (3, 40, 0.05, False, "0.9130"),
        (10, 10, 1.0, False, "0.9500"),  # an equal one never takes over
        (0, 0, 1.0, False, "0.9500"),
    ],
)
def test_only_a_significantly_better_one_takes_over(
    client, evaluated, only_here, only_there, max_p, moves, accuracy
):
    p = min(1, 2 * binom.cdf(min(only_here, only_there), only_here + only_there, 0.5))
    gate = Registry(min_accuracy=0.9, max_p=max_p)
    assert stood(client, evaluated, only_here, only_there, gate) == (
        moves,
        f"{'' if moves else 'not '}champion: accuracy {accuracy}; against version 1, alone right "
        f"on {only_here} images and alone wrong on {only_there} (exact McNemar p = {p:.2g}, needed "
        f"is at most {max_p})",
    )


def test_a_challenger_that_cannot_be_compared_does_not_take_over(client, evaluated):
    gate = Registry(min_accuracy=0.98, max_p=0.05)
    moves, said = stood(client, evaluated, 20, 0, gate)
    assert not moves and said == "not champion: accuracy 0.9700, needed is 0.98"
    first = champion(client)
    others = "not champion: version 1 was scored on other test images"
    assert evaluated(right(900, 900)).said("lenet5") == others
    evaluation = client.get_model_version_by_alias("mnist", "champion").tags["evaluation"]
    folder = Path(urlparse(client.get_run(evaluation).info.artifact_uri).path)
    (folder / "predictions_lenet5.csv").unlink()
    gone = "not champion: the predictions of version 1 are gone"
    assert evaluated(right(1_000)).said("lenet5") == gone
    assert champion(client) == first


@pytest.mark.parametrize("better", MODEL_NAMES)
def test_of_two_first_ones_the_better_is_champion_and_the_other_is_compared(
    client, experiment, better
):
    (other,) = set(MODEL_NAMES) - {better}
    found = Evaluation(client, experiment, **{better: right(940), other: right(930)})
    found.register()
    assert champion(client) == found.deps[f"models/{better}.safetensors"]
    assert "there was none before" in found.said(better)
    assert "alone right on 0 images and alone wrong on 10 (" in found.said(other)
    assert found.version(better).tags["model"] == better
    assert found.version(better).run_id == found.run_id
    assert found.version(other).tags["evaluation"] == found.run_id


def test_the_champions_own_predictions_are_the_ones_compared_with(client, experiment):
    """Not those of the other model of its evaluation, which lie beside them."""
    first = Evaluation(client, experiment, lenet5=right(910), mlp=right(960))
    first.register()
    assert champion(client) == first.deps["models/mlp.safetensors"]
    second = Evaluation(client, experiment, lenet5=right(950), mlp=right(10))
    second.register()
    assert champion(client) == first.deps["models/mlp.safetensors"]
    assert "alone right on 0 images and alone wrong on 10 (" in second.said("lenet5")


def test_registering_again_changes_nothing_until_the_gate_does(client, evaluated):
    first = evaluated(right(899))

    def state():
        versions = client.search_model_versions("name = 'mnist'")
        seen = sorted((v.version, v.description, v.last_updated_timestamp) for v in versions)
        return champion(client), seen

    before = state()
    first.register()
    assert state() == before
    first.register(Registry(min_accuracy=0.8, max_p=0.05))  # read anew, from the hooks' folder
    assert champion(client) == first.deps["models/lenet5.safetensors"]


def test_a_lost_alias_goes_back_to_the_same_model_and_not_to_the_newest(client, evaluated):
    first = evaluated(PRESENT)
    client.delete_registered_model_alias("mnist", "champion")
    assert "has lost its alias champion" in registry.without_champion()
    evaluated(against(PRESENT, 4, 2))
    assert champion(client) == first.deps["models/lenet5.safetensors"]
    first.register()
    assert first.said("lenet5").startswith("champion: ")


def test_without_a_name_or_a_judge_nothing_is_registered(client, experiment):
    found = Evaluation(client, experiment, lenet5=PRESENT, mlp=right(10))
    evaluation, locked = result("evaluate", deps=found.deps), trainings(found.deps)
    assert registry.is_behind(evaluation, locked)
    for text in ("", '[tool.dvc-mlflow]\nregistered_model = "mnist"\n',
                 '[tool.dvc-mlflow]\nhooks = "stages.hooks"\n'):  # fmt: skip
        Path("pyproject.toml").write_text(text, encoding="utf-8")
        settings.cache_clear()
        assert not registry.is_behind(evaluation, locked)
        registry.register(evaluation, locked, found.run_id)
        assert client.search_registered_models() == []
