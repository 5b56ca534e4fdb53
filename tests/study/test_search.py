"""The search draws evenly, ranks by its rule, and comes to one table on any number of cores."""

import shutil
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from conftest import ROOT, flip_bit
from dvc_guard import alone
from dvc_kit.errors import StageError
from dvc_kit.files import md5
from stages.base import files, params
from stages.base.splits import Split, save_split
from study import design, findings, ranking, search, trial, worker
from study.design import Space
from study.settings import BITS
from study.tables import LONGER, read_table, table_path


@pytest.fixture
def found(monkeypatch):
    monkeypatch.chdir(ROOT)
    return design.load()


# --- the design ---


def test_the_committed_designs_are_drawn_again_and_have_as_many_configurations_as_promised(found):
    for name, least in ("lenet5", 200), ("mlp", 100):
        rows = design.design(found.space, found.rungs[name][0].trials, found.seed)
        assert rows == sorted(read_table(name, "0"), key=lambda row: row["trial"])
        assert len({tuple(row.values())[1:] for row in rows}) == len(rows) >= least


def test_every_configuration_is_a_recipe_and_has_its_values(found):
    for row in design.design(found.space, 60, seed=5):
        recipe = design.recipe(found, row, epochs=7)
        assert recipe.epochs == 7
        for name in ("optimizer", "learning_rate", "weight_decay", "batch_size", "averaging"):
            assert getattr(recipe, name) == row[name]
        rotation = recipe.augmentation.rotation if recipe.augmentation else 0
        assert rotation == pytest.approx(8 * row["distortion"], rel=1e-2)
        names = ("teachers", "teacher_epochs", "teacher_weight", "temperature")
        taught, values = recipe.distillation, tuple(row[name] for name in names)
        assert values == (
            (taught.teachers, taught.recipe.epochs, taught.weight, taught.temperature)
            if taught
            else (0, None, None, None)
        )


# --- the rule ---


def test_fast_has_no_teachers_and_record_is_the_best_of_the_last_rung(found):
    drawn = design.design(found.space, 40, found.seed)
    rows = sorted(drawn, key=lambda row: -row["teachers"])
    plain = next(row for row in rows if not row["teachers"])
    for second in (rows[3:], rows[:9]):  # the second has teachers only
        chosen = ranking.recipes(found, {"mlp": [rows, second, rows[5:8]]}, {})
        assert chosen["fast"]["mlp"] == design.recipe(found, plain, found.epochs.fast["mlp"])
        assert chosen["record"]["mlp"] == design.recipe(found, rows[5], found.epochs.record["mlp"])


def test_ten_minutes_is_the_best_that_takes_so_long_with_its_teachers(found):
    rows = [
        {"teachers": teachers, "teacher_epochs": 15 if teachers else None, "epochs": epochs}
        for teachers, epochs in ((0, 9999), (100, 10), (1, 60), (0, 60))
    ]
    tables = {"lenet5": [[rows[3]]] * 4}
    for longer, chosen in (rows, rows[2]), (rows[:2], None), (rows[:2] + rows[3:], rows[3]):
        found_rows = ranking.winners(found, "lenet5", tables["lenet5"], longer)
        assert found_rows.get("ten_minutes") == chosen
    teacher, student = found.seconds.epoch["lenet5"] * 15, found.seconds.epoch["lenet5"] * 60
    assert ranking.seconds(found, "lenet5", rows[3]) == student
    taught = teacher + student + 60 * found.seconds.answers
    assert ranking.seconds(found, "lenet5", rows[2]) == pytest.approx(taught)


def test_the_recipes_of_the_search_are_what_the_committed_tables_choose(found):
    chosen = ranking.recipes(found, findings.load_tables(found), findings.load_longer(found))
    for name in "fast", "record", "ten_minutes":
        assert params.load_recipes()[name] == params.Recipes(**chosen[name])


def test_the_last_rungs_have_the_survivors_of_the_one_before_and_the_incumbent(found):
    def configurations(rows):
        keys = ("trial", *Space.model_fields)
        return sorted(([row[key] for key in keys] for row in rows), key=lambda row: row[0])

    for name, rungs in findings.load_tables(found).items():
        settings = found.rungs[name][-1]
        joined = design.incumbent(found, name, settings.incumbent)
        expected = [*search.survivors(rungs[-2], settings.trials), joined]
        assert configurations(rungs[-1]) == configurations(expected)
        assert joined["trial"] not in [row["trial"] for rung in rungs[:-1] for row in rung]


def test_the_longer_trainings_are_the_incumbent_with_the_changes_of_the_settings(found):
    for name, rows in findings.load_longer(found).items():
        rungs, changes = found.rungs[name], found.longer[name]
        numbered = {rungs[0].trials + 1 + place: one for place, one in enumerate(changes)}
        assert {row["trial"] for row in rows} == {*numbered}
        for row in rows:
            changed = numbered[row["trial"]].model_dump(exclude_none=True)
            expected = dict(rungs[-1].incumbent) | {"teachers": 0} | changed
            assert {key: row[key] for key in expected} == expected


def test_the_findings_come_out_of_the_committed_tables_bit_for_bit(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MIRROR", "off")
    monkeypatch.setattr(findings, "FINDINGS", tmp_path)
    findings.main()
    assert md5(tmp_path) == md5(ROOT / "study/findings")


# --- the trials ---


@pytest.fixture
def folder(tmp_path, monkeypatch, resized):
    """A project with a few images and a search of few and short trials, one of which diverges."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(search, "INPUTS", search.INPUTS[:1])
    monkeypatch.setenv("MIRROR", "off")
    (tmp_path / ".dvc").mkdir()
    part = resized["train"]
    save_split(files.DATA_PREPARED, "train", Split(part.images[:1100], part.labels[:1100]))
    prepared = {"outs": [{"path": "data/prepared", "md5": md5(files.DATA_PREPARED)}], "deps": []}
    lock = {"stages": {"prepare": prepared | {"params": {"params.yaml": {}}}}}
    YAML(typ="safe").dump(lock, Path("dvc.lock"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    yaml = YAML()
    content = yaml.load(ROOT / design.PATH)
    hand = content["rungs"]["mlp"][-1]["incumbent"]
    rungs = [{"trials": 9, "epochs": 1}, {"trials": 3, "epochs": 2, "incumbent": hand}]
    design.FOLDER.mkdir()
    longer = {"mlp": [{"epochs": 1}, {"epochs": 2, "distortion": 0.5}]}
    changed = {"validation_size": 200, "rungs": {"mlp": rungs}, "longer": longer}
    yaml.dump(content | changed, design.PATH)
    shutil.copy(ROOT / BITS, BITS)
    bits = {"outs": [{"path": BITS.name, "md5": md5(BITS)}]}
    YAML(typ="safe").dump({"stages": {"bits": bits}}, design.FOLDER / "dvc.lock")
    rows = design.design(design.load().space, 9, seed=1)
    for row in rows:
        row["teacher_epochs"] = row["teacher_epochs"] and 1
    rows[4] |= {"optimizer": "sgd", "learning_rate": 1e30}
    files.write_rows(table_path("mlp", "0"), rows)
    return tmp_path


def table(rung: str, cores: int) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINE", f"local:{cores}")
        patch.setattr(sys, "argv", ["search", "mlp", rung])
        search.main()
    return table_path("mlp", rung).read_bytes()


@pytest.mark.slow
@pytest.mark.weekly
def test_one_core_and_two_come_to_the_same_tables_and_a_trial_alone_to_its_line(
    folder, monkeypatch, capsys
):
    tables = [table(rung, cores=2) for rung in ("1", "2")]
    first, second = (read_table("mlp", rung) for rung in ("1", "2"))
    assert first[-1]["trial"] == 4 and first[-1]["accuracy"] is first[-1]["loss"] is None
    best = {row["trial"] for row in search.survivors(first, 3)}
    assert {row["trial"] for row in second} == best | {9} and len(second) == 4
    assert len({row["weights"] for row in [*first[:-1], *second]}) == 8 + 4
    assert not [*trial.FOLDER.iterdir()]
    shutil.rmtree(alone.FOLDER)

    # An interrupted rung keeps its trials, but for a damaged one and one of other settings
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(search, "ranked", lambda _: 1 / 0)
        table("2", cores=1)
    kept, other, *_ = trial.FOLDER.iterdir()
    flip_bit(kept)
    other.write_text(other.read_text().replace('"seed":0', '"seed":1'), encoding="utf-8")
    capsys.readouterr()
    assert table("2", cores=1) == tables[1]
    assert "missing trials of rung@mlp-2: 2; ENGINE=local:1\n" in capsys.readouterr().out

    number = second[0]["trial"]
    assert trial.compare("mlp", "2", number).startswith(f"trial {number} comes to what study/sear")
    spoiled = tables[1].replace(second[0]["weights"][:9].encode(), b"0" * 9)
    table_path("mlp", "2").write_bytes(spoiled)
    with pytest.raises(StageError, match=r"weights.* and study/search/mlp-2.csv has .*0{9}"):
        trial.compare("mlp", "2", number)

    table(LONGER, cores=2)
    changed = {row["trial"]: row for row in read_table("mlp", LONGER)}
    assert {key: (row["epochs"], row["distortion"]) for key, row in changed.items()} == {
        10: (1, 1.0),
        11: (2, 0.5),
    }
    assert trial.compare("mlp", LONGER, 11).startswith("trial 11 comes to what study/sear")


def test_a_result_that_is_not_the_trials_is_named(found):
    row = design.design(found.space, 9, seed=1)[0]
    recipe = design.recipe(found, row, epochs=2)
    settings = trial.Settings(recipe=recipe, seed=0, validation_size=200, inputs="a")
    task = search.Trial("mlp", "1", 0, settings)
    assert task.order.arguments == ("mlp", "1", "0") and task.epochs == 2
    assert trial.Settings.model_validate_json(task.order.settings) == settings
    scores = {"accuracy": 0.9, "loss": 0.1, "weights": "0" * 64}
    sent = trial.Result(settings=settings, scores=trial.Scores(**scores))
    assert task.mistake(sent.model_dump_json().encode()) == ""
    other = settings.model_copy(update={"inputs": "b"})
    for change, line in (
        ({"settings": other}, "it has other settings"),
        ({"scores": scores | {"loss": None}}, "some of its scores are missing"),
        ({"scores": scores | {"accuracy": 2.0}}, "scores.accuracy: "),
        ({"scores": scores | {"weights": "0"}}, "scores.weights: String should match"),
    ):
        spoiled = trial.Result.model_construct(**dict(sent) | change)
        content = spoiled.model_dump_json(warnings=False).encode()
        assert task.mistake(content).startswith(line)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "usage: python -m study.search MODEL RUNG"),
        (["resnet", "1"], "model is resnet, expected one of: lenet5, mlp"),
        (["mlp", "9"], "rung is 9, expected one of: 1, 2, 3, 4, longer"),
    ],
)
def test_other_arguments_are_refused_in_one_line(arguments, line, found, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["search", *arguments])
    with pytest.raises(SystemExit) as ended:
        search.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {line}") and said.count("\n") == 1


def test_a_search_may_have_a_single_rung_and_no_longer_trainings(monkeypatch, tmp_path):
    content = YAML().load(ROOT / design.PATH)
    monkeypatch.setattr(design, "PATH", tmp_path / "search.yaml")
    small = {"rungs": {"mlp": [{"trials": 2, "epochs": 1}]}, "longer": {}}
    YAML().dump(content | small, design.PATH)
    assert design.load("mlp").longer == {}


@pytest.mark.parametrize(("module", "more"), [(design, []), (search, ["1"])])
def test_a_model_without_rungs_is_refused_in_one_line(module, more, monkeypatch, tmp_path, capsys):
    without = YAML().load(ROOT / design.PATH)
    del without["rungs"]["mlp"], without["longer"]["mlp"]
    monkeypatch.setattr(design, "PATH", tmp_path / "search.yaml")
    YAML().dump(without, design.PATH)
    monkeypatch.setattr("sys.argv", ["", "mlp", *more])
    with pytest.raises(SystemExit):
        module.main()
    assert capsys.readouterr().err == f"error: {design.PATH}: rungs.mlp is missing\n"
