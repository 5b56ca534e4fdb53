"""The README's numbers and commands are the repository's."""

import json
import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, missing
from stages import files
from stages.params import MODEL_NAMES

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_are_the_committed_ones():
    shown, reported = {}, {}
    for name in ("reports/comparison", "reports/benchmarks", "study/report/study"):
        report = f"{name}.md"
        shown[name] = README.split(f"<!-- {report} -->\n")[1].split("<!-- end -->")[0]
        reported[name] = (ROOT / report).read_text(encoding="utf-8")
    assert shown["reports/comparison"] == reported["reports/comparison"]
    assert shown["reports/benchmarks"].startswith("| an epoch of training")
    assert shown["study/report/study"].startswith("| model | recipe | test accuracy")
    for name in ("reports/benchmarks", "study/report/study"):
        assert shown[name] + "\n" in reported[name]  # the whole table: a blank line ends it


def test_every_figure_of_the_study_in_the_text_is_one_of_its_report():
    text = README.split("\n## The study\n")[1].split("\n## ")[0]
    report = (ROOT / "study/report/study.md").read_text(encoding="utf-8")
    figures = re.findall(r"\d+\.\d{2,}", text)
    assert len(figures) > 30
    reported = set(re.findall(r"\d+\.\d{2,}", report))
    assert [figure for figure in figures if figure not in reported] == []
    gains = re.findall(r"^\| [\w-]+, record minus record_\w+ \| \+([\d.]+) ", report, re.M)
    losses = re.findall(r"^\| [^|]+ \| -([\d.]+) \| -([\d.]+) \|$", text, re.M)
    assert [loss for model in zip(*losses, strict=True) for loss in model] == gains


def test_the_metrics_diff_is_what_dvc_says_of_the_history():
    example = re.search(r"    \$ dvc metrics diff '(.*)' '(.*)'\n((?:    .*\n)+)", README)
    assert example
    before, after, shown = example.groups()
    known = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", before], cwd=ROOT, capture_output=True
    )
    if known.returncode:
        missing("this clone is shallow: it lacks the commit that the README compares with")
    command = [str(Path(sys.executable).parent / "dvc"), "metrics", "diff", before, after]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    expected = [line.strip() for line in shown.splitlines()]
    assert [line.strip() for line in said.splitlines()] == expected


def test_every_path_and_make_target_in_it_exists():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for target in re.findall(r"make ([a-z]+)", README):
        assert target in targets
    for picture in re.findall(r"!\[.*\]\((.*)\)", README):
        assert (ROOT / picture).is_file()
    for row in re.findall(r"^\| (`[^|]*)\|", README, re.M):
        for name in re.findall(r"`(.*?)`", row):
            found = [*ROOT.glob(name), *(ROOT / "stages").glob(name)]
            assert found or f"- {name.rstrip('*')}" in (ROOT / "dvc.yaml").read_text("utf-8"), name


def test_the_published_fingerprints_are_the_committed_ones():
    shown = re.findall(
        r"^    (lenet5|mlp) +(initial|trained|outputs) +([0-9a-f]{64})$", README, re.M
    )
    metrics = json.loads((ROOT / files.METRICS).read_text("utf-8"))
    outputs = files.read_fingerprints(metrics["outputs"])
    expected = []
    for model in MODEL_NAMES:
        training = json.loads((ROOT / files.training_path(model)).read_text("utf-8"))
        initial, *_, trained = files.read_fingerprints(training["weights"]).values()
        expected += [(model, "initial", initial), (model, "trained", trained)]
        expected += [(model, "outputs", outputs[model])]
    assert shown == expected
