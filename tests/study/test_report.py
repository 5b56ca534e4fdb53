"""The study's report: each number under its heading, from cells that were made by hand."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML
from scipy.stats import binomtest, t

from conftest import ROOT
from dvc_mlflow.errors import StageError
from stages import scoring
from stages.base import files, params
from stages.base.params import MODEL_NAMES
from stages.base.splits import Split, save_split
from stages.networks import models
from stages.networks.models import Answers
from study import cell, comparison, report, settings
from study.comparison import Cell, OverSeeds, Variant

IMAGES = 4_000
DOUBTFUL = [947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558]  # of these, by Northcutt et al.


def made(correct: np.ndarray, seed: str = "0", **scores: float) -> Cell:
    wrong = np.flatnonzero(~correct).tolist()
    labels = {index: index % 10 for index in wrong}
    predicted = {index: (index + 1) % 10 for index in wrong}
    scores = {"test_images": len(correct), "test_accuracy": float(correct.mean()), **scores}
    return Cell(seed, scores, {"weights": f"w{seed}", "outputs": f"o{seed}"}, labels, predicted)


def right(*errors: int) -> list[np.ndarray]:
    """A seed each, with so many errors; the images with a doubtful label are always among them."""
    found = []
    for at, count in enumerate(errors):
        correct = np.ones(IMAGES, bool)
        correct[[*DOUBTFUL, *range(at * 300, at * 300 + count - len(DOUBTFUL))]] = False
        assert (~correct).sum() == count
        found.append(correct)
    return found


def variant(
    recipe: str, model, errors: tuple[int, ...], losses: tuple[float, ...], twin=None
) -> Variant:
    pairs = enumerate(zip(right(*errors), losses, strict=True))
    cells = [
        made(
            correct,
            str(seed),
            test_loss=loss,
            test_negative_log_likelihood=10 + loss,
            test_calibration_error=20 + loss,
        )
        for seed, (correct, loss) in pairs
    ]
    return Variant(recipe, model, cells, twin)


def cells_of(table: str) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a Markdown table."""
    lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()]
    return lines[0], lines[2:]


def student(values: list[float], one_more: bool = False) -> tuple[float, float]:
    n = len(values)
    half = t.ppf(0.975, n - 1) * np.std(values, ddof=1) * (1 / n + one_more) ** 0.5
    return np.mean(values) - half, np.mean(values) + half


LENET5 = variant("published", "lenet5", (200, 220, 240), (1.52, 1.53, 1.51))
MLP = variant("published", "mlp", (100, 120, 128), (0.09, 0.095, 0.1))


@pytest.mark.parametrize("one", [LENET5, MLP])
def test_the_results_are_means_deviations_intervals_and_the_accuracy_without_doubtful_labels(one):
    _, [found] = cells_of(report.result_table([one]))
    accuracies = [100 * cell.scores["test_accuracy"] for cell in one.cells]
    losses = [cell.scores["test_loss"] for cell in one.cells]
    clean = [cell.correct.sum() / (IMAGES - len(DOUBTFUL)) for cell in one.cells]
    assert found[2:] == [
        f"{np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f}",
        "{:.2f} to {:.2f}".format(*student(accuracies)),
        f"{np.mean(losses):.4f} ± {np.std(losses, ddof=1):.4f}",
        "{:.4f} to {:.4f}".format(*student(losses)),
        f"{100 * np.mean(clean):.2f}",
    ]


def test_the_reproduction_compares_each_published_figure_with_one_more_run_of_its_own_model():
    _, found = cells_of(report.reproduction_table([LENET5, MLP]))
    expected = []
    for one, title, of_accuracy, of_loss in (
        (LENET5, "LeNet-5", "94.50", "1.5190"),
        (MLP, "MLP", "97.31", "0.0928"),
    ):
        accuracies = [100 * cell.scores["test_accuracy"] for cell in one.cells]
        losses = [cell.scores["test_loss"] for cell in one.cells]
        for name, there, values, digits in (
            ("accuracy %", of_accuracy, accuracies, 2),
            ("loss", of_loss, losses, 4),
        ):
            of_mean, of_next = student(values), student(values, one_more=True)
            shown = [f"{low:.{digits}f} to {high:.{digits}f}" for low, high in (of_mean, of_next)]
            verdict = "yes" if of_next[0] <= float(there) <= of_next[1] else "no"
            expected.append([title, name, there, *shown, verdict])
    assert [[*line[:3], *line[4:6], line[6].split(",")[0]] for line in found] == expected


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
    assert report.verdict(there, FOUND, 100, 2) == said


def test_one_seed_reproduces_nothing():
    assert report.verdict(0.95, comparison.over_seeds([0.95]), 100, 2) == "one seed tells nothing"


def test_spread_leaves_the_deviation_out_where_there_is_none():
    assert report.spread(OverSeeds(0.5, 0.25), 100, 1) == "50.0 ± 25.0"
    assert report.spread(OverSeeds(0.5, 0.0), 1, 2) == "0.50 ± 0.00"
    assert report.spread(OverSeeds(0.5), 1, 2) == "0.50"


# --- differences ---


@pytest.fixture
def study(monkeypatch):
    """A study of two recipes and one that is lessened, on three seeds."""
    monkeypatch.chdir(ROOT)
    small = {
        "seeds": [0, 1, 2],
        "recipes": ["published", "record"],
        "ablations": ["record_without_decay"],
        "ablation_seeds": [0, 1, 2],
        "differences": [["record", "published"], ["record", "record_without_decay"]],
    }
    return settings.load().model_copy(update=small)


def twin(errors: int, accuracy: float, temperature: float, *scores: float) -> Cell:
    """One trained without the validation images; its scores are each before and after scaling."""
    names = [
        f"test_{scaled}{name}"
        for name in ("calibration_error", "negative_log_likelihood")
        for scaled in ("", "scaled_")
    ]
    of_validation = {"validation_accuracy": accuracy, "temperature": temperature, "test_loss": 0.5}
    return made(
        right(errors)[0], "validation", **of_validation, **dict(zip(names, scores, strict=True))
    )


TWINS = {
    "lenet5": twin(500, 0.97, 1.25, 0.01, 0.02, 0.3, 0.4),
    "mlp": twin(600, 0.96, 0.75, 0.05, 0.06, 0.7, 0.8),
}
VARIANTS = [
    LENET5,
    MLP,
    variant("record", "lenet5", (20, 22, 24), (0.02, 0.03, 0.04), TWINS["lenet5"]),
    variant("record", "mlp", (60, 62, 64), (0.12, 0.13, 0.14), TWINS["mlp"]),
    variant("record_without_decay", "lenet5", (30, 30, 33), (0.3, 0.4, 0.5)),
    variant("record_without_decay", "mlp", (61, 60, 62), (0.6, 0.7, 0.8)),
]


def test_each_difference_is_its_first_recipe_or_model_minus_the_second(study):
    found, ablations = report.all_differences(study, VARIANTS)
    errors = {(one.recipe, one.model): (~one.correct).mean() for one in VARIANTS}
    expected = {
        "LeNet-5 minus MLP, published": ("published", "lenet5", "published", "mlp"),
        "LeNet-5 minus MLP, record": ("record", "lenet5", "record", "mlp"),
        "LeNet-5, record minus published": ("record", "lenet5", "published", "lenet5"),
        "MLP, record minus published": ("record", "mlp", "published", "mlp"),
    }
    lessened = {
        f"{title}, record minus record_without_decay": ("record", m, "record_without_decay", m)
        for title, m in (("LeNet-5", "lenet5"), ("MLP", "mlp"))
    }
    for rows, named in ((found, expected), (ablations, lessened)):
        assert [name for name, _ in rows] == list(named)
        _, lines = cells_of(report.difference_table(rows))
        for (name, one), line in zip(rows, lines, strict=True):
            first, second = named[name][:2], named[name][2:]
            assert one.seeds.mean == pytest.approx(errors[second] - errors[first])
            assert line[:4] == [
                *(name, f"{100 * one.seeds.mean:+.2f}"),
                f"{100 * one.seeds.low:.2f} to {100 * one.seeds.high:.2f}",
                f"{100 * one.images_low:.2f} to {100 * one.images_high:.2f}",
            ]
            ends = [min(one.p_values), max(one.p_values)]
            assert [*map(float, line[4].split(" to "))] == pytest.approx(ends, rel=0.5)


def test_the_p_values_are_those_of_each_seeds_own_pair():
    found = comparison.difference(VARIANTS[2], VARIANTS[3])
    pairs = list(zip(VARIANTS[2].cells, VARIANTS[3].cells, strict=True))
    only = [
        (int((a.correct & ~b.correct).sum()), int((b.correct & ~a.correct).sum())) for a, b in pairs
    ]
    assert [binomtest(a, a + b).pvalue for a, b in only] == pytest.approx(list(found.p_values))


def test_calibration_is_that_of_the_networks_trained_without_the_validation_images():
    _, found = cells_of(report.calibration_table(VARIANTS))
    assert found == [
        ["LeNet-5", "record", "97.00", "1.250", "0.0100", "0.0200", "0.3000", "0.4000"],
        ["MLP", "record", "96.00", "0.750", "0.0500", "0.0600", "0.7000", "0.8000"],
    ]


def test_the_best_recipe_is_the_most_accurate_of_those_that_are_no_ablations(study):
    better = variant("record_without_decay", "lenet5", (10, 10, 10), (0.1, 0.1, 0.1))
    assert report.best(study, [*VARIANTS[:4], better, better]) == "record"
    assert report.best(study, [*VARIANTS[2:4], *VARIANTS[:2]]) == "record"


def test_each_network_has_its_own_line_in_the_cells_file_and_twins_follow_their_seeds():
    found = report.cell_rows(VARIANTS[2:4])
    named = [(one["recipe"], one["model"], one["seed"]) for one in found]
    assert named == [
        ("record", model, seed) for model in MODEL_NAMES for seed in ("0", "1", "2", "validation")
    ]
    assert [one["test_loss"] for one in found] == [0.02, 0.03, 0.04, 0.5, 0.12, 0.13, 0.14, 0.5]
    for one, made_cell in zip(found[:3], VARIANTS[2].cells, strict=True):
        low, high = scoring.accuracy_interval(made_cell.correct)
        assert (one["test_accuracy_low"], one["test_accuracy_high"]) == (low, high)
        assert low < one["test_accuracy"] < high
        assert one["test_calibration_error"] == one["test_loss"] + 20
        assert one["weights_sha256"] == f"w{made_cell.seed}"


def test_the_metrics_are_means_and_deviations_by_recipe_and_model():
    found = report.metrics([*VARIANTS[2:4], Variant("one", "mlp", VARIANTS[0].cells[:1], None)])
    assert found["record"]["mlp"] == {
        "accuracy": pytest.approx(1 - 62 / IMAGES),
        "accuracy_sd": pytest.approx(2 / IMAGES),
        "loss": pytest.approx(0.13),
        "loss_sd": pytest.approx(0.01),
    }
    assert found["record"]["lenet5"]["accuracy"] == pytest.approx(1 - 22 / IMAGES)
    assert found["one"] == {"mlp": {"accuracy": pytest.approx(0.95), "loss": 1.52}}


def test_the_story_shows_each_seed_of_each_variant_and_the_intervals_of_the_mean(monkeypatch):
    given = {}
    monkeypatch.setattr(
        report.figures, "story", lambda *arguments: given.update(enumerate(arguments))
    )
    single = Variant("one", "mlp", VARIANTS[0].cells[:1], None)
    report.story([*VARIANTS[2:4], single], ["one"])
    accuracies, intervals, published = given[0], given[1], given[2]
    assert given[3] == ["one"]
    assert given[4] == report.headline(VARIANTS[2:4])
    assert accuracies == {
        ("record", "lenet5"): pytest.approx([99.5, 99.45, 99.4]),
        ("record", "mlp"): pytest.approx([98.5, 98.45, 98.4]),
        ("one", "mlp"): pytest.approx([95.0]),
    }
    for key in list(accuracies)[:2]:
        assert intervals[key] == pytest.approx(student(accuracies[key]))
    assert intervals["one", "mlp"] is None
    assert published == {"lenet5": pytest.approx(94.5), "mlp": pytest.approx(97.31)}


@pytest.mark.parametrize(
    ("recipe", "errors", "is_said"),
    [("published", 300, True), ("published", 100, False), ("fast", 300, False)],
)
def test_the_headline_names_the_finding_only_where_the_accuracies_show_it(recipe, errors, is_said):
    others = [variant("record", model, (n,), (0.1,)) for model, n in (("lenet5", 20), ("mlp", 60))]
    of_lenet5 = variant(recipe, "lenet5", (errors,), (0.1,))
    said = report.headline([*others, of_lenet5, variant(recipe, "mlp", (200,), (0.1,))])
    assert ("only where softmax is applied twice" in said) == is_said
    assert said


def test_the_page_has_each_table_in_its_section_with_its_rows(study):
    missed = [{"index": at, "no_majority": int(at < 1)} for at in range(3)]
    fewer = study.model_copy(update={"ablation_seeds": [0, 2]})
    text = report.markdown(fewer, VARIANTS, "record", missed, seed=8)
    assert " 3 recipes, two models, 3\nseeds (2 of them for an ablation). " in text
    sections = {part.split("\n")[0]: part for part in text.split("\n## ")[1:]}
    differences, ablations = report.all_differences(study, VARIANTS)
    for name, table in (
        ("Results", report.result_table(VARIANTS[:4], report.published_lines())),
        ("Is the published result reproduced?", report.reproduction_table(VARIANTS[:2])),
        ("Differences", report.difference_table(differences)),
        ("What each ingredient is worth", report.result_table(VARIANTS[4:])),
        ("What each ingredient is worth", report.difference_table(ablations)),
        ("Calibration", report.calibration_table(VARIANTS)),
    ):
        assert table in sections[name]


def test_a_study_without_published_or_lessened_recipes_has_no_section_on_them(study):
    only = {"recipes": ["record"], "ablations": [], "differences": []}
    alone = study.model_copy(update=only)
    text = report.markdown(alone, VARIANTS[2:4], "record", [], seed=0)
    assert "reproduced" not in text
    assert "ingredient" not in text


def test_images_without_a_majority_are_those_whose_label_fewer_than_3_of_5_annotators_gave():
    """mturk/mnist_mturk.json of github.com/cleanlab/label-errors: images with `given` below 3."""
    published = [
        *(947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937, 6651, 6783, 8527, 9679, 9729)
    ]
    assert np.flatnonzero(~comparison.with_majority(10_000)).tolist() == published
    assert np.flatnonzero(~comparison.with_majority(1_622)).tolist() == [947, 1621]
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


def test_cells_come_back_with_all_that_their_files_hold(folder):
    content = write_cell("record", "mlp", 3)
    found = comparison.load_cell("record", "mlp", "3")
    wrong = errors_of("record", "mlp", 3)
    assert found.labels == {index: index % 10 for index in wrong}
    assert found.predicted == {index: (index + 2) % 10 for index in wrong}
    assert np.flatnonzero(~found.correct).tolist() == wrong
    assert len(found.correct) == TEST_IMAGES
    assert found.sha256["outputs"] == "outputs of 3"
    assert found.scores == files.rounded({name: v for name, [v] in content["scores"].items()})


def test_a_study_has_a_variant_per_recipe_and_model_with_its_seeds_in_their_order(folder):
    variants = comparison.load_variants(settings.load())
    assert [(variant.recipe, variant.model) for variant in variants] == [
        (recipe, model)
        for recipe in ("published", "record", "record_without_decay")
        for model in ("lenet5", "mlp")
    ]
    for variant in variants:
        assert [one.seed for one in variant.cells] == ["3", "0"]
        for seed, one in zip(SEEDS, variant.cells, strict=True):
            assert list(one.predicted) == errors_of(variant.recipe, variant.model, seed)
        assert (variant.twin is None) == (variant.recipe == "record_without_decay")
        if variant.twin:
            assert list(variant.twin.predicted) == errors_of(
                variant.recipe, variant.model, "validation"
            )


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
    _, printed = cells_of(capsys.readouterr().out.strip())
    _, shown = cells_of(text.split("## What each ingredient is worth\n\n")[1].split("\n\n")[0])
    assert shown == printed[4:]
