"""The study: its statistics against independent computations, and its stages as DVC runs them."""

import csv
import json
import shutil

import numpy as np
import pytest
from ruamel.yaml import YAML
from scipy.stats import binomtest, norm, ttest_1samp, ttest_rel
from sklearn.metrics import log_loss

from conftest import ROOT, Clone, assert_readable
from dvc_kit.files import md5
from stages import prepare
from stages.base import files
from stages.show import figures
from study import cell, comparison, report, settings
from study.comparison import Cell, Variant


def made(correct, seed="0") -> Cell:
    """A cell that is right where ``correct`` says so, and takes a digit for the next elsewhere."""
    wrong = np.flatnonzero(~np.asarray(correct)).tolist()
    labels = {index: index % 10 for index in wrong}
    predicted = {index: (label + 1) % 10 for index, label in labels.items()}
    return Cell(seed, {"test_images": len(correct)}, {}, labels, predicted)


def variant(*corrects, model="lenet5") -> Variant:
    cells = [made(correct, str(seed)) for seed, correct in enumerate(corrects)]
    return Variant("any", model, cells, made(corrects[0]))


def test_intervals_over_seeds_are_students():
    values = [0.9947, 0.9951, 0.9949, 0.9952, 0.9945]
    found = comparison.over_seeds(values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    assert comparison.over_seeds([0.5]) == comparison.OverSeeds(0.5)


def test_one_more_run_lies_in_its_interval_95_times_in_100():
    draws = np.random.default_rng(0).normal(size=(4_000, 6))
    found = [comparison.over_seeds(list(draw[:5])) for draw in draws]
    inside = [f.next_low <= draw[5] <= f.next_high for f, draw in zip(found, draws, strict=True)]
    assert 0.94 <= np.mean(inside) <= 0.96


def test_the_bootstrap_of_a_share_is_the_binomial_and_its_images_are_drawn_whole():
    correct = np.arange(2_000) < 1_900
    low, high = comparison.bootstrap_interval(correct.astype(float))
    half = norm.ppf(0.975) * (0.95 * 0.05 / 2_000) ** 0.5
    assert (low, high) == pytest.approx((0.95 - half, 0.95 + half), abs=0.0006)
    # Five seeds that agree on each image hold no more than one of them
    assert comparison.bootstrap_interval(np.stack([correct] * 5).mean(0)) == (low, high)
    assert comparison.bootstrap_interval(np.zeros(5)) == (0.0, 0.0)


def test_a_difference_is_paired_over_images_and_over_seeds():
    generator = np.random.default_rng(1)
    first = [generator.random(3_000) < 0.97 for _ in range(4)]
    second = [generator.random(3_000) < 0.94 for _ in range(4)]
    found = comparison.difference(variant(*first), variant(*second))
    means = [[np.mean(correct) for correct in part] for part in (first, second)]
    expected = ttest_rel(*means).confidence_interval(0.95)
    assert (found.seeds.low, found.seeds.high) == pytest.approx((expected.low, expected.high))
    for p, a, b in zip(found.p_values, first, second, strict=True):
        only = int((a & ~b).sum()), int((~a & b).sum())
        assert p == pytest.approx(binomtest(only[0], sum(only)).pvalue)
    assert found.images_low < np.mean(means[0]) - np.mean(means[1]) < found.images_high
    same = comparison.difference(variant(*first), variant(*first))
    assert same.seeds.mean == same.images_low == same.images_high == 0
    assert set(same.p_values) == {1.0}
    # Only the seeds of both count
    fewer = comparison.difference(variant(*first[:3]), variant(*second[:3]))
    assert comparison.difference(variant(*first), variant(*second[:3])) == fewer
    assert comparison.difference(variant(*first[:3]), variant(*second)) == fewer


def test_the_temperature_undoes_a_known_one():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 10)) * 2
    truth = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (truth.cumsum(1) < generator.random((20_000, 1))).sum(1).astype(np.uint8)
    sure = cell.scaled(truth, 1 / 3)  # three times too sure
    temperature = cell.fitted_temperature(sure, labels)
    assert temperature == pytest.approx(3, rel=0.03)
    calibrated = cell.scaled(sure, temperature)
    assert cell.calibration_error(sure, labels) > 0.1
    assert cell.calibration_error(calibrated, labels) < 0.01
    assert (calibrated.argmax(1) == sure.argmax(1)).all()
    expected = log_loss(labels, calibrated, labels=range(10))
    assert cell.negative_log_likelihood(calibrated, labels) == pytest.approx(expected)


def test_an_image_counts_as_missed_if_every_seed_of_both_models_misses_it():
    first, second, third = np.ones(5, bool), np.ones(5, bool), np.ones(5, bool)
    first[[1, 2, 4]] = second[[2, 4]] = third[[2, 3]] = False
    found = comparison.missed(
        {"lenet5": variant(first, second), "mlp": variant(third, model="mlp")}
    )
    assert [(entry["index"], entry["label"], entry["lenet5"]) for entry in found] == [(2, 2, 3)]


def test_the_loss_floor_is_the_cost_of_a_certain_and_right_answer():
    certain = np.exp(np.eye(10)[:1])
    floor = log_loss([0], certain / certain.sum(), labels=range(10))
    assert floor == pytest.approx(report.LOSS_FLOOR)


def test_the_committed_study_was_made_by_this_code_with_these_settings(clone):
    """A clone has every cell; of all that the study reads it lacks the prepared images only."""
    status = json.loads(study_of(clone).run("dvc", "status", "--json").stdout)
    changed = {
        (stage, path, state)
        for stage, changes in status.items()
        for change in changes
        for states in (change.values() if isinstance(change, dict) else [{"": change}])
        for path, state in states.items()
    }
    wrong = [
        (stage, path, state)
        for stage, path, state in changed
        if not path.endswith("data/prepared") or state != "deleted"
    ]
    assert not wrong, f"{wrong}: run `make study`, and commit its results"
    study = YAML(typ="safe").load(clone.path / settings.PATH)
    cells = 2 * len(study["recipes"]) * (len(study["seeds"]) + 1)
    cells += 2 * len(study["ablations"]) * len(study["ablation_seeds"])
    stages = YAML(typ="safe").load(clone.path / "study/dvc.yaml")["stages"]
    trials = len(stages["rung"]["foreach"]) + len(stages["longer"]["foreach"])
    assert len(status) == cells + trials + 1  # the report


def test_the_report_comes_out_of_the_committed_cells_bit_for_bit(clone, monkeypatch):
    committed = md5(clone.path / "study/report")
    shutil.rmtree(clone.path / "study/report")
    monkeypatch.chdir(clone.path)
    monkeypatch.setenv("MIRROR", "off")
    drawn, save = [], figures.save
    monkeypatch.setattr(figures, "save", lambda *given: drawn.append(given[0]) or save(*given))
    prepare.main()
    report.main()
    lock = YAML(typ="safe").load(clone.path / "dvc.lock")["stages"]["prepare"]
    assert [out["md5"] for out in lock["outs"]] == [md5(clone.path / files.DATA_PREPARED)]
    assert md5(clone.path / "study/report") == committed
    assert len(drawn) == 2
    for figure in drawn:
        assert_readable(figure)


def test_the_study_has_the_pipelines_own_models():
    with (ROOT / "study/report/cells.csv").open(encoding="utf-8", newline="") as file:
        cells = {(row["recipe"], row["model"], row["seed"]): row for row in csv.DictReader(file)}
    pipeline = YAML(typ="safe").load(ROOT / "params.yaml")
    metrics = json.loads((ROOT / files.METRICS).read_text(encoding="utf-8"))
    for model in ("lenet5", "mlp"):
        cell = cells[pipeline["recipe"], model, str(pipeline["seed"])]
        trained = json.loads((ROOT / files.training_path(model)).read_text(encoding="utf-8"))
        *_, (_, last) = files.read_fingerprints(trained["weights"]).items()
        assert cell["weights_sha256"] == last
        assert float(cell["test_accuracy"]) == metrics[model]["accuracy"]


def study_of(clone: Clone) -> Clone:
    """The DVC project of the study, in which its `dvc` commands run."""
    return Clone(clone.path / settings.FOLDER)
