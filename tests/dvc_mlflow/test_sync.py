"""What sync writes to a real store, and what it leaves alone, in a project made by hand."""

import json
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import urlparse

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from test_store import assert_whole, models_of
from tiny import CELLS, PIPELINE, Project, make_project, make_results

from conftest import forget_the_folder
from dvc_mlflow import pipeline, registry, results, runs, store, sync
from dvc_mlflow.errors import StageError
from dvc_mlflow.results import Result

MLP = "models/mlp.safetensors"


@pytest.fixture(scope="module")
def standing(standing_in, tmp_path_factory):
    """This process stands in a project whose results are logged. What a test breaks there, it
    makes whole again by sync."""
    project = make_project(tmp_path_factory.mktemp("sync") / "project")
    with standing_in(project) as client:
        sync.sync()
        yield project, client


@pytest.fixture
def project(standing) -> Project:
    return standing[0]


@pytest.fixture
def client(standing) -> MlflowClient:
    return standing[1]


@pytest.fixture
def fresh(standing_in, tmp_path):
    """This process stands in a project of which nothing is logged."""
    project = make_project(tmp_path / "project", seed=7)
    with standing_in(project) as client:
        yield project, client


@pytest.fixture
def synced(capsys):
    """What sync prints of the main project."""

    def printed(rev: str | None = None) -> list[str]:
        capsys.readouterr()
        sync.sync(rev)
        said = capsys.readouterr().out.splitlines()
        return [line for line in said if "cell@" not in line and "run of report" not in line]

    return printed


def runs_of(client, stage: str, view: int = ViewType.ACTIVE_ONLY) -> list:
    found = client.search_runs(["1"], f"tags.stage = '{stage}'", view)
    return [run for run in found if run.info.status == "FINISHED"]


def run_of(client, stage: str):
    (run,) = runs_of(client, stage)
    return run


def artifacts(place: str) -> Path:
    return Path(urlparse(place).path)


# --- the pipeline ---


def test_every_stage_has_a_finished_run_with_its_links_commit_metrics_and_files(client, project):
    assert_whole(client)
    commit = project.git("rev-parse", "HEAD")
    for stage in PIPELINE:
        run = run_of(client, stage)
        tags = run.data.tags
        outs = {tag[4:]: md5 for tag, md5 in tags.items() if tag.startswith("out:")}
        assert outs == project.outs(stage)
        assert (tags["commit"], tags["dirty"], tags["backfilled"]) == (commit, "false", "true")
        kept = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert kept >= {Path(path).name for path in PIPELINE[stage].small if Path(path).suffix}
        assert run.info.end_time is None  # how long the stage took, nobody knows
    assert kept == {"comparison.md", "confusion.png", "curves.png"}  # of plot
    run_id = run_of(client, "train_mlp").info.run_id
    history = client.get_metric_history(run_id, "test_accuracy")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.1), (2, 0.4)]


def test_the_run_of_the_pipeline_has_what_its_stages_have_and_names_their_runs(client, project):
    parent = run_of(client, "pipeline")
    assert parent.info.run_name == "pipeline documented"
    metrics = json.loads((project.path / "reports/metrics.json").read_text())
    flat = {f"{name}.{key}": v for name, scores in metrics.items() for key, v in scores.items()}
    flat |= {f"{name}.train_loss": 2 for name in metrics}
    assert parent.data.metrics == flat
    evaluation = run_of(client, "evaluate").data.tags
    for tag in ("commit", "dirty", "mlflow.user"):
        assert parent.data.tags[tag] == evaluation[tag]
    settings = {}
    for stage in PIPELINE:
        settings |= run_of(client, stage).data.params
    assert parent.data.params == settings
    assert (settings["recipe"], settings["mlp.epochs"]) == ("documented", "20")
    assert "dep:data/prepared" not in parent.data.tags and "backfilled" not in parent.data.tags
    kept = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert kept == {"comparison.md", "confusion.png", "curves.png"}
    first, *lines = parent.data.tags["mlflow.note.content"].splitlines()
    assert first == "# Comparison 0"
    rows = [line for line in lines if "/runs/" in line]
    assert rows == [
        f"| [{stage}](#/experiments/1/runs/{run_of(client, stage).info.run_id}) | {said.desc} |"
        for stage, said in PIPELINE.items()
    ]


def test_both_models_are_versions_with_their_scores_and_the_better_one_is_champion(client, project):
    metrics = json.loads((project.path / "reports/metrics.json").read_text())
    evaluation = run_of(client, "evaluate").info.run_id
    for version in client.search_model_versions("name = 'mnist'"):
        name = version.tags["model"]
        assert version.tags["evaluation"] == evaluation
        assert version.tags["md5"] == project.md5(f"models/{name}.safetensors")
        model = client.get_logged_model(version.source.removeprefix("models:/"))
        scores = {metric.key: metric.value for metric in model.metrics}
        assert metrics[name].items() <= scores.items()
        assert model.source_run_id == run_of(client, f"train_{name}").info.run_id
    assert client.get_model_version_by_alias("mnist", "champion").tags["model"] == "lenet5"


def delete_run(client, stage: str) -> None:
    client.delete_run(run_of(client, stage).info.run_id)


def delete_file(client, stage: str, name: str) -> None:
    run_id = run_of(client, stage).info.run_id
    (artifacts(client.get_run(run_id).info.artifact_uri) / name).unlink()


def model_of(client, name: str):
    (model,) = client.search_logged_models(["1"], filter_string=f"name = '{name}'")
    return model


def delete_model_file(client, name: str, file: str) -> None:
    (artifacts(model_of(client, name).artifact_location) / file).unlink()


def again(out: str, stage: str) -> str:
    return f"logged {out} again, which the run of {stage} had lost"


def lose_files(client) -> None:
    delete_file(client, "evaluate", "comparison.csv")
    delete_file(client, "plot", "curves.png")  # one of a folder
    for file in artifacts(run_of(client, "prepare").info.artifact_uri).iterdir():
        file.unlink()  # all of a folder
    delete_model_file(client, "mlp", "extra_files/mlp.safetensors")


def lose_models(client) -> None:
    client.delete_logged_model(model_of(client, "mlp").model_id)
    delete_model_file(client, "lenet5", "data/model.pt2")


LOSSES = {
    "files": (
        lose_files,
        [
            again("data/prepared", "prepare"),
            again(MLP, "train_mlp"),
            again("reports/comparison.csv", "evaluate"),
            again("reports/figures", "plot"),
        ],
    ),
    "models": (
        lose_models,
        [again("models/lenet5.safetensors", "train_lenet5"), again(MLP, "train_mlp")],
    ),
    "a run": (lambda c: delete_run(c, "prepare"), ["restored the deleted run of prepare"]),
    "the pipeline's run": (
        lambda c: delete_run(c, "pipeline"),
        ["restored the deleted run of the pipeline"],
    ),
    "a file of the pipeline's": (lambda c: delete_file(c, "pipeline", "comparison.md"), []),
    "the alias": (
        lambda c: c.delete_registered_model_alias("mnist", "champion"),
        ["restored the alias champion: it is version 1 of mnist again"],
    ),
    "a stage's place": (
        lambda c: c.delete_tag(run_of(c, "plot").info.run_id, "mlflow.parentRunId"),
        [],
    ),
    "the versions": (lambda c: c.delete_registered_model("mnist"), []),
}


@pytest.mark.parametrize("lost", LOSSES)
def test_what_a_store_loses_is_written_again_once_and_nothing_besides(
    client, project, synced, lost
):
    def files_of(client) -> set[Path]:
        found = (project.path / "mlartifacts").rglob("*")
        return {path for path in found if path.is_file() and path.stat().st_size}

    lose, expected = LOSSES[lost]
    before = [run.info.run_id for run in client.search_runs(["1"])]
    kept, model = files_of(client), model_of(client, "mlp").model_id
    lose(client)
    assert synced() == expected
    assert synced() == []
    assert [run.info.run_id for run in client.search_runs(["1"])] == before
    assert_whole(client)
    if lost != "models":  # of which one has a new id
        assert files_of(client) == kept
        assert model_of(client, "mlp").model_id == model
    assert client.get_model_version_by_alias("mnist", "champion").tags["model"] == "lenet5"


def test_nothing_is_asked_of_others_where_nothing_is_missing(client, project, synced):
    elsewhere = {"process": "another machine 1 0", "beat": "0"}
    claim = client.create_experiment("mnist-claim", tags=elsewhere)
    assert synced() == []
    client.rename_experiment(claim, "released")
    client.delete_experiment(claim)


def test_another_state_has_a_run_of_its_own_over_all_five_stages(client, project, synced):
    before, old_plot = run_of(client, "pipeline"), run_of(client, "plot")
    project.write("reports/comparison.md", "# Another comparison\n")
    project.lock()
    assert synced() == ["logged the run of plot from its results"]
    assert synced() == []
    newest, older = runs_of(client, "pipeline")
    new_plot = runs_of(client, "plot")[0]
    try:
        assert older.info.run_id == before.info.run_id
        for run in (new_plot, run_of(client, "evaluate"), run_of(client, "prepare")):
            assert run.data.tags["mlflow.parentRunId"] == newest.info.run_id
        assert newest.data.tags["mlflow.note.content"].startswith("# Another comparison\n")
        assert new_plot.data.tags["dirty"] == "false"
        assert synced("HEAD") == []  # the committed state has all its runs as well
        tags = client.get_run(old_plot.info.run_id).data.tags
        assert tags["mlflow.parentRunId"] == older.info.run_id
    finally:
        project.git("checkout", "--quiet", "dvc.lock", "reports/comparison.md")
        for run in (newest, new_plot):
            client.delete_run(run.info.run_id)
        for stage in PIPELINE:
            run_id = run_of(client, stage).info.run_id
            client.set_tag(run_id, "mlflow.parentRunId", before.info.run_id)


def test_the_results_of_a_commit_are_written_with_its_name_whatever_lies_here(fresh, synced):
    project, client = fresh
    commit = project.git("rev-parse", "HEAD")
    committed = {stage: project.outs(stage) for stage in PIPELINE}
    project.git("tag", "released")
    make_results(project, seed=8)
    project.write("code.py", "changed")
    said = synced("released")
    assert said == [f"logged the run of {stage} from its results" for stage in PIPELINE]
    for stage, outs in committed.items():
        tags = run_of(client, stage).data.tags
        assert {tag[4:]: md5 for tag, md5 in tags.items() if tag.startswith("out:")} == outs
        assert (tags["commit"], tags["dirty"]) == (commit, "false")
    assert_whole(client)
    client.delete_registered_model("mnist")
    assert synced("released") == []
    delete_model_file(client, "mlp", "extra_files/mlp.safetensors")
    delete_file(client, "plot", "comparison.md")
    lost = [again(MLP, "train_mlp"), again("reports/comparison.md", "plot")]
    assert synced("released") == lost
    assert synced("released") == []
    assert_whole(client)


# --- status ---


def status(capsys) -> list[str]:
    """What status prints, with its error as the last line."""
    capsys.readouterr()
    try:
        sync.status()
    except StageError as error:
        print(error)
    return capsys.readouterr().out.splitlines()


def test_status_counts_the_results_of_each_project_that_have_their_run(
    client, project, synced, capsys
):
    whole = ["5 of 5 results have their run", "study: 3 of 3 results have their run"]
    assert status(capsys) == whole
    end = f"in sqlite:///{project.path}/mlflow.db: `make sync` writes them"
    delete_run(client, "plot")
    delete_file(client, "prepare", "contact_sheet.png")
    client.delete_run(cells_of(client)["report"])
    assert status(capsys) == [
        "3 of 5 results have their run",
        "study: 2 of 3 results have their run",
        f"no run for prepare, plot, report {end}",
    ]
    synced()
    assert status(capsys) == whole


def test_status_looks_at_the_files_of_logged_models(client, project, synced, capsys):
    delete_model_file(client, "mlp", "extra_files/mlp.safetensors")
    first, _, error = status(capsys)
    assert first == "4 of 5 results have their run" and error.startswith("no run for train_mlp in")
    assert synced() == [again(MLP, "train_mlp")]
    assert len(status(capsys)) == 2


def test_status_of_an_empty_store_names_the_first_results_and_the_number_of_the_others(
    fresh, capsys
):
    _, client = fresh
    *counts, error = status(capsys)
    assert counts == ["0 of 5 results have their run", "study: 0 of 3 results have their run"]
    assert f"no run for {', '.join(PIPELINE)} and 3 more in sqlite:" in error
    assert client.search_experiments(filter_string="name LIKE 'mnist%'") == []  # nothing is made


def test_status_of_a_project_in_which_nothing_has_run_is_good(fresh, capsys):
    project, _ = fresh
    (project.path / "dvc.lock").unlink()
    (project.path / "study/dvc.lock").unlink()
    assert status(capsys) == [
        "0 of 0 results have their run",
        "study: 0 of 0 results have their run",
    ]


def test_a_project_without_settings_has_the_name_of_its_folder_also_while_a_commit_is_written(
    fresh, synced
):
    project, client = fresh
    (project.path / "pyproject.toml").unlink()
    forget_the_folder()
    elsewhere = {"process": "another machine 1 0", "beat": "0"}
    claim = client.create_experiment("project-claim", tags=elsewhere)
    beats = threading.Thread(target=lambda: [beat(client, claim) for _ in range(20)])
    beats.start()
    began = time.monotonic()
    said = synced("HEAD")
    assert time.monotonic() - began > 2, "it did not wait for the claim"
    assert len(said) == 5
    beats.join()
    names = {found.name for found in client.search_experiments()}
    assert "project" in names and not [name for name in names if "sync-" in name]


def beat(client, claim: str) -> None:
    client.set_experiment_tag(claim, "beat", str(time.monotonic()))
    time.sleep(0.1)


# --- what is not whole ---


def test_stages_that_were_not_run_together_have_runs_and_nothing_over_them(fresh, synced):
    project, client = fresh
    pending = client.create_logged_model("0", name="mlp", tags={"md5": project.md5(MLP)})
    project.lock("prepare", "train_mlp")
    expected = [f"logged the run of {stage} from its results" for stage in ("prepare", "train_mlp")]
    assert synced() == expected
    assert synced() == []
    assert not pipeline.is_apart(locked()) or set(locked()) != {*PIPELINE}
    assert runs_of(client, "pipeline") == []
    assert client.search_registered_models() == []
    # One whose writing was cut short is gone, the whole one is there
    assert [str(model.status) for model in models_of(client)] == ["READY"]
    assert pending.model_id not in [model.model_id for model in models_of(client)]
    # The pipeline's run stands over five, and the registry needs an evaluation
    project.lock()
    pipeline.connect(store.open_store(), locked())
    assert runs_of(client, "pipeline") == []
    assert client.search_registered_models() == []


def test_a_run_that_cannot_be_written_whole_is_taken_back_and_written_anew(fresh, synced):
    project, client = fresh
    metrics = project.path / "reports/train_mlp.json"
    text = metrics.read_text()
    metrics.write_text("nothing")
    project.lock("prepare", "train_mlp")
    for _ in range(2):
        with pytest.raises(ValueError, match="Expecting value"):
            synced()
    assert runs_of(client, "train_mlp") == []
    taken = client.search_runs(["1"], "tags.stage = 'train_mlp'", ViewType.DELETED_ONLY)
    assert [run.info.status for run in taken] == ["FAILED", "FAILED"]
    assert not client.search_experiments(filter_string="name = 'mnist-claim'")
    metrics.write_text(text)
    project.lock("prepare", "train_mlp")
    assert synced() == ["logged the run of train_mlp from its results"]


@pytest.mark.parametrize(
    ("gone", "stage"), [("reports/train_mlp.json", "train_mlp"), ("data/prepared", "train_mlp")]
)
def test_no_run_is_begun_without_all_that_it_needs(fresh, gone, stage):
    project, client = fresh
    project.lock("prepare", stage)
    (project.path / gone).rename(project.path / "elsewhere")
    with pytest.raises(StageError, match=f"^{gone} is not the one in dvc.lock"):
        sync.sync()
    assert client.search_runs(["1"], f"tags.stage = '{stage}'", ViewType.ALL) == []


def locked(folder: str = "") -> dict[str, Result]:
    return results.Project(Path(folder)).locked()


def result(stage: str, outs: dict[str, str], deps: dict[str, str]) -> Result:
    return Result(Path(), stage, "", {}, outs, deps)


def test_results_agree_when_each_stage_was_made_from_what_the_others_have_made(project):
    found = locked()
    assert pipeline.agree(found)
    made = found["plot"]
    first = next(iter(made.deps))
    other = result("plot", made.outs, made.deps | {first: "md5 of another"})
    assert not pipeline.agree(found | {"plot": other})
    code = result("plot", made.outs, made.deps | {"code.py": "md5 of newer code"})
    assert pipeline.agree(found | {"plot": code})  # nobody made that


def test_the_last_stages_and_the_evaluations_are_seen_from_what_the_stages_read(project):
    found = locked()
    assert [one.stage for one in pipeline.last(found)] == ["plot"]
    assert [one.stage for one in pipeline.evaluations(found)] == ["evaluate"]
    del found["plot"]
    assert [one.stage for one in pipeline.last(found)] == ["evaluate"]
    assert [one.stage for one in pipeline.last(locked("study"))] == ["report"]
    assert pipeline.evaluations(locked("study")) == []


# --- how runs are found ---


@pytest.fixture
def experiment(client):
    found = client.get_experiment_by_name("others")
    return found.experiment_id if found else client.create_experiment("others")


def test_the_run_of_some_outs_is_the_newest_finished_one_that_has_them_all(client, experiment):
    def run(status: str | None, **outs: str) -> str:
        tags = {f"out:{path}": md5 for path, md5 in outs.items()}
        run_id = client.create_run(experiment, tags=tags).info.run_id
        if status:
            client.set_terminated(run_id, status)
        return run_id

    wanted = {"a": "1 of found", "b": "2 of found"}
    older = run("FINISHED", **wanted)
    newer = run("FINISHED", **wanted, c="3")
    others = [run("FAILED", **wanted), run(None, **wanted)]
    run("FINISHED", a=wanted["a"])
    run("FINISHED", a=wanted["a"], b="other")
    found = [run.info.run_id for run in runs.with_outs(wanted)]
    assert set(found) == {older, newer, *others} and found.index(newer) < found.index(older)
    assert runs.finished(wanted).info.run_id == newer
    assert runs.finished(wanted, deleted=True) is None
    client.delete_run(newer)
    assert runs.finished(wanted).info.run_id == older
    assert runs.finished(wanted, deleted=True).info.run_id == newer
    assert runs.finished({"a": "no such"}) is None
    assert runs.with_outs({}) == [] and runs.finished({}) is None


# --- runs whose process is gone ---


def dead_process() -> str:
    process = subprocess.Popen(["sleep", "60"])
    started = psutil.Process(process.pid).create_time()
    process.kill()
    process.wait()
    return f"{runs.machine()} {process.pid} {started:.0f}"


def test_a_run_whose_process_is_gone_ends_and_one_that_sync_began_is_taken_back(
    client, experiment, capsys
):
    gone = dead_process()
    began = {
        "of a stage": {"process": gone, "stage": "plot"},
        "of sync": {"process": gone, "stage": "plot", "backfilled": "true"},
        "of the pipeline": {"process": gone, "stage": "pipeline"},
        "alive": {"process": runs.this_process(), "stage": "plot"},
        "elsewhere": {"process": "another machine 1 0", "stage": "plot"},
        "unknown": {},
    }
    ids = {
        name: client.create_run(experiment, tags=tags).info.run_id for name, tags in began.items()
    }
    capsys.readouterr()
    sync._end_dead_runs()
    said = capsys.readouterr().out.splitlines()
    assert said.count("ended the run of plot whose process is gone") == 2
    assert said.count("ended the run of pipeline whose process is gone") == 1
    infos = {name: client.get_run(run_id).info for name, run_id in ids.items()}
    assert {name: (info.status, info.lifecycle_stage) for name, info in infos.items()} == {
        "of a stage": ("KILLED", "active"),
        "of sync": ("KILLED", "deleted"),
        "of the pipeline": ("KILLED", "deleted"),
        "alive": ("RUNNING", "active"),
        "elsewhere": ("RUNNING", "active"),
        "unknown": ("RUNNING", "active"),
    }
    tags = client.get_run(ids["of a stage"]).data.tags
    assert tags["reason"] == "its process ended before the run did"
    for run_id in ids.values():
        client.delete_run(run_id)


def test_sync_ends_the_runs_whose_process_is_gone_also_where_nothing_is_missing(
    client, experiment, synced
):
    run_id = client.create_run(experiment, tags={"process": dead_process()}).info.run_id
    assert len(synced()) == 1
    assert client.get_run(run_id).info.status == "KILLED"
    client.delete_run(run_id)


# --- the study ---


@pytest.fixture
def study(fresh, capsys):
    project, client = fresh

    def printed() -> list[str]:
        capsys.readouterr()
        sync.sync()
        said = capsys.readouterr().out.splitlines()
        return [line for line in said if "cell" in line or "run of report" in line]

    return project, client, printed


def cells_of(client) -> dict[str, str]:
    experiment = client.get_experiment_by_name("mnist-study").experiment_id
    found = client.search_runs([experiment])
    return {run.data.tags["stage"]: run.info.run_id for run in found}


def test_each_cell_and_the_report_have_a_run_that_is_written_once(study):
    project, client, synced = study
    stages = [*(f"cell@{cell}" for cell in CELLS), "report"]
    assert synced() == [f"logged the run of {stage} from its results" for stage in stages]
    assert synced() == []
    assert list(reversed(cells_of(client))) == stages
    cell = client.get_run(cells_of(client)["cell@fast-mlp-1"])
    assert cell.data.metrics["test_accuracy"] == 0.7
    history = client.get_metric_history(cell.info.run_id, "test_loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.0), (2, 2.0)]
    assert cell.data.params["seed"] == "1"
    assert cell.data.tags["commit"] == project.git("rev-parse", "HEAD")
    report = client.get_run(cells_of(client)["report"])
    assert report.data.metrics == {"fast.mlp": 0.65}
    assert not client.search_experiments(filter_string="name = 'mnist-study-claim'")

    client.delete_run(report.info.run_id)
    (artifacts(cell.info.artifact_uri) / "fast-mlp-1.json").unlink()
    before = cells_of(client)
    assert synced() == [
        again("study/cells/fast-mlp-1.json", "cell@fast-mlp-1"),
        "restored the deleted run of report",
    ]
    assert cells_of(client) == before | {"report": report.info.run_id}
    assert synced() == []


def test_a_cell_that_is_not_here_is_left_out_and_the_report_over_it_too(study):
    project, _, synced = study
    path = project.path / "study/cells/fast-mlp-0.json"
    text = path.read_text()
    path.unlink()
    assert synced() == ["logged the run of cell@fast-mlp-1 from its results"]
    path.write_text(text)
    assert synced() == [
        "logged the run of cell@fast-mlp-0 from its results",
        "logged the run of report from its results",
    ]


def test_the_registry_is_asked_only_for_what_belongs_to_this_evaluation(client, project):
    found = locked()
    evaluation = found["evaluate"]
    assert not registry.is_behind(evaluation, found)
    other = result("evaluate", {}, evaluation.deps | {MLP: "md5 of another"})
    assert registry.is_behind(other, found)
