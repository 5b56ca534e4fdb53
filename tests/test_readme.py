"""The numbers and commands of README.md and docs are the repository's."""

import csv
import json
import math
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import dvc_mlflow
from conftest import ROOT, missing
from dvc_mlflow import process, store
from stages import limits, scoring, serve
from stages.base import files, params, strict
from stages.base.params import MODEL_NAMES, TITLES
from stages.base.splits import SIDE
from stages.learn import training
from stages.mnist import idx
from stages.networks import models
from study import comparison, design

README = (ROOT / "README.md").read_text(encoding="utf-8")
# The pages whose every number is compared here
TEXTS = {"README": README} | {
    name: (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
    for name in ("pipeline", "speed", "study", "mirror")
}
TEXTS["mirror"] = TEXTS["mirror"].split("\n## In this repository\n")[1].split("\n## ")[0]


def test_the_tables_are_the_committed_ones():
    for page, report, begin in (
        ("speed", "reports/benchmarks.md", "| an epoch of training"),
        ("study", "study/report/study.md", "| model"),
    ):
        shown = TEXTS[page].split(f"<!-- {report} -->\n")[1].split("<!-- end -->")[0]
        assert shown.startswith(begin)
        # The whole table: a blank line ends it
        assert shown + "\n" in (ROOT / report).read_text(encoding="utf-8")


def test_make_repro_ends_with_the_lines_of_the_example():
    shown = README.split("<!-- make repro -->\n")[1].split("<!-- end -->")[0]
    *table, dots, last = [line[4:] for line in shown.splitlines()]
    compared = (ROOT / files.COMPARISON).with_suffix(".md").read_text(encoding="utf-8")
    assert table == compared.splitlines()[: len(table)]
    assert dots == "..."
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f'echo "{last}"\n\nstudy:' in makefile


# --- the figures of the text ---


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


def the_csv(path: str) -> list[dict[str, str]]:
    with (ROOT / path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


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


def outside_of_one_more_run() -> str:
    verdict = REPRODUCED["LeNet-5", "accuracy %"][4]
    return verdict.removeprefix("no, ").removesuffix(" outside")


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


def behind_with_teachers() -> str:
    """The points that the MLP's best with teachers is behind on the validation images in rung 3."""
    rows = the_csv("study/search/mlp-3.csv")
    with_some, without = (
        max(float(row["accuracy"]) for row in rows if (row["teachers"] != "0") == some)
        for some in (True, False)
    )
    return f"{100 * (without - with_some):.2f}"


def incumbent_and_others() -> list[str]:
    """In the last rungs: the validation accuracies of `record`, and those of the best others."""
    found = []
    for others in False, True:
        for model in MODEL_NAMES:
            rows = the_csv(f"study/search/{model}-{len(SEARCH.rungs(model))}.csv")
            by_hand = str(SEARCH.rungs(model)[0].trials)
            assert rows[0]["trial"] == by_hand, "`record` is not the best"
            accuracies = [float(row["accuracy"]) for row in rows[others:]]
            found.append(f"{100 * max(accuracies):.2f}")
    return found


def study() -> Claims:
    return [
        ("They are {} % / {} and {} % / {}.", published()),
        (
            "All but LeNet-5's accuracy lie in the interval of our mean. That one is {} points "
            "below it, and {} below the interval of one more run of ours ({} to {} % / {} to {}, "
            "and {} to {} % / {} to {}).",
            [*below_the_mean(), outside_of_one_more_run(), *one_more_run()],
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
            "`fast` takes {} epochs, SGD, distorted images and the moving average of the weights: "
            "{} % and {} %.",
            [
                setting("fast", "lenet5", "epochs"),
                *(accuracy(title, "fast") for title in ("LeNet-5", "MLP")),
            ],
        ),
        (
            "on {} validation images, never on the test images.",
            [f"{SEARCH.validation_size:,}"],
        ),
        # How it was found, before this history
        ("before this search, among 15 configurations of LeNet-5 and 4 of the MLP", []),
        (
            "it has {} % and {} % of the validation images, the best of the others {} % and {} %.",
            incumbent_and_others(),
        ),
        (
            "teachers that were trained for {} epochs help more than those of {}.",
            [str(number) for number in reversed(SEARCH.space.teacher_epochs)],
        ),
        (
            "with one, it is {} points behind on the validation images in the third rung.",
            [behind_with_teachers()],
        ),
        (
            "describes it: {} configurations of LeNet-5 and {} of the MLP over",
            [str(SEARCH.rungs(model)[0].trials) for model in MODEL_NAMES],
        ),
        (
            "They are trained on {} images and scored on the other {}.",
            [
                f"{number:,}"
                for number in (
                    params.TRAIN_SIZE - SEARCH.validation_size,
                    SEARCH.validation_size,
                )
            ],
        ),
        *(
            (f"again for longer, in {WORDS[number]} rungs (successive halving)", [])
            for number in {len(SEARCH.lenet5), len(SEARCH.mlp)}
        ),
        (
            "The train curves are means over each epoch's own steps, with dropout on, as it "
            "trained. They are not a second pass over the {} images.",
            [f"{params.TRAIN_SIZE:,}"],
        ),
        ("The default recipes use all {} images for training", [f"{params.TRAIN_SIZE:,}"]),
        (
            f"Mean ± standard deviation over {SEEDS} seeds, Student's {{}} % interval of the mean",
            [f"{100 * scoring.CONFIDENCE:.0f}"],
        ),
        (
            f"the {WORDS[len(comparison.NO_MAJORITY)]} test images whose label no majority of "
            "five annotators confirms",
            [],
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
        assert len(found) == 1, f"the text says {len(found)} times: {sentence}"
        match = re.search(pattern, text)
        assert list(match.groups()) == expected, sentence
        text = text.replace(match[0], "")
    return text


def without_code(text: str) -> str:
    return re.sub(r"`[^`]*`|<!-- .* -->|\]\([^)]*\)", "", text)


def prose(text: str) -> str:
    """A page without code blocks, HTML and shown reports, and with one space for any space."""
    text = re.sub(r"<!-- .*?<!-- end -->|```.*?```", "", text, flags=re.S)
    lines = (line for line in text.splitlines() if line[:4] != "    ")
    return " ".join(re.sub(r"<[^>]*>", "", " ".join(lines)).split())


WORDS = {4: "four", 5: "five", 10: "ten", 15: "fifteen"}
SEARCH = strict.check(design.Search, design.PATH, strict.read(ROOT / design.PATH))
SEEDS = WORDS[len(STUDY["seeds"])]


def spreads(recipe: str) -> list[str]:
    return [part for model in TITLES.values() for part in RESULTS[model, recipe][0].split(" ± ")]


def readme() -> Claims:
    sizes = [sum(models.PARAMETERS[model].values()) for model in MODEL_NAMES]
    images = f"{idx.TEST_LABELS.shape[0]:,}"
    published = [f"{100 * accuracy:.2f}" for _, accuracy in scoring.PUBLISHED.values()]
    ours = [accuracy(model, "published") for model in TITLES.values()]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    spread = " | ".join(["{} ± {}"] * 2)
    return [
        (
            "LeNet-5 ({} parameters) and a {}-unit MLP ({} parameters) on MNIST, compares them on "
            "the {} test images",
            [f"{sizes[0]:,}", units(), f"{sizes[1]:,}", images],
        ),
        ("LeNet-5 lost to the MLP, {} % to {} %.", published),
        (f"Here it loses in the same way, {{}} % to {{}} % over {SEEDS} seeds,", ours),
        (
            "Without that one call it has {} % and wins.",
            [accuracy("LeNet-5", "published_without_softmax")],
        ),
        ("You need Python {} or newer", [project["requires-python"].removeprefix(">=")]),
        (
            f"Accuracy on the {{}} test images in %, mean ± standard deviation over {SEEDS} seeds",
            [images],
        ),
        ("| the published experiment, one run | {} | {} |", published),
        (f"| `published`: its code | {spread} |", spreads("published")),
        (
            f"| `published_without_softmax`: its code without the second softmax | {spread} |",
            spreads("published_without_softmax"),
        ),
        (
            f"| `documented`: its description, with dropout of {{}} | {spread} |",
            [setting("documented", "mlp", "dropout"), *spreads("documented")],
        ),
        (
            f"| `fast`: {{}} epochs with distorted images | {spread} |",
            [setting("fast", "lenet5", "epochs"), *spreads("fast")],
        ),
        (
            f"| `record`: {{}} and {{}} epochs with distorted images | {spread} |",
            [*(setting("record", model, "epochs") for model in MODEL_NAMES), *spreads("record")],
        ),
    ]


def pipeline() -> Claims:
    # PyTorch's own
    return [("Its build for the CPU is about 200 MB and computes the same bits:", [])]


def mirror() -> Claims:
    return [
        ("costs one warning and at most {} s;", [f"{dvc_mlflow.PATIENCE:.0f}"]),
        (
            "longer than {} s for a request, `MLFLOW_HTTP_REQUEST_TIMEOUT={}` gives it {} s,",
            [store.SETTINGS["MLFLOW_HTTP_REQUEST_TIMEOUT"], "60", "60"],
        ),
        (
            "serves all stages of a pipeline, and ends {} s after the last.",
            [f"{process.LINGER:.0f}"],
        ),
        ("takes uint8 images (N, {}, {}).", [str(SIDE)] * 2),
        # MLflow's own
        ("answers 500 to a request without a content type.", []),
        (
            "at most {} MiB of UTF-8, waits {} s for a whole request, and holds {} connections.",
            [f"{serve.LARGEST_BODY / 2**20:g}", f"{limits.PATIENCE:g}", str(limits.CONNECTIONS)],
        ),
        # The server's own names
        ("localhost, 127.0.0.1 and [::1],", []),
        # The label of the first test image is tested with the data
        ("The first test image, a 7:", []),
    ]


CLAIMS = {
    "README": readme,
    "pipeline": pipeline,
    "speed": speed,
    "study": study,
    "mirror": mirror,
}


@pytest.mark.parametrize("name", CLAIMS)
def test_every_number_of_a_text_is_that_of_its_report_setting_or_constant(name):
    left = without_code(without_claims(prose(TEXTS[name]), CLAIMS[name]()))
    assert NUMBER.findall(left) == []


def test_the_readme_fits_into_150_lines():
    assert len(README.splitlines()) <= 150


def test_the_address_in_the_example_is_that_of_the_server():
    assert re.findall(r"localhost:(\d+)", README) == [str(serve.PORT)]


def test_what_the_study_concludes_follows_from_its_tables():
    """The words of the same sentences, whose numbers are compared above."""
    verdicts = {quantity: REPRODUCED[quantity][4] for quantity in QUANTITIES}
    assert verdicts.pop(("LeNet-5", "accuracy %")).startswith("no, ")
    assert set(verdicts.values()) == {"yes"}
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


def test_what_is_said_of_the_search_follows_from_its_tables():
    rows = the_csv("study/findings/settings.csv")  # the largest share of each rung first
    for model in MODEL_NAMES:
        first = [row for row in rows if (row["model"], row["rung"]) == (model, "1")]
        rates = {"learning_rate of adamw", "learning_rate of sgd"}
        assert {row["setting"] for row in first[:3]} == {*rates, "batch_size"}
        [share] = [float(row["share"]) for row in first if row["setting"] == "distortion"]
        assert share < 0.01
    second = next(row for row in rows if (row["model"], row["rung"]) == ("lenet5", "2"))
    assert (second["setting"], second["best"]) == ("teacher_epochs", "15")


def test_the_metrics_diff_is_what_dvc_says_of_the_history():
    example = re.search(r"    \$ dvc metrics diff (\w+) (\w+)\n((?:    .*\n)+)", README)
    assert example
    before, after, shown = example.groups()
    known = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{before}^{{commit}}"],
        cwd=ROOT,
        capture_output=True,
    )
    if known.returncode:
        missing("this clone is shallow: it lacks the commit that the README compares with")
    command = [str(Path(sys.executable).parent / "dvc"), "metrics", "diff", before, after]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    expected = [line.strip() for line in shown.splitlines()]
    assert [line.strip() for line in said.splitlines()] == expected
    assert len(expected) == 1 + 3


def test_the_experiments_show_both_accuracies_in_120_columns():
    [command] = re.findall(r"^    (dvc exp show .*)$", README, re.M)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "COLUMNS": "120", "DVC_PAGER": "cat"}
    said = subprocess.run(
        command, shell=True, cwd=ROOT, env=env, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    columns = next(line.split() for line in said if "Experiment" in line)
    scores = [f"{model}.{score}" for model in MODEL_NAMES for score in ("accuracy", "loss")]
    assert columns == ["Experiment", *scores, "recipe"]
    assert max(map(len, said)) <= 120


DOCUMENTS = sorted([ROOT / "README.md", ROOT / "dvc_mlflow/README.md", *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_and_make_target_of_a_text_exists(path):
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert {*re.findall(r"`make ([a-z]+)|^    make ([a-z]+)", text, re.M)} <= {
        pair for target in targets for pair in ((target, ""), ("", target))
    }
    for link in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", text):
        [link] = filter(None, link)
        assert link.startswith("https://") or (path.parent / link).exists(), link


def test_the_tree_of_the_pipeline_is_that_of_the_folder():
    tree = TEXTS["pipeline"].split("\n## Where things are\n")[1].splitlines()
    folder, named = ROOT, set()
    for line in (line for line in tree if re.match(r"    +[\w/.]+(, | {2})", line)):
        indent, names = re.match(r"( +)([^\s,]+(?:, [^\s,]+)*)", line).groups()
        folder = folder if len(indent) > 4 else ROOT
        for name in names.split(", "):
            assert (folder / name).exists() or name in ("data", "models"), name
            named.add(name.rstrip("/"))
        folder = ROOT / names if len(indent) == 4 and names.endswith("/") else folder
    assert named >= {"prepare.py", "params.yaml", "networks", "study", "dvc_mlflow"}


def test_the_published_fingerprints_are_the_committed_ones():
    shown = re.findall(
        r"^    (lenet5|mlp) +(initial|trained|outputs) +([0-9a-f]{64})$",
        (ROOT / "docs/exact.md").read_text(encoding="utf-8"),
        re.M,
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
