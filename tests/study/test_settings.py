"""A mistake in study/params.yaml is one line: the key, its value, the allowed values."""

import io
import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from conftest import ROOT
from dvc_mlflow.errors import InputError
from stages.base import params
from study import settings

GOOD = (ROOT / "study/params.yaml").read_text(encoding="utf-8")
RECIPES = (ROOT / "recipes.yaml").read_text(encoding="utf-8")
ALL_RECIPES = (
    "published, documented, published_without_softmax, fast, record, record_without_distortions, "
    "record_in_20_epochs, record_without_adamw, record_without_schedule, record_without_decay"
)
SEEDS = "seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"  # as in study/params.yaml


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes study/params.yaml and recipes.yaml into an empty folder, where they are read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study").mkdir()

    def both(text=GOOD, recipes=RECIPES):
        (tmp_path / "study/params.yaml").write_text(text, encoding="utf-8")
        (tmp_path / "recipes.yaml").write_text(recipes, encoding="utf-8")

    return both


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("seeds: [0, 1,", "seed: [0, 1,",
         "seeds is missing\nerror: study/params.yaml: seed is not a setting, expected here: "
         "seeds, recipes, ablations, ablation_seeds, differences, validation_size"
         "; did you mean seeds?"),
        ("seeds: [0, 1,", "seeds: [0, 1, 1,", "seeds has 1 more than once"),
        (SEEDS, "seeds: []", "seeds is [], expected at least 1 item"),
        (SEEDS, "seeds: 5", "seeds is 5, expected a valid list"),
        ("seeds: [0, 1,", "seeds: ['0', 1,", "seeds.0 is '0', expected a valid integer"),
        ("recipes: [published,", "recipes: [7,", f"recipes.0 is 7, expected one of: {ALL_RECIPES}"),
        ("recipes: [published,", "recipes: [publish,",
         f"recipes is 'publish', expected one of: {ALL_RECIPES}; did you mean published?"),
        ("recipes: [published,", "recipes: [documented, published,",
         "recipes has documented more than once"),
        ("recipes: [published,", "recipes: []\nmoved: [published,",
         f"recipes is [], expected at least 1 item of: {ALL_RECIPES}\n"
         "error: study/params.yaml: moved is not a setting"),
        ("recipes:", "recipe:",
         f"recipes is missing, expected one of: {ALL_RECIPES}\nerror: study"),
        ("- record_in_20_epochs\n", "- fast\n", "recipes and ablations has fast more than once"),
        ("- record_in_20_epochs\n", "- record_in_no_time\n",
         f"ablations is 'record_in_no_time', expected one of: {ALL_RECIPES}"),
        ("ablations:  ", "ablations: fast\nmoved:  ",
         f"ablations is 'fast', expected a list of: {ALL_RECIPES}\n"
         "error: study/params.yaml: moved is not a setting"),
        ("- [record, doc", "- [record, duc",
         "differences is 'ducumented', expected one of: published, published_without_softmax, "
         "documented, fast, record, record_without_distortions, record_in_20_epochs, "
         "record_without_schedule, record_without_adamw, record_without_decay"
         "; did you mean documented?"),
        ("- [record, documented]", "- [record, [documented]]",
         f"differences.4.1 is ['documented'], expected one of: {ALL_RECIPES}"),
        ("- [record, documented]", "- record",
         f"differences.4 is 'record', expected a list of: {ALL_RECIPES}"),
        ("size: 10000", "size: 1e4", "validation_size is 10000.0, expected a valid integer"),
        ("ablation_seeds: [0,", "ablation_seeds: [0, 0,", "ablation_seeds has 0 more than once"),
        ("ablation_seeds: [0,", "ablation_seeds: [17,",
         "ablation_seeds has 17, expected some of `seeds`, so that an ablation can be compared"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_the_value_and_the_allowed_ones(write, old, new, line):
    assert old in GOOD
    write(GOOD.replace(old, new, 1))
    with pytest.raises(InputError) as failure:
        settings.load()
    message = str(failure.value)
    assert message.startswith("study/params.yaml: ")
    assert line in message
    assert message.count("\n") == line.count("\n")


# The last number that is allowed at each end, and one beyond it
ENDS = {
    "validation_size": [(10, 9), (59_990, 59_991)],
    "seeds.0": [(50, -1), (2**32 - 1, 2**32)],
}


@pytest.mark.parametrize("key", ENDS)
def test_each_number_has_its_ends_and_is_refused_beyond_them(write, key):
    def load_with(value: int) -> None:
        content = YAML(typ="safe").load(GOOD) | {"ablation_seeds": [4]}
        name, *index = key.split(".")
        if index:
            content[name][int(index[0])] = value
        else:
            content[name] = value
        stream = io.StringIO()
        YAML(typ="safe").dump(content, stream)
        write(stream.getvalue())
        settings.load()

    for taken, refused in ENDS[key]:
        load_with(taken)
        with pytest.raises(InputError, match=re.escape(f"{key} is ") + ".*expected "):
            load_with(refused)


def test_a_difference_is_between_two_recipes(write):
    for count, said in ((1, "at least 2 items of: published, "), (3, "have at most 2 items")):
        pair = ", ".join(["record"] * count)
        write(GOOD.replace("- [record, documented]", f"- [{pair}]"))
        with pytest.raises(InputError, match=rf"^study/params\.yaml: differences\.4 is .*{said}"):
            settings.load()


def test_an_ablation_and_a_difference_may_be_left_out_and_a_recipe_may_not(write):
    text = GOOD[: GOOD.index("ablations:")]
    none = "ablations: []\nablation_seeds: [0]\ndifferences: []\n"
    write(f"{text}{none}validation_size: 10\n")
    assert settings.load().every_recipe == settings.load().recipes
    write(text.replace("[published,", "[published] #") + none)
    with pytest.raises(InputError, match=r"^study/params\.yaml: validation_size is missing$"):
        settings.load()


def test_every_recipe_of_the_study_is_one_of_recipes_yaml_and_ablations_come_last(write):
    write()
    study = settings.load()
    content = YAML(typ="safe").load(GOOD)
    assert study.every_recipe == [*content["recipes"], *content["ablations"]]
    assert set(study.every_recipe) <= set(params.load_recipes())
    with pytest.raises(ValidationError, match="frozen"):
        study.seeds = [7]


def test_a_recipe_that_recipes_yaml_no_longer_has_is_named(write):
    write(recipes=RECIPES.replace("\nfast:\n", "\nfaster:\n"))
    with pytest.raises(InputError) as refused:
        settings.load()
    line = str(refused.value)
    assert line.startswith("study/params.yaml: recipes is 'fast', expected one of: published, ")
    assert line.endswith("; did you mean faster?")


def test_a_mistake_in_recipes_yaml_is_named_before_those_of_the_study(write):
    write(GOOD.replace("seeds: [0,", "seeds: [-1,"), RECIPES.replace("epochs: 20", "epochs: 0", 1))
    with pytest.raises(
        InputError, match=r"^recipes\.yaml: published\.lenet5\.epochs is 0, [^\n]*$"
    ):
        settings.load()


def test_its_own_file_may_not_be_missing_and_that_of_the_pipeline_may(write):
    write()
    assert not Path("params.yaml").exists()
    assert settings.load().validation_size == 10_000
    Path("study/params.yaml").write_text("- a", encoding="utf-8")
    with pytest.raises(InputError, match=r"^study/params\.yaml: [^\n]*$"):
        settings.load()
    Path("study/params.yaml").unlink()
    with pytest.raises(InputError, match=r"^study/params\.yaml: No such file.*project's folder$"):
        settings.load()


def test_a_cell_is_a_file_named_after_its_recipe_model_and_seed():
    assert settings.cell_path("record", "mlp", 3) == Path("study/cells/record-mlp-3.json")
    twin = settings.cell_path("record", "mlp", settings.VALIDATION)
    assert twin == Path("study/cells/record-mlp-validation.json")
    assert (ROOT / twin).is_file()
