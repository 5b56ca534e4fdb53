"""The README's numbers and commands are the repository's."""

import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import dvc_mlflow
from conftest import ROOT, missing
from dvc_mlflow import process
from stages import scoring, serve
from stages.base import files, params
from stages.base.params import MODEL_NAMES
from stages.base.splits import SIDE
from stages.learn import training
from stages.mnist import idx
from stages.networks import models
from study import comparison

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


# --- the figures of the text ---


def section(title: str) -> str:
    """Its text, with one space wherever there is space."""
    return " ".join(README.split(f"\n## {title}\n")[1].split("\n## ")[0].split())


def tables(path: str) -> list[list[list[str]]]:
    """The cells of each Markdown table of a report, the header's first."""
    found = []
    for block in (ROOT / path).read_text(encoding="utf-8").split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if len(lines) > 2:
            rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
            found.append([rows[0], *rows[2:]])
    return found


def the_table(path: str, *header: str) -> list[list[str]]:
    """The rows of all tables whose header begins like this."""
    chosen = [rows for first, *rows in tables(path) if first[: len(header)] == list(header)]
    assert chosen, f"{path} has no table {header}"
    return [row for rows in chosen for row in rows]


def bounds(interval: str) -> tuple[str, str]:
    low, high = interval.split(" to ")
    return low, high


def negated(points: str) -> str:
    return f"{-float(points):+.2f}".replace("+0.00", "0.00")


SETTINGS, RECIPES, STUDY = (
    YAML(typ="safe").load((ROOT / name).read_text(encoding="utf-8"))
    for name in ("params.yaml", "recipes.yaml", "study/params.yaml")
)
REPORT = "study/report/study.md"
# By model and recipe: accuracy with its standard deviation, interval, loss, interval, ...
RESULTS = {
    (model, recipe): cells
    for model, recipe, *cells in the_table(REPORT, "model", "recipe", "test accuracy %")
}
# By model and quantity: published, ours, interval of the mean, of one more run
REPRODUCED = {
    (model, quantity): cells
    for model, quantity, *cells in the_table(REPORT, "model", "on the test images")
}
# By their names: points, interval over seeds, ...
DIFFERENCES = {name: cells for name, *cells in the_table(REPORT, "difference", "points")}
QUANTITIES = [(model, kind) for model in ("LeNet-5", "MLP") for kind in ("accuracy %", "loss")]
WITHOUT = {
    "distorted images": "record_without_distortions",
    "its length: {} epochs instead of {} and {}": "record_in_20_epochs",
    "the cycle of the learning rate": "record_without_schedule",
    "AdamW and its weight decay: SGD at {}": "record_without_adamw",
    "weight decay": "record_without_decay",
}


def accuracy(model: str, recipe: str) -> str:
    return RESULTS[model, recipe][0].split(" ± ")[0]


def setting(recipe: str, model: str, name: str) -> str:
    return str(RECIPES[recipe][model][name])


def loss_of(model: str, recipe: str) -> str:
    """The points that LeNet-5 or the MLP loses with a lessened recipe, as the report has them."""
    return negated(DIFFERENCES[f"{model}, record minus {recipe}"][0])


def loss_interval(model: str, recipe: str) -> tuple[str, str]:
    low, high = bounds(DIFFERENCES[f"{model}, record minus {recipe}"][1])
    return negated(high), negated(low)


def published() -> list[str]:
    shown = [REPRODUCED[quantity][0] for quantity in QUANTITIES]
    return [shown[0].removesuffix("0"), shown[1], shown[2], shown[3]]


def one_more_run() -> list[str]:
    return [bound for quantity in QUANTITIES for bound in bounds(REPRODUCED[quantity][3])]


def units() -> str:
    """Of the MLP: each has a weight for every pixel, and a bias."""
    return str(models.PARAMETERS["mlp"]["fc1"] // (32 * 32 + 1))


def below_the_mean() -> list[str]:
    there, _, interval, *_ = REPRODUCED["LeNet-5", "accuracy %"]
    return [f"{float(bounds(interval)[0]) - float(there):.1f}"]


# A sentence, and where the numbers in its gaps come from, in their order. A gap takes a number and
# nothing else, so a figure that belongs to another row is seen, and so is a sentence that changed.
Claims = list[tuple[str, list[str]]]


def lessened() -> Claims:
    numbers = {
        "record_in_20_epochs": [
            setting("record_in_20_epochs", "mlp", "epochs"),
            setting("record", "lenet5", "epochs"),
            setting("record", "mlp", "epochs"),
        ],
        "record_without_adamw": [setting("record_without_adamw", "mlp", "learning_rate")],
    }
    return [
        (
            f"| {words} | {{}} | {{}} |",
            [*numbers.get(name, []), loss_of("LeNet-5", name), loss_of("MLP", name)],
        )
        for words, name in WITHOUT.items()
    ]


def study() -> Claims:
    return [
        (
            "All four published figures, {} % / {} and {} % / {}, lie in the interval of one more "
            "run of ours ({} to {} % / {} to {}, and {} to {} % / {} to {}).",
            published() + one_more_run(),
        ),
        (
            "Three also lie in the interval of our mean; LeNet-5's accuracy is {} points below it.",
            below_the_mean(),
        ),
        ("is then still ln(e + 9) - 1 = {} instead of 0", [f"{math.log(math.e + 9) - 1:.4f}"]),
        (
            "Without that one call it reaches {} % and is ahead.",
            [accuracy("LeNet-5", "published_without_softmax")],
        ),
        (
            "The description's dropout of {} was never applied in the code; applied to a {}-unit "
            "MLP it costs {} points.",
            [
                setting("documented", "mlp", "dropout"),
                units(),
                negated(DIFFERENCES["MLP, documented minus published_without_softmax"][0])[1:],
            ],
        ),
        # The published experiment's own mistake
        (
            "The published total of 61,506 parameters for LeNet-5 is an adding mistake: its own "
            "terms sum to {}.",
            [f"{sum(models.PARAMETERS['lenet5'].values()):,}"],
        ),
        (
            "and takes {} epochs for LeNet-5 and {} for the MLP: {} % and {} %.",
            [
                *(setting("record", model, "epochs") for model in MODEL_NAMES),
                *(accuracy(title, "record") for title in ("LeNet-5", "MLP")),
            ],
        ),
        (
            "`fast` takes {} epochs of the same kind: {} % and {} %.",
            [
                setting("fast", "lenet5", "epochs"),
                *(accuracy(title, "fast") for title in ("LeNet-5", "MLP")),
            ],
        ),
        # How the recipes were found, before this history
        (
            "`record` was chosen on {} validation images, never on the test images, from 15 "
            "configurations of LeNet-5 and 4 of the MLP with one seed each, by accuracy and, where "
            "that tied, by negative log likelihood; `fast` from 10 more in the same way.",
            [f"{STUDY['validation_size']:,}"],
        ),
        ("| without | LeNet-5 | MLP |", []),
        *lessened(),
        (
            "Their 95 % intervals over seeds leave out 0, but for LeNet-5's length ({} to {}) and "
            "the MLP's weight decay ({} to {}).",
            [
                *loss_interval("LeNet-5", "record_in_20_epochs"),
                *loss_interval("MLP", "record_without_decay"),
            ],
        ),
    ]


def speed() -> Claims:
    report = "reports/benchmarks.md"
    text = (ROOT / report).read_text(encoding="utf-8")
    times = re.findall(r"LeNet-5's epoch takes ([\d.]+) times its [\d.]+ GFLOP", text)
    shares = the_table(report, "operation", "share")
    products = sum(float(share[:-1]) for name, share in shares if "mm`" in name)
    scale = {name: cells for name, *cells in the_table(report, "training images")}
    largest = [scale[f"{model}, 6,000,000"] for model in ("LeNet-5", "MLP")]
    [as_long] = {ratio for _, ratio, _ in largest}
    memory = max(int(peak) for *_, peak in largest) / 1000
    chunks = [training.WHOLE, training.CHUNK, training.POOL // training.CHUNK]
    return [
        (
            "its epoch takes {} times that. Matrix products are {} % of it.",
            [*times, f"{products:.0f}"],
        ),
        (
            "on 6,000,000 images an image takes {} times as long as on 60,000, for either model, "
            "in {} GB.",
            [as_long, f"{memory:.2f}"],
        ),
        (
            "More than {} images are shuffled in chunks of {} neighbours and pools of {} chunks",
            [f"{number:,}" for number in chunks],
        ),
    ]


GAP = r"([+-]?\d[\d,]*(?:\.\d+)?)"
NUMBER = re.compile(r"(?<![\w.-])[+-]?\d[\d,]*(?:\.\d+)?")


def without_claims(text: str, claims: Claims) -> str:
    """A text without these sentences, after a comparison of each number in them."""
    for sentence, expected in claims:
        pattern = re.escape(sentence).replace(r"\{\}", GAP)
        found = re.findall(f"(?={pattern})", text)
        assert len(found) == 1, f"README says {len(found)} times: {sentence}"
        match = re.search(pattern, text)
        assert list(match.groups()) == expected, sentence
        text = text.replace(match[0], "")
    return text


def without_code(text: str) -> str:
    return re.sub(r"`[^`]*`|<!-- .* -->|\]\([^)]*\)", "", text)


def test_every_number_of_the_studys_text_is_the_one_of_its_row_and_column():
    assert NUMBER.findall(without_code(without_claims(section("The study"), study()))) == []


def test_every_number_of_the_text_on_speed_is_the_one_of_its_benchmark():
    assert NUMBER.findall(without_code(without_claims(section("How fast"), speed()))) == []


def test_the_text_on_the_same_bits_has_no_number_that_nothing_checks():
    text = section("The same bits everywhere")
    text = re.sub(r"(lenet5|mlp) (initial|trained|outputs) [0-9a-f]{64}", "", text)
    images = f"{idx.TEST_LABELS.shape[0]:,}"
    claims: Claims = [
        ("of the outputs on the {} test images:", [images]),
    ]
    prose = without_claims(text, claims)
    assert NUMBER.findall(without_code(prose)) == []


def prose(title: str) -> str:
    """A section, or what comes before the first, without code blocks and shown reports."""
    text = README.split(f"\n## {title}\n")[1] if title else README
    text = re.sub(r"<!-- .*?<!-- end -->", "", text.split("\n## ")[0], flags=re.S)
    return " ".join(" ".join(line for line in text.splitlines() if line[:4] != "    ").split())


WORDS = {5: "five", 15: "fifteen"}


def begins() -> Claims:
    sizes = [sum(models.PARAMETERS[model].values()) for model in MODEL_NAMES]
    images = idx.TEST_LABELS.shape[0]
    return [
        (
            "LeNet-5 ({} parameters) and a {}-unit MLP ({} parameters) on MNIST, compares them on "
            "the {} test images",
            [f"{sizes[0]:,}", units(), f"{sizes[1]:,}", f"{images:,}"],
        ),
        (
            f"Mean ± standard deviation over {WORDS[len(STUDY['seeds'])]} seeds, "
            "Student's {} % interval of the mean",
            [f"{100 * scoring.CONFIDENCE:.0f}"],
        ),
        (
            f"the {WORDS[len(comparison.NO_MAJORITY)]} test images whose label no majority of "
            "five annotators confirms",
            [],
        ),
    ]


def run_it() -> Claims:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    epochs = {setting(SETTINGS["recipe"], model, "epochs") for model in MODEL_NAMES}
    return [
        ("You need Python {} or newer", [project["requires-python"].removeprefix(">=")]),
        ("Loss and accuracy of both models over {} epochs, on the training", [*epochs]),
        # PyTorch's own
        ("Its build for the CPU is about 200 MB and computes the same bits:", []),
    ]


def mirrored() -> Claims:
    return [
        ("costs one warning and at most {} s;", [f"{dvc_mlflow.PATIENCE:.0f}"]),
        (
            "serves all stages of a pipeline, and ends {} s after the last.",
            [f"{process.LINGER:.0f}"],
        ),
        ("takes uint8 images (N, {}, {}).", [str(SIDE)] * 2),
        # Seen with benchmarks/mirror.py, which writes no report
        ("The mirror makes `dvc repro --force` 1.07 times as long (`benchmarks/mirror.py`)", []),
        # MLflow's own
        ("answers 500 to a request without a content type.", []),
    ]


def limits() -> Claims:
    return [
        ("They are not a second pass over the {} images.", [f"{params.TRAIN_SIZE:,}"]),
        ("The default recipes use all {} images for training", [f"{params.TRAIN_SIZE:,}"]),
        ("the operations used are those that IEEE 754 fixes.", []),
    ]


OTHER_SECTIONS = {
    "": begins,
    "Run it": run_it,
    "Change something and see the difference": list,
    "When something breaks": list,
    "Every result has its run, every run its commit": mirrored,
    "How it works": list,
    "Limits": limits,
}


def test_every_section_is_one_whose_numbers_are_compared():
    compared = {"The study", "How fast", "The same bits everywhere", *OTHER_SECTIONS} - {""}
    assert set(re.findall(r"^## (.*)$", README, re.M)) == compared


@pytest.mark.parametrize("title", OTHER_SECTIONS)
def test_every_number_of_the_other_sections_is_that_of_its_setting_or_constant(title):
    left = without_code(without_claims(prose(title), OTHER_SECTIONS[title]()))
    assert NUMBER.findall(left) == []


def test_the_address_in_the_example_is_that_of_the_server():
    assert re.findall(r"localhost:(\d+)", README) == [str(serve.PORT)]


def test_what_the_study_concludes_follows_from_its_tables():
    """The words of the same sentences, whose numbers are compared above."""
    assert "All four published figures" in section("The study")
    assert [REPRODUCED[quantity][4] for quantity in QUANTITIES] == ["yes"] * 4
    outside = [
        quantity
        for quantity in QUANTITIES
        for there, _, interval, *_ in [REPRODUCED[quantity]]
        if not float(bounds(interval)[0]) <= float(there) <= float(bounds(interval)[1])
    ]
    assert outside == [("LeNet-5", "accuracy %")]
    for recipe, ahead in (("published", "MLP"), ("published_without_softmax", "LeNet-5")):
        assert max(("LeNet-5", "MLP"), key=lambda model: float(accuracy(model, recipe))) == ahead
    for model, most in (
        ("LeNet-5", "record_without_schedule"),
        ("MLP", "record_without_distortions"),
    ):
        assert min(WITHOUT.values(), key=lambda name: float(loss_of(model, name))) == most
    with_zero = [
        (model, name)
        for model in ("LeNet-5", "MLP")
        for name in WITHOUT.values()
        for low, high in [loss_interval(model, name)]
        if float(low) <= 0 <= float(high)
    ]
    assert with_zero == [("LeNet-5", "record_in_20_epochs"), ("MLP", "record_without_decay")]


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
    tree = README.split("\n## How it works\n")[1].split("\n## ")[0].splitlines()
    folder = ROOT
    for line in (line for line in tree if re.match(r"    +[\w/.]+(, | {2})", line)):
        if "-->" in line:
            continue
        indent, names = re.match(r"( +)([^\s,]+(?:, [^\s,]+)*)", line).groups()
        folder = folder if len(indent) > 4 else ROOT
        for name in names.split(", "):
            assert (folder / name).exists() or name in ("data", "models"), name
        folder = ROOT / names if len(indent) == 4 and names.endswith("/") else folder


def test_the_published_fingerprints_are_the_committed_ones():
    shown = re.findall(
        r"^    (lenet5|mlp) +(initial|trained|outputs) +([0-9a-f]{64})$", README, re.M
    )
    details = json.loads((ROOT / files.EVALUATION).read_text("utf-8"))
    outputs = files.read_fingerprints(details["outputs"])
    expected = []
    for model in MODEL_NAMES:
        training = json.loads((ROOT / files.training_path(model)).read_text("utf-8"))
        initial, *_, trained = files.read_fingerprints(training["weights"]).values()
        expected += [(model, "initial", initial), (model, "trained", trained)]
        expected += [(model, "outputs", outputs[model])]
    assert shown == expected
