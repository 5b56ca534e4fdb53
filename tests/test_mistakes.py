"""A mistake in a file of settings is one line: the file, the key, its value, the allowed values."""

import io
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from conftest import ROOT
from dvc_kit.errors import InputError
from stages.base import params
from study import design, settings

TABLE = YAML(typ="safe").load(ROOT / "tests/mistakes.yaml")
LOADERS = {
    "params.yaml": params.load,
    "recipes.yaml": params.load,
    "study/params.yaml": settings.load,
    "study/search.yaml": design.load,
}
# No recipe of the project has teachers
TAUGHT = """
taught:
  lenet5: *published_lenet5
  mlp: {<<: *published_mlp, distillation:
    {recipe: *published_mlp, teachers: 1, temperature: 2.0, weight: 0.5}}
"""


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A folder with the project's settings, all of which can be read."""
    monkeypatch.chdir(tmp_path)
    Path("study").mkdir()
    for file in LOADERS:
        text = (ROOT / file).read_text(encoding="utf-8")
        Path(file).write_text(text + TAUGHT * (file == "recipes.yaml"), encoding="utf-8")


def named(mistake):
    return " and ".join(f"{file} {new!s:.40}" for file, _, new in mistake["edits"])


@pytest.mark.parametrize("mistake", TABLE["mistakes"], ids=named)
def test_a_mistake_is_told_in_one_line_with_its_place_and_its_cure(mistake):
    for file, old, new in mistake["edits"]:
        text = Path(file).read_text(encoding="utf-8")
        assert old is None or old in text
        if new is None:
            Path(file).unlink()
        else:
            Path(file).write_text(text.replace(old or text, new, 1), encoding="utf-8")
    with pytest.raises(InputError) as refused:
        LOADERS[mistake.get("loader", mistake["edits"][0][0])]()
    lines = str(refused.value).split("\nerror: ")
    assert len(lines) == len(mistake["says"])
    for line, said in zip(lines, mistake["says"], strict=True):
        assert re.match(re.escape(said).replace(r"\ \.\.\ ", ".*"), line), line


ENDS = [(file, key) for file, keys in TABLE["ends"].items() for key in keys]


@pytest.mark.parametrize(("file", "key"), ENDS)
def test_each_number_has_its_ends_and_is_refused_beyond_them(file, key):
    def load_with(value):
        content = YAML(typ="safe").load(Path(file).read_text(encoding="utf-8"))
        if file == "study/params.yaml":
            content["ablation_seeds"] = [4]
        *sections, last = [int(part) if part.isdecimal() else part for part in key.split(".")]
        section = content
        for name in sections:
            section = section[name]
        section[last] = value
        stream = io.StringIO()
        YAML(typ="safe").dump(content, stream)
        Path(file).write_text(stream.getvalue(), encoding="utf-8")
        LOADERS[file]()

    for taken, refused in TABLE["ends"][file][key]:
        load_with(taken)
        with pytest.raises(InputError, match=rf"^{file}: {re.escape(key)} is [^\n]*expected "):
            load_with(refused)
        load_with(taken)
