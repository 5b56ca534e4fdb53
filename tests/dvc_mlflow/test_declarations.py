"""Working directories, foreach, matrix, plots and other projects, as real DVC takes them."""

import json
from pathlib import Path

import pytest

from conftest import Clone
from dvc_mlflow import curves, damage, git, history, hooks, pages, projects, results, store
from dvc_mlflow.errors import InputError
from dvc_mlflow.files import md5

MAIN = """
stages:
  plain:
    cmd: cat a/in.txt > out.csv
    deps: [a/in.txt]
    params: [chosen, {other.yaml: }]
    plots:
    - out.csv: {x: step, y: loss, cache: false}
  moved:
    wdir: a
    cmd: cat in.txt ../out.csv > made/out.txt
    deps: [in.txt, ../out.csv]
    params: [{../params.yaml: [warm.rate]}]
    outs: [made/out.txt]
  each:
    foreach: [one, two]
    do:
      wdir: ${item}
      cmd: cat in.txt > out.txt
      deps: [in.txt]
      params: [{../params.yaml: ["${item}.rate"]}]
      outs: [out.txt]
  keyed:
    foreach: {us: {n: 1}, uk: {n: 2}}
    do:
      cmd: echo ${item.n} > ${key}.json
      params: ["${key}.rate"]
      metrics: [{"${key}.json": {cache: false}}]
  shaped:
    matrix: {net: [{name: a, n: {deep: 1}}], size: [3]}
    cmd: echo ${item.net.n.deep}
    deps: [out.csv]
  without-outs:
    cmd: cat out.csv
    deps: [out.csv]
artifacts:
  made-elsewhere: {path: a/made/out.txt, type: model}
  no-model: {path: one/out.txt, type: dataset}
plots:
- together: {x: step, y: {out.csv: loss}}
metrics:
- two/out.txt
"""
OTHER = """
stages:
  grid:
    matrix: {name: "${names}", size: [1, 2]}
    wdir: work
    cmd: cat ../../a/in.txt > ${item.name}-${item.size}.txt
    deps: [../../a/in.txt]
    params: [{../params.yaml: ["${item.name}.rate", "${item.name}.deep"]}]
    outs: ["${item.name}-${item.size}.txt"]
artifacts:
  big: {path: work/x-2.txt, type: model}
"""
RATES = {"warm": {"rate": 1}, "one": {"rate": 2}, "two": {"rate": 3}}
FILES = {
    "dvc.yaml": MAIN,
    "params.yaml": json.dumps({"chosen": "warm", **RATES, "us": {"rate": 4}, "uk": {"rate": 5}}),
    "other.yaml": "warm: {size: 7}\nlist: [1, 2]\nchosen: cold\n",
    "a/in.txt": "step,loss\n1,0.5\n2,0.25\n",
    "a/made/.keep": "",
    "one/in.txt": "1",
    "two/in.txt": "2",
    "more/dvc.yaml": OTHER,
    "more/params.yaml": json.dumps(
        {"names": ["x", "y"], "x": {"rate": 6, "deep": {"er": 8}}, "y": {"rate": 7, "deep": 9}}
    ),
    "more/work/.keep": "",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Clone:
    """A repository with two DVC projects, in which everything has run and is committed."""
    repository = Clone(tmp_path_factory.mktemp("declarations") / "a repository")
    for name, text in FILES.items():
        (repository.path / name).parent.mkdir(parents=True, exist_ok=True)
        (repository.path / name).write_text(text, encoding="utf-8")
    repository.run("git", "init", "--quiet")
    repository.run("dvc", "init", "--quiet")
    more = Clone(repository.path / "more")
    more.run("dvc", "init", "--quiet", "--subdir")
    for project in (repository, more):
        project.run("dvc", "repro")
    repository.commit("everything")
    return repository


@pytest.fixture
def repository(made, monkeypatch) -> Clone:
    monkeypatch.chdir(made.path)
    for variable in ("DVC_ROOT", "DVC_STAGE"):
        monkeypatch.delenv(variable, raising=False)
    return made


def everything() -> dict[str, results.Result]:
    return {
        name: result
        for project in results.all_projects().values()
        for name, result in project.locked().items()
    }


def main() -> results.Project:
    return results.all_projects()[projects.MAIN]


PLACES = {
    "plain": (["out.csv"], ["a/in.txt"]),
    "moved": (["a/made/out.txt"], ["a/in.txt", "out.csv"]),
    "each@one": (["one/out.txt"], ["one/in.txt"]),
    "each@two": (["two/out.txt"], ["two/in.txt"]),
    "keyed@us": (["us.json"], []),
    "keyed@uk": (["uk.json"], []),
    "shaped@net0-3": ([], ["out.csv"]),
    "without-outs": ([], ["out.csv"]),
    **{
        f"grid@{name}-{size}": ([f"more/work/{name}-{size}.txt"], ["a/in.txt"])
        for name in "xy"
        for size in (1, 2)
    },
}


def test_each_path_starts_in_the_main_folder_whatever_the_stage_starts_from(repository):
    found = everything()
    assert {name: ([*one.outs], [*one.deps]) for name, one in found.items()} == PLACES
    for result in found.values():
        for path, expected in {**result.outs, **result.deps}.items():
            assert md5(Path(path)) == expected
        project, name = results.project_of(result.stage)
        assert project.here(name) == result


def test_a_stage_without_outs_is_found_again_by_what_it_read(repository):
    result = main().locked()["without-outs"]
    assert (result.outs, result.deps) == ({}, {"out.csv": md5(Path("out.csv"))})
    assert result.links == {"read": main().here("without-outs").read}
    text = Path("out.csv").read_text(encoding="utf-8")
    Path("out.csv").write_text("another", encoding="utf-8")
    try:
        assert main().here("without-outs").tags != result.tags
    finally:
        Path("out.csv").write_text(text, encoding="utf-8")


def test_the_outs_of_a_commit_and_of_the_folder_are_the_same_without_dvc(repository):
    expected = {name: result.outs for name, result in everything().items()}
    found = projects.find()
    here = [projects.outs_here(file) for files in found.values() for file in files]
    assert here[0] | here[1] == expected
    commit = git.commit_of("HEAD")
    assert projects.find(commit=commit) == found
    committed = [history.outs_of(commit, lock) for lock in projects.locks(found)]
    assert committed == here
    for outs in filter(None, expected.values()):
        assert len([holder for holder in history.holders() if holder.holds(outs)]) == 1
    for folder in found:
        assert damage.in_folder(damage.locked(project=folder)) == []


def test_settings_of_foreach_and_matrix_can_be_compared_between_the_items(repository):
    params = {name: result.params for name, result in everything().items()}
    whole = {"warm.size": 7, "list": [1, 2], "other.yaml:chosen": "cold"}
    assert params["plain"] == {"chosen": "warm", **whole}  # two files have that key
    assert params["shaped@net0-3"] == {"net.name": "a", "net.n.deep": 1, "size": 3}
    assert params["moved"] == {"model": "made-elsewhere", "warm.rate": 1}
    assert params["each@one"] == {"one.rate": 2, "item": "one"}
    assert params["each@two"] == {"two.rate": 3, "item": "two"}
    assert params["keyed@uk"] == {"uk.rate": 5, "item": "uk", "n": 2}
    grid = {"x.rate": 6, "x.deep.er": 8, "name": "x", "size": 2}
    assert params["grid@x-2"] == {"model": "big", **grid}
    assert params["grid@y-1"] == {"y.rate": 7, "y.deep": 9, "name": "y", "size": 1}


def test_plots_metrics_and_models_are_found_wherever_they_lie(repository):
    found = everything()
    plots = {name: result.plots for name, result in found.items() if result.plots}
    [(name, by_path)] = plots.items()
    assert (name, [*by_path]) == ("plain", ["out.csv"])
    metrics = {name: result.metrics for name, result in found.items() if result.metrics}
    assert metrics == {
        "each@two": ("two/out.txt",),  # at the top level of dvc.yaml
        "keyed@us": ("us.json",),
        "keyed@uk": ("uk.json",),
    }
    models = {name: result.models for name, result in found.items() if result.models}
    assert models == {
        "moved": {"a/made/out.txt": "made-elsewhere"},
        "grid@x-2": {"more/work/x-2.txt": "big"},
    }


def curve_of(declaration: str) -> list[tuple[str, float, int]]:
    """The points of the curves of `plain`, if its plot is declared like this."""
    text = Path("dvc.yaml").read_text(encoding="utf-8")
    *_, own = declared = text.partition("{x: step, y: loss, cache: false}")
    assert own
    top = "plots:\n- together: {x: step, y: {out.csv: loss}}\n"
    changed = (declared[0] + declaration + own).replace(top, "")
    Path("dvc.yaml").write_text(changed, encoding="utf-8")
    try:
        return [*curves.of_result(main().here("plain"), ["out.csv"])]
    finally:
        Path("dvc.yaml").write_text(text, encoding="utf-8")


LOSS = [("loss", 0.5, 1), ("loss", 0.25, 2)]


@pytest.mark.parametrize("template", ["linear", "simple", "smooth", None])
@pytest.mark.parametrize("x", ["step", None])
def test_a_plot_with_lines_is_a_curve_over_its_x_or_over_the_steps(repository, template, x):
    told = {"x": x, "template": template, "cache": False}
    told = {key: value for key, value in told.items() if value is not None}
    assert curve_of(json.dumps(told)) == LOSS


@pytest.mark.parametrize("template", ["scatter", "confusion", "bar_horizontal", "ours"])
def test_a_plot_without_lines_is_no_curve(repository, template):
    assert curve_of(f"{{x: step, y: loss, template: {template}, cache: false}}") == []


def test_without_settings_and_hooks_there_are_defaults(repository, monkeypatch):
    for name in ("DVC_ROOT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert hooks.settings() == {}
    assert hooks.hook("export") is None
    main, more = store.experiment(), store.experiment(Path("more"))
    assert (main.name, more.name) == ("a repository", "a repository-more")
    [(tag, view)] = pages.views(projects.MAIN).items()
    assert tag == pages.TABLE and {"selectedColumns", "orderByKey"} <= json.loads(view).keys()
    assert "dvc.yaml" in main.description
    assert "more/dvc.yaml" in more.description


def test_settings_that_cannot_be_read_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text, reason in {
        "[tool": r"^pyproject\.toml: ",
        '[tool.dvc-mlflow]\nhooks = "no.such"': r"^hooks in pyproject\.toml: No module named 'no'$",
    }.items():
        Path("pyproject.toml").write_text(text, encoding="utf-8")
        hooks.settings.cache_clear()
        with pytest.raises(InputError, match=reason):
            hooks.hook("export")
    Path("pyproject.toml").write_text("[tool.other]\n", encoding="utf-8")
    hooks.settings.cache_clear()
    assert hooks.settings() == {} and hooks.hook("export") is None
