"""A mistake in params.yaml or recipes.yaml is one line: the key, its value, the allowed values."""

import io
import itertools
import re
from pathlib import Path

import pytest
from dvc.utils.serialize import load_yaml
from pydantic import ValidationError
from ruamel.yaml import YAML

from conftest import ROOT
from dvc_mlflow.errors import InputError
from stages.base import params, strict

GOOD = (ROOT / "params.yaml").read_text(encoding="utf-8")
RECIPES = (ROOT / "recipes.yaml").read_text(encoding="utf-8")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes params.yaml and recipes.yaml into an empty folder, where they are read."""
    monkeypatch.chdir(tmp_path)

    def both(settings=GOOD, recipes=RECIPES):
        (tmp_path / "params.yaml").write_text(settings, encoding="utf-8")
        (tmp_path / "recipes.yaml").write_text(recipes, encoding="utf-8")

    return both


def assert_refused(line: str) -> None:
    """That this line, or these lines, are in the message, and that it has no further line."""
    with pytest.raises(InputError) as failure:
        params.load()
    message = str(failure.value)
    assert message.startswith(line.split(": ")[0] + ": ")
    assert line in message
    assert message.count("\n") == line.count("\n")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("seed: 0 ", "sed: 0 ", "seed is missing\nerror: params.yaml: sed is not a setting, "
         "expected here: recipe, seed, threads, device, data, registry"),
        ("recipe: published", "recipe: 7", "recipe is 7, expected one of: published, documented,"),
        ("recipe: published", "recipe: [fast]", "recipe is ['fast'], expected one of: published,"),
        ("recipe: published", "recipe:", "recipe is empty, expected one of: published, documented"),
        ("recipe: published", "recipe: publishd",
         "recipe is 'publishd', expected one of: published, documented, "
         "published_without_softmax, fast, record, record_without_distortions, "
         "record_in_20_epochs, record_without_adamw, record_without_schedule, "
         "record_without_decay; did you mean published?"),
        ("recipe: published", "recip: published",
         "recipe is missing, expected one of: published, documented, published_without_softmax, "
         "fast, record, record_without_distortions, record_in_20_epochs, record_without_adamw, "
         "record_without_schedule, record_without_decay\nerror: params.yaml: recip is not a "
         "setting, expected here: recipe, seed, threads, device, data, registry"
         "; did you mean recipe?"),
        ("device: cpu", "device: cudda",
         "device is 'cudda', expected 'cpu' or 'cuda'; did you mean cuda?"),
        ("  sources:\n", "  sources: raw\n  moved:\n",
         "data.sources is 'raw', expected a list of: raw, torchvision, package\nerror: "
         "params.yaml: data.moved is not a setting"),
        ("threads: 1", "threads: 1000", "threads is 1000, expected less than or equal to 64"),
        ("- raw", "- row", "data.sources.0 is 'row', expected 'raw', 'torchvision' or 'package'"),
        ("sources:\n", "sources: []\n  moved:\n",
         "data.sources is [], expected at least 1 item of: raw, torchvision, package\nerror: "
         "params.yaml: data.moved is not a setting"),
        ("validation_size: 0", "validation_size: 9",
         "data.validation_size is 9, expected 0 or at leas"),
        ("registry:\n", "registry: 7\nmoved:\n",
         "registry is 7, expected keys: min_accuracy, max_p\n"
         "error: params.yaml: moved is not a setting"),
        ("seed: 0 ", "seed: 0\nseed: 1 ", 'line 8: found duplicate key "seed"'),
        ("seed: 0 ", "seed: [0 ", "line "),
    ],
)  # fmt: skip
def test_a_mistake_in_params_yaml_is_named_with_the_value_and_the_allowed_ones(
    write, old, new, line
):
    text = GOOD.replace("recipe: documented", "recipe: published")
    assert old in text
    write(text.replace(old, new, 1))
    assert_refused(f"params.yaml: {line}")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("dropout: 0.0", "drop_out: 0.0\n    dropout: 0.0",
         "published.lenet5.drop_out is not a setting, expected here: epochs, batch_size"),
        ("epochs: 20", "epochs: twenty",
         "published.lenet5.epochs is 'twenty', expected a valid in"),
        ("epochs: 20", "epochs: 20.0", "published.lenet5.epochs is 20.0, expected a valid integer"),
        ("epochs: 20", "epochs: true", "published.lenet5.epochs is True, expected a valid integer"),
        ("learning_rate: 0.01", "learning_rate: .nan",
         "published.lenet5.learning_rate is nan, expected a finite"),
        ("learning_rate: 0.01", "learning_rate: '1e-3'",
         "published.lenet5.learning_rate is '1e-3', expected a valid number"),
        ("learning_rate", "lerning_rate",
         "published.lenet5.learning_rate is missing\nerror: recipes.yaml: "
         "published.lenet5.lerning_rate is not a setting, expected here: epochs, "),
        ("optimizer: adamw", "optimizer: adam",
         "record.lenet5.optimizer is 'adam', expected 'sgd' or 'adamw'; did you mean adamw?\n"
         "error: recipes.yaml: record.mlp.optimizer is 'adam', expected 'sgd' or 'adamw'"),
        ("before_loss: true", "before_loss: yes",
         "published.lenet5.softmax_before_loss is 'yes', expected true or false"),
        ("  mlp: *published_mlp", "  other: *published_mlp",
         "published_without_softmax.mlp is missing\nerror: recipes.yaml: "
         "published_without_softmax.other is not a setting, expected here: lenet5, mlp"),
        ("augmentation: null", "augmentation: mild",
         "record_without_distortions.lenet5.augmentation is 'mild', expected keys: rotation, "
         "shift, scale, shear, elastic"),
        ("      shear: 0.1\n", "      sheer: 0.1\n",
         "record.lenet5.augmentation.shear is missing\nerror: recipes.yaml: "
         "record.lenet5.augmentation.sheer is not a setting, expected here: rotation, shift, "
         "scale, shear, elastic; did you mean shear?\nerror: recipes.yaml: "
         "record.mlp.augmentation.shear is missing\nerror: recipes.yaml: "
         "record.mlp.augmentation.sheer is not a setting"),
        ("fast:\n", "plain: fast\nfast:\n", "plain is 'fast', expected keys: lenet5, mlp"),
        ("fast:\n", "plain:\nfast:\n", "plain is empty, expected keys: lenet5, mlp"),
        ("fast:\n", "5: fast\nfast:\n", "5 is 5, expected a valid string\nerror: recipes.yaml: "
         "5 is 'fast', expected keys: lenet5, mlp"),
        ("\nfast:\n", "\nfa-st:\n",
         "fa-st is 'fa-st', expected to match pattern '^[A-Za-z0-9_]+$'"),
        ("*published_mlp", "*publishd_mlp", "line 41: found undefined alias 'publishd_mlp'"),
        ("fast:\n", "published:\n", 'line 44: found duplicate key "published"'),
        ("fast:\n", "fast: [\n", "line "),
    ],
)  # fmt: skip
def test_a_mistake_in_recipes_yaml_is_named_with_the_value_and_the_allowed_ones(
    write, old, new, line
):
    """Only once, if other recipes take the setting over."""
    assert old in RECIPES
    write(recipes=RECIPES.replace(old, new, 1))
    assert_refused(f"recipes.yaml: {line}")


def test_mistakes_in_several_recipes_have_a_line_each(write):
    published, documented = "epochs: 20", "documented:\n  lenet5:\n    epochs: 20"
    recipes = RECIPES.replace(documented, documented.replace("20", "-1"))
    write(recipes=recipes.replace(published, "epochs: 0", 1))
    assert_refused(
        "recipes.yaml: published.lenet5.epochs is 0, expected greater than or equal to 1\n"
        "error: recipes.yaml: documented.lenet5.epochs is -1, expected greater than or equal to 1"
    )


def test_a_mistake_in_recipes_yaml_is_named_before_those_in_params_yaml(write):
    write(GOOD.replace("threads: 1", "threads: 0"), RECIPES.replace("epochs: 20", "epochs: 0", 1))
    assert_refused("recipes.yaml: published.lenet5.epochs is 0, expected greater than")


# The ends of each number: the last one that is allowed, and one beyond it
ENDS = {
    "seed": [(0, -1), (2**32 - 1, 2**32)],
    "threads": [(1, 0), (64, 65)],
    "data.validation_size": [(0, -1), (10, 9), (10, 1), (59_990, 59_991)],
    "data.train_limit": [(0, -1), (60_000, 60_001)],
    "registry.min_accuracy": [(0.0, -1e-9), (1.0, 1 + 1e-9)],
    "registry.max_p": [(0.0, -1e-9), (1.0, 1 + 1e-9)],
    "fast.mlp.epochs": [(1, 0), (10_000, 10_001)],
    "fast.mlp.batch_size": [(1, 0), (8_192, 8_193)],
    "fast.mlp.learning_rate": [(1e-300, 0.0), (1e300, float("inf"))],
    "fast.mlp.momentum": [(0.0, -1e-9), (1 - 1e-9, 1.0)],
    "fast.mlp.weight_decay": [(0.0, -1e-9), (1e300, float("inf"))],
    "fast.mlp.dropout": [(0.0, -1e-9), (1 - 1e-9, 1.0)],
    "fast.mlp.averaging": [(0.0, -1e-9), (1 - 1e-9, 1.0)],
    "taught.mlp.distillation.teachers": [(1, 0), (16, 17)],
    "taught.mlp.distillation.temperature": [(1e-9, 0.0), (1e300, float("inf"))],
    "taught.mlp.distillation.weight": [(0.0, -1e-9), (1.0, 1 + 1e-9)],
    "fast.mlp.augmentation.rotation": [(0.0, -1e-9), (180.0, 180.01)],
    "fast.mlp.augmentation.shift": [(0.0, -1e-9), (32.0, 32.01)],
    "fast.mlp.augmentation.scale": [(0.0, -1e-9), (1 - 1e-9, 1.0)],
    "fast.mlp.augmentation.shear": [(0.0, -1e-9), (1.0, 1.01)],
    "fast.mlp.augmentation.elastic": [(0.0, -1e-9), (32.0, 32.01)],
}


@pytest.mark.parametrize("key", ENDS)
def test_each_number_has_its_ends_and_is_refused_beyond_them(write, key):
    of_a_recipe = key.startswith(("fast.", "taught."))

    def load_with(value: float) -> None:
        content = YAML(typ="safe").load(RECIPES if of_a_recipe else GOOD)
        if key.startswith("taught."):
            taught = {"teachers": 1, "temperature": 2.0, "weight": 0.5}
            recipe = content["documented"]["mlp"]
            distillation = taught | {"recipe": recipe}
            content["taught"] = {"lenet5": recipe, "mlp": recipe | {"distillation": distillation}}
        *sections, last = key.split(".")
        section = content
        for name in sections:
            section = section[name]
        section[last] = value
        stream = io.StringIO()
        YAML(typ="safe").dump(content, stream)
        write(**{"recipes" if of_a_recipe else "settings": stream.getvalue()})
        params.load()

    for taken, refused in ENDS[key]:
        load_with(taken)
        with pytest.raises(InputError, match=re.escape(f"{key} is ") + ".*expected "):
            load_with(refused)


def test_a_recipe_that_leaves_settings_out_is_plain_sgd_at_a_constant_rate():
    settings = {"epochs": 1, "batch_size": 1, "learning_rate": 0.1, "momentum": 0.0, "dropout": 0.0}
    found = params.Recipe(**settings, softmax_before_loss=False)
    assert (found.optimizer, found.schedule, found.weight_decay) == ("sgd", "constant", 0.0)
    assert (found.augmentation, found.averaging, found.distillation) == (None, 0.0, None)


def test_teachers_and_students_answer_in_logits(write):
    teacher = {"epochs": 1, "batch_size": 9, "learning_rate": 0.1, "momentum": 0.0, "dropout": 0.0}
    taught = {"teachers": 1, "temperature": 2.0, "weight": 0.5}
    for of_student, of_teacher, line in (
        (False, True, "fast.mlp.distillation.recipe is .*, expected one with softmax_before_loss:"),
        (True, False, "fast.mlp.distillation is .*, expected null, because softmax_before_loss is"),
        (False, False, None),
    ):
        content = YAML(typ="safe").load(RECIPES)
        recipe = teacher | {"softmax_before_loss": of_teacher}
        content["fast"]["mlp"] |= {"distillation": taught | {"recipe": recipe}}
        content["fast"]["mlp"]["softmax_before_loss"] = of_student
        stream = io.StringIO()
        YAML(typ="safe").dump(content, stream)
        write(recipes=stream.getvalue())
        if line is None:
            assert params.load().recipes["fast"].mlp.distillation.recipe.batch_size == 9
            continue
        with pytest.raises(InputError, match=line):
            params.load()


def test_settings_cannot_be_changed_once_they_are_checked(write):
    write()
    found = params.load()
    recipe = found.of_model("mlp")
    for section, name in ((found, "seed"), (found.data, "train_limit"), (recipe, "epochs")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, 1)


def test_each_model_gets_its_own_settings_of_the_selected_recipe(write):
    write(GOOD.replace("recipe: documented", "recipe: record"))
    found = params.load()
    assert found.of_model("mlp") == found.recipes["record"].mlp
    assert found.of_model("lenet5") == found.recipes["record"].lenet5
    assert found.of_model("mlp") != found.of_model("lenet5")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (repr("x" * 58), "'" + "x" * 58 + "'"),
        (repr("x" * 59), "'" + "x" * 56 + "..."),
        ("''", "''"),
        ("\"''\"", "\"''\""),
        (str(10**70), "1" + "0" * 56 + "..."),
        ("[[[]]]", "[[[]]]"),
        ("[[[[1]]]]", "[[[[...]]]]"),
    ],
)
def test_a_value_is_shown_to_60_letters_and_to_its_third_level(write, value, shown):
    write(GOOD.replace("device: cpu ", f"device: {value} "))
    with pytest.raises(InputError, match=re.escape(f"device is {shown}, expected")):
        params.load()


def test_train_limit_and_validation_share_the_60000(write):
    both = GOOD.replace("validation_size: 0", "validation_size: 10000")
    write(both.replace("train_limit: 0", "train_limit: 50000"))
    params.load()
    write(both.replace("train_limit: 0", "train_limit: 50001"))
    with pytest.raises(InputError, match="train_limit is 50001, expected at most 50000"):
        params.load()


WRONG = ["", "just a word", "- a\n- b", "\x00"]


@pytest.mark.parametrize(
    ("text", "file"),
    [*itertools.product(WRONG, ["params.yaml", "recipes.yaml"]), ("[" * 2_000, "params.yaml")],
)
def test_a_file_that_is_not_a_mapping_is_refused(write, text, file):
    write(**{"settings" if file == "params.yaml" else "recipes": text})
    with pytest.raises(InputError, match=rf"^{re.escape(file)}: [^\n]*$"):
        params.load()


@pytest.mark.parametrize("file", ["params.yaml", "recipes.yaml"])
def test_a_missing_file_is_named(write, file):
    write()
    Path(file).unlink()
    with pytest.raises(InputError, match=rf"^{re.escape(file)}: No such file.*project's folder"):
        params.load()


def test_yaml_is_read_as_dvc_reads_it(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a: 1e-3\nb: 010\nc: no\nd: 1_000\ne: 12:30\n", encoding="utf-8")
    assert strict.read(path) == load_yaml(path)
    assert strict.read(path)["a"] == 0.001
    assert strict.read(path)["c"] == "no"


def test_the_recipes_are_read_as_dvc_reads_them(write):
    """With all that one recipe takes over from another."""
    write()
    by_dvc = load_yaml("recipes.yaml")
    assert {name: recipe.model_dump(exclude_unset=True)
            for name, recipe in params.load_recipes().items()} == by_dvc  # fmt: skip
    assert params.load().recipes == params.load_recipes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "not named"), (["resnet"], "resnet"), (["mlp", "mlp"], "mlp mlp"), (["MLP"], "MLP")],
)
def test_only_the_name_of_one_model_is_taken(arguments, said):
    assert [params.model_name([name]) for name in params.MODEL_NAMES] == ["lenet5", "mlp"]
    with pytest.raises(InputError, match=f"^model is {said}, expected one of: lenet5, mlp$"):
        params.model_name(arguments)
