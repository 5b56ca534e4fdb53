"""A mistake in params.yaml is one line that names the key, what was found and what is allowed."""

import io
import re

import pytest
from dvc.utils.serialize import load_yaml
from pydantic import ValidationError
from ruamel.yaml import YAML

from conftest import ROOT
from stages import params
from stages.errors import InputError

GOOD = (ROOT / "params.yaml").read_text(encoding="utf-8")


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda text: (tmp_path / "params.yaml").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "seed: 0 ",
            "sed: 0 ",
            "seed is missing\nerror: params.yaml: sed is not a setting, "
            "expected here: seed, threads, device, data, registry, study, recipe, recipes",
        ),
        (
            "device: cpu",
            "arithmetic: fast\ndevice: cpu",
            "arithmetic is not a setting, expected here: seed, threads, device, data, registry",
        ),
        (
            "dropout: 0.0",
            "drop_out: 0.0\n      dropout: 0.0",
            "recipes.published.lenet5.drop_out is not a setting, expected here: epochs, batch_size",
        ),
        ("epochs: 20", "epochs: twenty", "lenet5.epochs is 'twenty', expected a valid integer"),
        ("epochs: 20", "epochs: 20.0", "lenet5.epochs is 20.0, expected a valid integer"),
        ("epochs: 20", "epochs: true", "lenet5.epochs is True, expected a valid integer"),
        ("epochs: 20", "epochs: 0", "lenet5.epochs is 0, expected greater than or equal to 1"),
        ("learning_rate: 0.01", "learning_rate: .nan", "learning_rate is nan, expected a finite"),
        ("learning_rate: 0.01", "learning_rate: -.01", "is -0.01, expected greater than 0"),
        ("learning_rate: 0.01", "learning_rate: '1e-3'", "is '1e-3', expected a valid number"),
        ("dropout: 0.0", "dropout: 1.0", "dropout is 1.0, expected less than 1"),
        ("recipe: published", "recipe: best", "recipe is 'best', expected one of: published, docu"),
        ("recipe: published", "recipe: 7", "recipe is 7, expected one of: published, documented,"),
        ("recipe: published", "recipe: [fast]", "recipe is ['fast'], expected one of: published,"),
        ("recipe: published", "recipe:", "recipe is empty, expected one of: published, documented"),
        ("recipe: published", "recipe: publishd", "decay; did you mean published?"),
        (
            "recipe: published",
            "recip: published",
            "recipe is missing, expected one of: published, documented, published_without_softmax, "
            "fast, record, record_without_distortions, record_in_20_epochs, record_without_adamw, "
            "record_without_schedule, record_without_decay\nerror: params.yaml: recip is not a "
            "setting, expected here: seed, threads, device, data, registry, study, recipe, recipes"
            "; did you mean recipe?",
        ),
        (
            "learning_rate",
            "lerning_rate",
            "recipes.published.lenet5.learning_rate is missing\nerror: params.yaml: "
            "recipes.published.lenet5.lerning_rate is not a setting, expected here: epochs, ",
        ),
        ("device: cpu", "device: 0", "device is 0, expected 'cpu' or 'cuda'"),
        ("device: cpu", "device: cudda", "expected 'cpu' or 'cuda'; did you mean cuda?"),
        (
            "optimizer: adamw",
            "optimizer: adam",
            "fast.lenet5.optimizer is 'adam', expected 'sgd' or 'adamw'; did you mean adamw?\n"
            "error: params.yaml: recipes.fast.mlp.optimizer is 'adam', expected 'sgd' or 'adamw'",
        ),
        ("before_loss: true", "before_loss: yes", "before_loss is 'yes', expected true or false"),
        ("recipes: [published,", "recipes: [7,", "study.recipes.0 is 7, expected one of: publishe"),
        (
            "  sources:\n",
            "  sources: raw\n  moved:\n",
            "data.sources is 'raw', expected a list of: raw, torchvision, package\nerror: "
            "params.yaml: data.moved is not a setting",
        ),
        ("threads: 1", "threads: 0", "threads is 0, expected greater than or equal to 1"),
        ("threads: 1", "threads: 1000", "threads is 1000, expected less than or equal to 64"),
        ("- raw", "- row", "data.sources.0 is 'row', expected 'raw', 'torchvision' or 'package'"),
        (
            "sources:\n",
            "sources: []\n  moved:\n",
            "data.sources is [], expected at least 1 item of: raw, torchvision, package\nerror: "
            "params.yaml: data.moved is not a setting",
        ),
        ("validation_size: 0", "validation_size: 60000", "data.validation_size is 60000, expected"),
        ("validation_size: 0", "validation_size: 9", "validation_size is 9, expected 0 or at leas"),
        ("train_limit: 0", "train_limit: 60001", "data.train_limit is 60001, expected less than"),
        ("seeds: [0, 1,", "seeds: [0, 1, 1,", "study.seeds has 1 more than once"),
        ("seeds: [0, 1, 2, 3, 4]", "seeds: []", "study.seeds is [], expected at least 1 item"),
        (
            "recipes: [published,",
            "recipes: [publish,",
            "study.recipes is 'publish', expected one o",
        ),
        (
            "recipes: [published,",
            "recipes: [documented, published,",
            "study.recipes has documented more than once",
        ),
        (
            "  - record_in_20_epochs\n",
            "  - fast\n",
            "study.recipes and study.ablations has fast more than once",
        ),
        (
            "  - record_in_20_epochs\n",
            "  - record_in_no_time\n",
            "study.ablations is 'record_in_no_time', expected one of: publ",
        ),
        (
            "  - [record, doc",
            "  - [record, duc",
            "study.differences has 'ducumented', expected two",
        ),
        (
            "    mlp: *published_mlp",
            "    other: *published_mlp",
            "recipes.published_without_softmax.mlp is missing\nerror: params.yaml: "
            "recipes.published_without_softmax.other is not a setting",
        ),
        ("seed: 0 ", "seed: 0\nseed: 1 ", 'line 4: found duplicate key "seed"'),
        ("seed: 0 ", "seed: [0 ", "line "),
    ],
)
def test_a_mistake_is_named_with_what_was_found_and_is_allowed(write, old, new, line):
    assert old in GOOD.replace("recipe: documented", "recipe: published")
    write(GOOD.replace("recipe: documented", "recipe: published").replace(old, new, 1))
    with pytest.raises(InputError) as failure:
        params.load()
    message = str(failure.value)
    assert message.startswith("params.yaml: ")
    assert line in message
    assert message.count("\n") == line.count("\n")


# Of each setting that is a number, the least and the largest that are taken, and what is next to
# them and refused; None where there is no such end
ENDS = {
    "seed": [(0, -1), (2**32 - 1, 2**32)],
    "threads": [(1, 0), (64, 65)],
    "data.validation_size": [(0, -1), (59_990, 59_991)],
    "data.train_limit": [(0, -1), (60_000, 60_001)],
    "registry.min_accuracy": [(0.0, -1e-9), (1.0, 1 + 1e-9)],
    "registry.max_p": [(0.0, -1e-9), (1.0, 1 + 1e-9)],
    "study.validation_size": [(10, 9), (59_990, 59_991)],
    "study.seeds.0": [(5, -1), (2**32 - 1, 2**32)],
    "recipes.fast.mlp.epochs": [(1, 0), (10_000, 10_001)],
    "recipes.fast.mlp.batch_size": [(1, 0), (8_192, 8_193)],
    "recipes.fast.mlp.learning_rate": [(1e-300, 0.0), (1e300, float("inf"))],
    "recipes.fast.mlp.momentum": [(0.0, -1e-9), (1 - 1e-9, 1.0)],
    "recipes.fast.mlp.weight_decay": [(0.0, -1e-9), (1e300, float("inf"))],
    "recipes.fast.mlp.dropout": [(0.0, -1e-9), (1 - 1e-9, 1.0)],
    "recipes.fast.mlp.augmentation.rotation": [(0.0, -1e-9), (180.0, 180.01)],
    "recipes.fast.mlp.augmentation.shift": [(0.0, -1e-9), (32.0, 32.01)],
    "recipes.fast.mlp.augmentation.scale": [(0.0, -1e-9), (1 - 1e-9, 1.0)],
    "recipes.fast.mlp.augmentation.shear": [(0.0, -1e-9), (1.0, 1.01)],
    "recipes.fast.mlp.augmentation.elastic": [(0.0, -1e-9), (32.0, 32.01)],
}


@pytest.mark.parametrize("key", ENDS)
def test_each_number_has_its_ends_and_is_refused_beyond_them(write, key):
    def load_with(value: float) -> None:
        content = YAML(typ="safe").load(GOOD)
        *sections, last = key.split(".")
        section = content
        for name in sections:
            section = section[name]
        section[int(last) if last.isdecimal() else last] = value
        stream = io.StringIO()
        YAML(typ="safe").dump(content, stream)
        write(stream.getvalue())
        params.load()

    for taken, refused in ENDS[key]:
        load_with(taken)
        with pytest.raises(InputError, match=re.escape(f"{key} is ") + ".*expected "):
            load_with(refused)


def test_what_a_recipe_leaves_out_is_plain_sgd_at_a_constant_rate():
    settings = {"epochs": 1, "batch_size": 1, "learning_rate": 0.1, "momentum": 0.0, "dropout": 0.0}
    found = params.Recipe(**settings, softmax_before_loss=False)
    assert (found.optimizer, found.schedule, found.weight_decay) == ("sgd", "constant", 0.0)
    assert found.augmentation is None


def test_settings_cannot_be_changed_once_they_are_checked(write):
    write(GOOD)
    found = params.load()
    for section, name in ((found, "seed"), (found.data, "train_limit")):
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
        ("x" * 58, "'" + "x" * 58 + "'"),
        ("x" * 59, "'" + "x" * 56 + "..."),
        ("", "''"),
        ("''", "''"),
        (10**70, "1" + "0" * 56 + "..."),
    ],
)
def test_a_long_value_is_cut_to_60_letters(write, value, shown):
    write(GOOD.replace("device: cpu ", f"device: {value!r} "))
    with pytest.raises(InputError) as refused:
        params.load()
    if value == "''":
        shown = '"' + value + '"'
    assert f"device is {shown}, expected" in str(refused.value)


def test_a_difference_is_between_two_recipes(write):
    for count, said in ((1, "at least 2 items of: published, "), (3, "have at most 2 items")):
        pair = ", ".join(["record"] * count)
        write(GOOD.replace("  - [record, documented]", f"  - [{pair}]"))
        with pytest.raises(InputError, match=rf"study\.differences\.4 is .*{said}"):
            params.load()


def test_train_limit_and_validation_share_the_60000(write):
    both = GOOD.replace("validation_size: 0", "validation_size: 10000")
    write(both.replace("train_limit: 0", "train_limit: 50000"))
    params.load()
    write(both.replace("train_limit: 0", "train_limit: 50001"))
    with pytest.raises(InputError, match="train_limit is 50001, expected at most 50000"):
        params.load()


@pytest.mark.parametrize(("size", "taken"), [(0, True), (1, False), (9, False), (10, True)])
def test_images_are_held_out_of_each_digit_or_not_at_all(write, size, taken):
    write(GOOD.replace("  validation_size: 0 ", f"  validation_size: {size} "))
    if taken:
        assert params.load().data.validation_size == size
    else:
        with pytest.raises(InputError, match=f"validation_size is {size}, expected 0 or at least"):
            params.load()


def test_a_nested_value_is_shown_to_its_third_level(write):
    for value, shown in (("[[[]]]", "[[[]]]"), ("[[[[1]]]]", "[[[[...]]]]")):
        write(GOOD.replace("device: cpu ", f"device: {value} "))
        with pytest.raises(InputError, match=re.escape(f"device is {shown}, expected")):
            params.load()


@pytest.mark.parametrize("text", ["", "just a word", "- a\n- b", "\x00", "[" * 100_000])
def test_what_is_no_mapping_is_refused(write, text):
    write(text)
    with pytest.raises(InputError, match=r"params\.yaml: "):
        params.load()


def test_a_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"No such file.*project's folder"):
        params.load()


def test_yaml_is_read_as_dvc_reads_it(write, tmp_path):
    write("a: 1e-3\nb: 010\nc: no\nd: 1_000\ne: 12:30\n")
    assert params.read() == load_yaml(tmp_path / "params.yaml")
    assert params.read()["a"] == 0.001
    assert params.read()["c"] == "no"


def test_nested_settings_are_flattened_for_mlflow():
    assert params.flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": 3}) == {
        "a.b": 1,
        "a.c.d": [2],
        "e": 3,
    }
