"""The study's report: what it says of cells that were made by hand, and of files of cells."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from conftest import ROOT
from dvc_kit.errors import StageError
from stages.base import files, params
from stages.base.params import MODEL_NAMES
from stages.base.splits import Split, save_split
from stages.networks import models
from stages.networks.models import Answers
from study import cell, comparison, report, settings
from study.comparison import Cell, OverSeeds, Variant

FOUND = OverSeeds(0.95, 0.01, low=0.94, high=0.96, next_low=0.92, next_high=0.98)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (0.95, "yes"),
        (0.93, "yes"),  # outside of the mean's interval, inside of that of one more run
        (0.97, "yes"),
        (0.92, "yes"),
        (0.98, "yes"),
        (0.9199, "no, 0.01 outside"),
        (0.90, "no, 2.00 outside"),
        (0.9925, "no, 1.25 outside"),
    ],
)
def test_a_figure_is_reproduced_where_one_more_run_may_give_it(there, said):
    assert report.verdict(FOUND, there, 100, 2) == said


def test_one_seed_has_no_deviation_and_reproduces_nothing():
    one = comparison.over_seeds([0.95])
    assert report.verdict(one, 0.95, 100, 2) == "one seed tells nothing"
    assert report.spread(one, 100, 1) == "95.0"
    assert report.spread(OverSeeds(0.5, 0.0), 1, 2) == "0.50 ± 0.00"


def variant(recipe: str, model, errors: int) -> Variant:
    """Two seeds with so many mistakes in a thousand images."""
    wrong = dict.fromkeys(range(errors), 1)
    scores = {"test_images": 1000, "test_accuracy": 1 - errors / 1000, "test_loss": 0.1}
    return Variant(recipe, model, [Cell(seed, scores, {}, wrong, wrong) for seed in "01"], None)


RECORD = [variant("record", "lenet5", 20), variant("record", "mlp", 60)]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.chdir(ROOT)
    only = {"recipes": ["published", "record"], "ablations": ["less"], "differences": []}
    return settings.load().model_copy(update=only)


def test_the_best_recipe_is_the_most_accurate_of_those_that_are_no_ablations(study):
    others = [variant("less", "mlp", 1), variant("published", "mlp", 70)]
    for variants in ([*RECORD, *others], [*others, *RECORD]):
        assert report.best(study, [*variants, variant("published", "lenet5", 70)]) == "record"


@pytest.mark.parametrize(
    ("recipe", "errors", "is_said"),
    [("published", 300, True), ("published", 100, False), ("fast", 300, False)],
)
def test_the_headline_names_the_finding_only_where_the_accuracies_show_it(recipe, errors, is_said):
    two = [variant(recipe, "lenet5", errors), variant(recipe, "mlp", 200)]
    said = report.headline([*RECORD, *two])
    assert said and ("only where softmax is applied twice" in said) == is_said


def test_a_study_without_published_or_lessened_recipes_has_no_section_on_them(study):
    alone = study.model_copy(update={"recipes": ["record"], "ablations": []})
    text = report.markdown(alone, RECORD, "record", [], seed=0)
    assert "reproduced" not in text and "ingredient" not in text


def test_images_without_a_majority_are_those_of_northcutt_that_there_are():
    assert np.flatnonzero(~comparison.with_majority(1_622)).tolist() == [947, 1621]
    assert (~comparison.with_majority(10_000)).sum() == 15
    assert comparison.with_majority(947).all()


# --- from files to files ---

TEST_IMAGES = 960
TEST_LABELS = (np.arange(TEST_IMAGES) % 10).astype(np.uint8)
SEEDS = (3, 0)
ALWAYS_WRONG = [5, 30, 947]  # by every network; on 947 the annotators do not agree


def errors_of(recipe: str, model: str, seed: object) -> list[int]:
    """Every network has other errors; `record` has the fewest of the recipes."""
    first = {"published": 200, "record": 100, "record_without_decay": 50}[recipe]
    first += {"lenet5": 0, "mlp": 20}[model] + {3: 1, 0: 2, "validation": 7}[seed]
    return sorted({*ALWAYS_WRONG, *range(first, 2 * first)})


def write_cell(recipe: str, model, seed: object) -> dict:
    """A cell as stage cell writes it, of a network that takes a digit for the next one or two."""
    predicted = TEST_LABELS.copy()
    wrong = errors_of(recipe, model, seed)
    predicted[wrong] = (TEST_LABELS[wrong] + MODEL_NAMES.index(model) + 1) % 10
    probabilities = np.full((TEST_IMAGES, 10), 0.02)
    probabilities[np.arange(TEST_IMAGES), predicted] = 0.82
    answers = Answers(f"outputs of {seed}", 0.25 + len(wrong) / 1e4, probabilities, TEST_LABELS)
    scores = cell.split_scores("test", answers)
    if seed == "validation":
        scores |= {"temperature": 1.5} | cell.split_scores("validation", answers)
        scores |= cell.confidence_scores("test_scaled", probabilities, TEST_LABELS)
    network = models.build("mlp", params.load().of_model("mlp"))
    content = cell.content(scores, answers, network, [{"epoch": 1, "train_loss": 0.5}])
    files.write_json(settings.cell_path(recipe, model, seed), content)
    return content


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A study of two seeds, two recipes and one that is lessened, with all its cells."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIRROR", "off")
    for name in ("params.yaml", "recipes.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    content = YAML(typ="safe").load(ROOT / settings.PATH)
    content |= {
        "seeds": list(SEEDS),
        "recipes": ["published", "record"],
        "ablations": ["record_without_decay"],
        "ablation_seeds": list(SEEDS),
        "differences": [["record", "published"], ["record", "record_without_decay"]],
    }
    settings.FOLDER.mkdir()
    YAML(typ="safe").dump(content, settings.PATH)
    for model in MODEL_NAMES:
        for recipe in ("published", "record", "record_without_decay"):
            for seed in SEEDS:
                write_cell(recipe, model, seed)
        for recipe in ("published", "record"):
            write_cell(recipe, model, "validation")
    return tmp_path


def test_a_study_has_a_variant_per_recipe_and_model_with_its_seeds_in_their_order(folder):
    content = write_cell("record", "mlp", 3)
    variants = comparison.load_variants(settings.load())
    assert [(variant.recipe, variant.model) for variant in variants] == [
        (recipe, model)
        for recipe in ("published", "record", "record_without_decay")
        for model in MODEL_NAMES
    ]
    for variant in variants:
        shift = MODEL_NAMES.index(variant.model) + 1
        found = {one.seed: one for one in variant.cells}
        assert list(found) == ["3", "0"]
        assert (variant.twin is None) == (variant.recipe == "record_without_decay")
        for seed, one in (found | ({"validation": variant.twin} if variant.twin else {})).items():
            seed = int(seed) if seed.isdecimal() else seed
            wrong = errors_of(variant.recipe, variant.model, seed)
            assert one.labels == {index: index % 10 for index in wrong}
            assert one.predicted == {index: (index + shift) % 10 for index in wrong}
            assert np.flatnonzero(~one.correct).tolist() == wrong
            assert one.sha256["outputs"] == f"outputs of {seed}"
    scores = {name: value for name, [value] in content["scores"].items()}
    assert variants[3].cells[0].scores == files.rounded(scores)


def refusal() -> str:
    with pytest.raises(StageError) as refused:
        comparison.load_variants(settings.load())
    return str(refused.value)


def test_cells_that_are_missing_or_too_many_are_counted_and_the_first_five_named(folder):
    settings.cell_path("record", "mlp", 0).unlink()
    assert refusal() == (
        "1 of the study's 16 cells are missing (record-mlp-0): `make study` computes them"
    )
    for recipe in ("record", "record_without_decay"):
        for model in MODEL_NAMES:
            settings.cell_path(recipe, model, 3).unlink()
    assert "5 of the study's 16 cells are missing (record-lenet5-3, record-mlp-0, rec" in refusal()
    assert " more" not in refusal()
    settings.cell_path("published", "mlp", 3).unlink()
    assert refusal().startswith(
        "6 of the study's 16 cells are missing (published-mlp-3, record-lenet5-3, record-mlp-0, "
        "record-mlp-3, record_without_decay-lenet5-3 and 1 more): "
    )


def test_a_cell_of_a_seed_that_the_study_does_not_name_is_refused(folder):
    write_cell("record", "lenet5", 3)
    settings.cell_path("record", "lenet5", 3).rename(settings.cell_path("record", "lenet5", 8))
    write_cell("record", "lenet5", 3)
    (settings.CELLS / "notes.txt").touch()
    assert refusal() == (
        "study/cells has 1 files that belong to no recipe and seed of study/params.yaml "
        "(record-lenet5-8): remove them, or name their recipes and seeds there"
    )


def test_a_damaged_cell_is_named_with_its_cure(folder):
    path = settings.cell_path("record", "mlp", 0)
    whole = json.loads(path.read_text(encoding="utf-8"))
    one_error_less = {name: values[1:] for name, values in whole["errors"].items()}
    uneven = whole["errors"] | {"label": whole["errors"]["label"][1:]}
    for content in (
        "",
        "[]",
        "{",
        "\xff",
        json.dumps(whole | {"errors": one_error_less}),
        json.dumps(whole | {"errors": uneven}),
        json.dumps({name: value for name, value in whole.items() if name != "sha256"}),
        json.dumps(whole | {"scores": {"test_images": 5}}),
    ):
        path.write_text(content, encoding="latin1")
        assert refusal().startswith(f"{path} is damaged (")
        assert refusal().endswith("): remove it, and `make study`")
        assert "\n" not in refusal()


def test_the_report_of_a_study_is_made_of_its_cells_and_of_the_test_images(folder, capsys):
    pictures = np.random.default_rng(0).integers(0, 256, (TEST_IMAGES, 32, 32)).astype(np.uint8)
    save_split(files.DATA_PREPARED, "test", Split(pictures, TEST_LABELS))
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("\nseed: 0 ", "\nseed: 4 "), encoding="utf-8")
    report.main()
    assert sorted(path.name for path in settings.REPORT.iterdir()) == [
        *("cells.csv", "metrics.json", "missed.csv", "missed.png", "story.png"),
        *("study.html", "study.md"),
    ]
    with (settings.REPORT / "missed.csv").open(encoding="utf-8", newline="") as file:
        missed = list(csv.reader(file))
    # The images that every seed of both models gets wrong with the best recipe, and 947 is doubtful
    everyone = [set(errors_of("record", model, seed)) for model in MODEL_NAMES for seed in SEEDS]
    assert missed == [["index", "label", "lenet5", "mlp", "no_majority"]] + [
        [str(value) for value in (index, index % 10, (index + 1) % 10, (index + 2) % 10, doubtful)]
        for index in sorted(set.intersection(*everyone))
        for doubtful in [int(index == 947)]
    ]
    with (settings.REPORT / "cells.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 16
    found = json.loads((settings.REPORT / "metrics.json").read_text(encoding="utf-8"))
    losses = [0.25 + len(errors_of("record", "mlp", seed)) / 1e4 for seed in SEEDS]
    assert found["record"]["mlp"]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    text = (settings.REPORT / "study.md").read_text(encoding="utf-8")
    assert f"With the recipe record, {len(missed) - 1} test images are wrong for both" in text
    assert "Each line is one more network, with seed 4, trained without 10,000 of the" in text
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].split("|")[1:3] == [" LeNet-5 ", " published            "]
    assert printed[-1] in text
