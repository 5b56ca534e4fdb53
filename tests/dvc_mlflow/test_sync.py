"""What sync writes to a real store, and what it leaves alone, in a project made by hand."""

import json
import shutil
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
from dvc_mlflow import claims, pipeline, registry, results, runs, store, sync
from dvc_mlflow.errors import StageError
from dvc_mlflow.known import Known
from dvc_mlflow.results import Result

MLP = "models/mlp.safetensors"
STUDY = [*(f"cell@{cell}" for cell in CELLS), "report"]
LOGGED_STUDY = [
    f"logged {len(CELLS)} runs of study: cell from their results",
    "logged the run of study: report from its results",
]


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

    def printed(rev: str | None = None, **options) -> list[str]:
        capsys.readouterr()
        sync.sync(rev, **options)
        said = capsys.readouterr().out.splitlines()
        return [line for line in said if "study: " not in line]

    return printed


def runs_of(client, stage: str, view: int = ViewType.ACTIVE_ONLY) -> list:
    found = client.search_runs(["1"], f"tags.stage = '{stage}'", view)
    return [run for run in found if run.info.status == "FINISHED"]


def run_of(client, stage: str):
    (run,) = runs_of(client, stage)
    return run


def artifacts(place: str) -> Path:
    return Path(urlparse(place).path)


def links(tags: dict[str, str]) -> dict[str, str]:
    """The md5 of each out, by path."""
    return {tag[4:]: md5 for tag, md5 in tags.items() if tag.startswith("out:")}


# --- the pipeline ---


def test_every_stage_has_a_finished_run_with_its_links_commit_metrics_and_files(client, project):
    assert_whole(client)
    commit = project.git("rev-parse", "HEAD")
    for stage in PIPELINE:
        run = run_of(client, stage)
        tags = run.data.tags
        assert links(tags) == project.outs(stage)
        read = {found.dataset.name: found.dataset.digest for found in run.inputs.dataset_inputs
                if found.tags[0].value == "dep"}  # fmt: skip
        data = [path for path in PIPELINE[stage].deps if path != "code.py"]
        assert read == {path: project.md5(path) for path in data}
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
    settings = parent.data.params
    assert (settings["recipe"], settings["mlp.epochs"]) == ("documented", "20")
    assert settings.items() >= run_of(client, "evaluate").data.params.items()
    assert not {"epochs", "model"} & settings.keys()  # which differ between its stages
    assert links(parent.data.tags) == {} and "backfilled" not in parent.data.tags
    kept = {file.path for file in client.list_artifacts(parent.info.run_id)}
    metrics = {"metrics.json", "train_lenet5.json", "train_mlp.json"}
    assert kept == {"comparison.md", "confusion.png", "curves.png"} | metrics
    first, *lines = parent.data.tags["mlflow.note.content"].splitlines()
    assert first == "# Comparison 0"
    rows = [line for line in lines if "/runs/" in line]
    assert rows == [
        f"| [{stage}]({store.page_of(run_of(client, stage))}) | {said.desc} |"
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
        assert scores == {f"trained_model.{key}": value for key, value in metrics[name].items()}
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


def logged(*stages: str) -> list[str]:
    return [f"logged the run of {stage} from its results" for stage in stages]


def again(stage: str, *lost: str) -> str:
    names = f", which had lost {', '.join(lost)}" if lost else ""
    return f"completed the run of {stage}{names}"


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
            again("prepare", "contact_sheet.png", "counts.csv"),
            again("train_mlp"),  # whose model had lost the file
            again("evaluate", "comparison.csv"),
            again("plot", "curves.png"),
        ],
    ),
    "models": (
        lose_models,
        [again("train_lenet5"), again("train_mlp")],
    ),
    "a run": (
        lambda c: delete_run(c, "prepare"),
        ["restored the deleted run of prepare", again("prepare")],
    ),
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
    "the champion's version": (
        lambda c: c.delete_model_version("mnist", "1"),
        ["restored the alias champion: it is version 3 of mnist again"],
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
    assert synced() == logged("plot")
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
    assert said == logged(*PIPELINE)
    for stage, outs in committed.items():
        tags = run_of(client, stage).data.tags
        assert links(tags) == outs
        assert (tags["commit"], tags["dirty"]) == (commit, "false")
    assert_whole(client)
    client.delete_registered_model("mnist")
    assert synced("released") == []
    delete_model_file(client, "mlp", "extra_files/mlp.safetensors")
    delete_file(client, "plot", "comparison.md")
    assert synced("released") == [again("train_mlp"), again("plot", "comparison.md")]
    assert synced("released") == []
    assert_whole(client)


def test_every_state_of_the_history_and_of_experiments_gets_its_runs_once(fresh, synced):
    project, client = fresh
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")
    amend = ("git", *identity, "commit", "--amend", "--quiet", "--no-edit")
    project.run(*amend, env={"GIT_COMMITTER_DATE": "2020-01-01T00:00:00"})
    found = {project.git("rev-parse", "HEAD"): project.outs("plot")}

    def commit(seed: int) -> str:
        make_results(project, seed)
        project.cache()
        made = project.commit(f"results {seed}")
        found[made] = project.outs("plot")
        return made

    newest = commit(8)
    experiment = commit(9)
    project.git("update-ref", f"refs/exps/{newest[:2]}/{newest[2:]}/warm", experiment)
    project.git("reset", "--quiet", "--hard", newest)
    project.git("commit", "--allow-empty", "--quiet", "--message=the same results")
    assert synced(all=True, since="2021-01-01") == 2 * logged(*PIPELINE)
    assert synced(all=True) == logged(*PIPELINE)
    assert synced(all=True) == synced() == []
    tags = [run.data.tags for run in runs_of(client, "plot")]
    assert {tag["commit"]: links(tag) for tag in tags} == found
    names = {tag["commit"]: tag.get("dvc_experiment") for tag in tags}
    assert names == {**dict.fromkeys(found), experiment: "warm"}
    assert len(runs_of(client, "pipeline")) == 3


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
    cure = "`dvc-mlflow sync` writes them, or says why it cannot"
    end = f"in sqlite:///{project.path}/mlflow.db: {cure}"
    delete_run(client, "plot")
    delete_file(client, "prepare", "contact_sheet.png")
    client.delete_run(cells_of(client)["report"])
    assert status(capsys) == [
        "3 of 5 results have their run",
        "study: 2 of 3 results have their run",
        f"no complete run for prepare, plot, study: report {end}",
    ]
    synced()
    assert status(capsys) == whole


def test_status_looks_at_the_files_of_logged_models(client, project, synced, capsys):
    delete_model_file(client, "mlp", "extra_files/mlp.safetensors")
    first, _, error = status(capsys)
    assert first == "4 of 5 results have their run" and error.startswith(
        "no complete run for train_mlp in"
    )
    assert synced() == [again("train_mlp")]
    assert len(status(capsys)) == 2


def test_status_of_an_empty_store_names_the_first_results_and_the_number_of_the_others(
    fresh, capsys
):
    _, client = fresh
    *counts, error = status(capsys)
    assert counts == ["0 of 5 results have their run", "study: 0 of 3 results have their run"]
    assert f"no complete run for {', '.join(PIPELINE)} and 3 more in sqlite:" in error
    assert client.search_experiments(filter_string="name LIKE 'mnist%'") == []  # nothing is made


def test_a_project_without_settings_has_the_name_of_its_folder_also_while_a_commit_is_written(
    fresh, synced, monkeypatch
):
    project, client = fresh
    monkeypatch.setattr(claims, "SILENCE", 3.0)
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


def test_status_names_the_runs_whose_results_no_commit_and_not_the_folder_holds(fresh, capsys):
    project, client = fresh
    sync.sync()
    project.write("reports/comparison.md", "# Not committed\n")
    project.lock()
    sync.sync()
    other = runs_of(client, "plot")[0].info.run_id
    assert not [line for line in status(capsys) if line.startswith("no commit")]
    project.git("checkout", "--quiet", ".")
    said = [line for line in status(capsys) if line.startswith("no commit")]
    assert said == [f"no commit holds the results of run {other} (plot)"]


# --- what is not whole ---


def test_a_state_in_which_not_all_stages_have_run_has_a_run_of_its_own_and_no_version(
    fresh, synced
):
    project, client = fresh
    pending = client.create_logged_model("0", name="mlp", tags={"md5": project.md5(MLP)})
    project.lock("prepare", "train_mlp")
    assert synced() == logged("prepare", "train_mlp")
    assert synced() == []
    first = run_of(client, "pipeline")
    for stage in ("prepare", "train_mlp"):
        assert run_of(client, stage).data.tags["mlflow.parentRunId"] == first.info.run_id
    # One whose writing was cut short is gone, the whole one is there
    assert [str(model.status) for model in models_of(client)] == ["READY"]
    assert pending.model_id not in [model.model_id for model in models_of(client)]
    # No run stands over five before each of them has one, and the registry needs an evaluation
    project.lock()
    whole = results.all_projects()[Path()]
    pipeline.connect(store.open_store(), whole, whole.locked(), Known())
    assert len(runs_of(client, "pipeline")) == 1
    assert client.search_registered_models() == []
    assert synced() == logged("train_lenet5", "evaluate", "plot")
    newest, older = runs_of(client, "pipeline")
    assert older.info.run_id == first.info.run_id
    parents = {run_of(client, stage).data.tags["mlflow.parentRunId"] for stage in PIPELINE}
    assert parents == {newest.info.run_id}


def test_a_run_that_cannot_be_written_whole_is_left_out_until_it_can(fresh, synced, capsys):
    project, client = fresh
    broken = "reports/history_mlp.csv"
    file = project.path / broken
    whole = file.read_bytes()
    file.write_bytes(b"epoch,\xe4\n1,2\n")
    project.lock("prepare", "train_mlp")
    for _ in range(2):
        with pytest.raises(StageError, match=r"^1 problems; all other runs are written$"):
            synced()
        told = capsys.readouterr().err
        assert told.startswith(f"error: train_mlp: {broken} cannot be read (")
        assert told.count("\n") == 1
    assert run_of(client, "prepare")
    active = client.search_runs(["1"], "tags.stage != 'prepare'")
    assert [run for run in active if run.data.tags["project"] == "."] == []
    assert not client.search_experiments(filter_string="name = 'mnist-claim'")
    file.write_bytes(whole)
    project.lock("prepare", "train_mlp")
    assert synced() == logged("train_mlp")


def empty_cache(project: Project) -> None:
    shutil.rmtree(project.path / ".dvc/cache")


def test_a_run_waits_for_no_file_and_is_completed_once_the_file_is_there(fresh, synced, capsys):
    project, client = fresh
    project.lock("prepare", "train_mlp")
    empty_cache(project)
    outs = project.outs("train_mlp")
    gone = [MLP, "reports/train_mlp.json"]
    for name in gone:
        (project.path / name).rename(project.path / Path(name).name)
    sync.sync()
    told = capsys.readouterr()
    assert told.out.splitlines()[:2] == logged("prepare", "train_mlp")
    assert told.err == (
        "2 files are not here, and are only linked (reports/train_mlp.json, models/mlp.safetensors"
        "): `dvc pull` brings those that DVC keeps, or `dvc-mlflow sync --pull`\n"
    )
    run = run_of(client, "train_mlp")
    assert sorted(json.loads(run.data.tags["missing"])) == gone
    assert links(run.data.tags) == outs
    assert models_of(client) == []
    assert synced() == []
    for name in gone:
        (project.path / Path(name).name).rename(project.path / name)
    assert synced() == [again("train_mlp")]
    assert synced() == []
    found = run_of(client, "train_mlp")
    assert found.info.run_id == run.info.run_id and found.data.tags["missing"] == "[]"
    assert found.data.metrics["mlp.train_loss"] == 9
    assert model_of(client, "mlp").source_run_id == run.info.run_id


def test_what_lies_in_the_remote_alone_is_fetched_if_that_is_asked_for(
    fresh, synced, tmp_path, capsys
):
    project, client = fresh
    project.run("dvc", "remote", "add", "--default", "elsewhere", str(tmp_path / "remote"))
    project.run("dvc", "push")
    empty_cache(project)
    (project.path / MLP).unlink()
    forget_the_folder()
    assert synced() == logged(*PIPELINE)
    assert [model.name for model in models_of(client)] == ["lenet5"]
    assert synced(pull=True) == [again("train_mlp")]
    assert capsys.readouterr().err == ""
    assert_whole(client)


def test_evidence_for_the_registry_may_be_larger_than_what_a_run_copies(fresh, synced):
    project, client = fresh
    rows = "\n".join(f"{at},{at % 10},{at % 10},0.9" for at in range(100_000))
    for name in ("lenet5", "mlp"):
        text = f"index,actual,predicted,confidence\n{rows}\n"
        project.write(f"reports/predictions_{name}.csv", text)
    project.lock()
    assert synced() == logged(*PIPELINE)
    assert len(client.search_model_versions("name = 'mnist'")) == 2


def test_an_evaluation_of_a_model_without_a_run_keeps_no_sync_waiting(fresh, synced):
    project, client = fresh
    lock = json.loads((project.path / "dvc.lock").read_text())
    [read] = [dep for dep in lock["stages"]["evaluate"]["deps"] if dep["path"] == MLP]
    read["md5"] = 32 * "0"
    project.write("dvc.lock", json.dumps(lock))
    assert synced() == logged(*PIPELINE)
    names = [found.tags["model"] for found in client.search_model_versions("name = 'mnist'")]
    assert names == ["lenet5"]
    client.create_experiment("mnist-claim", tags={"process": "another machine 1 0", "beat": "0"})
    began = time.monotonic()
    assert synced() == []
    assert time.monotonic() - began < claims.SILENCE / 2


def locked(folder: str = "") -> dict[str, Result]:
    return results.all_projects()[Path(folder)].locked()


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


@pytest.fixture
def experiment(client):
    found = client.get_experiment_by_name("others")
    return found.experiment_id if found else client.create_experiment("others")


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


def cells_of(client) -> dict[str, str]:
    experiment = client.get_experiment_by_name("mnist-study").experiment_id
    found = client.search_runs([experiment], "tags.stage != 'pipeline'")
    return {run.data.tags["stage"]: run.info.run_id for run in found}


def test_each_cell_and_the_report_have_a_run_that_is_written_once(fresh, capsys):
    project, client = fresh

    def synced() -> list[str]:
        capsys.readouterr()
        sync.sync()
        said = capsys.readouterr().out.splitlines()
        return [line for line in said if "study: " in line]

    assert synced() == LOGGED_STUDY
    assert synced() == []
    assert list(reversed(cells_of(client))) == STUDY
    cell = client.get_run(cells_of(client)["cell@fast-mlp-1"])
    assert cell.data.metrics["test_accuracy"] == 0.7
    history = client.get_metric_history(cell.info.run_id, "test_loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.0), (2, 2.0)]
    assert cell.data.params["seed"] == "1"
    assert cell.data.tags["commit"] == project.git("rev-parse", "HEAD")
    report = client.get_run(cells_of(client)["report"])
    assert report.data.metrics == {"fast.mlp": 0.65}
    whole = client.get_run(cell.data.tags["mlflow.parentRunId"]).data.params
    assert whole["model"] == "mlp" and "seed" not in whole  # in which its cells differ
    assert not client.search_experiments(filter_string="name = 'mnist-study-claim'")

    client.delete_run(report.info.run_id)
    (artifacts(cell.info.artifact_uri) / "fast-mlp-1.json").unlink()
    before = cells_of(client)
    assert synced() == [
        again("study: cell@fast-mlp-1", "fast-mlp-1.json"),
        "restored the deleted run of study: report",
        again("study: report"),
    ]
    assert cells_of(client) == before | {"report": report.info.run_id}
    assert synced() == []


def test_the_registry_is_asked_only_for_what_belongs_to_this_evaluation(client, project):
    found = locked()
    evaluation = found["evaluate"]
    other = result("evaluate", {}, evaluation.deps | {MLP: "md5 of another"})
    tags = {"md5": "md5 of another", "file": MLP}
    model = client.create_logged_model("0", name="mlp", tags=tags)
    client.finalize_logged_model(model.model_id, "READY")
    try:
        assert registry.is_behind(other, found)
        assert not registry.is_behind(evaluation, found)
    finally:
        client.delete_logged_model(model.model_id)
