"""From runs, models and files to commits and back, in small repositories with a real store."""

import hashlib
import re

import pytest
from tiny import CELLS, PIPELINE

from conftest import forget_the_history
from dvc_mlflow import find, store
from dvc_mlflow.errors import InputError, StageError

MLP = "models/mlp.safetensors"
STAGES = [*PIPELINE, *(f"cell@{cell}" for cell in CELLS), "report"]


@pytest.fixture
def project(standing, monkeypatch):
    monkeypatch.setenv("PWD", str(standing[0].path))
    return standing[0]


@pytest.fixture
def client(standing):
    return standing[1]


@pytest.fixture
def said(project, capsys):
    """What `find` prints."""

    def printed(what: str) -> str:
        capsys.readouterr()
        find.find(what)
        return capsys.readouterr().out

    return printed


def run_of(client, stage: str):
    name = "mnist" if stage in (*PIPELINE, "pipeline") else "mnist-study"
    found = client.search_runs(
        [client.get_experiment_by_name(name).experiment_id],
        f"tags.stage = '{stage}' and attributes.status = 'FINISHED'",
    )
    (run,) = found
    return run


def head(project) -> str:
    return project.git("log", "-1", "--format=%h %cs %s")


def test_a_run_leads_to_its_page_its_commits_and_back_to_the_files(client, project, said):
    run_id = run_of(client, "train_mlp").info.run_id
    first, page, here, commit, back = said(run_id).splitlines()
    assert first == f"run {run_id} train_mlp (FINISHED)"
    experiment = client.get_experiment_by_name("mnist").experiment_id
    address = f"{store.UI}/#/experiments/{experiment}/runs/{run_id}/model-metrics?{store.TRAINING}"
    assert page == f"  {address}"
    assert here == "  dvc.lock in this folder holds it: `dvc checkout` brings it back"
    assert commit == f"  commit {head(project)}"
    full = project.git("rev-parse", "HEAD")
    assert f"`git checkout {full[:10]} && dvc checkout`" in back


def test_the_pipelines_run_leads_to_the_commits_with_all_results_of_its_stages(
    client, project, said
):
    run_id = run_of(client, "pipeline").info.run_id
    assert f"  commit {head(project)}" in said(run_id)
    metrics = project.path / "reports/metrics.json"
    content = metrics.read_text()
    project.write("reports/metrics.json", content.replace("0.95", "0.96"))
    project.lock()
    try:
        assert "in this folder" not in said(run_id)  # one of the five differs
        assert "in this folder" in said(run_of(client, "train_mlp").info.run_id)
    finally:
        metrics.write_text(content)
        project.lock()


def test_the_number_of_further_commits_with_the_same_results_is_told(client, project, said):
    first = project.git("rev-parse", "HEAD")
    with_one = head(project)
    for at in range(2):
        project.git("commit", "--allow-empty", "--quiet", "-m", f"nothing new {at}")
    forget_the_history()
    try:
        told = said(run_of(client, "prepare").info.run_id)
        assert f"  commit {with_one}  (and 2 more commits)\n" in told
        assert told.count("  commit ") == 1
        assert f"`git checkout {first[:10]} &&" in told
    finally:
        project.git("reset", "--quiet", "--hard", first)
        project.git("reflog", "expire", "--expire=now", "--all")


def test_results_that_no_commit_and_not_the_folder_holds_are_told(client, project):
    experiment = client.get_experiment_by_name("mnist").experiment_id
    tags = {"stage": "plot", "out:reports/figures": "md5 of nothing"}
    run_id = client.create_run(experiment, tags=tags).info.run_id
    with pytest.raises(InputError, match=f"no commit's dvc.lock holds the results of run {run_id}"):
        find.find(run_id)
    client.delete_run(run_id)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, "was not made from a stage of DVC"),
        ({"stage": "plot"}, r"is RUNNING and has no results$"),
        (
            {"stage": "plot", "commit": "0123456789abcdef"},
            "is RUNNING and has no results; it ran on commit 0123456789$",
        ),
    ],
)
def test_a_run_without_results_says_what_it_is(client, project, tags, expected):
    experiment = client.get_experiment_by_name("mnist").experiment_id
    run_id = client.create_run(experiment, tags=tags).info.run_id
    with pytest.raises(InputError, match=expected):
        find.find(run_id)
    client.delete_run(run_id)


def test_every_name_of_a_model_leads_to_its_file_run_and_commit(client, project, said):
    version = client.get_model_version_by_alias("mnist", "champion")
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    path = model.tags["file"]
    md5 = hashlib.md5((project.path / path).read_bytes()).hexdigest()
    names = ("models:/mnist@champion", f"models:/mnist/{version.version}", model.model_id)
    for name in names:
        first, *others = said(name).splitlines()
        assert first == f"{name}: md5 {md5}"
        assert f"  models:/mnist/{version.version}: {version.description}" in others
        place = f"/#/experiments/{model.experiment_id}/models/{model.model_id}?{store.TRAINING}"
        page = f"  {store.UI}{place}"
        assert others[others.index(page) + 1] == f"    made by run {model.source_run_id}"
        assert f"  commit {head(project)}" in others
    assert said(path).splitlines()[1:] == others


@pytest.mark.parametrize(
    "what", ["models:/mnist/99", "models:/mnist@none", "models:/mnist", f"m-{'0' * 32}"]
)
def test_what_is_no_model_is_told_with_the_names_that_are(client, project, what):
    with pytest.raises(InputError, match=rf"^{what} is no model of .*models:/NAME/VERSION"):
        find.find(what)


def test_a_champion_that_is_not_there_is_explained(client, project):
    version = client.get_model_version_by_alias("mnist", "champion").version
    client.delete_registered_model_alias("mnist", "champion")
    try:
        with pytest.raises(StageError, match="has lost its alias champion"):
            find.find("models:/mnist@champion")
    finally:
        client.set_registered_model_alias("mnist", "champion", version)


def test_a_model_of_somebody_else_is_told(client, project):
    model = client.create_logged_model("0", name="foreign")
    with pytest.raises(InputError, match="was not logged from a result of DVC"):
        find.find(model.model_id)


def test_a_file_goes_before_a_commit_of_its_name_and_says_so(client, project, said):
    commit = project.git("rev-parse", "HEAD")[:10]
    (project.path / "main").write_bytes((project.path / MLP).read_bytes())
    (project.path / "other").write_text("no model")
    try:
        told = said("main")
        assert told.startswith(
            f"main names a file and a commit; this is the file, `find {commit}` "
        )
        assert f"file main: md5 {project.md5(MLP)}" in told
        assert "names a file and a commit" not in said(MLP)
        md5 = hashlib.md5(b"no model").hexdigest()
        with pytest.raises(InputError, match=rf"file other \(md5 {md5}\) is in no commit's dvc.lo"):
            find.find("other")
    finally:
        (project.path / "main").unlink()
        (project.path / "other").unlink()


def test_a_file_is_the_one_in_the_folder_where_the_command_was_typed(project, said, monkeypatch):
    monkeypatch.setenv("PWD", str(project.path / "models"))
    assert said("mlp.safetensors").startswith(f"file mlp.safetensors: md5 {project.md5(MLP)}\n")
    absolute = str(project.path / MLP)
    assert said(absolute).startswith(f"file {absolute}: md5 {project.md5(MLP)}\n")
    with pytest.raises(InputError, match=f"^{MLP} is no run or model of .*, no file and "):
        find.find(MLP)


def test_a_file_that_only_a_commit_holds_is_found_without_a_model(project, said):
    path = "reports/comparison.md"
    told = said(path)
    assert told.splitlines()[0] == f"file {path}: md5 {project.md5(path)}"
    assert "made by run" not in told and "models:/" not in told
    assert f"  commit {head(project)}" in told


def shown(lines: list[str]) -> dict[str, str]:
    """The id of the run of each stage, also of one in the study."""
    found = [line.strip().removeprefix("study ").split(maxsplit=1) for line in lines]
    return {stage: re.split("[/?]", page.split("/runs/")[-1])[0] for stage, page in found}


def test_a_commit_leads_to_the_finished_run_of_each_stage_and_of_the_study(client, project, said):
    first, *others = said("main").splitlines()
    assert first == f"commit {head(project)}"
    ids = {stage: run_of(client, stage).info.run_id for stage in STAGES}
    beside = [others.pop(len(PIPELINE)), others.pop()]  # after the stages of each project
    assert shown(others) == ids
    for line, curved in zip(beside, ("train_", "cell@"), strict=True):
        assert re.fullmatch(r" +compared +\S+/#/compare-runs\?\S+", line)
        compared = [stage for stage in STAGES if ids[stage] in line]
        assert compared == [stage for stage in STAGES if stage.startswith(curved)]


def test_of_a_project_with_many_stages_the_last_run_stands_for_all(
    client, project, said, monkeypatch
):
    monkeypatch.setattr(find, "MOST_STAGES", 2)
    _, last, _, five, report, _, three = said("main").splitlines()
    assert shown([last, report]) == {
        stage: run_of(client, stage).info.run_id for stage in ("plot", "report")
    }
    assert five.strip() == "5 of its 5 stages have runs"
    assert three.strip() == "3 of its 3 stages have runs"


def test_a_run_that_a_commit_lacks_is_told_with_the_command_that_writes_it(client, project, said):
    commit = project.git("rev-parse", "HEAD")[:10]
    lost = ("plot", "cell@fast-mlp-0", "report")
    gone = [run_of(client, stage).info.run_id for stage in lost]
    for run_id in gone:
        client.delete_run(run_id)
    try:
        _, *others = said("HEAD").splitlines()
        hint = f"`dvc-mlflow sync --rev {commit}` writes the missing runs"
        assert [at for at, line in enumerate(others) if line.strip() == hint] == [6, 10]
        ids = {stage: run_of(client, stage).info.run_id for stage in STAGES if stage not in lost}
        del others[10], others[6], others[5]
        assert shown(others) == ids | dict.fromkeys(lost, "no run")
    finally:
        for run_id in gone:
            client.restore_run(run_id)


def test_a_commit_of_which_nothing_is_logged_is_told(client, project, capsys):
    present = project.git("rev-parse", "HEAD")
    project.write("reports/comparison.md", "# Another comparison\n")
    project.lock("plot")
    (project.path / "study/dvc.lock").unlink()
    commit = project.commit("another state")
    project.git("reset", "--quiet", "--hard", present)
    with pytest.raises(StageError, match=f"^no run in .* has the results of commit {commit[:10]}$"):
        find.find(commit)
    _, plot, hint = capsys.readouterr().out.splitlines()
    assert plot.split(maxsplit=1) == ["plot", "no run"]
    assert hint.strip() == f"`dvc-mlflow sync --rev {commit[:10]}` writes the missing runs"


@pytest.mark.parametrize("what", ["0" * 32, "no-such", "a" * 31])
def test_what_is_nothing_at_all_is_told(project, what):
    with pytest.raises(
        InputError, match=f"^{what} is no run or model of sqlite:///.*, no file and "
    ):
        find.find(what)
