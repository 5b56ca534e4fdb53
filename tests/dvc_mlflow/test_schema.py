"""All names in the stores of users stand in one file."""

import re

from test_houses import modules_of, texts

from conftest import ROOT
from dvc_mlflow import schema

NAMES = {name: value for name, value in vars(schema).items() if name.isupper() and name != "RUN"}
# Words of dvc.lock, of the socket's messages and of the command line that are tags elsewhere
OTHER_MEANINGS = {
    "__init__": {"stage", "reason"},
    "__main__": {"project"},
    "content": {"md5"},
    "declared": {"model"},
    "identity": {"md5"},
    "naming": {"model"},
    "process": {"stage", "reason"},
    "projects": {"md5"},
    "results": {"md5"},
}


def test_no_module_but_the_schema_spells_a_name_of_the_store():
    names = "|".join(map(re.escape, {*NAMES.values()}))
    within = rf".*\btags\.`?(?:{names})|out:|mlflow\.(?!store)[a-z]+[A-Z.]"  # a search, a key
    spelled = re.compile(rf"({names})|({within}).*", re.DOTALL)
    wrong = [
        f"{path}:{line}: {text!r}"
        for path in modules_of("dvc_mlflow")
        if (module := path.removeprefix("dvc_mlflow/").removesuffix(".py")) != "schema"
        for line, text in texts(path)
        if spelled.fullmatch(text) and text not in OTHER_MEANINGS.get(module, ())
    ]
    assert wrong == []


def test_no_two_tags_of_a_run_have_the_same_name_and_the_readme_lists_each():
    assert len({*schema.RUN}) == len(schema.RUN)
    table = (ROOT / "dvc_mlflow/README.md").read_text("utf-8").partition("Tags of a run:")[2]
    first = " ".join(line.split("|")[1] for line in table.split("\n\n")[1].splitlines())
    listed = {name.replace("PATH", "") for name in re.findall("`([^`]+)`", first)}
    assert listed == {*schema.RUN}
