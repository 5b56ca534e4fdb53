"""The numbers in README and docs are written from reports, settings and constants.

    .venv/bin/python tests/texts.py            write them
    .venv/bin/python tests/texts.py --check    only say which are stale

A paragraph with numbers ends in a comment, which pages do not show:

    It has 98.57 % and wins.
    <!-- = study("LeNet-5", "published_without_softmax", "test accuracy %")[0] -->

The comment lists where each number comes from, in their order, in Python: `study`, `bench`,
`setting` and the other functions of this file. `as_is` stands for a number that has no source here.
A table between `<!-- PATH -->` and `<!-- end -->` is the one in that report with the same header.
"""

import csv
import functools
import importlib
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from math import e, log  # noqa: F401  (for the pages)
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
# The pages of which each number has a source. The others tell what was measured or tried once.
PAGES = ("README.md", "docs/pipeline.md", "docs/speed.md", "docs/study.md", "docs/mirror.md")
NUMBER = re.compile(r"(?<![\w.-])[+-]?\d+(?:,\d{3})*(?:\.\d+)?")
UNSEEN = re.compile(r"`[^`]*`|\]\([^)]*\)|<[^>]*>")  # numbers in code, links and HTML are names
SOURCES = re.compile(r"<!-- = (.*?) -->", re.S)
MEASURED = "\n## Public repositories"  # in docs/mirror.md, what follows was measured by hand
MODELS = {"lenet5": "LeNet-5", "mlp": "MLP"}
ACCURACY = "test accuracy %"
ONE_MORE_RUN = "95 % interval of one more run"
SCORES = ("accuracy", "loss", "weights", "rank_sum")  # of a trial of the search
as_is = None


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def in_cells(line: str) -> list[str]:
    """The texts of a table's row. Another line has none."""
    return [text.strip() for text in line.strip("|").split("|")] if line[:1] == "|" else []


def cells(path: str, *row_and_column: str) -> list[str]:
    """The numbers in a table's cell: the row's first cells, then the header of the column."""
    *row, column = row_and_column
    header: list[str] = []
    for line in read(path).splitlines():
        texts = in_cells(line)
        if texts[: len(row)] == row and column in header:
            return re.findall(NUMBER, texts[header.index(column)])
        header = header if texts and header else texts
    raise KeyError(f"{path} has no table with {row_and_column}")


study = functools.partial(cells, "study/report/study.md")
bench = functools.partial(cells, "reports/benchmarks.md")


@functools.cache
def settings(path: str) -> Any:
    return YAML(typ="safe").load(read(path))


def setting(*keys: Any, path: str = "recipes.yaml") -> Any:
    """Of `recipes.yaml`: recipe, model, name."""
    value = settings(path)
    for key in keys:
        value = value[key]
    return value


def seeds(of: str = "seeds") -> int:
    return len(setting(of, path="study/params.yaml"))


def search(*keys: Any) -> Any:
    return setting(*keys, path="study/search.yaml")


def constant(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def images(split: str) -> int:
    """In MNIST."""
    return int(constant("stages.mnist.idx", f"{split.upper()}_LABELS").shape[0])


def parameters(model: str) -> str:
    return cells("reports/comparison.md", MODELS[model], "parameters")[0]


def said(path: str, pattern: str) -> list[str]:
    """The groups of a pattern in a report."""
    match = re.search(pattern, read(path))
    assert match, f"{path} says nothing like {pattern}"
    return list(match.groups())


def units() -> int:
    """Of the MLP: each has a weight for every pixel and class, and a bias."""
    return (int(parameters("mlp").replace(",", "")) - 10) // (32 * 32 + 1 + 10)


def published(column: str) -> list[str]:
    """The published experiment's figure of both models."""
    return [study(model, "published experiment", column)[0] for model in MODELS.values()]


def means(recipe: str) -> list[str]:
    return [study(model, recipe, ACCURACY)[0] for model in MODELS.values()]


def spread(recipe: str) -> list[str]:
    """Mean and standard deviation of both models."""
    return [number for model in MODELS.values() for number in study(model, recipe, ACCURACY)]


def epochs(recipe: str) -> list[int]:
    """Of both models."""
    return [setting(recipe, model, "epochs") for model in MODELS]


def gained(model: str) -> list[str]:
    """By `ten_minutes` over `record`: the points, and the ends of their interval."""
    pair = f"{model}, ten_minutes minus record"
    return [*study(pair, "points"), *study(pair, "95 % over seeds")]


def voted(recipe: str) -> Iterator[str]:
    """The accuracy of each model's networks if they vote, in percent. A tie counts as wrong."""
    for model in MODELS:
        cells = [settings(f"study/cells/{recipe}-{model}-{seed}.json") for seed in range(seeds())]
        votes: dict[int, Counter[int]] = {}
        for errors in (cell["errors"] for cell in cells):
            for index, answer in zip(errors["index"], errors["predicted"], strict=True):
                votes.setdefault(index, Counter())[answer] += 1
        wrong = [
            max(of_image.values()) >= seeds() - of_image.total() for of_image in votes.values()
        ]
        yield f"{100 - 100 * sum(wrong) / images('test'):.2f}"


def reproduced() -> Iterator[str]:
    """By model and quantity: the published figure, and both of our intervals."""
    for model in MODELS.values():
        for quantity in ("accuracy %", "loss"):
            for column in ("published", "95 % interval of the mean", ONE_MORE_RUN):
                yield from study(model, quantity, column)


def below_the_mean() -> str:
    """The points from LeNet-5's published accuracy to the interval of our mean."""
    low, _ = study("LeNet-5", "accuracy %", "95 % interval of the mean")
    return f"{float(low) - float(study('LeNet-5', 'accuracy %', 'published')[0]):.2f}"


def confidence() -> str:
    return f"{100 * constant('stages.scoring', 'CONFIDENCE'):.0f}"


def worth(recipe: str, column: str = "points", models: str = "LeNet-5 MLP") -> list[str]:
    """What `record` has more than a recipe that lacks one ingredient, by model."""
    found = [study(f"{model}, record minus {recipe}", column) for model in models.split()]
    return [number.replace("-0.00", "0.00") for numbers in found for number in numbers]


def rows(path: str) -> list[dict[str, str]]:
    """Of a CSV file; those of a rung of the search have the best first."""
    return list(csv.DictReader(read(path).splitlines()))


def last_rung(model: str) -> list[dict[str, str]]:
    """`record`, the configuration that no draw made, is its first row."""
    rungs = search("rungs", model)
    found = rows(f"study/search/{model}-{len(rungs)}.csv")
    assert found[0]["trial"] == str(rungs[0]["trials"]), "`record` is not the best"
    return found


def best(trials: list[dict[str, str]]) -> str:
    """In percent."""
    return f"{100 * max(float(trial['accuracy']) for trial in trials):.2f}"


def longer(model: str, *changed: str) -> list[dict[str, str]]:
    """The longer trainings that differ from `record` in these settings and in length, by length."""
    record, others = last_rung(model)[0], {"trial", "epochs", *SCORES}
    chosen = [
        row
        for row in rows(f"study/search/{model}-longer.csv")
        if {name for name in row if row[name] != record[name]} - others == {*changed}
    ]
    return sorted(chosen, key=lambda row: int(row["epochs"]))


def by_length() -> Iterator[str]:
    """For each length: of each model its epochs, accuracy and loss."""
    for of_models in zip(*(longer(model) for model in MODELS), strict=True):
        for row in of_models:
            yield from (row["epochs"], best([row]), f"{float(row['loss']):.4f}")


def distorted(model: str, strength: float, epochs: int) -> list[str]:
    """Of a longer training with such distortions: their strength, accuracy, loss and epochs."""
    [row] = [
        row
        for row in longer(model, "distortion")
        if float(row["distortion"]) == strength and row["epochs"] == str(epochs)
    ]
    return [row["distortion"], best([row]), f"{float(row['loss']):.4f}", str(epochs)]


def stronger(model: str) -> list[str]:
    """The same of `ten_minutes`."""
    rotation = setting("ten_minutes", model, "augmentation", "rotation")
    strength = rotation / search("distortions", "rotation")
    return distorted(model, strength, setting("ten_minutes", model, "epochs"))


def taught() -> list[str]:
    """Of the MLP's longer trainings with one teacher, and with more: epochs, accuracy."""
    trials = longer("mlp", "teachers", "teacher_epochs", "teacher_weight", "temperature")
    first, more = sorted(trials, key=lambda row: int(row["teachers"]))
    assert first["teachers"] == "1" and first["teacher_epochs"] == more["teacher_epochs"]
    assert first["epochs"] == more["epochs"]
    of_first = [first["teacher_epochs"], best([first]), first["epochs"]]
    return [*of_first, more["teachers"], best([more])]


def behind_with_teachers() -> str:
    """The points that the MLP's best with teachers is behind on the validation images in rung 3."""
    trials = rows("study/search/mlp-3.csv")
    alone = [trial for trial in trials if trial["teachers"] == "0"]
    taught = [trial for trial in trials if trial["teachers"] != "0"]
    return f"{float(best(alone)) - float(best(taught)):.2f}"


def epoch_per_product() -> str:
    [times] = said("reports/benchmarks.md", r"LeNet-5's epoch takes ([\d.]+) times its")
    return times


def largest(column: str) -> str:
    """Of both models on the largest set of images."""
    return max(bench(f"{model}, 6,000,000", column)[0] for model in MODELS.values())


def shuffled(*names: str) -> list[int]:
    return [constant("stages.learn.training", name) for name in names]


def photos(name: str) -> Any:
    return constant("photos", name)


def python() -> str:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    return str(project["requires-python"]).removeprefix(">=")


# --- the pages ---


def numbers(sources: str) -> list[str | None]:
    """What a comment says that the numbers of its paragraph are; None as they stand."""
    values = eval(f"[{sources}]", dict(globals()))  # the text is ours
    return [f"{value:,}" if isinstance(value, int) else value and str(value) for value in values]


def with_numbers(paragraph: str, sources: str) -> str:
    hidden: list[str] = []

    def hide(match: re.Match[str]) -> str:
        hidden.append(match[0])
        return "\0"

    seen = UNSEEN.sub(hide, paragraph)
    standing, wanted = NUMBER.findall(seen), numbers(sources)
    if len(standing) != len(wanted):
        raise ValueError(f"{len(wanted)} sources for the numbers {standing} of:\n{paragraph}")
    values, names = iter(wanted), iter(hidden)
    seen = NUMBER.sub(lambda match: next(values) or match[0], seen)
    return re.sub("\0", lambda _: next(names), seen)


def with_table(match: re.Match[str]) -> str:
    """A table as its report has it today: the first with the same header."""
    path, shown = match.groups()
    header = in_cells(shown.partition("\n")[0])
    tables = [table.splitlines() for table in read(path).split("\n\n")]
    lines = next(lines for lines in tables if lines and in_cells(lines[0]) == header)
    return "\n".join([f"<!-- {path} -->", *lines, "<!-- end -->"])


def with_numbers_of_today(text: str) -> str:
    """A page with the numbers of today."""
    text, *measured = text.split(MEASURED)
    text = re.sub(r"<!-- (\S+\.md) -->\n(.*?)\n<!-- end -->", with_table, text, flags=re.S)
    parts = re.split(r"(<!-- [^=\n]+ -->\n.*?<!-- end -->|```.*?```|\n\n+)", text, flags=re.S)
    for index, part in enumerate(parts[::2]):
        paragraph, *sources = SOURCES.split(part.rstrip("\n"))
        prose = "\n".join(line for line in paragraph.splitlines() if line[:4] != "    ")
        if sources:
            parts[2 * index] = part.replace(paragraph, with_numbers(paragraph, sources[0]), 1)
        elif NUMBER.search(UNSEEN.sub("", prose)):
            raise ValueError(f"the numbers in this paragraph have no sources:\n{paragraph}")
    return MEASURED.join(["".join(parts), *measured])


def main(arguments: list[str]) -> None:
    stale = []
    for path in PAGES:
        text = read(path)
        now = with_numbers_of_today(text)
        if now != text:
            stale.append(path)
            if "--check" not in arguments:
                (ROOT / path).write_text(now, encoding="utf-8")
    if "--check" in arguments and stale:
        sys.exit(f"error: numbers are stale in {', '.join(stale)}: run python tests/texts.py")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(sys.argv[1:])
