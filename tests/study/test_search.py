"""The search draws evenly, ranks by its rule, and comes to one table with any number of workers."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from conftest import ROOT
from dvc_mlflow import alone
from dvc_mlflow.errors import InputError, StageError
from stages.base import files, params
from stages.base.splits import Split, save_split
from study import design, findings, search
from study.design import Rung, Space


@pytest.fixture
def found(monkeypatch):
    monkeypatch.chdir(ROOT)
    return design.load()


# --- the design ---


def test_the_committed_designs_are_drawn_again_and_have_as_many_configurations_as_promised(found):
    for name, least in ("lenet5", 200), ("mlp", 100):
        rows = design.design(found.space, found.rungs(name)[0].trials, found.seed)
        assert rows == sorted(design.read_table(name, 0), key=lambda row: row["trial"])
        assert len({tuple(row.values())[1:] for row in rows}) == len(rows) >= least


def test_each_value_of_a_setting_is_drawn_as_often_as_it_stands_in_the_list(found):
    rows = design.design(found.space, 120, seed=5)
    for name in Space.model_fields:
        values = getattr(found.space, name)
        if isinstance(values, list) and name != "teacher_epochs":
            expected = {
                value: 120 * count // len(values) for value, count in Counter(values).items()
            }
            drawn = Counter(row[name] for row in rows)
            assert all(abs(drawn[value] - count) <= 1 for value, count in expected.items()), name


def test_a_range_is_covered_evenly_and_a_logarithmic_one_in_its_logarithm(found):
    rows = design.design(found.space, 400, seed=5)
    weights = [row["teacher_weight"] for row in rows if row["teachers"]]
    middle = (0.3 + 0.95) / 2
    assert 0.3 <= min(weights) < 0.31 and 0.94 < max(weights) <= 0.95
    assert sum(weight < middle for weight in weights) == pytest.approx(len(weights) / 2, rel=0.1)
    rates = [row["learning_rate"] for row in rows if row["optimizer"] == "adamw"]
    middle = (0.001 * 0.03) ** 0.5
    assert sum(rate < middle for rate in rates) == pytest.approx(len(rates) / 2, rel=0.1)
    assert {row["distortion"] for row in rows if row["distortion"] < 0.2} == {0.0}


def test_every_configuration_is_a_recipe_and_has_its_values(found):
    for row in design.design(found.space, 60, seed=5):
        recipe = design.recipe(found, row, epochs=7)
        assert recipe.epochs == 7
        for name in ("optimizer", "learning_rate", "weight_decay", "batch_size", "averaging"):
            assert getattr(recipe, name) == row[name]
        assert (recipe.augmentation is None) == (row["distortion"] == 0)
        if recipe.augmentation:
            assert recipe.augmentation.rotation == pytest.approx(8 * row["distortion"], rel=1e-2)
        if not row["teachers"]:
            assert recipe.distillation is None
            assert row["temperature"] is row["teacher_weight"] is row["teacher_epochs"] is None
        else:
            taught = recipe.distillation
            assert (taught.teachers, taught.recipe.epochs) == (
                row["teachers"],
                row["teacher_epochs"],
            )
            assert (taught.weight, taught.temperature) == (
                row["teacher_weight"],
                row["temperature"],
            )


# --- the rule ---


def trial(number, accuracy, loss):
    return {"trial": number, "accuracy": accuracy, "loss": loss}


def test_the_best_has_the_smallest_sum_of_ranks_and_a_diverged_training_comes_last():
    rows = [
        trial(0, 0.990, 0.030),  # 2nd, as two others, and 3rd
        trial(1, None, None),
        trial(2, 0.985, 0.025),  # 5th and 2nd
        trial(3, 0.991, 0.020),  # both 1st
        trial(4, 0.980, 0.034),
        trial(5, 0.990, 0.036),
        trial(6, 0.990, 0.045),
    ]
    ranked = search.ranked(rows)
    assert [row["trial"] for row in ranked] == [3, 0, 2, 5, 6, 4, 1]
    assert [row["rank_sum"] for row in ranked] == [2, 5, 7, 7, 8, 10, 14]


def test_equally_many_go_on_from_each_quarter_of_the_distortions(found):
    rows = design.design(found.space, 40, seed=7)[::-1]  # any order stands for a ranking
    quarters = sorted(rows, key=lambda row: (row["distortion"], row["trial"]))
    for count in 8, 40:
        chosen = search.survivors(rows, count)
        assert chosen == [row for row in rows if row in chosen] and len(chosen) == count
        for quarter in (quarters[at : at + 10] for at in range(0, 40, 10)):
            best = [row for row in rows if row in quarter][: count // 4]
            assert [row for row in chosen if row in quarter] == best


def test_fast_has_no_teachers_and_record_is_the_best_of_the_last_rung(found):
    drawn = design.design(found.space, 40, found.seed)
    rows = sorted(drawn, key=lambda row: -row["teachers"])
    plain = next(row for row in rows if not row["teachers"])
    for second in (rows[3:], rows[:9]):  # the second has teachers only
        chosen = findings.recipes(found, {"mlp": [rows, second, rows[5:8]]})
        assert chosen["fast"]["mlp"] == design.recipe(found, plain, found.epochs.fast.mlp)
        assert chosen["record"]["mlp"] == design.recipe(found, rows[5], found.epochs.record.mlp)


def test_fast_and_record_are_what_the_committed_tables_choose(found):
    chosen = findings.recipes(found, findings.load_tables(found))
    for name in "fast", "record":
        assert params.load_recipes()[name] == params.Recipes(**chosen[name])


def test_the_last_rungs_have_the_survivors_of_the_one_before_and_the_incumbent(found):
    def configurations(rows):
        keys = ("trial", *Space.model_fields)
        return sorted(([row[key] for key in keys] for row in rows), key=lambda row: row[0])

    for name, rungs in findings.load_tables(found).items():
        settings = found.rungs(name)[-1]
        joined = design.incumbent(found, name, settings.incumbent)
        expected = [*search.survivors(rungs[-2], settings.trials), joined]
        assert configurations(rungs[-1]) == configurations(expected)
        assert joined["trial"] not in [row["trial"] for rung in rungs[:-1] for row in rung]


def test_a_setting_that_orders_the_rows_has_the_largest_share_and_noise_has_none(found):
    drawn = [row for row in design.design(found.space, 200, 3) if row["optimizer"] == "adamw"]
    rows = sorted(drawn, key=lambda row: row["learning_rate"])
    settings = findings.settings_of(rows)
    assert next(iter(settings)) == "learning_rate of adamw"
    first = settings["learning_rate of adamw"]
    assert first.share > 0.8 and first.p < 1e-20
    assert first.best.startswith(f"{rows[0]['learning_rate']:g} to ")
    assert settings["batch_size"].share < 0.1


# --- the trials ---


@pytest.fixture
def folder(tmp_path, monkeypatch, resized):
    """An empty project with a few images, and as many workers as WORKERS says."""
    monkeypatch.chdir(tmp_path)
    alone.FOLDER.mkdir(parents=True)
    part = resized["train"]
    save_split(files.DATA_PREPARED, "train", Split(part.images[:1100], part.labels[:1100]))
    return tmp_path


def short(found, workers, monkeypatch):
    """Two rungs of few and short trials, one of which diverges."""
    monkeypatch.setenv("WORKERS", str(workers))
    brief = found.model_copy(update={"validation_size": 200})
    rows = design.design(found.space, 9, seed=1)
    for row in rows:
        row["teacher_epochs"] = row["teacher_epochs"] and 1
    rows[4] |= {"optimizer": "sgd", "learning_rate": 1e30}
    first = search.run_rung("mlp", brief, Rung(trials=9, epochs=1), rows)
    by_hand = {key: rows[0][key] for key in design.Incumbent.model_fields}
    last = Rung(trials=3, epochs=2, incumbent=by_hand)
    return first, search.run_rung("mlp", brief, last, first)


@pytest.mark.slow
def test_one_worker_and_two_come_to_the_same_tables(found, folder, monkeypatch, capfd):
    tables = short(found, 1, monkeypatch)
    shutil.rmtree(alone.FOLDER)
    alone.FOLDER.mkdir()
    assert short(found, 2, monkeypatch) == tables
    first, second = tables
    assert first[-1]["trial"] == 4 and first[-1]["accuracy"] is first[-1]["loss"] is None
    joined = found.rungs("mlp")[0].trials
    best = {row["trial"] for row in search.survivors(first, 3)}
    assert {row["trial"] for row in second} == best | {joined} and len(second) == 4
    assert len({row["weights"] for row in [*first[:-1], *second]}) == 8 + 4
    capfd.readouterr()
    assert short(found, 2, monkeypatch) == tables  # finished trials are not trained again
    assert ": epoch" not in capfd.readouterr().out


RUN = """
from study import design, search
if __name__ == "__main__":
    found = design.load().model_copy(update={"validation_size": 200})
    rows = design.design(found.space, 8, 1)
    search.run_rung("mlp", found, design.Rung(trials=8, epochs=300), rows)
"""


@pytest.mark.weekly
@pytest.mark.slow
def test_a_killed_search_leaves_no_worker_behind(folder, monkeypatch):
    shutil.copytree(ROOT / "study", folder / "study")
    (folder / "run.py").write_text(RUN, encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(ROOT), "WORKERS": "2"}
    output = (folder / "said").open("w")
    running = subprocess.Popen([sys.executable, "run.py"], env=env, stdout=output)
    children = []
    for _ in range(600):
        time.sleep(0.1)
        if "trial" in (folder / "said").read_text():
            children = subprocess.run(
                ["pgrep", "-P", str(running.pid), "-f", "spawn_main"],
                capture_output=True,
                text=True,
            ).stdout.split()
            break
    assert len(children) == 2
    running.send_signal(signal.SIGKILL)
    running.wait()
    for _ in range(100):
        time.sleep(0.1)
        alive = [pid for pid in children if Path(f"/proc/{pid}").exists()]
        if not alive:
            break
    assert not alive


# --- mistakes ---


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("seed: 0", "sed: 0", "study/search.yaml: seed is missing"),
        (
            "[adamw, adamw, adamw, sgd]",
            "[adam]",
            "space.optimizer.0 is 'adam', expected 'adamw' or",
        ),
        ("{low: 1.0, high: 4.0}", "{low: 1.0}", "space.temperature.high is missing"),
        (
            "{trials: 40,",
            "{trials: 400,",
            "lenet5 has rungs of [200, 400, 8, 4] trials, expected no rung",
        ),
    ],
)
def test_a_mistake_in_the_settings_is_one_line(found, tmp_path, monkeypatch, old, new, line):
    text = (ROOT / design.PATH).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "study").mkdir()
    (tmp_path / design.PATH).write_text(text.replace(old, new, 1), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        design.load()
    assert line in str(refused.value).splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "usage: python -m study.search MODEL RUNG"),
        (["resnet", "1"], "model is resnet, expected one of: lenet5, mlp"),
        (["mlp", "9"], "rung is 9, expected a number from 1 to 4"),
        (["mlp", "1", "2"], "usage: "),
    ],
)
def test_other_arguments_are_refused_in_one_line(arguments, line, found, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["search", *arguments])
    with pytest.raises(SystemExit) as ended:
        search.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {line}") and said.count("\n") == 1


def test_a_missing_table_and_a_wrong_number_of_workers_are_named(found, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKERS", "many")
    with pytest.raises(InputError, match="WORKERS is many, expected a number of processes from 1"):
        search.workers()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        StageError, match=r"study/search/mlp-0.csv is missing: `dvc repro` in study"
    ):
        design.read_table("mlp", 0)


def test_every_model_has_a_search(found):
    assert all(found.rungs(name) for name in params.MODEL_NAMES)
