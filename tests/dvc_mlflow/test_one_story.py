"""`status`, `sync` and `find` say the same about what they do not show, and only `sync` writes."""

import re
import shutil
from pathlib import Path

import mlflow.store.db.utils as tables
import pytest
import sqlalchemy
from alembic import command
from mlflow.store.tracking.dbmodels.initial_models import Base

from conftest import Clone, client_of, forget_the_history
from dvc_kit.errors import StageError
from dvc_mlflow import find, status, sync

pytestmark = pytest.mark.slow  # real `dvc` and `mlflow` in real repositories

DVC_YAML = """
vars: [{work: {where: deep}}]
stages:
  a:
    cmd: echo '{"score":1}' > a.json
    metrics: [a.json: {cache: false}]
  b: {wdir: "${work.where}", cmd: cp ../a.json b.json, deps: [../a.json], outs: [b.json]}
  check: {cmd: "true", deps: [a.json]}
  each:
    foreach: {one: {dir: d1}, two: {dir: d2}}
    do: {wdir: "${item.dir}", cmd: "echo ${key} > out.txt", outs: [out.txt]}
  grid: {matrix: {kind: [d1, d2]}, wdir: "${item.kind}", cmd: echo 1 > g.txt, outs: [g.txt]}
"""
FILES = {
    "dvc.yaml": DVC_YAML,
    "pyproject.toml": '[tool.dvc-mlflow]\nexperiment = "fixed"\n',
    ".gitignore": "/mlflow.db*\n/mlartifacts/\n",
    **dict.fromkeys(("deep/.keep", "d1/.keep", "d2/.keep"), ""),
}
COMMANDS = {"status": status.status, "sync": sync.sync, "find": lambda: find.find("HEAD")}
READING = [status.status, lambda: sync.sync(dry=True), COMMANDS["find"]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Clone:
    made = Clone(tmp_path_factory.mktemp("story") / "T")
    for name, text in FILES.items():
        (made.path / name).parent.mkdir(parents=True, exist_ok=True)
        (made.path / name).write_text(text, encoding="utf-8")
    made.run("git", "init", "--quiet")
    made.run("dvc", "init", "--quiet")
    made.run("dvc", "repro")
    made.commit("the results")
    return made


@pytest.fixture
def copy(ran, tmp_path) -> Clone:
    shutil.copytree(ran.path, tmp_path / "T", symlinks=True)
    return Clone(tmp_path / "T")


def told(capsys, ask) -> tuple[int, list[str]]:
    """The exit code, and what is said beside the results."""
    capsys.readouterr()
    code, last = 0, []
    try:
        ask()
    except StageError as error:
        code, last = error.exit_code, [str(error)]
    said = capsys.readouterr().err.splitlines()
    return code, [line for line in said if "opens the addresses" not in line] + last


BROKEN, EMPTY = "stages: {a: [", "schema: '2.0'\nstages: {}\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"dvc.yaml": f"{DVC_YAML}# with a comment\n"}, []),
        (
            {"dvc.yaml": DVC_YAML.partition("  grid:")[0]},
            [r"note: dvc.lock has .* no run shows them \(stage grid@d1, stage grid@d2\): "],
        ),
        ({"x/dvc.yaml": BROKEN}, ["error: x/dvc.yaml: .*did not find expected node"]),
        ({"x/dvc.yaml": BROKEN, ".dvcignore": "x/\n"}, []),
        (
            {"dvc.yaml": DVC_YAML.replace("  check: {", "  check: {live: {log: {}}, ")},
            ["error: dvc.yaml: stages.check.live: extra keys not allowed; the rest"],
        ),
        (
            {"dvc.yaml": f"{DVC_YAML}plots: [{{a.json: {{z: 1}}}}]\nmetrics: [3, a.json]\n"},
            ["error: dvc.yaml: plots.0.a.json.z: extra keys", "error: dvc.yaml: metrics.0: expec"],
        ),
        (
            {"dvc.yaml": f'{DVC_YAML}  more: {{foreach: "${{no}}", do: {{cmd: x}}}}\n'},
            ["error: dvc.yaml: more: .*Could not find 'no'"],
        ),
        ({"dvc.yaml": BROKEN}, ["error: dvc.yaml: .*did not find expected node"]),
        ({"dvc.lock": EMPTY}, ["note: nothing to show: no stage"]),
    ],
)
def test_status_sync_and_find_name_what_is_not_shown_once_with_its_reason(
    copy, standing_in, capsys, files, expected
):
    for name, text in files.items():
        (copy.path / name).parent.mkdir(exist_ok=True)
        (copy.path / name).write_text(text, encoding="utf-8")
    copy.commit("as given")
    with standing_in(copy):
        told(capsys, sync.sync)
        said = {name: told(capsys, ask) for name, ask in COMMANDS.items()}
    nothing = "dvc.lock" in files or "each" not in files.get("dvc.yaml", DVC_YAML)
    problems = sum(line.startswith("error: ") for line in expected)
    for name, (code, lines) in said.items():
        assert code == (1 if problems or (nothing and name == "find") else 0)
        assert len(lines) == len(expected) + code, lines
        for line, pattern in zip(lines, expected, strict=False):
            assert re.search(pattern, line)
    if problems:
        ending = "no run is written" if nothing else "all other runs are written"
        assert said["sync"][1][-1] == f"{problems} problems; {ending}"


def test_a_setting_that_only_dvc_lock_has_is_shown_and_the_rest_is_named_until_a_run_shows_it(
    copy, standing_in, capsys
):
    train = "  train: {{cmd: echo 1 | tee c.out > d.out, params: [{}], outs: [{}]}}\n"
    old = "  old: {cmd: echo 2 > e.out, outs: [e.out]}\n"
    ran, now = train.format("rate, depth", "c.out, d.out"), train.format("depth", "c.out")
    (copy.path / "params.yaml").write_text("rate: 5\ndepth: 1\n", encoding="utf-8")
    (copy.path / "dvc.yaml").write_text(DVC_YAML + ran + old, encoding="utf-8")
    copy.run("dvc", "repro")
    copy.commit("as it ran")
    (copy.path / "dvc.yaml").write_text(DVC_YAML + now, encoding="utf-8")
    copy.commit("less is declared")
    forget_the_history()
    with standing_in(copy) as client:
        code, [line] = told(capsys, sync.sync)
        assert code == 0 and "(out d.out of stage train, stage old): `dvc-mlflow sync" in line
        place = [client.get_experiment_by_name("fixed").experiment_id]
        [run] = client.search_runs(place, "tags.stage = 'train'")
        assert run.data.params == {"rate": "5", "depth": "1"}
        assert told(capsys, lambda: sync.sync(all=True)) == (0, [])
        assert told(capsys, status.status) == (0, [])


def test_a_run_over_two_dvc_yaml_files_and_a_project_that_is_gone_here_have_their_commit(
    copy, standing_in, capsys
):
    for name in ("x", "sub"):
        (copy.path / name).mkdir()
        text = "stages: {s: {cmd: echo 1 > s.txt, outs: [s.txt]}}"
        (copy.path / name / "dvc.yaml").write_text(text, encoding="utf-8")
    copy.run("dvc", "repro", "x/dvc.yaml")
    Clone(copy.path / "sub").run("dvc", "init", "--subdir", "--quiet")
    Clone(copy.path / "sub").run("dvc", "repro")
    copy.commit("two of each")
    shutil.rmtree(copy.path / "sub")
    forget_the_history()
    with standing_in(copy) as client:
        sync.sync(rev="HEAD")
        for name in ("fixed", "fixed-sub"):
            place = [client.get_experiment_by_name(name).experiment_id]
            [run] = client.search_runs(place, "tags.stage = 'pipeline'")
            capsys.readouterr()
            find.find(run.info.run_id)
            assert " two of each\n" in capsys.readouterr().out


def test_commands_that_read_make_no_store_and_leave_one_of_an_older_mlflow_as_it_is(
    copy, monkeypatch, capsys
):
    monkeypatch.chdir(copy.path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # and back at the end, because MLflow sets it
    store = Path("mlflow.db")
    for ask in READING:
        told(capsys, ask)
        assert not store.exists() and not Path(".dvc/tmp/mlflow.lock").exists()
    uri = f"sqlite:///{store.resolve()}"
    engine = sqlalchemy.create_engine(uri)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        config = tables._get_alembic_config(uri)
        config.attributes["connection"] = connection
        command.upgrade(config, "400f98739977")  # of MLflow 3.0
    engine.dispose()
    before = store.read_bytes()
    for ask in READING:
        code, [line] = told(capsys, ask)
        assert code == 1 and "older MLflow" in line and "`dvc-mlflow sync` brings" in line
        assert store.read_bytes() == before
    sync.sync()
    first, *logged = capsys.readouterr().out.splitlines()
    assert "they become those of MLflow" in first and len(logged) == 5
    assert told(capsys, status.status) == (0, [])


@pytest.mark.parametrize("lost", [False, True])
def test_a_folder_that_was_moved_has_its_artifacts_where_it_is_now(copy, tmp_path, lost):
    ours = ("python", "-m", "dvc_mlflow")
    copy.run(*ours, "sync")
    moved = Clone(copy.path.rename(tmp_path / "T 2"))
    if lost:
        shutil.rmtree(moved.path / "mlartifacts")
    before = (moved.path / "mlflow.db").read_bytes()
    moved.run(*ours, "status", check=False)
    assert (moved.path / "mlflow.db").read_bytes() == before
    moved.edit("dvc.yaml", '"score":1', '"score":2')
    moved.run("dvc", "repro")
    said = moved.run(*ours, "sync").stdout.splitlines()
    assert said[0] == f"this folder was moved from {copy.path}: its artifacts are kept here now"
    assert len([line for line in said if line.startswith("completed")]) == (4 if lost else 0)
    assert not copy.path.exists() and moved.run(*ours, "sync").stdout == ""
    client = client_of(moved)
    runs = client.search_runs([client.get_experiment_by_name("fixed").experiment_id])
    here = (moved.path / "mlartifacts").as_uri()
    assert {run.info.artifact_uri.rsplit("/", 2)[0] for run in runs} == {here}
    assert sum(bool(client.list_artifacts(run.info.run_id)) for run in runs) == (7 if lost else 10)
