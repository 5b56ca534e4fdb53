"""The study's report: what it says of cells that were made by hand, and of files of cells."""

import json
import shutil

import numpy as np
import pytest

from conftest import ROOT
from dvc_kit.errors import StageError
from study import comparison, report, settings
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


# --- files of cells ---


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The committed cells and settings. Those that the report reads, test_comparison.py has."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / settings.CELLS, tmp_path / settings.CELLS)
    for name in ("params.yaml", "recipes.yaml", settings.PATH):
        shutil.copy(ROOT / name, tmp_path / name)


def refusal() -> str:
    with pytest.raises(StageError) as refused:
        comparison.load_variants(settings.load())
    return str(refused.value)


def test_a_study_has_a_variant_per_recipe_and_model_with_its_seeds_in_their_order(folder):
    study = settings.load()
    variants = comparison.load_variants(study)
    assert [(variant.recipe, variant.model) for variant in variants] == [
        (recipe, model) for recipe in study.every_recipe for model in study.models
    ]
    for variant in variants:
        seeds = [cell.seed for cell in variant.cells]
        assert seeds == [str(seed) for seed in study.seeds_of(variant.recipe)]
        assert (variant.twin is None) == (variant.recipe in study.ablations)
        for cell in variant.cells:
            path = settings.cell_path(variant.recipe, variant.model, cell.seed)
            content = json.loads(path.read_text(encoding="utf-8"))
            assert {key: [value] for key, value in cell.scores.items()} == content["scores"]
            assert [*cell.labels] == [*cell.predicted] == content["errors"]["index"]
            assert [*cell.predicted.values()] == content["errors"]["predicted"]
            assert np.flatnonzero(~cell.correct).tolist() == content["errors"]["index"]


def test_cells_that_are_missing_or_too_many_are_counted_and_the_first_five_named(folder):
    stranger = settings.cell_path("record", "lenet5", 99)
    shutil.copy(settings.cell_path("record", "lenet5", 3), stranger)
    (settings.CELLS / "notes.txt").touch()
    assert refusal() == (
        "study/cells has 1 files that belong to no recipe and seed of study/params.yaml "
        "(record-lenet5-99): remove them, or name their recipes and seeds there"
    )
    settings.cell_path("record", "mlp", 0).unlink()
    every = len([*settings.CELLS.glob("*.json")])
    assert refusal() == (
        f"1 of the study's {every} cells are missing (record-mlp-0): `make study` computes them"
    )
    for seed in range(1, 5):
        settings.cell_path("record", "mlp", seed).unlink()
    assert refusal().startswith("5 of the") and " more" not in refusal()
    settings.cell_path("fast", "mlp", 3).unlink()
    assert refusal().startswith(
        f"6 of the study's {every} cells are missing (fast-mlp-3, record-mlp-0, record-mlp-1, "
        "record-mlp-2, record-mlp-3 and 1 more): "
    )


def test_a_damaged_cell_is_named_with_its_cure(folder):
    path = settings.cell_path("record", "mlp", 0)
    whole = json.loads(path.read_text(encoding="utf-8"))
    one_error_less = {name: values[1:] for name, values in whole["errors"].items()}
    uneven = whole["errors"] | {"label": whole["errors"]["label"][1:]}
    for content in (
        "",
        "[]",
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
