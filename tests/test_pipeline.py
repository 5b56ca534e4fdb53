"""The pipeline as DVC sees it: what is declared is what is used, and only what changed reruns."""

import hashlib
import importlib
import json
import re
import subprocess
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from ruamel.yaml import YAML

import dvc_mlflow
from conftest import ROOT, STAGES, Clone, make_clone
from dvc_kit.files import sha256
from stages.base import files, params
from stages.base.params import MODEL_NAMES

PIPELINE = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
OF_THE_TIME = {"threads", "device"}  # settings that change no bit of a result


class Recorder:
    """Stands for an object of params and notes the path of every setting read through it."""

    def __init__(self, value, path: str, read: set[str]) -> None:
        self._value, self._path, self._read = value, path, read

    def _child(self, value, name):
        path = f"{self._path}.{name}".lstrip(".")
        if isinstance(value, params.Section | dict):
            return Recorder(value, path, self._read)
        self._read.add(path)
        return value

    def __getattr__(self, name):
        if callable(method := getattr(type(self._value), name, None)):
            return method.__get__(self)
        return self._child(getattr(self._value, name), name)

    def __getitem__(self, key):
        return self._child(self._value[key], key)


@dataclass
class Ran:
    """A clone in which this process has run all stages, without DVC and MLflow.

    Attributes:
        read: The settings that each stage has read.
    """

    clone: Clone
    settings: params.Params
    read: dict[str, set[str]]


@pytest.fixture(scope="module")
def ran(raw, tmp_path_factory) -> Ran:
    """Shared: tests leave it as they found it."""
    clone = make_clone(tmp_path_factory.mktemp("ran") / "a clone")
    clone.make_small()
    untracked = nullcontext(SimpleNamespace(log_epoch=lambda row: None))
    read: dict[str, set[str]] = {stage: set() for stage in STAGES}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone.path)
        patch.setattr(dvc_mlflow, "run", lambda stage: untracked)
        settings = params.load()
        for stage in STAGES:
            recorder = Recorder(settings, "", read[stage])
            patch.setattr(params, "load", lambda recorder=recorder: recorder)
            _, _, script, *arguments = PIPELINE["stages"][stage]["cmd"].split()
            patch.setattr("sys.argv", ["stage", *arguments])
            importlib.import_module(script).main()
    return Ran(clone, settings, read)


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_exactly_the_settings_that_the_stage_reads(stage, ran):
    assert len(PIPELINE["stages"][stage]["desc"]) > 20
    read, settings = ran.read[stage], ran.settings
    entries = PIPELINE["stages"][stage]["params"]
    declared = {entry for entry in entries if isinstance(entry, str)}
    for entry in (entry for entry in entries if isinstance(entry, dict)):
        [(file, recipes)] = entry.items()
        assert file == params.RECIPES_PATH.as_posix()
        declared |= {f"recipes.{name.replace('${recipe}', settings.recipe)}" for name in recipes}
    assert (read >= OF_THE_TIME) == stage.startswith("train_")
    read = read - OF_THE_TIME
    covering = {key: [d for d in declared if f"{key}.".startswith(f"{d}.")] for key in read}
    assert not [key for key, found in covering.items() if not found], "read, not declared"
    mirrors = {"registry"} if stage == "evaluate" else set()  # the hooks read it
    read_here = {entry for found in covering.values() for entry in found}
    assert declared == read_here | mirrors, "never read"
    assert "requirements/compute.txt" in PIPELINE["stages"][stage]["deps"]


def edit_recipe(clone: Clone, recipe: str, model: str, old: str, new: str) -> None:
    """Edit one setting of one recipe, of which the file has several."""
    path = clone.path / params.RECIPES_PATH
    text = path.read_text(encoding="utf-8")
    start = text.index(f"  {model}:", text.index(f"\n{recipe}:"))
    found = text.index(old, start)
    path.write_text(text[:found] + new + text[found + len(old) :], encoding="utf-8")


@pytest.mark.slow
def test_only_what_a_change_touches_is_run_again(copy):
    assert copy.repro() == []

    copy.edit("stages/show/figures.py", "MISTAKES_SHOWN = 15", "MISTAKES_SHOWN = 10")
    assert copy.repro() == ["plot"]

    copy.edit("requirements/figures.txt", "matplotlib==", "matplotlib ==")
    assert copy.repro() == ["plot"]

    edit_recipe(copy, "documented", "lenet5", "learning_rate: 0.01", "learning_rate: 0.02")
    assert copy.repro() == ["train_lenet5", "evaluate", "plot"]

    edit_recipe(copy, "published", "mlp", "momentum: 0.9", "momentum: 0.5")  # not selected
    assert copy.repro() == []

    with (copy.path / "stages/networks/models.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    # The same models come out, so that evaluate runs for its own use of the module, and plot,
    # whose inputs are what they were, does not
    assert copy.repro() == ["train_lenet5", "train_mlp", "evaluate"]


def test_the_last_epoch_is_scored_again_and_its_weights_are_the_model(ran):
    """Two stages score the same weights; test_evaluate.py has what follows from the answers."""
    folder = ran.clone.path
    metrics = json.loads((folder / files.METRICS).read_text(encoding="utf-8"))
    for name in MODEL_NAMES:
        history = files.read_csv(folder / files.history_path(name))
        assert history["test_loss"][-1] == metrics[name]["loss"]
        assert history["test_accuracy"][-1] == metrics[name]["accuracy"]
        text = (folder / files.training_path(name)).read_text(encoding="utf-8")
        weights = files.read_fingerprints(json.loads(text)["weights"])
        assert list(weights) == ["initial", "first batch", "epoch 1", "epoch 2"]
        assert len(set(weights.values())) == 4
        assert weights["epoch 2"] == sha256((folder / files.model_path(name)).read_bytes())


@pytest.mark.slow
def test_dvcs_own_commands_show_five_numbers_and_every_panel_from_files_in_git(copy, tmp_path):
    copy.commit("one result")
    copy.edit("stages/show/figures.py", "MISTAKES_SHOWN = 15", "MISTAKES_SHOWN = 10")
    assert copy.repro() == ["plot"]
    copy.commit("another")
    # Without a cache or a remote, as whoever clones this has it
    subprocess.run(["git", "clone", "--quiet", copy.path, tmp_path / "cloned"], check=True)
    clone = Clone(tmp_path / "cloned")
    shown = clone.run("dvc", "metrics", "show", "--json")
    numbers = {path: found["data"] for path, found in json.loads(shown.stdout)[""]["data"].items()}
    assert numbers.pop("reports/metrics.json").keys() == {*MODEL_NAMES, "paired_difference"}
    assert numbers and not any(numbers.values())
    table = clone.run("dvc", "metrics", "show").stdout
    assert max(map(len, table.splitlines())) < 120
    titles = [
        options["title"]
        for stage in PIPELINE["stages"].values()
        for entry in stage.get("plots", [])
        for options in entry.values()
    ]
    for command in (("show",), ("diff", "HEAD~1", "HEAD")):
        said = clone.run("dvc", "plots", *command)
        assert shown.stderr == said.stderr == ""
        page = (clone.path / "dvc_plots" / "index.html").read_text(encoding="utf-8")
        assert all(f'"text": "{title}"' in page for title in titles)
        assert page.count("vegaEmbed('#") == len(titles)  # and no panel without a title
        assert "var spec = {};" not in page
        assert not re.search(r"<script[^>]* src|<link", page)  # it is drawn without a network
    assert clone.run("git", "status", "--porcelain").stdout == ""


def test_the_page_of_dvcs_plots_holds_the_scripts_that_it_names_unchanged():
    page = (ROOT / ".dvc/plots/page.html").read_text(encoding="utf-8")
    named = re.findall(r"^  vega\S* \S+  \S+  SHA-256 (\w+)$", page, re.MULTILINE)
    *scripts, _ = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)  # the last one is ours
    assert [hashlib.sha256(script.encode()).hexdigest() for script in scripts] == named
    assert len(named) == 3


@pytest.mark.parametrize(
    "command",
    [("python", "-m", "stages.train", "lenet5"), ("make", "repro", "INSTALLED=params.yaml")],
    ids=["stage", "make"],
)
def test_a_mistake_costs_one_line_and_exit_code_2_and_removes_nothing(ran, command):
    clone, before = ran.clone, ran.clone.outs()
    clone.edit("recipes.yaml", "learning_rate: 0.01", "learning_rate: -1", count=-1)
    result = clone.run(*command, check=False)
    clone.edit("recipes.yaml", "learning_rate: -1", "learning_rate: 0.01", count=-1)
    assert result.returncode == 2
    errors = [text for text in result.stderr.splitlines() if not text.startswith("make")]
    assert "learning_rate is -1, expected greater" in errors[0]
    # All four recipes have the mistake; each has its line, and there is nothing else
    assert all(text.startswith("error: ") for text in errors)
    assert clone.outs() == before
